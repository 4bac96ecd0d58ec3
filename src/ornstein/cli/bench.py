"""`ornstein bench`: how fast a run samples, by solver, steps, batch and precision, and where the time goes."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from torch import nn

from ornstein import checkpoint
from ornstein.cli.command import console, progress
from ornstein.compiling import cache_folder, compile_network
from ornstein.denoiser import Denoiser
from ornstein.devices import choose_precision
from ornstein.errors import UserError
from ornstein.sampling import sample
from ornstein.solvers import SOLVER, SOLVERS, Counted
from ornstein.wrapper import device_of


@dataclass(frozen=True)
class Timing:
    """Of one sampling: seconds in all, seconds inside the network, and calls of it."""

    total: float
    network: float
    calls: int

    @property
    def outside(self) -> float:
        """The share of the time spent outside the network."""
        return 1 - self.network / self.total


def bench(
    run: Annotated[Path, typer.Argument(help="The run folder of a trained model.")],
    solvers: Annotated[str, typer.Option(help="Names with commas between.")] = f"ddim,{SOLVER}",
    steps: Annotated[str, typer.Option(help="Numbers of steps.")] = "10",
    batch: Annotated[str, typer.Option(help="Numbers of samples at once.")] = "1,32",
    precision: Annotated[str, typer.Option(help="Of float32, bf16 and auto.")] = "float32,auto",
    repeats: Annotated[int, typer.Option(help="Runs of each; the median is told.", min=1)] = 3,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Compile the network first; tells how long it took.")
    ] = False,
) -> None:
    """Images a second, milliseconds an evaluation, and the share of the time spent outside the network.

    Example: ornstein bench runs/photos --solvers ddim,unipc --steps 10,20 --batch 32
    """
    names = solvers.split(",")
    for name in names:
        if name not in SOLVERS:
            raise UserError(f"unknown solver {name!r}; known: {', '.join(SOLVERS)}")
    step_counts, batches = _numbers("--steps", steps), _numbers("--batch", batch)
    denoiser = checkpoint.load(run)
    if denoiser.data is None:
        raise UserError(f"{run} does not say what its samples look like; train it with `ornstein train`")
    if torch.cuda.is_available():
        denoiser.to("cuda")
    device = device_of(denoiser)
    precisions = list({choose_precision(p, device): p for p in reversed(precision.split(","))}.values())[::-1]
    if compile_:
        shapes = [(b, choose_precision(p, device)) for b in batches for p in precisions]
        seconds = compile_network(denoiser, lambda: [timed(denoiser, "ddim", 1, b, dtype) for b, dtype in shapes])
        console.print(f"compiled in {seconds:.1f} s; what was compiled is kept in {cache_folder()}")
    table = Table()
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("solver", "precision") else "right")
    cases = [Case(*case) for case in itertools.product(names, step_counts, batches, precisions)]
    with progress("cases", transient=True) as bar:
        task = bar.add_task("timing", total=len(cases), note="")
        for row in rows(denoiser, cases, repeats):
            table.add_row(*row)
            bar.update(task, advance=1, note=f"{row[0]}, {row[1]} steps, batch {row[2]}")
    console.print(
        f"{run}: {denoiser.data.shape}, torch {torch.__version__}, {device}, {torch.get_num_threads()} threads"
    )
    console.print(table)


@dataclass(frozen=True)
class Case:
    """What is timed: a solver of so many steps, on so many samples at once, in a precision."""

    solver: str
    steps: int
    batch: int
    precision: str


COLUMNS = ("solver", "steps", "batch", "precision", "images/s", "ms an evaluation", "outside the network")


def rows(denoiser: Denoiser, cases: Sequence[Case], repeats: int) -> Iterator[tuple[str, ...]]:
    """The `COLUMNS` of each case, by the median of `repeats` samplings."""
    for case in cases:
        dtype = choose_precision(case.precision, device_of(denoiser))
        timings = [timed(denoiser, case.solver, case.steps, case.batch, dtype) for _ in range(repeats + 1)][1:]
        middle = statistics.median(t.total for t in timings)
        yield (
            *(case.solver, str(case.steps), str(case.batch), "float32" if dtype is None else "bf16"),
            *(f"{case.batch / middle:.3g}", f"{1000 * middle / timings[0].calls:.2f}"),
            f"{statistics.median(t.outside for t in timings):.1%}",
        )


class _Clocked(nn.Module):
    """A network that adds up the seconds inside it. It stands around one that may be compiled, where a hook cannot."""

    def __init__(self, net: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.net, self.device, self.seconds = net, device, 0.0

    def forward(self, *arguments: Any, **cond: Any) -> Any:
        start = _now(self.device)
        out = self.net(*arguments, **cond)
        self.seconds += _now(self.device) - start
        return out


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(denoiser: Denoiser, solver: str, steps: int, batch: int, dtype: torch.dtype | None = None) -> Timing:
    """One sampling of `batch` samples, start and noise included."""
    assert denoiser.data is not None
    device, net, counted = device_of(denoiser), denoiser.net, Counted(denoiser)
    clocked = denoiser.net = _Clocked(net, device)
    try:
        start = _now(device)
        cond = {"label": denoiser.data.labels(batch)}
        sample(counted, (batch, *denoiser.data.shape), solver, steps, cond=cond, precision=dtype)
        return Timing(_now(device) - start, clocked.seconds, counted.calls)
    finally:
        denoiser.net = net


def _numbers(option: str, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} takes numbers with commas between, such as 1,32; got {text!r}") from None
    if min(numbers) < 1:
        raise UserError(f"{option} takes numbers from 1 up, got {text!r}")
    return numbers

"""`ornstein bench`: how fast a run samples, by solver, steps, batch and precision, and where the time goes."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import typer
from rich.table import Table
from torch import nn

from ornstein import checkpoint
from ornstein.compiling import cache_folder, compile_network
from ornstein.denoiser import Denoiser
from ornstein.devices import choose_device, choose_precision
from ornstein.errors import UserError
from ornstein.evaluation.facts import device_text
from ornstein.evaluation.settings import Bench
from ornstein.progress import cell, console, progress, say, silenced
from ornstein.sampling import sample
from ornstein.solvers import Counted
from ornstein.wrapper import device_of

__all__ = ["Case", "Result", "Timing", "bench", "measured", "timed"]

_NAMES = {None: "float32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Timing:
    """The time of one sampling: seconds in all, seconds inside the network, and calls of it."""

    total: float
    network: float
    calls: int

    @property
    def outside(self) -> float:
        """The share of the time spent outside the network."""
        return 1 - self.network / self.total


@dataclass(frozen=True)
class Case:
    """What is timed: a solver, its steps, samples at once, and a precision of `ornstein.devices.PRECISIONS`."""

    solver: str
    steps: int
    batch: int
    precision: str


@dataclass(frozen=True)
class Result:
    """The median time of a case; its fields are the columns of the table and the keys of the JSON.

    outside: the share of the time that is spent outside the network.
    """

    solver: str
    steps: int
    batch: int
    precision: str
    images_per_second: float
    ms_per_evaluation: float
    outside: float

    def row(self) -> tuple[str, ...]:
        """The cells of the table."""
        return (
            *(self.solver, str(self.steps), str(self.batch), self.precision),
            *(f"{self.images_per_second:.3g}", f"{self.ms_per_evaluation:.2f}", f"{self.outside:.1%}"),
        )


COLUMNS = ("solver", "steps", "batch", "precision", "images/s", "ms per evaluation", "outside the network")


def bench(asked: Bench, given: frozenset[str]) -> None:
    """Time the sampling of a run as `asked`."""
    with silenced(asked.json):
        record = _bench(asked)
    if asked.json:
        typer.echo(json.dumps(record, indent=1))


def _bench(asked: Bench) -> dict[str, Any]:
    """Print the table of all cases, and return what --json prints."""
    denoiser: Any = checkpoint.load(asked.run, trust_sizes=asked.trust_sizes)
    if getattr(denoiser, "takes_text", False):
        denoiser = denoiser.prompted([""])
    if denoiser.data is None:
        raise UserError(f"{asked.run} does not say what its samples look like; train it with `ornstein train`")
    device = choose_device(asked.device)
    denoiser.to(device)
    # one of each dtype: "auto" may be the same as another
    precisions = list({choose_precision(p, device): p for p in reversed(asked.precision)}.values())[::-1]
    compiled = None
    if asked.compile:
        shapes = [(b, choose_precision(p, device)) for b in asked.batch for p in precisions]
        compiled = compile_network(denoiser, lambda: [timed(denoiser, "ddim", 1, b, dtype) for b, dtype in shapes])
        say(f"compiled in {compiled:.1f} s; the compiled code is kept in {cache_folder()}")
    table = Table()
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("solver", "precision") else "right")
    cases = [Case(*case) for case in itertools.product(asked.solvers, asked.steps, asked.batch, precisions)]
    results = []
    with progress("cases", transient=True) as bar:
        task = bar.add_task("timing", total=len(cases), note="")
        for result in measured(denoiser, cases, asked.repeats):
            results.append(result)
            table.add_row(*map(cell, result.row()))
            bar.update(task, advance=1, note=f"{result.solver}, {result.steps} steps, batch {result.batch}")
    say(f"{asked.run}: samples of {tuple(denoiser.data.shape)}, PyTorch {torch.__version__}, {device_text(device)}")
    console.print(table)
    return {
        "run": str(asked.run),
        "shape": list(denoiser.data.shape),
        "device": device_text(device),
        "torch": torch.__version__,
        "compile_seconds": compiled,
        "results": [asdict(result) for result in results],
    }


def measured(denoiser: Denoiser, cases: Sequence[Case], repeats: int) -> Iterator[Result]:
    """The result of each case, by the median of `repeats` samplings after a first one."""
    for case in cases:
        dtype = choose_precision(case.precision, device_of(denoiser))
        timings = [timed(denoiser, case.solver, case.steps, case.batch, dtype) for _ in range(repeats + 1)][1:]
        middle = statistics.median(t.total for t in timings)
        yield Result(
            solver=case.solver,
            steps=case.steps,
            batch=case.batch,
            precision=_NAMES[dtype],
            images_per_second=case.batch / middle,
            ms_per_evaluation=1000 * middle / timings[0].calls,
            outside=statistics.median(t.outside for t in timings),
        )


class _Clocked(nn.Module):
    """A network that adds up the seconds inside it.

    It stands around the network, since a compiled one has no hooks.
    """

    def __init__(self, net: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.net, self.device, self.seconds = net, device, 0.0

    def forward(self, *arguments: Any, **cond: Any) -> Any:
        start = _now(self.device)
        out = self.net(*arguments, **cond)
        self.seconds += _now(self.device) - start
        return out


def _now(device: torch.device) -> float:
    """Seconds, after the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def timed(denoiser: Denoiser, solver: str, steps: int, batch: int, dtype: torch.dtype | None = None) -> Timing:
    """Time one sampling of `batch` samples, including the noise it starts from."""
    assert denoiser.data is not None
    device, net, counted = device_of(denoiser), denoiser.net, Counted(denoiser)
    clocked = denoiser.net = _Clocked(net, device)
    labels = denoiser.data.labels(batch)
    try:
        start = _now(device)
        cond = {"label": None if labels is None else labels.to(device)}
        sample(counted, (batch, *denoiser.data.shape), solver, steps, cond=cond, precision=dtype)
        return Timing(_now(device) - start, clocked.seconds, counted.calls)
    finally:
        denoiser.net = net

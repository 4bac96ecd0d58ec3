"""End-point errors at few evaluations: ours, tuned, chosen and plain, beside diffusers, azula and skrample.

    python benchmarks/solvers.py [--model RUN ...] [--steps 5,8,10,20] [--trajectories 64]

All start from the same noise and ask the same network (or exact denoiser of a mixture) at exactly the levels that they
name; the error is the root mean square distance to the fine solution of the probability-flow ODE from there. Every
sampler of `peers.py` is tried on two of the trajectories, the best of each library on eight, and the best of these on
all. A tuned solver learns from other noise than it is tested on, and so does the choice of an untuned one; a RUN shows
what it has of both (`ornstein tune RUN --steps 5,8,10`, `ornstein train`). azula and skrample are compared with where
they are installed.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import cast

import torch
from peers import CHAIN, azula_peers, diffusers_peers, skrample_peers
from rich.console import Console
from tables import Table, number
from torch import Tensor

import ornstein as orn
from ornstein import checkpoint
from ornstein.denoiser import Denoises
from ornstein.few_steps import tuning
from ornstein.few_steps.tuning import Trajectories
from ornstein.oracles import GaussianMixture
from ornstein.randomness import normal
from ornstein.solvers import SOLVER, SOLVERS, Tuned, grids
from ornstein.solvers.grids import GRID

OURS = ("flow-3m", "dpmpp-2m", "dpmpp-3m", "unipc", "deis", "ipndm", "ddim")
STAGES = (24, 8)  # how many of a library go on after each part of the trajectories
LIBRARIES = ("diffusers", "azula", "skrample")
MOST_TUNED = 10  # steps; with more there is little to gain
_FEW = (2, 8)  # trajectories of the first parts

Run = Callable[[Denoises, Tensor], Tensor]


def rms(parts: list[tuple[Tensor, Tensor]]) -> float:
    value = math.sqrt(sum(float((a - b).double().square().sum()) for a, b in parts) / sum(b.numel() for _, b in parts))
    return value if math.isfinite(value) else math.inf


def best(runs: Iterable[tuple[str, Run]], test: Trajectories) -> tuple[str, float] | None:
    """The one that ends nearest to the fine solutions: all on the first part of `test`, fewer on more of its parts."""

    def error(run: Run, parts: Trajectories) -> float:
        with torch.no_grad():
            return rms([(run(d, x), end) for d, x, end in parts])

    left = list(runs)
    for i, count in enumerate(STAGES, 1):
        left = sorted(left, key=lambda named, i=i: error(named[1], test[:i]))[:count] if i < len(test) else left
    last = [(error(run, test), name) for name, run in left]
    return (min(last)[1], min(last)[0]) if last else None


def ours(name: str, grid: str, steps: int) -> Run:
    """One of our solvers on one of our grids."""

    def run(d: Denoises, x: Tensor) -> Tensor:
        times = grids.make(grid, d.process.schedule, (1.0, 0.0), steps)
        return list(SOLVERS[name](d, x, times, _none))[-1]

    return run


Find = Callable[[int], Tuned | None]


def compare(title: str, test: Trajectories, tuned_of: Find, chosen_of: Find, counts: list[int]) -> list[Table]:
    """Two tables of a problem: against the best of theirs, and our own solvers and grids among themselves."""
    schedule = test[0][0].process.schedule
    against = Table(
        title,
        ["evaluations", *_with_names(*LIBRARIES), *_with_ratios(SOLVER, "chosen", "tuned")],
        note="The error of the best of all their samplers and grids, of our default, of the solver chosen for the "
        "model and of the tuned one; the ratios are to the best of these libraries.",
    )
    own = Table(f"{title}: untuned, by solver and grid", ["solver", "grid", *map(str, counts)])
    for steps in counts:
        libraries = [list(diffusers_peers(schedule)), list(azula_peers()), list(skrample_peers(schedule))]
        runs = [[(p.name, lambda d, x, p=p, n=steps: p(d, x, n)) for p in peers] for peers in libraries]
        theirs = [best(r, test) for r in runs]
        default = best([("", ours(SOLVER, GRID, steps))], test)
        assert default is not None
        least = min(found[1] for found in theirs if found)
        found = [None if t is None else tuning.judged(t, test).error for t in (chosen_of(steps), tuned_of(steps))]
        errors = [x for e in (default[1], *found) for x in (("-", "-") if e is None else (e, e / least))]
        peers = [cell for named in theirs for cell in ((named[1], named[0]) if named else ("-", "not installed"))]
        against.add(str(steps), *peers, *errors)
        Console(stderr=True, width=200).print(" ".join(against.rows[-1]))
    names = [g for g in ("logistic", "karras", "log-snr", "uniform") if g == GRID or not schedule.zero_terminal_snr]
    for name, grid in [*((SOLVER, g) for g in names), *((n, GRID) for n in OURS if n != SOLVER)]:
        with torch.no_grad():
            errors = [rms([(ours(name, grid, n)(d, x), end) for d, x, end in test]) for n in counts]
        own.add(name, grid, *map(number, errors))
    return [against, own]


def _with_names(*names: str) -> list[str]:
    return [column for name in names for column in (f"best of {name}", "")]


def _with_ratios(*names: str) -> list[str]:
    return [column for name in names for column in (name, "ratio")]


def _none(step: int, draw: int = 0) -> Tensor:
    raise AssertionError("these solvers are deterministic")


def mixture_trajectories(p: orn.Process, first: int, count: int) -> Trajectories:
    """Of three components in three dimensions, whose covariances do not commute; the first parts are small ones."""
    roots = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covs = 0.1 * roots @ roots.mT + 0.03 * torch.eye(3, dtype=torch.float64)
    data = GaussianMixture([0.5, 0.3, 0.2], [[1.0, -0.5, 0.2], [-1.0, 0.4, 1.0], [0.3, 1.0, -1.2]], covs)
    d = cast(Denoises, data.denoiser(p))
    z = normal((count, 3), 0, torch.arange(first, first + count), 0, dtype=torch.float64)
    x = p.prior((count, 3), dtype=torch.float64).sample(z)
    end = tuning.fine(d, x, 400)
    parts = [slice(a, b) for a, b in pairwise((0, *(min(count, 16 * few) for few in _FEW), count)) if a < b]
    return [(d, x[rows], end[rows]) for rows in parts]


def mixtures(counts: list[int], trajectories: int, iterations: int) -> list[Table]:
    """On the 1000-step linear chain, under white and under AR(1) noise."""
    tables = []
    for name, noise in (("white noise", orn.noise.Identity()), ("AR(1) noise, ρ = 0.7", orn.noise.AR1(3, 0.7))):
        p = orn.Process(orn.schedules.Discrete.linear(CHAIN), noise)
        test, learn = (mixture_trajectories(p, first, trajectories) for first in (0, 1 << 20))
        tables += compare(
            f"A mixture of Gaussians under {name}",
            test,
            lambda n, learn=learn: tuning.tune(learn, n, iterations) if n <= MOST_TUNED else None,
            lambda n, learn=learn: tuning.untuned_solver(
                learn[0][0].process.schedule, n, tuning.best_start(learn[:1], n)
            ),
            counts,
        )
    return tables


def of_model(path: Path, counts: list[int], trajectories: int) -> list[Table]:
    model = orn.load(path)
    test: Trajectories = []
    for low, high in pairwise((0, *(few for few in _FEW if few < trajectories), trajectories)):
        test += tuning.trajectories(model, high - low, first=(1 << 20) + low, batch=min(64, high - low))
    weights = sum(p.numel() for p in model.net.parameters())
    size = "×".join(map(str, model.data.shape if model.data else ()))
    title = f"The model {path.name}: {size}, {weights / 1e6:.2g} M parameters"
    tuned = {len(t.steps): t for t in checkpoint.load_tuned(path) if t.guidance == 1}
    return compare(title, test, tuned.get, lambda n: checkpoint.load_chosen(path, n, 1.0), counts)


def tuned_of(run: Path, steps: int) -> Tuned:
    """The tuned solver that a run keeps. Raises SystemExit where there is none."""
    found = checkpoint.load_tuned(run, steps)
    if not found:
        raise SystemExit(f"{run} has no solver of {steps} steps: `ornstein tune {run} --steps {steps}`")
    return found[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, action="append", default=[])
    parser.add_argument("--steps", default="5,8,10,20")
    parser.add_argument("--trajectories", type=int, default=64, help="of a model; of a mixture eight times as many")
    parser.add_argument("--iterations", type=int, default=100, help="of the tuning on mixtures")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    counts = [int(n) for n in arguments.steps.split(",")]
    if not arguments.model:
        tables = mixtures(counts, 8 * arguments.trajectories, arguments.iterations)
    else:
        tables = [t for path in arguments.model for t in of_model(path, counts, arguments.trajectories)]
    for table in tables:
        table.show()


if __name__ == "__main__":
    main()

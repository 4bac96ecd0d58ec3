"""End-point errors at 5, 8 and 10 evaluations: ours, tuned and not, beside every scheduler and grid of diffusers.

    python benchmarks/solvers.py [--model RUN] [--steps 5,8,10] [--trajectories 128]

All start from the same noise and ask the same network (or exact denoiser of a mixture) at exactly the levels that they
name; the error is the root mean square distance to the fine solution of the probability-flow ODE from there. A tuned
solver learns from other noise than it is judged by. Without --model the mixtures are run alone; a model of digits is
`ornstein train --data digits --steps 1000 --batch 128 --net xs --out RUN`.
"""

from __future__ import annotations

import argparse
import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import ornstein as orn
from ornstein import tuning
from ornstein.denoiser import Denoises
from ornstein.oracles import GaussianMixture
from ornstein.randomness import normal
from ornstein.solvers import SOLVERS, grids
from ornstein.tuning import Trajectories

CHAIN = 1000
OURS = ("dpmpp-2m", "dpmpp-3m", "unipc", "deis", "ipndm")
# Everything that diffusers offers one evaluation a step for: class, its settings.
SPACINGS: tuple[dict[str, Any], ...] = (
    {"timestep_spacing": "linspace"},
    {"timestep_spacing": "trailing"},
    {"timestep_spacing": "leading"},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_lu_lambdas": True},
)


def schedulers(betas: Tensor) -> Iterator[tuple[str, Callable[[int], Any]]]:
    """Each of diffusers' solvers on each of its grids: a name, and what makes one ready to run so many evaluations."""
    import diffusers

    kinds: list[tuple[str, dict[str, Any]]] = [
        *(
            ("DPMSolverMultistepScheduler", {"solver_order": o, "algorithm_type": a, "solver_type": k})
            for o, a, k in itertools.product((2, 3), ("dpmsolver++",), ("midpoint", "heun"))
        ),
        *(("UniPCMultistepScheduler", {"solver_order": o, "solver_type": k}) for o in (2, 3) for k in ("bh1", "bh2")),
        *(("DEISMultistepScheduler", {"solver_order": o}) for o in (2, 3)),
    ]
    for (name, settings), grid in itertools.product(kinds, SPACINGS):
        if "use_lu_lambdas" in grid and name != "DPMSolverMultistepScheduler":
            continue

        def ready(steps: int, name: str = name, options: dict[str, Any] = settings | grid) -> Any:
            scheduler = getattr(diffusers, name)(trained_betas=betas.tolist(), **options)
            scheduler.set_timesteps(steps)
            return scheduler

        label = " ".join(str(v) for v in (*settings.values(), *(v for v in grid.values() if v is not True)))
        label += "".join(f" {k.split('_')[1]}" for k, v in grid.items() if v is True)
        yield f"{name.removesuffix('Scheduler')} {label}", ready


def run_theirs(scheduler: Any, d: Denoises, x: Tensor) -> Tensor:
    """A scheduler on the noise prediction at the very level s/a of each of its steps, whatever its rounded timestep."""
    schedule = d.process.schedule
    for i, k in enumerate(scheduler.timesteps):
        rho = scheduler.sigmas[i].double()
        t = float(schedule.time(-2 * torch.log(rho)).clamp(0, 1))
        x = scheduler.step(d(x, t).eps, k, x).prev_sample
    return x


def rms(parts: list[tuple[Tensor, Tensor]]) -> float:
    return math.sqrt(sum(float((a - b).double().square().sum()) for a, b in parts) / sum(b.numel() for _, b in parts))


def compare(title: str, judge: Trajectories, learn: Trajectories, counts: list[int], iterations: int) -> None:
    table = Table(title=title)
    for name in ("evaluations", "best of diffusers", "", "best of ours, untuned", "", "dpmpp-3m", "tuned", "ratio"):
        table.add_column(name, justify="left" if name == "" else "right")
    process = judge[0][0].process
    betas = process.schedule.betas(CHAIN)
    for steps in counts:
        theirs: dict[str, float] = {}
        with torch.no_grad():
            for name, ready in schedulers(betas):
                theirs[name] = rms([(run_theirs(ready(steps), d, x), end) for d, x, end in judge])
            own: dict[str, float] = {}
            for name, grid in itertools.product(OURS, ("logistic", "karras", "log-snr", "uniform")):
                times = grids.make(grid, process.schedule, (1.0, 0.0), steps)
                own[f"{name} {grid}"] = rms([(list(SOLVERS[name](d, x, times, _none))[-1], end) for d, x, end in judge])
        tuned = tuning.judged(tuning.tune(learn, steps, iterations), judge)
        best, ours = (min(v.items(), key=lambda kv: kv[1]) for v in (theirs, own))
        ratio = tuned.error / best[1]
        note = f"{steps}: {best[1]:.4f} {best[0]}; {ours[1]:.4f} {ours[0]}; tuned {tuned.error:.4f} ({ratio:.2f})"
        Console(stderr=True, width=200).print(note)
        table.add_row(
            *(str(steps), f"{best[1]:.4f}", best[0], f"{ours[1]:.4f}", ours[0], f"{own['dpmpp-3m logistic']:.4f}"),
            *(f"{tuned.error:.4f}", f"{ratio:.2f}"),
        )
    Console(width=200).print(table)


def _none(step: int, draw: int = 0) -> Tensor:
    raise AssertionError("these solvers are deterministic")


def mixture_trajectories(p: orn.Process, first: int, count: int) -> Trajectories:
    """Of three components in three dimensions, whose covariances do not commute."""
    roots = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covs = 0.1 * roots @ roots.mT + 0.03 * torch.eye(3, dtype=torch.float64)
    data = GaussianMixture([0.5, 0.3, 0.2], [[1.0, -0.5, 0.2], [-1.0, 0.4, 1.0], [0.3, 1.0, -1.2]], covs)
    d = cast(Denoises, data.denoiser(p))
    z = normal((count, 3), 0, torch.arange(first, first + count), 0, dtype=torch.float64)
    x = p.prior((count, 3), dtype=torch.float64).sample(z)
    return [(d, x, tuning.fine(d, x, 400))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--steps", default="5,8,10")
    parser.add_argument("--trajectories", type=int, default=128)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    counts = [int(n) for n in arguments.steps.split(",")]
    import diffusers

    Console().print(f"torch {torch.__version__}, diffusers {diffusers.__version__}; error to the fine solution")
    if arguments.model is not None:
        model = orn.load(arguments.model)
        learn = tuning.trajectories(model, arguments.trajectories)
        judge = tuning.trajectories(model, arguments.trajectories, first=arguments.trajectories)
        compare(f"model {arguments.model.name}", judge, learn, counts, arguments.iterations)
        return
    for name, p in {
        "mixture, linear chain": orn.Process(orn.schedules.Discrete.linear(CHAIN)),
        "mixture, linear chain, AR1 noise": orn.Process(orn.schedules.Discrete.linear(CHAIN), orn.noise.AR1(3, 0.7)),
    }.items():
        judge, learn = (mixture_trajectories(p, first, 8 * arguments.trajectories) for first in (0, 1 << 20))
        compare(name, judge, learn, counts, 2 * arguments.iterations)


if __name__ == "__main__":
    main()

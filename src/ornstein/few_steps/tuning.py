"""Tuning a solver to one model: its time steps and coefficients are fitted to the model's own fine trajectories.

All that a linear solver of N evaluations can choose are its time steps and the coefficients of its start and its
predictions (Shaul et al. 2024, arXiv:2403.01329, bespoke non-stationary solvers). These few numbers minimise the
distance between its end and that of the fine solution, by the gradient through all of its steps; the network's weights
do not change.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ornstein.denoiser import Denoiser, Denoises
from ornstein.few_steps.free_solver import FreeSolver, Progress, Start
from ornstein.few_steps.matching import Matching, matched, squares
from ornstein.few_steps.settings import MOST_STEPS
from ornstein.guidance import ClassifierFree
from ornstein.process import Process
from ornstein.randomness import normal
from ornstein.schedules import Schedule
from ornstein.solvers import SOLVER, SOLVERS, Solver, grids
from ornstein.solvers.coefficients import Form
from ornstein.solvers.multistep import multistep
from ornstein.solvers.tuned import Tuned
from ornstein.wrapper import Conditioned, device_of, network_precision

__all__ = [
    "Start",
    "Trajectories",
    "best_start",
    "fine",
    "judged",
    "moved",
    "starts",
    "trajectories",
    "tune",
    "untuned_solver",
]

_FINE_STEPS = 100
# Time schedules to choose from: slope (the default's is 0.35) and floor. A small slope with a floor is near equal steps
# in the log-SNR, which suits pictures whose smallest scales matter.
_GRIDS = ((0.25, 0.0), (0.3, 0.0), (0.35, 0.0), (0.42, 0.0), (0.1, 0.02), (0.2, 0.02), (0.2, 0.05))
_QUARTER = 4

# A stream of noise that no sample of the model uses.
_STREAM = 0x54554E45

Trajectories = list[tuple[Denoises, Tensor, Tensor]]
"""Batches of (denoiser with its conditions, start x_1 (B, *), fine end x_0 (B, *))."""


def fine(d: Denoises, x: Tensor, steps: int = _FINE_STEPS) -> Tensor:
    """The end of the probability-flow ODE (E20) from x (B, *) at t = 1, in many steps: the target of tuning."""
    times = grids.make("logistic", d.process.schedule, (1.0, 0.0), steps)
    with torch.no_grad():
        *_, end = multistep(d, x, times, _no_noise)
    return end


def trajectories(
    model: Denoiser,
    count: int,
    first: int = 0,
    guidance: float = 1.0,
    batch: int = 64,
    progress: Callable[[int], object] = lambda done: None,
) -> Trajectories:
    """Trajectories of a model, one class after the other: the data that a solver is tuned on.

    Args:
        count, first: trajectories first ... first + count - 1; each has a start of its own.
        guidance: scale of classifier-free guidance.
        batch: trajectories computed at once.
        progress: called with the number of trajectories so far.

    Raises:
        ValueError: the model has no sample spec.
    """
    out: Trajectories = []
    for low in range(first, first + count, batch):
        d, x = starts(model, range(low, min(low + batch, first + count)), guidance)
        out.append((d, x, fine(d, x)))
        progress(low - first + len(x))
    return out


def starts(model: Denoiser, rows: range, guidance: float = 1.0) -> tuple[Denoises, Tensor]:
    """The denoiser with its conditions, and x_1 (B, *), of the trajectories with the numbers `rows`.

    Raises:
        ValueError: the model has no sample spec.
    """
    if model.data is None:
        raise ValueError("the model has no sample spec (data), so the shape of its samples is unknown")
    index = torch.arange(rows.start, rows.stop)
    labels = (index % len(model.data.classes)).to(device_of(model)) if model.data.classes else None
    d: Denoises = Conditioned(model if guidance == 1 else ClassifierFree(model, guidance), _given(label=labels))
    shape, device = (len(index), *model.data.shape), device_of(model)
    z = normal(shape, 0, index, 0, stream=_STREAM, device=device)
    return d, model.process.prior(shape, device=device).sample(z)


def _given(**cond: Tensor | None) -> dict[str, Tensor]:
    return {name: value for name, value in cond.items() if value is not None}


def tune(
    parts: Trajectories,
    steps: int,
    iterations: int = 100,
    progress: Progress = lambda done, error: None,
    radius: float = 0.0,
    match: Matching | None = None,
) -> Tuned:
    """The solver of `steps` evaluations whose ends are nearest to the fine solutions, found by L-BFGS.

    The error of each part is relative to that of the untuned solver there, so that parts of several guidance scales
    weigh the same.

    With a `radius` the targets are soft (E33): each trajectory of the solver may start anywhere in a ball around its
    start (`moved`), chosen along with the solver. It learns to make the samples of the fine solution, not each from
    exactly its own noise. With `match` a second stage follows: the ends as a set come near given samples, while each
    end stays near its fine solution (`matching.matched`).

    It starts from the best of the untuned solvers (`best_start`).

    Args:
        parts: the result of `trajectories`; the network is in evaluation mode.
        steps: 2 to 24.
        iterations: about how many times trajectories are run forwards and backwards: two thirds of them on a quarter
            of the parts, the rest on all; 0 returns the start.
        progress: called with the iterations so far and the error relative to the untuned solver's.
        radius: of the balls, in units of the noise; 0 for hard targets.
        match: the second stage.

    Raises:
        ValueError: steps outside 2 to 24, no trajectories, or a radius that is negative or infinite.
    """
    if not 0 <= radius < math.inf:
        raise ValueError(f"the radius of soft targets is a number >= 0, got {radius}")
    if not 2 <= steps <= MOST_STEPS:
        raise ValueError(f"a solver is tuned for 2 to {MOST_STEPS} steps, got {steps}")
    if not parts or min(len(x) for _, x, _ in parts) == 0:
        raise ValueError("a solver is tuned on trajectories of the model, but none were given")
    few = parts[: -(-len(parts) // _QUARTER)]
    start = best_start(few, steps)
    free = FreeSolver(parts[0][0].process.schedule, steps, start)
    early = iterations * 2 // 3 if len(few) < len(parts) else 0
    scales = _untuned(parts, steps)
    if early > 0:
        _fit(free, few, scales, early, progress, radius)
    found = _fit(free, parts, scales, iterations - early, lambda done, error: progress(early + done, error), radius)
    if match is None or iterations == 0:
        return found
    untuned = _relative(untuned_solver(free.schedule, steps, start), parts, scales)
    with network_precision(parts[0][0], match.precision):
        return matched(free, parts, scales, match, untuned, lambda done, error: progress(iterations + done, error))


def moved(process: Process, x: Tensor, v: Tensor, radius: float) -> Tensor:
    """x (B, *) at t = 1 moved by v (B, *), white: x + radius sqrt(N) s_1 R v/sqrt(1 + |v|^2).

    It stays within radius sqrt(N) s_1 of x in the norm of C^-1, whatever v is (E33).
    """
    v = v.to(x.dtype).to(x.device)
    size = torch.sqrt(1 + v.flatten(1).square().sum(1)).reshape(-1, *[1] * (v.ndim - 1))
    return x + radius * math.sqrt(x[0].numel()) * process.at(1.0)[1] * process.noise.color(v / size)


def _untuned(parts: Trajectories, steps: int) -> list[float]:
    """The mean square error of the default solver on each part."""
    grid = grids.make(grids.GRID, parts[0][0].process.schedule, (1.0, 0.0), steps)
    return [max(_error(parts[i : i + 1], SOLVERS[SOLVER], grid), 1e-30) for i in range(len(parts))]


def _error(parts: Trajectories, solver: Solver, times: Tensor) -> float:
    """The mean square error of a solver; infinite where it diverges."""
    with torch.no_grad():
        total = sum(float(squares(list(solver(d, x, times, _no_noise))[-1] - end)) for d, x, end in parts)
    value = total / sum(end.numel() for _, _, end in parts)
    return value if math.isfinite(value) else math.inf


def _fit(
    free: FreeSolver, parts: Trajectories, scales: list[float], iterations: int, progress: Progress, radius: float
) -> Tuned:
    """Minimise the mean square error, of each part relative to `scales`."""
    # Beside the other parameters, on the CPU in float64.
    moves = [torch.zeros(x.shape, dtype=torch.float64, requires_grad=True) for _, x, _ in parts] if radius else []
    count = sum(end.numel() for _, _, end in parts)

    def loss() -> float:
        total = 0.0
        for i, (d, x, end) in enumerate(parts):
            start = moved(d.process, x, moves[i], radius) if moves else x
            error = squares(free.run(d, start) - end) / (count * scales[i])
            free.add_gradient(error, moves[i : i + 1])
            total += float(error.detach())
        return total if math.isfinite(total) else math.inf

    return free.minimise(loss, iterations, progress, moves)


def _relative(solver: Tuned, parts: Trajectories, scales: list[float]) -> float:
    """The mean square error, of each part relative to `scales`."""
    times, count = torch.tensor(solver.times, dtype=torch.float64), sum(end.numel() for _, _, end in parts)
    each = (_error(parts[i : i + 1], solver, times) / scales[i] * part[2].numel() for i, part in enumerate(parts))
    return sum(each) / count


def judged(tuned: Tuned, parts: Trajectories, guidance: float = 1.0) -> Tuned:
    """The solver with its error and that of the untuned one, measured on new trajectories with `guidance`."""
    error = _error(parts, tuned, torch.tensor(tuned.times, dtype=torch.float64))
    count = sum(end.numel() for _, _, end in parts)
    default = sum(v * end.numel() for v, (_, _, end) in zip(_untuned(parts, len(tuned.steps)), parts, strict=True))
    return replace(tuned, guidance=guidance, error=math.sqrt(error), untuned=math.sqrt(default / count))


_KINDS: tuple[tuple[Form, int], ...] = (("flow", 3), ("x0", 3), ("flow", 4), ("x0", 2))


def best_start(parts: Trajectories, steps: int) -> Start:
    """The untuned solver whose ends are nearest to the fine solutions.

    All time schedules with two kinds of solvers, then the other kinds on the best schedule.
    """
    schedule, scales = parts[0][0].process.schedule, _untuned(parts, steps)

    def error(start: Start) -> float:
        return _relative(untuned_solver(schedule, steps, start), parts, scales)

    errors = {start: error(start) for start in (Start(*kind, *grid) for grid in _GRIDS for kind in _KINDS[:2])}
    best = min(errors, key=lambda start: errors[start])
    errors |= {start: error(start) for start in (replace(best, form=f, order=n) for f, n in _KINDS[2:])}
    return min(errors, key=lambda start: errors[start])


def untuned_solver(schedule: Schedule, steps: int, start: Start) -> Tuned:
    """`start` in so many steps, 2 or more, as a solver with time steps of its own."""
    return FreeSolver(schedule, steps, start).freeze()


def _no_noise(step: int, draw: int = 0) -> Tensor:
    raise AssertionError("the solvers here are deterministic")

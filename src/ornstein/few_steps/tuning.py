"""Tuning a solver to one model: its time steps and coefficients are fitted to the model's own fine trajectories.

All that a linear solver of N evaluations can choose are its time steps and the coefficients of its start and its
predictions (Shaul et al. 2024, arXiv:2403.01329, bespoke non-stationary solvers). These few numbers minimise the
distance between its end and that of the fine solution, by the gradient through all of its steps; the network's weights
do not change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sized
from dataclasses import replace

import torch
from torch import Tensor

from ornstein.denoiser import Denoiser, Denoises
from ornstein.devices import in_float64
from ornstein.few_steps.following import Path, follow
from ornstein.few_steps.free_solver import FreeSolver, Progress, Start
from ornstein.few_steps.matching import Matching, matched
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
# in the log-SNR, which suits pictures whose smallest scales matter; a large one with a high floor, or equal steps in t
# (0), spend their steps where guidance decides what a latent shows.
_GRIDS = (
    *((0.25, 0.0), (0.3, 0.0), (0.35, 0.0), (0.42, 0.0), (0.1, 0.02), (0.2, 0.02), (0.2, 0.05)),
    *((0.35, 0.1), (0.5, 0.1), (0.0, 0.0)),
)
_QUARTER = 4
_THINNED = 2  # of the states of a fine path, one in so many is kept
_PATH_NUMBERS = 2**26  # of all states of one path

# A stream of noise that no sample of the model uses.
_STREAM = 0x54554E45

Trajectories = list[tuple[Denoises, Tensor, Tensor]]
"""Batches of (denoiser with its conditions, start x_1 (B, *), fine end x_0 (B, *))."""


def fine(d: Denoises, x: Tensor, steps: int = _FINE_STEPS) -> Tensor:
    """The end of the probability-flow ODE (E20) from x (B, *) at t = 1, in many steps: the target of tuning."""
    with torch.no_grad():
        *_, end = multistep(d, x, _fine_times(d, steps), _no_noise)
    return end


def _fine_times(d: Denoises, steps: int = _FINE_STEPS) -> Tensor:
    return grids.make("logistic", d.process.schedule, (1.0, 0.0), steps)


def trajectories(
    model: Denoiser,
    count: int,
    first: int = 0,
    guidance: float = 1.0,
    batch: int = 64,
    progress: Callable[[int], object] = lambda done: None,
    paths: list[Path] | None = None,
) -> Trajectories:
    """Trajectories of a model, one class after the other: the data that a solver is tuned on.

    Args:
        count, first: trajectories first ... first + count - 1; each has a start of its own.
        guidance: scale of classifier-free guidance.
        batch: trajectories computed at once.
        progress: called with the number of trajectories so far.
        paths: the fine solutions of the first quarter of the batches are added to it, for `tune`.

    Raises:
        ValueError: the model has no sample spec.
    """
    out: Trajectories = []
    lows = range(first, first + count, batch)
    for low in lows:
        d, x = starts(model, range(low, min(low + batch, first + count)), guidance)
        if paths is not None and len(out) < _quarter(lows):
            path, end = _path(d, x)
            paths.append(path)
        else:
            end = fine(d, x)
        out.append((d, x, end))
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
    held_out: Trajectories | None = None,
    paths: list[Path] | None = None,
) -> Tuned:
    """The solver of `steps` evaluations whose ends are nearest to the fine solutions, found by L-BFGS.

    The loss is the mean over trajectories of 2 (sqrt(1 + r) - 1), r the mean square error of the end relative to the
    untuned solver's on its part: parts of several guidance scales weigh the same, and a few trajectories that end in
    another sample, whose squares would decide the numbers for all others, count by their distance.

    With a `radius` the targets are soft (E33): each trajectory of the solver may start anywhere in a ball around its
    start (`moved`), chosen along with the solver. It learns to make the samples of the fine solution, not each from
    exactly its own noise. With `match` a second stage follows: the ends as a set come near given samples, while each
    end stays near its fine solution (`matching.matched`).

    It starts from the best of the untuned solvers (`best_start`), or from the coefficients with which the states follow
    the fine solution at all of its times (E43, `following.follow`), on the time schedule where that ends nearest.

    Args:
        parts: the result of `trajectories`; the network is in evaluation mode.
        steps: 2 to 24.
        iterations: about how many times trajectories are run forwards and backwards: two thirds of them on a quarter
            of the parts, the rest on all; 0 returns the start.
        progress: called with the iterations so far and the error relative to the untuned solver's.
        radius: of the balls, in units of the noise; 0 for hard targets.
        match: the second stage.
        held_out: other trajectories: without a second stage the result is the nearest there of both starts and of what
            was found, so that it is never worse than an untuned solver.
        paths: the fine solutions of the first quarter of the parts, from `trajectories`; computed if they are not
            given, for each number of steps anew.

    Raises:
        ValueError: steps outside 2 to 24, no trajectories, fewer paths than a quarter of the parts, or a radius that is
            negative or infinite.
    """
    if not 0 <= radius < math.inf:
        raise ValueError(f"the radius of soft targets is a number >= 0, got {radius}")
    if not 2 <= steps <= MOST_STEPS:
        raise ValueError(f"a solver is tuned for 2 to {MOST_STEPS} steps, got {steps}")
    if not parts or min(len(x) for _, x, _ in parts) == 0:
        raise ValueError("a solver is tuned on trajectories of the model, but none were given")
    few = parts[: _quarter(parts)]
    if paths is not None and len(paths) < len(few):
        raise ValueError(f"coefficients follow the fine solutions of {len(few)} parts, but only {len(paths)} are given")
    scales = _untuned(parts, steps)
    start = best_start(few, steps)
    free = FreeSolver(parts[0][0].process.schedule, steps, start)
    untuned = free.freeze()
    if iterations == 0:
        return untuned
    free = _followed([_path(d, x)[0] for d, x, _ in few] if paths is None else paths[: len(few)], free, scales)
    found = [untuned, free.freeze()]
    early = iterations * 2 // 3 if len(few) < len(parts) else 0
    if early > 0:
        _fit(free, few, scales, early, progress, radius)
    found.append(_fit(free, parts, scales, iterations - early, lambda done, e: progress(early + done, e), radius))
    if match is None:
        return found[-1] if held_out is None else _nearest(found, held_out)
    least = _relative(untuned, parts, scales)
    with network_precision(parts[0][0], match.precision):
        return matched(free, parts, scales, match, least, lambda done, error: progress(iterations + done, error))


def _nearest(solvers: list[Tuned], parts: Trajectories) -> Tuned:
    scales = _untuned(parts, len(solvers[0].steps))
    return min(solvers, key=lambda solver: _relative(solver, parts, scales))


def _quarter(parts: Sized) -> int:
    return -(-len(parts) // _QUARTER)


def _followed(paths: list[Path], free: FreeSolver, scales: list[float]) -> FreeSolver:
    """The solver whose coefficients follow the fine paths, on the best of all time schedules; or `free`, if nearer."""
    weights = [1 / scale for scale in scales[: len(paths)]]

    def cost(ends: list[Tensor]) -> float:
        found = [_each(y - path.states[-1]) for y, path in zip(ends, paths, strict=True)]
        total = sum(float(_cost(e * weight).sum()) for e, weight in zip(found, weights, strict=True))
        return total if math.isfinite(total) else math.inf

    with torch.no_grad():
        best, least = free, cost([free.run(path.d, path.states[0]) for path in paths])
    for slope, floor in _GRIDS:
        made = FreeSolver(free.schedule, free.count, replace(free.start, slope=slope, floor=floor))
        error = cost(follow(made, paths, weights))
        if error < least:
            best, least = made, error
    return best


def _path(d: Denoises, x: Tensor) -> tuple[Path, Tensor]:
    """The fine solutions of as many of the starts x (B, *) as there is room for, and the ends of all."""
    times = _fine_times(d)
    kept = times[::_THINNED]
    room = max(1, _PATH_NUMBERS // (x[0].numel() * len(kept)))
    states, end = [x[:room]], x
    with torch.no_grad():
        for k, end in enumerate(multistep(d, x, times, _no_noise), start=1):
            if k % _THINNED == 0:
                states.append(end[:room])
    return Path(d, kept, torch.stack(states)), end


def moved(process: Process, x: Tensor, v: Tensor, radius: float) -> Tensor:
    """x (B, *) at t = 1 moved by v (B, *), white: x + radius sqrt(N) s_1 R v/sqrt(1 + |v|^2).

    It stays within radius sqrt(N) s_1 of x in the norm of C^-1, whatever v is (E33).
    """
    v = v.to(x.dtype).to(x.device)
    size = torch.sqrt(1 + v.flatten(1).square().sum(1)).reshape(-1, *[1] * (v.ndim - 1))
    return x + radius * math.sqrt(x[0].numel()) * process.at(1.0)[1] * process.noise.color(v / size)


def _untuned(parts: Trajectories, steps: int) -> list[float]:
    """The mean square error of the default solver on each part."""
    times = _default_times(parts, steps)
    return [max(float(e.mean()), 1e-30) for e in _errors(parts, SOLVERS[SOLVER], times)]


def _default_times(parts: Trajectories, steps: int) -> Tensor:
    return grids.make(grids.GRID, parts[0][0].process.schedule, (1.0, 0.0), steps)


def _errors(parts: Trajectories, solver: Solver, times: Tensor) -> list[Tensor]:
    """The mean square error of each trajectory, (B,) of each part; infinite where a solver diverges."""
    with torch.no_grad():
        found = [_each(list(solver(d, x, times, _no_noise))[-1] - end) for d, x, end in parts]
    return [e.where(e.isfinite(), math.inf) for e in found]


def _each(error: Tensor) -> Tensor:
    """The mean square of each row (B, *)."""
    return in_float64(error).square().flatten(1).mean(1)


def _fit(
    free: FreeSolver, parts: Trajectories, scales: list[float], iterations: int, progress: Progress, radius: float
) -> Tuned:
    """Minimise the mean `_cost` of the errors, of each part relative to `scales`."""
    # Beside the other parameters, on the CPU in float64.
    moves = [torch.zeros(x.shape, dtype=torch.float64, requires_grad=True) for _, x, _ in parts] if radius else []
    count = sum(len(end) for _, _, end in parts)

    def loss() -> float:
        total = 0.0
        for i, (d, x, end) in enumerate(parts):
            start = moved(d.process, x, moves[i], radius) if moves else x
            error = _cost(_each(free.run(d, start) - end) / scales[i]).sum() / count
            free.add_gradient(error, moves[i : i + 1])
            total += float(error.detach())
        return total if math.isfinite(total) else math.inf

    # of equal errors r the cost v is such that r = v + v^2/4
    return free.minimise(loss, iterations, lambda done, e: progress(done, e * math.sqrt(1 + e**2 / 4)), moves)


def _cost(relative: Tensor) -> Tensor:
    """2 (sqrt(1 + r) - 1): r where it is small, twice its root where it is large."""
    return 2 * ((1 + relative).sqrt() - 1)


def _relative(solver: Tuned, parts: Trajectories, scales: list[float]) -> float:
    """The mean square error, of each part relative to `scales`."""
    times, count = torch.tensor(solver.times, dtype=torch.float64), sum(len(end) for _, _, end in parts)
    return sum(float(e.sum()) / scale for e, scale in zip(_errors(parts, solver, times), scales, strict=True)) / count


def judged(tuned: Tuned, parts: Trajectories, guidance: float = 1.0) -> Tuned:
    """The solver with its error and that of the untuned one, measured on new trajectories with `guidance`."""
    times = torch.tensor(tuned.times, dtype=torch.float64)
    error, untuned = (
        math.sqrt(float(torch.cat(_errors(parts, solver, at)).mean()))
        for solver, at in ((tuned, times), (SOLVERS[SOLVER], _default_times(parts, len(tuned.steps))))
    )
    return replace(tuned, guidance=guidance, error=error, untuned=untuned)


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

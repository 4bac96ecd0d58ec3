"""Tuning a solver to one model: its time steps and coefficients are fitted to the model's own fine trajectories.

All that a linear solver of N evaluations can choose are its time steps and the coefficients of its start and its
predictions (Shaul et al. 2024, arXiv:2403.01329, bespoke non-stationary solvers). These few numbers minimise the
distance between its end and that of the fine solution, by the gradient through all of its steps; the network's weights
do not change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ornstein.denoiser import Denoiser, Denoises
from ornstein.devices import float64_device
from ornstein.few_steps.settings import MOST_STEPS
from ornstein.guidance import ClassifierFree
from ornstein.process import Process
from ornstein.randomness import normal
from ornstein.schedules import Schedule
from ornstein.solvers import SOLVER, SOLVERS, grids
from ornstein.solvers.coefficients import Form, weights
from ornstein.solvers.multistep import interpolated, multistep
from ornstein.solvers.tuned import PAST, Step, Tuned
from ornstein.wrapper import Conditioned, device_of

__all__ = ["Start", "Trajectories", "best_start", "fine", "judged", "moved", "trajectories", "tune", "untuned_solver"]

_FINE_STEPS = 100
# Time schedules to choose from: slope (the default's is 0.35) and floor. A small slope with a floor is near equal steps
# in the log-SNR, which suits pictures whose smallest scales matter.
_GRIDS = ((0.25, 0.0), (0.3, 0.0), (0.35, 0.0), (0.42, 0.0), (0.1, 0.02), (0.2, 0.02), (0.2, 0.05))
_HISTORY = 30
_QUARTER = 4

# A stream of noise that no sample of the model uses.
_STREAM = 0x54554E45

Progress = Callable[[int, float], object]
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
    if model.data is None:
        raise ValueError("the model has no sample spec (data), so the shape of its samples is unknown")
    out: Trajectories = []
    for low in range(first, first + count, batch):
        index = torch.arange(low, min(low + batch, first + count))
        labels = (index % len(model.data.classes)).to(device_of(model)) if model.data.classes else None
        d: Denoises = Conditioned(model if guidance == 1 else ClassifierFree(model, guidance), _given(label=labels))
        shape, device = (len(index), *model.data.shape), device_of(model)
        z = normal(shape, 0, index, 0, stream=_STREAM, device=device)
        x = model.process.prior(shape, device=device).sample(z)
        out.append((d, x, fine(d, x)))
        progress(low - first + len(index))
    return out


def _given(**cond: Tensor | None) -> dict[str, Tensor]:
    return {name: value for name, value in cond.items() if value is not None}


def tune(
    parts: Trajectories,
    steps: int,
    iterations: int = 100,
    progress: Progress = lambda done, error: None,
    radius: float = 0.0,
) -> Tuned:
    """The solver of `steps` evaluations whose ends are nearest to the fine solutions, found by L-BFGS.

    With a `radius` the targets are soft (E33): each trajectory of the solver may start anywhere in a ball around its
    start (`moved`), chosen along with the solver. It learns to make the samples of the fine solution, not each from
    exactly its own noise.

    It starts from the best of the untuned solvers (`best_start`).

    Args:
        parts: the result of `trajectories`; the network is in evaluation mode.
        steps: 2 to 24.
        iterations: about how many times trajectories are run forwards and backwards: two thirds of them on a quarter
            of the parts, the rest on all; 0 returns the start.
        progress: called with the iterations so far and the error relative to the untuned solver's.
        radius: of the balls, in units of the noise; 0 for hard targets.

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
    schedule = parts[0][0].process.schedule
    guess = _Guess(schedule, steps, best_start(few, steps))
    early = iterations * 2 // 3 if len(few) < len(parts) else 0
    untuned = _untuned(parts, steps)
    if early > 0:
        _fit(guess, few, early, untuned, progress, radius)
    return _fit(guess, parts, iterations - early, untuned, lambda done, error: progress(early + done, error), radius)


def moved(process: Process, x: Tensor, v: Tensor, radius: float) -> Tensor:
    """x (B, *) at t = 1 moved by v (B, *), white: x + radius sqrt(N) s_1 R v/sqrt(1 + |v|^2).

    It stays within radius sqrt(N) s_1 of x in the norm of C^-1, whatever v is (E33).
    """
    v = v.to(x.dtype).to(x.device)
    size = torch.sqrt(1 + v.flatten(1).square().sum(1)).reshape(-1, *[1] * (v.ndim - 1))
    return x + radius * math.sqrt(x[0].numel()) * process.at(1.0)[1] * process.noise.color(v / size)


def _loss(
    guess: _Guess,
    parts: Trajectories,
    scale: float | None = None,
    moves: Sequence[Tensor] = (),
    radius: float = 0.0,
) -> float:
    """The mean square error. If `scale` is given, the gradient of error/scale is added to the parameters' `grad`.

    `moves`, one a part, are parameters too.
    """
    total, count = 0.0, sum(end.numel() for _, _, end in parts)
    for i, (d, x, end) in enumerate(parts):
        own = [*guess.parameters, *moves[i : i + 1]]
        with torch.set_grad_enabled(scale is not None):
            times, table = guess.solver()
            start = moved(d.process, x, moves[i], radius) if moves else x
            error = _square(_run(d, start, times, table, guess.start.form) - end) / count
        if scale is not None:
            for p, g in zip(own, torch.autograd.grad(error / scale, own), strict=True):
                p.grad = g if p.grad is None else p.grad + g
        total += float(error.detach())
    return total if math.isfinite(total) else math.inf


def _square(error: Tensor) -> Tensor:
    """The sum of squares in float64."""
    return error.to(float64_device(error.device)).double().square().sum()


def _untuned(parts: Trajectories, steps: int) -> float:
    """The mean square error of the default solver."""
    total, count = 0.0, sum(end.numel() for _, _, end in parts)
    grid = grids.make(grids.GRID, parts[0][0].process.schedule, (1.0, 0.0), steps)
    with torch.no_grad():
        for d, x, end in parts:
            *_, ours = SOLVERS[SOLVER](d, x, grid, _no_noise)
            total += float(_square(ours - end))
    return max(total / count, 1e-30)


def _fit(
    guess: _Guess, parts: Trajectories, iterations: int, untuned: float, progress: Progress, radius: float = 0.0
) -> Tuned:
    """Minimise the loss; return the best solver found, and leave `guess` there."""
    best, found, done = math.inf, guess.freeze(), 0
    # Beside the other parameters, on the CPU in float64.
    moves = [torch.zeros(x.shape, dtype=torch.float64, requires_grad=True) for _, x, _ in parts] if radius else []
    numbers = [p.detach().clone() for p in guess.parameters]
    optimizer = torch.optim.LBFGS(
        [*guess.parameters, *moves],
        max_iter=iterations,
        max_eval=iterations,
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,
    )

    def closure() -> float:
        nonlocal best, found, done, numbers
        for p in (*guess.parameters, *moves):
            p.grad = None
        value = _loss(guess, parts, untuned, moves, radius) / untuned
        if value < best:
            best, found, numbers = value, guess.freeze(), [p.detach().clone() for p in guess.parameters]
        done += 1
        progress(min(done, iterations), math.sqrt(best))
        return value if math.isfinite(value) else 1e10

    if iterations > 0:
        optimizer.step(closure)
        progress(iterations, math.sqrt(best))
        with torch.no_grad():
            for p, value in zip(guess.parameters, numbers, strict=True):
                p.copy_(value)
    return found


def judged(tuned: Tuned, parts: Trajectories, guidance: float = 1.0) -> Tuned:
    """The solver with its error and that of the untuned one, measured on new trajectories with `guidance`."""
    times = torch.tensor(tuned.times, dtype=torch.float64)
    own, count = 0.0, sum(end.numel() for _, _, end in parts)
    with torch.no_grad():
        for d, x, end in parts:
            *_, ours = tuned(d, x, times, _no_noise)
            own += float(_square(ours - end))
    untuned = math.sqrt(_untuned(parts, len(tuned.steps)))
    return replace(tuned, guidance=guidance, error=math.sqrt(own / count), untuned=untuned)


@dataclass(frozen=True)
class Start:
    """An untuned solver: `multistep` of a form and an order, on a logistic time schedule.

    Attributes:
        slope: of the schedule, equal steps in sigmoid(-slope lambda).
        floor: the level s/a at which the step into the data starts; 0 for the schedule's own.
    """

    form: Form
    order: int
    slope: float
    floor: float = 0.0


_KINDS: tuple[tuple[Form, int], ...] = (("flow", 3), ("x0", 3), ("flow", 4), ("x0", 2))


def best_start(parts: Trajectories, steps: int) -> Start:
    """The untuned solver whose ends are nearest to the fine solutions.

    All time schedules with two kinds of solvers, then the other kinds on the best schedule.
    """
    schedule = parts[0][0].process.schedule

    def error(start: Start) -> float:
        return _loss(_Guess(schedule, steps, start), parts)

    errors = {start: error(start) for start in (Start(*kind, *grid) for grid in _GRIDS for kind in _KINDS[:2])}
    best = min(errors, key=lambda start: errors[start])
    errors |= {start: error(start) for start in (replace(best, form=f, order=n) for f, n in _KINDS[2:])}
    return min(errors, key=lambda start: errors[start])


def untuned_solver(schedule: Schedule, steps: int, start: Start) -> Tuned:
    """`start` in so many steps, 2 or more, as a solver with time steps of its own."""
    return _Guess(schedule, steps, start).freeze()


class _Guess:
    """The fitted numbers, as differences from a start: its time steps, and its coefficients at the current ones."""

    def __init__(self, schedule: Schedule, steps: int, start: Start) -> None:
        self.schedule, self.count, self.start = schedule, steps, start
        self.spacing = _shares(schedule, steps, start).log().requires_grad_()
        self.scale = torch.zeros(steps, 2, dtype=torch.float64, requires_grad=True)
        self.past = [torch.zeros(min(k, PAST), dtype=torch.float64, requires_grad=True) for k in range(1, steps)]
        self.parameters = [self.spacing, self.scale, *self.past]

    def solver(self) -> tuple[Tensor, list[Step]]:
        """Time steps (N + 1,) and solver steps, differentiable in the parameters."""
        schedule, form = self.schedule, self.start.form
        first = grids.position(schedule.log_snr(torch.ones((), dtype=torch.float64)))
        u = first * (1 - torch.softmax(self.spacing, 0).cumsum(0)[:-1])
        times = torch.cat([torch.ones(1), schedule.time(grids.log_snr_at(u)), torch.zeros(1)])
        rho = torch.cat([torch.exp(-schedule.log_snr(times[:-1]) / 2), torch.zeros(1)])
        table = []
        for k in range(self.count):
            w = weights(rho[k], rho[k + 1], self._nodes(rho, range(k, max(k - self.start.order, -1), -1)), form)[1:]
            if k == 1:  # the second prediction corrects the first step
                gain = (1 + rho[2]) / (1 + rho[1]) if form == "flow" else rho[2] / rho[1]
                back = weights(rho[0], rho[1], self._nodes(rho, (1, 0)), form)[0] * gain
                w = w - back if len(w) else -back[None]
            own = torch.zeros(min(k, PAST), dtype=torch.float64)
            if k:
                own = self.past[k - 1] + torch.cat([w, own[len(w) :]])
            table.append(Step((self.scale[k, 0], self.scale[k, 1]), tuple(own)))
        return times, table

    def _nodes(self, rho: Tensor, indices: Iterable[int]) -> list[Tensor]:
        """Noise levels of the interpolation; an infinite one (pure noise) only in the flow form, or alone."""
        first, *rest = indices
        return [rho[first], *(rho[j] for j in rest if self.start.form == "flow" or bool(rho[j].isfinite()))]

    def freeze(self) -> Tuned:
        with torch.no_grad():
            times, table = self.solver()
        numbers = [[float(torch.as_tensor(v).detach()) for v in (*s.scale, *s.past)] for s in table]
        steps = tuple(Step((n[0], n[1]), tuple(n[2:])) for n in numbers)
        return Tuned(tuple(times.tolist()), steps, form=self.start.form)


def _shares(schedule: Schedule, steps: int, start: Start) -> Tensor:
    """How far each step of the schedule goes, as a share of the default schedule's variable."""
    first, slope = schedule.log_snr(torch.ones((), dtype=torch.float64)), start.slope
    begin = grids.position(first, slope)
    if start.floor:
        least = torch.maximum(torch.tensor(-2 * math.log(start.floor), dtype=torch.float64), first + 1)
        at = torch.lerp(begin, grids.position(least, slope), torch.linspace(0, 1, steps, dtype=torch.float64)[1:])
    else:
        at = begin * torch.linspace(1, 0, steps + 1, dtype=torch.float64)[1:-1]
    inner = grids.position(grids.log_snr_at(at, slope))
    return -torch.cat([grids.position(first)[None], inner, torch.zeros(1)]).diff()


def _run(d: Denoises, x: Tensor, times: Tensor, table: list[Step], form: Form) -> Tensor:
    """`Tuned.__call__` with time steps that carry a gradient."""
    before: list[Tensor] = []
    for k, each in enumerate(table):
        # In the dtype of x: else their gradients would be made in float64 on the device of x, which may have none.
        step = Step(tuple(v.to(x.dtype) for v in each.scale), tuple(v.to(x.dtype) for v in each.past))  # pyright: ignore
        now = d(x, times[k])
        own = interpolated(now, form)
        x = step.apply(now, own, times[k + 1], before)
        before.insert(0, own)
        del before[PAST:]
    return x


def _no_noise(step: int, draw: int = 0) -> Tensor:
    raise AssertionError("the solvers here are deterministic")

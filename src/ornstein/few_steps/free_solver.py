"""A solver whose times and coefficients are free: what tuning fits by the gradient through all of its steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.schedules import Schedule
from ornstein.solvers import grids
from ornstein.solvers.coefficients import Form, weights
from ornstein.solvers.multistep import interpolated
from ornstein.solvers.tuned import PAST, Step, Tuned

__all__ = ["FreeSolver", "Start"]

_HISTORY = 30  # of L-BFGS

Progress = Callable[[int, float], object]


@dataclass(frozen=True)
class Start:
    """An untuned solver: `multistep` of a form and an order, on a logistic or a uniform time schedule.

    Attributes:
        slope: of the schedule, equal steps in sigmoid(-slope lambda); 0 for equal steps in t.
        floor: the level s/a at which the step into the data starts; 0 for the schedule's own.
    """

    form: Form
    order: int
    slope: float
    floor: float = 0.0


class FreeSolver:
    """The fitted numbers, as differences from a start: its time steps, and its coefficients at the current ones."""

    def __init__(self, schedule: Schedule, steps: int, start: Start) -> None:
        self.schedule, self.count, self.start = schedule, steps, start
        self.spacing = _shares(schedule, steps, start).log().requires_grad_()
        self.scale = torch.zeros(steps, 2, dtype=torch.float64, requires_grad=True)
        self.past = [torch.zeros(min(k, PAST), dtype=torch.float64, requires_grad=True) for k in range(1, steps)]
        self.parameters = [self.spacing, self.scale, *self.past]
        self.curvature: Tensor | None = None  # the inverse of the second derivative of the last loss

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

    def run(self, d: Denoises, x: Tensor) -> Tensor:
        """The end from x (B, *) at t = 1: `Tuned.__call__` with times that carry a gradient."""
        times, table = self.solver()
        before: list[Tensor] = []
        for k, each in enumerate(table):
            # In the dtype of x: else their gradients would be made in float64 on the device of x, which may have none.
            scale, past = (tuple(torch.as_tensor(v).to(x.dtype) for v in part) for part in (each.scale, each.past))
            now = d(x, times[k])
            own = interpolated(now, self.start.form)
            x = Step((scale[0], scale[1]), past).apply(now, own, times[k + 1], before)
            before.insert(0, own)
            del before[PAST:]
        return x

    def minimise(
        self,
        loss: Callable[[], float],
        iterations: int,
        progress: Progress,
        others: Sequence[Tensor] = (),
        change: Tensor | None = None,
    ) -> Tuned:
        """Minimise by L-BFGS; return the best solver found, and stay there.

        Args:
            loss: the value >= 0, infinite where the solver diverges, at the present parameters and `others`; it adds
                the gradient to their `grad`.
            iterations: calls of `loss`, about.
            progress: called with the calls so far and the square root of the least loss.
            others: further parameters.
            change: a matrix (P, P); the parameters are those now plus `change` z, and z is what moves. From
                `curvature`: every direction then changes the first loss alike.
        """
        best, found, done = math.inf, self.freeze(), 0
        start, numbers = _flat(self.parameters), _flat(self.parameters)
        z = torch.zeros_like(start, requires_grad=True)
        moving = [z, *others] if change is not None else [*self.parameters, *others]
        optimizer = torch.optim.LBFGS(
            moving,
            max_iter=iterations,
            max_eval=iterations,
            history_size=_HISTORY,
            line_search_fn="strong_wolfe",
            tolerance_grad=0,
            tolerance_change=0,
        )

        def closure() -> float:
            nonlocal best, found, done, numbers
            if change is not None:
                self._set(start + change @ z.detach())
            for p in (*self.parameters, *others):
                p.grad = torch.zeros_like(p)
            value = loss()
            if change is not None:
                z.grad = change.T @ torch.cat([torch.as_tensor(p.grad).flatten() for p in self.parameters])
            if value < best:
                best, found, numbers = value, self.freeze(), _flat(self.parameters)
            done += 1
            progress(min(done, iterations), math.sqrt(best))
            return value if math.isfinite(value) else 1e10

        if iterations > 0:
            optimizer.step(closure)
            progress(iterations, math.sqrt(best))
            self._set(numbers)
            if change is None and not others:
                self.curvature = _inverse_curvature(optimizer.state[moving[0]], len(start))
        return found

    def _set(self, numbers: Tensor) -> None:
        with torch.no_grad():
            for p, part in zip(self.parameters, numbers.split([p.numel() for p in self.parameters]), strict=True):
                p.copy_(part.reshape(p.shape))

    def add_gradient(self, loss: Tensor, others: Sequence[Tensor] = ()) -> None:
        """Add the gradient of a loss to the parameters' `grad`."""
        own = [*self.parameters, *others]
        for p, g in zip(own, torch.autograd.grad(loss, own), strict=True):
            assert p.grad is not None
            p.grad += g


def _flat(parameters: Sequence[Tensor]) -> Tensor:
    return torch.cat([p.detach().flatten() for p in parameters])


def _inverse_curvature(state: dict[str, Any], n: int) -> Tensor:
    """The inverse of the second derivative as L-BFGS knows it, (n, n), from its pairs of steps and gradients."""
    inverse = torch.eye(n, dtype=torch.float64) * float(state.get("H_diag", 1.0))
    for y, step in zip(state.get("old_dirs", ()), state.get("old_stps", ()), strict=True):
        share = 1 / float(y @ step)
        turn = torch.eye(n, dtype=torch.float64) - share * torch.outer(step, y)
        inverse = turn @ inverse @ turn.T + share * torch.outer(step, step)
    return inverse


def _shares(schedule: Schedule, steps: int, start: Start) -> Tensor:
    """How far each step of the schedule goes, as a share of the default schedule's variable."""
    first, slope = schedule.log_snr(torch.ones((), dtype=torch.float64)), start.slope
    if not slope:
        inner = grids.position(schedule.log_snr(torch.linspace(1, 0, steps + 1, dtype=torch.float64)[1:-1]))
        return -torch.cat([grids.position(first)[None], inner, torch.zeros(1)]).diff()
    begin = grids.position(first, slope)
    if start.floor:
        least = torch.maximum(torch.tensor(-2 * math.log(start.floor), dtype=torch.float64), first + 1)
        at = torch.lerp(begin, grids.position(least, slope), torch.linspace(0, 1, steps, dtype=torch.float64)[1:])
    else:
        at = begin * torch.linspace(1, 0, steps + 1, dtype=torch.float64)[1:-1]
    inner = grids.position(grids.log_snr_at(at, slope))
    return -torch.cat([grids.position(first)[None], inner, torch.zeros(1)]).diff()

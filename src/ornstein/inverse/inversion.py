"""Exact inversion of a deterministic solver: the state at t = 1 that it carries to a given sample (E25)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.process import Prediction, Process
from ornstein.request import SOLVER, SampleRequest
from ornstein.sampling import sample, settled
from ornstein.schedules import Times
from ornstein.solvers import Solver
from ornstein.solvers.grids import GRID
from ornstein.wrapper import conditions_of, evaluation_mode, networks_of

__all__ = ["Inversion", "invert"]

_STRAYED = 4  # times the smallest change so far
_HISTORY = 6  # rounds that are combined; more of them follow a path that bends away


@dataclass(frozen=True)
class Inversion:
    """A state at t = 1, and how exactly the solver returns from it.

    Attributes:
        x: the state, (B, *) float64.
        error: (B,), the root mean square of what the solver makes of it minus the sample.
        iterations: rounds of the fixed point, each of as many evaluations as a trajectory has.
    """

    x: Tensor
    error: Tensor
    iterations: int


def invert(
    d: Denoises,
    x0: Tensor,
    solver: str | Solver = SOLVER,
    steps: int = 20,
    grid: str | Sequence[float] | Tensor = GRID,
    cond: dict[str, Any] | None = None,
    tolerance: float = 1e-6,
    iterations: int = 60,
) -> Inversion:
    """The state that `solver` carries to x0 (B, *), of any deterministic solver, the multistep ones too.

    Such a solver is linear in its start and in the v that the network gives at each call: x_end = e_0 x + sum_j e_j v_j
    and the state at call i is z_i = c_i0 x + sum_j c_ij v_j, with numbers that one run on unit vectors shows. With
    x_end = x0 the start is (x0 - sum_j e_j v_j)/e_0, and what remains are the equations v_i = v(z_i). A round solves
    them from the last call to the first, each with the newest v of the others; the combination of the last rounds that
    leaves least of the difference is taken (Anderson 1965). All is in float64, the network too, for the time of the
    call. The error is that of the solver run from the result, measured every few rounds. With few steps of a network
    that bends its path a picture may have no exact start, or none that is found: the error says so.

    Args:
        tolerance: of the error at which all samples are finished.
        iterations: most rounds.

    Raises:
        ValueError: a solver that draws noise, or chooses its steps by the state, as rk45 does.
    """
    with _double(d), torch.no_grad(), evaluation_mode(d):
        target, cond = x0.double(), conditions_of(d, cond, len(x0))
        run, times = settled(d, SampleRequest(solver, steps, grid))
        path = _Path.of(run, times, d.process)
        zeros = target.new_zeros(len(target), len(path.times), *target.shape[1:])
        search = _Search(path.swept(d, target, zeros, cond, first=True))
        best, least, done = target, torch.full_like(target.flatten(1)[:, 0], torch.inf), 0
        for done in range(2, max(2, iterations) + 1):
            change = search.go_on(path.swept(d, target, search.v, cond, first=False))
            # the error is well below the change; measuring it takes as long as a round
            if done < iterations and done % 4 and float(change.max()) > 10 * tolerance:
                continue
            start = path.start(target, search.nearest)
            end = sample(d, start.shape, solver=solver, steps=steps, grid=grid, start=start, cond=cond)
            error = (end - target).flatten(1).square().mean(1).sqrt()
            best = torch.where((error < least).reshape(-1, *[1] * (start.ndim - 1)), start, best)
            least = torch.minimum(least, error)
            if bool((least <= tolerance).all()):
                break
    return Inversion(best, least, done)


@dataclass(frozen=True)
class _Path:
    """A solver as numbers: the states of its calls and its end, in the start and the v of all calls.

    times: (M,) of the calls. calls: (M, M + 1), the state of each. end: (M + 1,).
    """

    times: list[float]
    calls: Tensor
    end: Tensor

    @classmethod
    def of(cls, solver: Solver, times: Tensor, process: Process) -> _Path:
        count = len(_Recorder.run(solver, times, process, 1)[0].times)
        recorder, end = _Recorder.run(solver, times, process, count + 1)
        if len(recorder.times) != count:
            raise ValueError("this solver chooses its steps by the state: invert one of fixed steps")
        return cls(recorder.times, torch.stack(recorder.states), end)

    def start(self, target: Tensor, v: Tensor) -> Tensor:
        """The start of the trajectory that ends at `target` with these v, (B, *)."""
        return (target - _combined(self.end[1:], v)) / self.end[0]

    def swept(self, d: Denoises, target: Tensor, v: Tensor, cond: dict[str, Any], first: bool) -> Tensor:
        """v (B, M, *) after a round; in the first one, each begins as that of the call after it."""
        of_target = self.calls[:, 0] / self.end[0]
        of_v = self.calls[:, 1:] - of_target[:, None] * self.end[1:]
        v = v.clone()
        for i in reversed(range(len(self.times))):
            if first and i + 1 < len(self.times):
                v[:, i] = v[:, i + 1]
            v[:, i] = d(of_target[i] * target + _combined(of_v[i], v), self.times[i], **cond).v
        return v


def _combined(weights: Tensor, v: Tensor) -> Tensor:
    """sum_j w_j v_j of v (B, M, *)."""
    return torch.einsum("j,bj...->b...", weights.to(v), v)


@dataclass
class _Recorder:
    """A denoiser whose v at call j is the unit vector j + 1: what a solver makes of them are its numbers."""

    process: Process
    size: int
    states: list[Tensor] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def __call__(self, x_t: Tensor, t: Times, /, **cond: Any) -> Prediction:
        v = torch.zeros_like(x_t)
        self.states.append(x_t[0].clone())
        self.times.append(float(torch.as_tensor(t).flatten()[0]))
        if len(self.times) < self.size:
            v[0, len(self.times)] = 1
        return self.process.convert(x_t, t, v=v)

    @classmethod
    def run(cls, solver: Solver, times: Tensor, process: Process, size: int) -> tuple[_Recorder, Tensor]:
        """The recorder after a run from the unit vector 0, and the end (size,)."""
        recorder = cls(Process(process.schedule), size)
        end = torch.zeros(1, size, dtype=torch.float64)
        end[0, 0] = 1
        for state in solver(recorder, end, times, _no_noise):
            end = state
        return recorder, end[0]


def _no_noise(step: int, draw: int = 0) -> Tensor:
    raise ValueError("this solver draws noise: invert a deterministic one")


class _Search:
    """The v (B, M, *) of a fixed point, round by round; a sample that strays goes back, and on in smaller steps."""

    def __init__(self, v: Tensor) -> None:
        self.v = self.nearest = v
        self.onwards = torch.zeros_like(v)
        self.least = torch.full((len(v),), torch.inf, dtype=v.dtype, device=v.device)
        self.pace = torch.ones_like(self.least)
        self.mixing = _Anderson()

    def go_on(self, new: Tensor) -> Tensor:
        """Take what a round made of v; returns the smallest change of each sample so far, (B,)."""

        def rows(value: Tensor) -> Tensor:
            return value.reshape(-1, *[1] * (new.ndim - 1))

        step = new - self.v
        change = step.flatten(1).square().mean(1).sqrt()
        better, strayed = change < self.least, ~(change <= _STRAYED * self.least)
        self.nearest = torch.where(rows(better), new, self.nearest)
        self.onwards = torch.where(rows(better), step, self.onwards)
        self.least = torch.minimum(self.least, torch.nan_to_num(change, torch.inf))
        if bool(strayed.any()):
            self.pace = torch.where(strayed, self.pace / 2, self.pace)
            back = self.nearest + rows(self.pace - 1) * self.onwards
            self.v, self.mixing = torch.where(rows(strayed), back, self.v + rows(self.pace) * step), _Anderson()
        else:
            self.v = self.v + rows(self.pace) * (self.mixing(self.v, step) - self.v)
        return self.least


class _Anderson:
    """x + f(x) with the differences of earlier rounds taken out of f, sample by sample."""

    def __init__(self) -> None:
        self.states: list[Tensor] = []
        self.changes: list[Tensor] = []

    def __call__(self, x: Tensor, change: Tensor) -> Tensor:
        self.states, self.changes = [*self.states, x][-_HISTORY:], [*self.changes, change][-_HISTORY:]
        if len(self.states) == 1:
            return x + change
        moves = torch.stack([(x - v).flatten(1) for v in self.states[:-1]], 2)
        slopes = torch.stack([(change - v).flatten(1) for v in self.changes[:-1]], 2)
        gram = slopes.mT @ slopes
        size = gram.diagonal(dim1=1, dim2=2).amax(1).clamp(min=1e-300)
        ridge = 1e-14 * size[:, None, None] * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
        shares = torch.linalg.solve(gram + ridge, slopes.mT @ change.flatten(1)[..., None])
        back = ((moves + slopes) @ shares)[..., 0]
        return x + change - back.reshape(x.shape)


@contextmanager
def _double(d: Denoises) -> Iterator[None]:
    """All networks inside `d` in float64; afterwards in their own types, to the last bit."""
    networks = networks_of(d)
    before = [(t, t.data) for n in networks for t in (*n.parameters(), *n.buffers()) if t.is_floating_point()]
    try:
        for tensor, data in before:
            tensor.data = data.double()
        yield
    finally:
        for tensor, data in before:
            tensor.data = data

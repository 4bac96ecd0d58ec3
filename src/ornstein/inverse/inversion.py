"""Exact inversion of any deterministic solver: the state at t = 1 that it carries to a given sample (E25)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.request import SOLVER
from ornstein.sampling import invert as upwards
from ornstein.sampling import sample
from ornstein.solvers import Solver
from ornstein.solvers.grids import GRID
from ornstein.wrapper import networks_of

__all__ = ["Inversion", "invert"]

_HISTORY = 4  # rounds that are combined; more of them follow a path that bends away


@dataclass(frozen=True)
class Inversion:
    """A state at t = 1, and how exactly the solver returns from it.

    Attributes:
        x: the state, (B, *) float64.
        error: (B,), the root mean square of what the solver makes of it minus the sample.
        iterations: rounds of the fixed point, each of two trajectories.
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

    With S the solver and U the DDIM step run upwards on the same times, x + U(x0) - U(S(x)) leaves x as it is where
    S(x) = x0, and is nearly the inverse of S, so that its fixed point is found in a few rounds; each takes the
    combination of the last rounds that leaves least of the difference (Anderson 1965). All is in float64, the network
    too, for the time of the call: the error of a sample is measured and returned.

    Args:
        tolerance: of the error at which all samples are finished.
        iterations: most rounds.
    """
    with _double(d):
        target = x0.double()
        options: dict[str, Any] = {"steps": steps, "grid": grid, "cond": cond}

        def up(x: Tensor) -> Tensor:
            return upwards(d, x, **options)

        def down(x: Tensor) -> Tensor:
            return sample(d, x.shape, solver=solver, start=x, **options)

        goal = up(target)
        x, mixing = goal, _Anderson()
        best, least, done = x, torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device), 0
        for done in range(iterations + 1):
            end = down(x)
            error = (end - target).flatten(1).square().mean(1).sqrt()
            best = torch.where((error < least).reshape(-1, *[1] * (x.ndim - 1)), x, best)
            least = torch.minimum(least, error)
            if bool((least <= tolerance).all()) or done == iterations:
                break
            x = mixing(x, goal - up(end))
    return Inversion(best, least, done)


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

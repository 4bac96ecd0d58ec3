"""Integrators of a state and of integrals along it: fixed steps of order 4, and steps chosen for each sample.

The clock is kept on the CPU: u and the step sizes are CPU tensors, states and slopes may be on an accelerator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Field", "Path", "Slope", "Step", "column", "dormand_prince", "rk4"]


@dataclass(frozen=True)
class Slope:
    """dx/du (B, *), dq/du (B, K), and optionally the gradient of the log-density at x, (B, *)."""

    x: Tensor
    q: Tensor
    gradient: Tensor | None = None


class Field(Protocol):
    """The right-hand side of the ODE."""

    def __call__(self, u: Tensor, x: Tensor, rows: Tensor) -> Slope:
        """The slope at x (R, *) and u (R,); `rows` (R,) are the numbers of these samples in the whole batch.

        u and rows are CPU tensors.
        """
        ...

    def time(self, u: Tensor) -> Tensor:
        """The time t at u, for error messages."""
        ...


@dataclass(frozen=True)
class Step:
    """One attempted step: its end u (R,), the states before and after, and the errors of the embedded pair.

    error and q_error are the differences of the two orders in the state (R, *) and in the integrals (R, K); `end` is
    the slope at the end of the step.
    """

    u: Tensor
    before: Tensor
    after: Tensor
    integral: Tensor
    error: Tensor
    q_error: Tensor
    end: Slope


@dataclass(frozen=True)
class Path:
    """The end of a path: state (B, *), integrals (B, K), evaluations (B,), and the sum of the steps' errors (B,)."""

    x: Tensor
    integral: Tensor
    evaluations: Tensor
    error: Tensor


# Dormand & Prince (1980), RK5(4)7M: nodes, the stages' weights (the last row is the step of order 5), and its
# difference from the embedded step of order 4.
_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)

_MOST_STEPS = 20_000


def rk4(field: Field, x: Tensor, start: float, end: float, steps: int) -> Path:
    """The classical Runge-Kutta method in equal steps of u. The error is unknown: NaN.

    Raises:
        ValueError: the values are not finite; the message names the time.
    """
    rows = torch.arange(len(x))
    grid = torch.linspace(start, end, steps + 1, dtype=torch.float64)
    integral: Tensor | float = 0.0
    for k in range(steps):
        low, high = (g.expand(len(x)) for g in (grid[k], grid[k + 1]))
        h, middle = float(grid[k + 1] - grid[k]), (low + high) / 2
        k1 = field(low, x, rows)
        k2 = field(middle, x + h / 2 * k1.x, rows)
        k3 = field(middle, x + h / 2 * k2.x, rows)
        k4 = field(high, x + h * k3.x, rows)
        x = x + h / 6 * (k1.x + 2 * k2.x + 2 * k3.x + k4.x)
        integral = integral + h / 6 * (k1.q + 2 * k2.q + 2 * k3.q + k4.q)
        _check_finite(field, high, x.flatten(1).sum(1) + integral.sum(1))
    assert isinstance(integral, Tensor)
    evaluations = torch.full((len(x),), 4 * steps)
    return Path(x, integral, evaluations, torch.full((len(x),), torch.nan, dtype=torch.float64))


def dormand_prince(
    field: Field,
    x: Tensor,
    start: float,
    end: float,
    tolerance: float,
    error_of: Callable[[Step], Tensor],
    first: float = 1 / 32,
    smallest: tuple[float, float] = (1e-9, 1e-5),
) -> Path:
    """Dormand & Prince's pair of orders 5 and 4, with the steps of each sample chosen by its own error.

    Samples take their own steps, so the result of one does not depend on its batch. An accelerator is waited for once
    an attempted step.

    Args:
        field: the right-hand side.
        x: the state at `start`, (B, *) float64.
        start, end: u, start < end.
        tolerance: the most that the error of one step may be.
        error_of: the error of a step, (R,).
        first: the first step that is tried, as a share of the whole.
        smallest: a step is accepted whatever its error, which counts in the sum, at this length plus this share of the
            distance from the nearer end: smaller steps do not reduce the rounding of a network.

    Raises:
        ValueError: the values are not finite (the message names the time), or there are too many steps.
    """
    rows, size, whole = torch.arange(len(x)), len(x), x
    u = torch.full((size,), start, dtype=torch.float64)
    h = torch.full((size,), (end - start) * first, dtype=torch.float64)
    evaluations, errors = torch.ones(size, dtype=torch.int64), torch.zeros(size, dtype=torch.float64)
    slope = field(u, x, rows)
    integral = torch.zeros_like(slope.q)
    whole, integrals = torch.empty_like(x), torch.empty_like(integral)
    for _ in range(_MOST_STEPS):
        last = u + h >= end - 1e-14
        step = torch.where(last, end - u, h)
        slopes, width = [slope], column(step, x)
        after = x
        for node, weights in zip(_NODES[1:], _STAGES[1:], strict=True):
            after = x + width * _combine(weights, [s.x for s in slopes])
            at = torch.where(last & (node == 1.0), end, u + node * step)
            slopes.append(field(at, after, rows))
        share = width.reshape(-1, 1)
        summed = integral + share * _combine(_STAGES[-1], [s.q for s in slopes])
        to = torch.where(last, end, u + step)
        error = width * _combine(_ERROR, [s.x for s in slopes])
        q_error = share * _combine(_ERROR, [s.q for s in slopes])
        local = error_of(Step(to, x, after, summed, error, q_error, slopes[-1])).cpu()  # the one wait
        _check_finite(field, to, local)
        evaluations[rows] += 6
        least = smallest[0] + smallest[1] * torch.minimum(u - start, end - u)
        kept = (local <= tolerance) | (step <= least)
        errors[rows] += torch.where(kept, local, 0.0)
        mask = column(kept, x)
        x, integral = torch.where(mask, after, x), torch.where(mask.reshape(-1, 1), summed, integral)
        # The last stage is the first one of the next step.
        slope = Slope(torch.where(mask, slopes[-1].x, slope.x), torch.where(mask.reshape(-1, 1), slopes[-1].q, slope.q))
        u = torch.where(kept, to, u)
        h = step * (0.9 * (local / tolerance).clamp(min=1e-10) ** -0.2).clamp(0.2, 5.0)
        h = h.maximum(least)
        finished = kept & last
        if bool(finished.any()):
            ended, active = (m.nonzero()[:, 0] for m in (finished, ~finished))
            whole.index_copy_(0, rows[ended].to(x.device), x[ended.to(x.device)])
            integrals.index_copy_(0, rows[ended].to(x.device), integral[ended.to(x.device)])
            rows, u, h, index = rows[active], u[active], h[active], active.to(x.device)
            x, integral, slope = x[index], integral[index], Slope(slope.x[index], slope.q[index])
            if len(rows) == 0:
                return Path(whole, integrals, evaluations, errors)
    raise ValueError(f"the ODE took more than {_MOST_STEPS} steps; raise the tolerance or t_min")


def column(values: Tensor, x: Tensor) -> Tensor:
    """(B,) on the device of x (B, *), shaped to multiply it."""
    return values.to(x.device, non_blocking=True).reshape(-1, *[1] * (x.ndim - 1))


def _combine(weights: tuple[float, ...], stages: list[Tensor]) -> Tensor:
    out = torch.zeros_like(stages[0])
    for w, stage in zip(weights, stages, strict=False):
        if w:
            out = out + w * stage
    return out


def _check_finite(field: Field, u: Tensor, values: Tensor) -> None:
    lost = ~values.isfinite().cpu()
    if bool(lost.any()):
        raise ValueError(f"the ODE diverged: values that are not finite at t = {float(field.time(u[lost][:1])):.4g}")

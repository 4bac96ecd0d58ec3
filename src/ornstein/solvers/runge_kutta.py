"""Integrators of a state and of a quantity along it: fixed steps of order 4, and steps chosen for each sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ornstein.process import expand


class Field(Protocol):
    """dx/du (B, *) and dq/du (B, K), for x (B, *) at u (B,); `active` (B,) numbers these samples in the whole."""

    def __call__(self, u: Tensor, x: Tensor, active: Tensor) -> tuple[Tensor, Tensor]: ...

    def time(self, u: Tensor) -> Tensor:
        """The time t that u stands for, to be named in an error."""
        ...


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

_MOST_STEPS = 10_000


def rk4(field: Field, x: Tensor, start: float, end: float, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """The classical Runge-Kutta method in equal steps of u: x at the end, the integral of q (B, K), calls (B,)."""
    active = torch.arange(len(x), device=x.device)
    grid = torch.linspace(start, end, steps + 1, dtype=torch.float64, device=x.device)
    integral = torch.zeros(len(x), 1, dtype=x.dtype, device=x.device)
    for k in range(steps):
        low, high = (g.expand(len(x)) for g in (grid[k], grid[k + 1]))
        h, middle = float(grid[k + 1] - grid[k]), (low + high) / 2
        v1, q1 = field(low, x, active)
        v2, q2 = field(middle, x + h / 2 * v1, active)
        v3, q3 = field(middle, x + h / 2 * v2, active)
        v4, q4 = field(high, x + h * v3, active)
        x = x + h / 6 * (v1 + 2 * v2 + 2 * v3 + v4)
        integral = integral + h / 6 * (q1 + 2 * q2 + 2 * q3 + q4)
        _check_finite(field, high, x, integral)
    return x, integral, torch.full((len(x),), 4 * steps, device=x.device)


def dormand_prince(
    field: Field,
    x: Tensor,
    start: float,
    end: float,
    tolerance: float,
    measure: Callable[[Tensor], Tensor] = lambda x: x,
    first: float = 1 / 32,
) -> tuple[Tensor, Tensor, Tensor]:
    """Dormand & Prince's method with the steps of each sample chosen by its own error: as `rk4`.

    A step stands where its error, in the root mean square over the state and in each integral, is at most `tolerance`
    (1 + the magnitude), both in the coordinates `measure`(x). The first step that is tried is the share `first` of the
    way. Samples take their own steps, so none depends on the batch it came in.
    """
    batch, device = len(x), x.device
    everything = torch.arange(batch, device=device)
    u = torch.full((batch,), start, dtype=torch.float64, device=device)
    h = torch.full((batch,), (end - start) * first, dtype=torch.float64, device=device)
    v, q = field(u, x, everything)
    integral = torch.zeros_like(q)
    calls = torch.ones(batch, dtype=torch.int64, device=device)
    x = x.clone()
    active = everything
    for _ in range(_MOST_STEPS):
        if len(active) == 0:
            return x, integral, calls
        last = u[active] + h[active] >= end - 1e-14
        step = torch.where(last, end - u[active], h[active])
        vs, qs = [v[active]], [q[active]]
        here, wide = x[active], expand(step, x)
        moved = here
        for node, weights in zip(_NODES[1:], _STAGES[1:], strict=True):
            moved = here + wide * _combine(weights, vs)
            at = torch.where(last & (node == 1.0), end, u[active] + node * step)
            stage = field(at, moved, active)
            vs.append(stage[0])
            qs.append(stage[1])
        calls[active] += 6
        new_integral = integral[active] + step[:, None] * _combine(_STAGES[-1], qs)
        _check_finite(field, u[active] + step, moved, new_integral)
        magnitude = torch.maximum(measure(here).abs(), measure(moved).abs())
        state_error = (measure(wide * _combine(_ERROR, vs)) / (1 + magnitude)).flatten(1)
        share_error = step[:, None] * _combine(_ERROR, qs) / (1 + new_integral.abs())
        error = torch.maximum(state_error.square().mean(1).sqrt(), share_error.abs().amax(1)) / tolerance
        accepted = error <= 1
        rows = active[accepted]
        u[rows] = torch.where(last, end, u[active] + step)[accepted]
        x[rows], integral[rows] = moved[accepted], new_integral[accepted]
        v[rows], q[rows] = vs[-1][accepted], qs[-1][accepted]  # the last stage is the next step's first
        h[active] = step * (0.9 * error.clamp(min=1e-10) ** -0.2).clamp(0.2, 5.0)
        if bool((h[active] < 1e-12).any()):
            t = float(field.time(u[active][h[active] < 1e-12][:1]))
            raise ValueError(f"the ODE cannot be followed to that tolerance: its steps vanish at t = {t:.4g}")
        active = active[~(accepted & last)]
    raise ValueError(f"the ODE took more than {_MOST_STEPS} steps; raise the tolerance or t_min")


def _combine(weights: tuple[float, ...], stages: list[Tensor]) -> Tensor:
    out = torch.zeros_like(stages[0])
    for w, stage in zip(weights, stages, strict=False):
        out = out + w * stage
    return out


def _check_finite(field: Field, u: Tensor, x: Tensor, integral: Tensor) -> None:
    lost = ~(x.isfinite().flatten(1).all(1) & integral.isfinite().all(1))
    if bool(lost.any()):
        raise ValueError(f"the ODE diverged: values that are not finite at t = {float(field.time(u[lost][:1])):.4g}")

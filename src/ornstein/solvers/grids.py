"""Time schedules: the times between which a solver steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ornstein.request import GRID as GRID
from ornstein.schedules import Discrete, Schedule

__all__ = [
    "GRID",
    "GRIDS",
    "karras",
    "log_snr",
    "log_snr_at",
    "logistic",
    "make",
    "position",
    "trailing",
    "uniform",
]

# Times spaced in the log-SNR end here before their last step into t = 0, where it is infinite.
_LAST_LOG_SNR = -2 * math.log(0.002)

_KARRAS_RHO = 7.0

# Chosen on Gaussians and mixtures of many scales, with 5 to 50 steps.
_LOGISTIC_SLOPE = 0.35


def uniform(schedule: Schedule, start: float, end: float, steps: int) -> Tensor:
    """Equal steps in t."""
    return torch.linspace(start, end, steps + 1, dtype=torch.float64)


def logistic(schedule: Schedule, start: float, end: float, steps: int) -> Tensor:
    """Equal steps in sigmoid(-0.35 lambda): a function of the log-SNR alone, finite at both ends. The default."""

    first, last = position(schedule.log_snr(start)), position(schedule.log_snr(end))
    return schedule.time(log_snr_at(torch.lerp(first, last, uniform(schedule, 0.0, 1.0, steps))))


def position(log_snr: Tensor, slope: float = _LOGISTIC_SLOPE) -> Tensor:
    """sigmoid(-slope lambda), from 0 at the data to 1 at zero SNR."""
    return torch.sigmoid(-slope * log_snr)


def log_snr_at(position: Tensor, slope: float = _LOGISTIC_SLOPE) -> Tensor:
    """The log-SNR at a `position`."""
    return -torch.logit(position) / slope


def log_snr(schedule: Schedule, start: float, end: float, steps: int) -> Tensor:
    """Equal steps in the log-SNR; the one into t = 0 starts where the noise is 0.002 of the data."""
    return _in_log_snr(schedule, start, end, steps, lambda level: level, lambda u: u)


def karras(schedule: Schedule, start: float, end: float, steps: int) -> Tensor:
    """Equal steps in (s/a)^(1/7) (Karras et al. 2022, eq. 5); the one into t = 0 starts at s/a = 0.002."""
    return _in_log_snr(
        schedule,
        start,
        end,
        steps,
        lambda level: torch.exp(-level / (2 * _KARRAS_RHO)),
        lambda u: -2 * _KARRAS_RHO * torch.log(u),
    )


def trailing(schedule: Schedule, start: float, end: float, steps: int) -> Tensor:
    """Equal steps in t rounded to the steps of a `Discrete` chain, the last of them kept (Lin et al. 2024).

    Raises:
        ValueError: there are more steps than the chain has between the two times.
    """
    grid = uniform(schedule, start, end, steps)
    if not isinstance(schedule, Discrete):
        return grid
    length = len(schedule.steps)
    available = round(abs(start - end) * length)
    if steps > available:
        raise ValueError(f"the chain has {available} steps between t = {start:g} and {end:g}; {steps} were asked for")
    return torch.cat([grid[:1], (grid[1:-1] * length).round() / length, grid[-1:]])


def _in_log_snr(
    schedule: Schedule,
    start: float,
    end: float,
    steps: int,
    warp: Callable[[Tensor], Tensor],
    unwarp: Callable[[Tensor], Tensor],
) -> Tensor:
    if start < end:
        return _in_log_snr(schedule, end, start, steps, warp, unwarp).flip(0)
    first, last = schedule.log_snr(start), schedule.log_snr(end)
    if bool(torch.isneginf(first)):
        raise ValueError("this grid is spaced in the log-SNR, which is -inf at t = 1 of this schedule; use another")
    if end > 0 or steps == 1:
        inner = steps
    else:
        inner, last = steps - 1, torch.maximum(torch.full_like(last, _LAST_LOG_SNR), first + 1)
    u = torch.lerp(warp(first), warp(last), uniform(schedule, 0.0, 1.0, inner))
    times = schedule.time(unwarp(u))
    if inner < steps:
        times = torch.cat([times, times.new_zeros(1)])
    return times


GRIDS: dict[str, Callable[[Schedule, float, float, int], Tensor]] = {
    "logistic": logistic,
    "uniform": uniform,
    "log-snr": log_snr,
    "karras": karras,
    "trailing": trailing,
}


def make(grid: str | Sequence[float] | Tensor, schedule: Schedule, times: tuple[float, float], steps: int) -> Tensor:
    """The times of a solver, (steps + 1,) float64 from times[0] to times[1], strictly monotone.

    Args:
        grid: a name of `GRIDS`, or the times themselves, on any device.
        schedule: of the process.
        times: start and end of a named grid.
        steps: of a named grid.

    Raises:
        ValueError: the name is unknown, steps < 1, or the times are not strictly monotone within [0, 1].
    """
    start, end = times
    if not (0 <= start <= 1 and 0 <= end <= 1) or start == end:
        raise ValueError(f"times go from one to another within [0, 1], got {times}")
    if isinstance(grid, str):
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if grid not in GRIDS:
            raise ValueError(f"unknown grid {grid!r}; known: {', '.join(GRIDS)}")
        grid_times = GRIDS[grid](schedule, start, end, steps)
        grid_times[0], grid_times[-1] = start, end  # not only up to rounding
    else:
        grid_times = torch.as_tensor(grid, dtype=torch.float64, device="cpu").flatten()
        if len(grid_times) < 2:
            raise ValueError("a grid needs at least two times, its start and its end")
    difference = grid_times.diff()
    if not bool(((difference < 0).all() | (difference > 0).all()) & (grid_times >= 0).all() & (grid_times <= 1).all()):
        raise ValueError(f"a grid runs strictly one way within [0, 1], got {[round(float(t), 6) for t in grid_times]}")
    return grid_times

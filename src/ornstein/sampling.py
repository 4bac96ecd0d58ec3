"""Sampling: from noise to data by any solver, and back by DDIM inversion."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.devices import choose_precision
from ornstein.guidance import ClassifierFree
from ornstein.randomness import normal
from ornstein.request import CHURNED, SOLVER, STEPS, SampleRequest
from ornstein.schedules import Discrete, Schedule
from ornstein.solvers import Solver, Tuned, ddim, grids, named, with_colour
from ornstein.solvers.grids import GRID
from ornstein.wrapper import (
    conditions_of,
    device_of,
    distilled_of,
    evaluation_mode,
    filled_in,
    kept_solver,
    network_precision,
    networks_of,
    rows_of,
)

__all__ = ["SampleRequest", "State", "at_once", "default_grid", "draw", "invert", "sample", "settled"]

# Draw 0 is the noise that a trajectory starts from; the noise of step k is draw k + 1.
_START = 0

# How many numbers go through the network at once by default: 341 images of 32x32 pixels, 5 of 256x256. The activations
# of the network take some hundred times as much.
_AT_ONCE = 2**20

# A trajectory that starts where a/s is larger has visible data in its first state.
_NEGLIGIBLE_RATIO = 0.1


@dataclass(frozen=True)
class State:
    """A trajectory after `step` of its `steps` steps: samples x (B, *) at time t, the first of them number `first`."""

    step: int
    steps: int
    t: float
    x: Tensor
    first: int


def sample(
    d: Denoises,
    shape: Sequence[int],
    solver: str | Solver | None = None,
    steps: int | None = None,
    grid: str | Sequence[float] | Tensor | None = None,
    seed: int = 0,
    guidance: float | None = None,
    cond: dict[str, Any] | None = None,
    start: Tensor | None = None,
    times: tuple[float, float] = (1.0, 0.0),
    callback: Callable[[State], object] | None = None,
    batch: int | None = None,
    first: int = 0,
    precision: str | torch.dtype | None = None,
    guidance_interval: tuple[float, float] | None = None,
    guidance_rescale: float = 0.0,
    coloured: str | Sequence[Sequence[float]] | Tensor | None = None,
) -> Tensor:
    """Samples from a denoiser: the reverse process from times[0] down to times[1].

    By default 20 steps, as `ornstein sample`: of the solver that a loaded run keeps for this number of steps and this
    guidance, tuned or chosen, and else of "flow-3m" on the "logistic" time schedule. A distilled model takes its own
    few steps, and a warning says so if others are requested. Everything runs on the device of the network's
    weights; `start` and `cond` may be on any.

    Args:
        d: a `Denoiser`, an exact denoiser of `ornstein.oracles`, or anything that wraps one.
        shape: (B, *), the number of samples and the shape of each.
        solver, steps, grid, seed, guidance, times, batch, first, precision, guidance_interval, guidance_rescale,
            coloured: see `SampleRequest`.
        cond: conditions for the network by name: tensors (B, ...) or lists with one entry a sample; anything else is
            shared by all samples. `negative` is a dict of conditions for the other side of guidance, such as those of
            a negative prompt; without it that side has no conditions. `flow`, (B, F - 1, 2, H, W) in pixels, is the
            motion that the noise of a model with `noise.Carried` follows, and with it each clip.
        start: the state (B, *) at times[0], instead of a draw from the prior N(0, s^2 C); its dtype is kept.
        callback: called with the `State` at the start and after every step.

    Returns:
        Samples of `shape`, float32 or the dtype of `start`.

    Raises:
        ValueError: an unknown solver or time schedule; steps or batch < 1; a shape that differs from that of `start`
            or of a condition; guidance without a condition, or of a distilled model, which has it built in; a
            trajectory that starts at t = 0 without `start`; a solver that diverges.
    """
    request = SampleRequest(
        solver, steps, grid, times, seed, guidance, batch, first, precision, guidance_interval, guidance_rescale,
        coloured,
    )  # fmt: skip
    return draw(d, shape, request, cond, start, callback)


def draw(
    d: Denoises,
    shape: Sequence[int],
    request: SampleRequest,
    cond: dict[str, Any] | None = None,
    start: Tensor | None = None,
    callback: Callable[[State], object] | None = None,
) -> Tensor:
    """Samples (B, *) as `request` says; `sample` with its settings as one object."""
    shape = tuple(shape)
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"a shape is that of a batch of samples, (B, ...), got {shape}")
    if start is not None and tuple(start.shape) != shape:
        raise ValueError(f"start has shape {tuple(start.shape)}, but samples of {shape} were requested")
    solver, times = settled(d, _as_kept(d, request, start))
    cond = conditions_of(d, cond, shape[0])
    d = _guided(d, request, cond)
    _check_start(d, float(times[0]), start)
    device = device_of(d)
    dtype = _dtype(request.precision, device)
    size = request.batch or at_once(shape[1:])
    parts = []
    with torch.no_grad(), evaluation_mode(d), network_precision(d, dtype, fixed=True):
        for low in range(0, shape[0], size):
            rows = slice(low, min(low + size, shape[0]))
            own = filled_in(d, rows_of(cond, rows))
            begin = None if start is None else start[rows].to(_place(d, start))
            part = (rows.stop - low, *shape[1:])
            final = None
            for state in _trajectory(own, part, solver, times, request.seed, begin, request.first + low, device):
                final = state.x
                if callback is not None:
                    callback(state)
            assert final is not None
            parts.append(final)
    return torch.cat(parts)


def settled(d: Denoises, request: SampleRequest) -> tuple[Solver, Tensor]:
    """The solver and the time steps (float64, on the CPU) that `request` means for `d`, with all defaults filled in.

    Warns if `d` is a distilled model and the request differs from what it was trained for.

    Raises:
        ValueError: an unknown solver or time schedule.
    """
    solver, steps, grid = request.solver, request.steps, request.grid
    own = distilled_of(d)
    if own is None:
        solver, steps = solver or SOLVER, steps or STEPS
        grid = default_grid(solver, d.process.schedule, steps) if grid is None else grid
    elif _as_trained(request, own.steps, own.times, own.solver):
        solver, steps, grid = own.solver, own.steps, own.times
    else:
        what = f"this model was distilled for {own} at its own time steps"
        warnings.warn(f"{what}: with others its samples differ from its teacher's", UserWarning, stacklevel=4)
        solver, steps, grid = solver or own.solver, steps or own.steps, GRID if grid is None else grid
    if request.coloured is not None:
        solver = with_colour(request.coloured, request.solver)
    if isinstance(solver, str):
        solver = named(solver)
    if isinstance(solver, Tuned):
        grid = solver.times
    return solver, grids.make(grid, d.process.schedule, request.times, steps)


def _as_kept(d: Denoises, request: SampleRequest, start: Tensor | None) -> SampleRequest:
    """The request with the solver that the model's run keeps, where samples are made from noise and none is named."""
    guidance = 1.0 if request.guidance is None else request.guidance
    whole = request.grid is None and start is None and tuple(request.times) == (1.0, 0.0)
    if request.solver == CHURNED:
        if not whole:
            raise ValueError("churn is tuned for samples from noise on the default time schedule: leave out the others")
        solver = kept_solver(d, request.steps or STEPS, guidance, CHURNED)
        if solver is None:
            what = f"{request.steps or STEPS} steps with guidance {guidance:g}"
            raise ValueError(f"this model has no churn tuned for {what}: give an amount, such as solver='sa-3m:0.5'")
        return replace(request, solver=solver)
    if request.solver is not None or not whole or distilled_of(d) is not None:
        return request
    kept = kept_solver(d, request.steps or STEPS, guidance)
    return request if kept is None else replace(request, solver=kept)


def default_grid(solver: str | Solver, schedule: Schedule, steps: int) -> str:
    """The name of the time schedule where none is given: the steps of a chain for "ddpm" on one, else "logistic"."""
    of_chain = solver in ("ddpm", "ddpm-upper") and isinstance(schedule, Discrete) and steps <= len(schedule.steps)
    return "trailing" if of_chain else GRID


def _as_trained(request: SampleRequest, steps: int, times: tuple[float, ...], solver: str) -> bool:
    if request.grid is not None and not isinstance(request.grid, str):
        same = tuple(torch.as_tensor(request.grid, dtype=torch.float64).flatten().tolist()) == times
    else:
        same = request.grid is None and request.steps in (None, steps)
    return same and request.solver in (None, solver) and tuple(request.times) == (1.0, 0.0)


def _guided(d: Denoises, request: SampleRequest, cond: dict[str, Any]) -> Denoises:
    scale = request.guidance
    if scale is None or scale == 1:
        return d
    if not math.isfinite(scale):
        raise ValueError(f"a guidance scale is a finite number, got {scale}")
    own = distilled_of(d)
    if own is not None:
        raise ValueError(f"a distilled model has its guidance built in, {own.guidance:g}: leave it out")
    if not cond.keys() - {"negative", "flow"}:
        raise ValueError("guidance needs a condition, such as cond={'label': ...}; none was given")
    return ClassifierFree(d, scale, request.guidance_interval or (0.0, 1.0), request.guidance_rescale)


def _check_start(d: Denoises, t: float, start: Tensor | None) -> None:
    if start is not None:
        return
    if t == 0:
        raise ValueError("a trajectory that starts at the data, t = 0, needs the data: give start=...")
    alpha, sigma = float(d.process.schedule.alpha(t)), float(d.process.schedule.sigma(t))
    if alpha > _NEGLIGIBLE_RATIO * sigma:
        warnings.warn(
            f"the trajectory starts at t = {t:g}, where a state still holds {alpha:.2g} times the data, but it is "
            "drawn as pure noise: give start=process.add_noise(x0, t, z) to start from data",
            UserWarning,
            stacklevel=4,
        )


def _dtype(precision: str | torch.dtype | None, device: torch.device) -> torch.dtype | None:
    return choose_precision(precision, device) if isinstance(precision, str) else precision


def _place(d: Denoises, start: Tensor) -> torch.device:
    """Where a trajectory from `start` runs: with the network, or where `start` is if there is none (an oracle)."""
    return device_of(d) if networks_of(d) else start.device


def _trajectory(
    d: Denoises,
    shape: tuple[int, ...],
    solver: Solver,
    times: Tensor,
    seed: int,
    start: Tensor | None,
    first: int,
    device: torch.device,
) -> Iterator[State]:
    device = device if start is None else start.device
    dtype = torch.float32 if start is None else start.dtype
    index = torch.arange(first, first + shape[0], device=device)

    def noise(step: int, draw: int = 0) -> Tensor:
        return normal(shape, seed, index, step + 1, stream=draw, dtype=dtype, device=device)

    at = times.tolist()
    x = start
    if x is None:
        z = normal(shape, seed, index, _START, dtype=dtype, device=device)
        x = d.process.prior(shape, dtype=dtype, t=at[0], device=device).sample(z)
    yield State(0, len(at) - 1, at[0], x, first)
    finite: list[Tensor] = []
    for k, state in enumerate(solver(d, x, times, noise), start=1):
        finite.append(state.sum(dtype=torch.float64 if state.dtype == torch.float64 else torch.float32).isfinite())
        if device.type == "cpu":  # elsewhere reading the answer waits for the device: once, at the end
            _check_finite(finite, at)
        yield State(k, len(at) - 1, at[k], state, first)
    _check_finite(finite, at)


def _check_finite(finite: list[Tensor], times: list[float]) -> None:
    """Raises ValueError that names the first time step at which a state is not finite."""
    flags = torch.stack(finite).tolist() if finite else []
    if not all(flags):
        raise ValueError(f"the solver diverged: values that are not finite at t = {times[flags.index(False) + 1]:.4g}")


def at_once(shape: Sequence[int]) -> int:
    """How many samples of `shape`, without the batch, go through the network at once by default."""
    return max(1, _AT_ONCE // math.prod(shape))


def invert(
    d: Denoises,
    x0: Tensor,
    steps: int = 50,
    grid: str | Sequence[float] | Tensor = GRID,
    cond: dict[str, Any] | None = None,
) -> Tensor:
    """DDIM inversion (E25): the state at t = 1 that the deterministic sampler carries to x0 (B, *).

    This is the DDIM step run upwards on the same time steps. `sample(d, x0.shape, start=invert(d, x0))` approaches x0
    as the number of steps grows.
    """
    at = grids.make(grid, d.process.schedule, (1.0, 0.0), steps).flip(0)
    return sample(d, x0.shape, solver=ddim, grid=at, start=x0, cond=cond)

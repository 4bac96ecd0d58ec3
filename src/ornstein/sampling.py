"""Sampling: from noise to data by any solver, and back by DDIM inversion."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ornstein.denoiser import Denoiser, Denoises, Distilled
from ornstein.guidance import ClassifierFree
from ornstein.process import Prediction, Process
from ornstein.randomness import normal
from ornstein.schedules import Times
from ornstein.solvers import SOLVERS, Solver, Tuned, ddim, grids
from ornstein.solvers.grids import GRID

SOLVER = "ddim"
STEPS = 50
"""What `sample` takes where nothing is said, with the default grid."""

# The draw that a trajectory starts from; the noise of step k is draw k + 1.
_START = 0

# Numbers of the samples that go through the network at once unless said otherwise: 341 images of 32x32 pixels, 5 of
# 256x256. What the network makes of them on the way is some hundred times as many.
_AT_ONCE = 2**20


@dataclass(frozen=True)
class State:
    """A trajectory after `step` of its `steps` steps: samples x (B, *) at time t, the first of them number `first`."""

    step: int
    steps: int
    t: float
    x: Tensor
    first: int


@dataclass(frozen=True)
class Conditioned:
    """A denoiser with its condition filled in."""

    denoiser: Denoises
    cond: dict[str, Any]

    @property
    def process(self) -> Process:
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Times, /, **cond: Any) -> Prediction:
        return self.denoiser(x_t, t, **self.cond, **cond)


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
    precision: torch.dtype | None = None,
) -> Tensor:
    """Samples of `shape` (B, *) by running the reverse process from times[0] down to times[1].

    Unless told otherwise it takes 50 steps of "ddim" on the "logistic" grid; a distilled model its own few steps.
    It warns where such a model is asked for others, which it has not learned.

    Args:
        solver: a name of `ornstein.solvers.SOLVERS`, or a solver, e.g. `partial(solvers.ddim, eta=0.5)`; a `Tuned` one
            (`checkpoint.load_tuned`) has its own times, which stand for grid and steps.
        grid: a name of `ornstein.solvers.grids.GRIDS`, or the times themselves; these then stand for steps and times.
        seed: sample i's noise at step k is addressed by (seed, i, k): the same in any batch and on any device.
        guidance: the scale of classifier-free guidance; 1 or None is the plain conditional model.
        cond: conditions for the network by name: tensors (B, ...) or lists with one entry a sample; anything else is
            shared by all samples.
        start: the state at times[0], instead of a draw from the prior N(0, s^2 C); the dtype is kept.
        callback: called with the `State` at the start and after every step.
        batch: how many samples go through the network at once; about a million numbers unless said otherwise
            (`at_once`), so that memory does not grow with the number of samples.
        first: the number of the first sample, to make samples 64..127 of a set by themselves.
        precision: the dtype of the network's convolutions and matrix products, such as torch.bfloat16; its own unless
            given. The solver's arithmetic stays as it is.

    Raises ValueError for an unknown solver or grid (it names the known ones), steps < 1, a shape that `start` or a
    condition does not have, and guidance without a condition, or of a distilled model, which has it built in.
    """
    shape = tuple(shape)
    solver, steps, grid = settled(d, solver, steps, grid, times)
    if isinstance(solver, str) and solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}; known: {', '.join(SOLVERS)}")
    step_with = SOLVERS[solver] if isinstance(solver, str) else solver
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"a shape is a batch of samples, (B, ...), got {shape}")
    if start is not None and tuple(start.shape) != shape:
        raise ValueError(f"start has shape {tuple(start.shape)}, but samples of {shape} were asked for")
    cond = {k: v for k, v in (cond or {}).items() if v is not None}
    if guidance is not None and guidance != 1:
        own = distilled_of(d)
        if own is not None:
            raise ValueError(f"a distilled model has its guidance built in, {own.guidance:g}: leave it out")
        if not cond:
            raise ValueError("guidance needs a condition to lean towards, such as cond={'label': ...}; none was given")
        d = ClassifierFree(d, guidance)
    if isinstance(step_with, Tuned):
        grid = step_with.times
    at = grids.make(grid, d.process.schedule, times, steps)
    if start is None and float(at[0]) == 0:
        raise ValueError("these times start at the data, t = 0, which is not drawn: give them as start=...")
    size = at_once(shape[1:]) if batch is None else batch
    if size < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    out = []
    with torch.no_grad(), evaluation_mode(d), network_precision(d, precision):
        for low in range(0, shape[0], size):
            rows = slice(low, min(low + size, shape[0]))
            own = {k: _rows_of(k, v, rows, shape[0]) for k, v in cond.items()}
            begin = None if start is None else start[rows]
            part = (rows.stop - low, *shape[1:])
            final = None
            for state in _trajectory(Conditioned(d, own), part, step_with, at, seed, begin, first + low):
                final = state.x
                if callback is not None:
                    callback(state)
            assert final is not None
            out.append(final)
    return torch.cat(out)


def settled(
    d: Denoises,
    solver: str | Solver | None,
    steps: int | None,
    grid: str | Sequence[float] | Tensor | None,
    times: tuple[float, float] = (1.0, 0.0),
) -> tuple[str | Solver, int, str | Sequence[float] | Tensor]:
    """Solver, steps and grid where they are given, and what `sample` takes in their place where they are not.

    Warns where `d` is a distilled model and these are not what it was made for.
    """
    own = distilled_of(d)
    if own is None:
        return solver or SOLVER, STEPS if steps is None else steps, GRID if grid is None else grid
    here = grid is None and steps in (None, own.steps)
    if grid is not None and not isinstance(grid, str):
        here = tuple(torch.as_tensor(grid, dtype=torch.float64).flatten().tolist()) == own.times
    if here and solver in (None, own.solver) and tuple(times) == (1.0, 0.0):
        return own.solver, own.steps, own.times
    told = f"this model was distilled for {own} at its own times"
    warnings.warn(f"{told}: by others its samples are not its teacher's", UserWarning, stacklevel=3)
    return solver or own.solver, own.steps if steps is None else steps, GRID if grid is None else grid


def _trajectory(
    d: Denoises, shape: tuple[int, ...], solver: Solver, times: Tensor, seed: int, start: Tensor | None, first: int
) -> Iterator[State]:
    device = device_of(d) if start is None else start.device
    dtype = torch.float32 if start is None else start.dtype
    index = torch.arange(first, first + shape[0])

    def noise(step: int, draw: int = 0) -> Tensor:
        return normal(shape, seed, index, step + 1, stream=draw, dtype=dtype, device=device)

    t = float(times[0])
    x = start
    if x is None:
        z = normal(shape, seed, index, _START, dtype=dtype, device=device)
        x = d.process.prior(shape, dtype=dtype, t=t, device=device).sample(z)
    count = len(times) - 1
    yield State(0, count, t, x, first)
    for k, state in enumerate(solver(d, x, times, noise), start=1):
        if not bool(torch.isfinite(state).all()):
            raise ValueError(f"the solver diverged: values that are not finite at t = {float(times[k]):.4g}")
        yield State(k, count, float(times[k]), state, first)


def at_once(shape: Sequence[int]) -> int:
    """How many samples of `shape`, without the batch, go through the network at once unless said otherwise."""
    return max(1, _AT_ONCE // math.prod(shape))


def invert(
    d: Denoises,
    x0: Tensor,
    steps: int = 50,
    grid: str | Sequence[float] | Tensor = "logistic",
    cond: dict[str, Any] | None = None,
) -> Tensor:
    """DDIM inversion (E25): the state at t = 1 that the deterministic sampler would carry to x0 (B, *).

    The DDIM step run upwards on the same grid; `sample(d, x0.shape, start=invert(d, x0))` returns x0 as steps grow.
    """
    at = grids.make(grid, d.process.schedule, (1.0, 0.0), steps).flip(0)
    return sample(d, x0.shape, solver=ddim, grid=at, start=x0, cond=cond)


def _rows_of(name: str, value: Any, rows: slice, total: int) -> Any:
    if (isinstance(value, Tensor) and value.ndim > 0) or isinstance(value, list | tuple):
        if len(value) != total:
            raise ValueError(f"cond[{name!r}] has {len(value)} rows for {total} samples")
        return value[rows]
    return value


def module_of(d: Denoises) -> nn.Module | None:
    """The network behind guidance and conditions, where there is one."""
    while not isinstance(d, nn.Module):
        inner = getattr(d, "denoiser", None)
        if inner is None:
            return None
        d = inner
    return d


def distilled_of(d: Denoises) -> Distilled | None:
    """What a distilled model was made for; None for any other."""
    return getattr(module_of(d), "distilled", None)


def device_of(d: Denoises) -> torch.device:
    """Where the network's weights are; the CPU where there is none."""
    module = module_of(d)
    parameter = next(module.parameters(), None) if module is not None else None
    return torch.device("cpu") if parameter is None else parameter.device


class evaluation_mode:
    """The network without dropout while it samples; each of its modules gets its own mode back afterwards."""

    def __init__(self, d: Denoises) -> None:
        self.module = module_of(d)

    def __enter__(self) -> None:
        if self.module is not None:
            # One by one: a part that is frozen in evaluation mode stays so in a network that is training.
            self.training = [(m, m.training) for m in self.module.modules()]
            self.module.eval()

    def __exit__(self, *_: object) -> None:
        if self.module is not None:
            for module, training in self.training:
                module.training = training


@contextmanager
def network_precision(d: Denoises, dtype: torch.dtype | None) -> Iterator[None]:
    """The network, and nothing around it, under autocast to `dtype`; as it is where that is None.

    Raises ValueError where there is no network.
    """
    if dtype is None:
        yield
        return
    module = module_of(d)
    if not isinstance(module, Denoiser):
        raise ValueError("a precision is that of a network; this denoiser has none")
    own, module.precision = module.precision, dtype
    try:
        yield
    finally:
        module.precision = own

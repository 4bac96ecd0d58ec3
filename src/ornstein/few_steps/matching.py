"""The second stage of tuning: the samples of a solver as a set come near given ones (E33).

The first stage brings each end near the fine solution from the same noise. What is left of its error may still show in
the samples as a whole, and the fine solution itself has the errors of the model. Here the ends as a set are brought
near given samples, such as the training images, in a sliced Wasserstein distance, while the distance of each from its
fine solution keeps within a limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.denoiser import Denoises
from ornstein.devices import float64_device
from ornstein.few_steps.free_solver import FreeSolver, Progress
from ornstein.randomness import normal
from ornstein.solvers.tuned import Tuned

__all__ = ["Matching", "SlicedWasserstein", "matched", "squares"]

_ROOM = 1 / 9  # of the untuned solver's mean square error, or
_MORE = 1.5  # so many times that of the first stage: what the second stage may use of it
_WALL = 4  # the penalty is (mean square error/limit)^4: small below the limit, and steep at it

_STREAM = 0x4D41544D
_SLICES, _WHOLE, _BINS = 32, 64, 128
_SIDE, _LEAST = 5, 8  # pixels of a patch; of an octave that has another one below it


@dataclass(frozen=True)
class Matching:
    """The second stage.

    Attributes:
        distance: of ends (B, *) from the samples to match; differentiable.
        starts: batches of (denoiser with its conditions, x_1) beside those of the trajectories.
        iterations: runs of the optimiser.
    """

    distance: Callable[[Tensor], Tensor]
    starts: Sequence[tuple[Denoises, Tensor]] = ()
    iterations: int = 30


def matched(
    free: FreeSolver,
    parts: Sequence[tuple[Denoises, Tensor, Tensor]],
    scales: Sequence[float],
    match: Matching,
    progress: Progress = lambda done, error: None,
) -> Tuned:
    """Minimise D/D_0 + (E/limit)^4: the distance, against its value now, and the mean square error E of the ends.

    The limit is 1/9 of the untuned solver's mean square error, or 1.5 times that of `free` now if this is more.

    Args:
        free: from the first stage; it is left at the solver that is returned.
        parts: trajectories (denoiser, x_1, fine end).
        scales: the untuned solver's mean square error on each part.
        match: what to match.
        progress: called with the iterations so far and the square root of the objective.
    """
    starts = [*((d, x) for d, x, _ in parts), *match.starts]
    count = sum(end.numel() for _, _, end in parts)

    def run() -> tuple[list[Tensor], float]:
        """All ends, and E."""
        with torch.no_grad():
            ends = [free.run(d, x) for d, x in starts]
        shares = zip(ends, parts, scales, strict=False)
        return ends, sum(float(squares(x - end)) / (count * scale) for x, (_, _, end), scale in shares)

    ends, error = run()
    first, limit = float(match.distance(torch.cat(ends))), max(_ROOM, _MORE * error)

    def loss() -> float:
        ends, error = run()
        if not math.isfinite(error):
            return math.inf
        together = torch.cat(ends).requires_grad_()
        distance = match.distance(together) / first
        (pull,) = torch.autograd.grad(distance, together)
        wall = _WALL * (error / limit) ** (_WALL - 1) / limit
        for i, ((d, x), to) in enumerate(zip(starts, pull.split([len(x) for x in ends]), strict=True)):
            end = free.run(d, x)
            total = _wide(to * end).sum()
            if i < len(parts):
                total = total + wall * squares(end - parts[i][2]) / (count * scales[i])
            free.add_gradient(total)
        return float(distance) + (error / limit) ** _WALL

    return free.minimise(loss, match.iterations, progress)


def squares(error: Tensor) -> Tensor:
    """The sum of squares in float64."""
    return _wide(error).square().sum()


def _wide(x: Tensor) -> Tensor:
    """In float64, on a device that has it."""
    return x.to(float64_device(x.device)).double()


class SlicedWasserstein:
    """The sliced Wasserstein distance of samples (B, *) from given ones, and differentiable.

    A slice is a random projection, and its distance the squared 2-Wasserstein distance of the two sets of numbers, over
    the variance of the given one; the mean over slices is taken. Slices are of whole samples, and of images and clips
    also of patches of 5x5 pixels on every octave, with weights that sum to 0, all positions in one set (Karras et al.
    2018, arXiv:1710.10196, section 5, with the octaves themselves in place of a Laplacian pyramid).

    Args:
        real: the given samples (M, *), as the model makes them.

    Raises:
        ValueError: fewer than two samples.
    """

    def __init__(self, real: Tensor) -> None:
        if len(real) < 2:
            raise ValueError(f"a distance of distributions needs two samples or more, got {len(real)}")
        self._shape = tuple(real.shape[1:])
        with torch.no_grad():
            self._real = [(_quantiles(v), _wide(v).var(1)) for v in self._slices(real)]

    def __call__(self, x: Tensor) -> Tensor:
        """The distance of x (B, *), a number without a unit. Raises ValueError for samples of another shape."""
        if tuple(x.shape[1:]) != self._shape:
            raise ValueError(f"samples of {tuple(x.shape[1:])} are compared with samples of {self._shape}")
        parts = []
        for values, (known, variance) in zip(self._slices(x), self._real, strict=True):
            apart = (_quantiles(values) - known).square().mean(1) / variance.clamp(min=1e-12)
            parts.append(apart.mean())
        return torch.stack(parts).mean()

    def _slices(self, x: Tensor) -> list[Tensor]:
        """Sets of numbers, (slices, numbers) each."""
        whole = _directions(_WHOLE, math.prod(self._shape), 0).to(x)
        out = [whole @ x.flatten(1).T]
        if len(self._shape) < 3:
            return out
        frames = x if len(self._shape) == 3 else x.transpose(1, 2).flatten(0, 1)
        octave = 1
        while True:
            sides = [min(_SIDE, n) for n in frames.shape[2:]]
            w = _directions(_SLICES, frames.shape[1] * math.prod(sides), octave)
            w = (w - w.mean(1, keepdim=True)).reshape(_SLICES, frames.shape[1], *sides).to(x)
            out.append(F.conv2d(frames, w).transpose(0, 1).flatten(1))
            if min(frames.shape[2:]) < _LEAST:
                return out
            frames, octave = F.avg_pool2d(frames, 2), octave + 1


def _directions(count: int, n: int, octave: int) -> Tensor:
    """Random unit vectors (count, n), the same on every machine."""
    w = normal((count, n), 0, torch.arange(count), octave, _STREAM, torch.float64)
    return w / w.norm(dim=1, keepdim=True)


def _quantiles(values: Tensor) -> Tensor:
    """The means of equal shares of each row (K, n), in order: (K, bins)."""
    ordered = _wide(values.sort(1).values)
    total = F.pad(ordered.cumsum(1), (1, 0))
    at = torch.linspace(0, values.shape[1], _BINS + 1, dtype=torch.float64, device=ordered.device)
    low = at.floor().long().clamp(max=values.shape[1] - 1)
    upto = torch.lerp(total[:, low], total[:, low + 1], (at - low).expand(len(values), -1))
    return upto.diff(dim=1) * (_BINS / values.shape[1])

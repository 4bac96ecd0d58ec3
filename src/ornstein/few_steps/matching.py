"""The second stage of tuning: the samples of a solver as a set come near given ones (E33).

The first stage brings each end near the fine solution from the same noise. What is left of its error may still show in
the samples as a whole, and the fine solution itself has the errors of the model. Here the ends as a set are brought
near given samples, such as the training images, by the Fréchet distance in features, while the distance of each from
its fine solution keeps within a limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.devices import in_float64
from ornstein.few_steps.free_solver import FreeSolver, Progress
from ornstein.solvers.tuned import Tuned

__all__ = ["FeatureDistance", "KernelDistance", "Matching", "matched", "squares"]

_ROOM = 0.75**2  # of the mean square error of the best untuned solver, or
_MORE = 1.3  # so many times that of the first stage: what the second stage may use of it
_WALL = 4  # the penalty is (mean square error/limit)^4: small below the limit, and steep at it

_STEP = 0.2  # of the limit, twice what a step of 1 adds to E
_LEAST_SHARE = 0.05  # of the distance, that there may be to gain at least
_LEAST_SPREAD = 0.01  # about a grey level: a feature that all samples share is not divided by rounding alone
_AT_ONCE = 256


@dataclass(frozen=True)
class Matching:
    """The second stage.

    Attributes:
        distance: of ends (B, *) from the samples to match; differentiable.
        starts: batches of (denoiser with its conditions, x_1) beside those of the trajectories.
        iterations: runs of the optimiser.
        precision: of the network meanwhile; None for its own.
    """

    distance: FeatureDistance
    starts: Sequence[tuple[Denoises, Tensor]] = ()
    iterations: int = 30
    precision: torch.dtype | None = None


def matched(
    free: FreeSolver,
    parts: Sequence[tuple[Denoises, Tensor, Tensor]],
    scales: Sequence[float],
    match: Matching,
    untuned: float,
    progress: Progress = lambda done, error: None,
) -> Tuned:
    """Minimise D/D_0 + (E/limit)^4: the distance, against what it may lose, and the mean square error E of the ends.

    The limit is three quarters of the error of the best untuned solver, or 1.3 times the mean square error of `free`
    now if this is more.

    Args:
        free: from the first stage; it is left at the solver that is returned.
        parts: trajectories (denoiser, x_1, fine end).
        scales: the untuned solver's mean square error on each part.
        match: what to match.
        untuned: E of the best untuned solver.
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
    first, limit = float(match.distance(torch.cat(ends))), max(_ROOM * untuned, _MORE * error)
    first = max(first - match.distance.least(sum(map(len, ends))), _LEAST_SHARE * first)  # what there is to gain

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
            total = in_float64(to * end).sum()
            if i < len(parts):
                total = total + wall * squares(end - parts[i][2]) / (count * scales[i])
            free.add_gradient(total)
        return float(distance.detach()) + (error / limit) ** _WALL

    return free.minimise(loss, match.iterations, progress, change=_change(free, limit))


def _change(free: FreeSolver, limit: float) -> Tensor | None:
    """Parameters by coordinates in which a step of 1 adds about a tenth of the limit to E."""
    if free.curvature is None:
        return None
    values, vectors = torch.linalg.eigh(free.curvature)
    return vectors * (_STEP * limit * values.clamp(min=1e-12 * float(values[-1]))).sqrt()


def squares(error: Tensor) -> Tensor:
    """The sum of squares in float64."""
    return in_float64(error).square().sum()


def _flat(x: Tensor) -> Tensor:
    return x.flatten(1)


class FeatureDistance:
    """The squared Fréchet distance of samples (B, *) from given ones, differentiable.

    Each feature is scaled to unit variance over the given samples.

    Args:
        real: the given samples (M, *), as the model makes them.
        features: of samples, (B, *) to (B, D); the numbers themselves by default. Of images take
            `autoencoders.perceptual.octave_statistics`, whose filters are not those that `ornstein evaluate` measures
            with.

    Raises:
        ValueError: fewer than two samples.
    """

    def __init__(self, real: Tensor, features: Callable[[Tensor], Tensor] = _flat) -> None:
        self._shape, self._given, self._features = tuple(real.shape[1:]), real, features
        f, self._mean, self._std = _standardised(real, features)
        self._root = torch.linalg.qr(f / math.sqrt(len(f) - 1), mode="r").R

    def __call__(self, x: Tensor) -> Tensor:
        """The distance of x (B, *), B > 1. Raises ValueError for samples of another shape."""
        if tuple(x.shape[1:]) != self._shape:
            raise ValueError(f"samples of {tuple(x.shape[1:])} are compared with samples of {self._shape}")
        f = (in_float64(self._features(x)) - self._mean) / self._std
        mean = f.mean(0)
        root = (f - mean) / math.sqrt(len(f) - 1)
        cross = torch.linalg.svdvals(root @ self._root.T).sum()
        return mean.square().sum() + root.square().sum() + self._root.square().sum() - 2 * cross

    def least(self, count: int) -> float:
        """The distance of so many of the given samples from all of them: about what the best samples have."""
        order = torch.randperm(len(self._given), generator=torch.Generator().manual_seed(0))[:count]
        with torch.no_grad():
            return float(self(self._given[order.to(self._given.device)]))


class KernelDistance:
    """The squared kernel distance of samples (B, *) from given ones, differentiable, and unbiased for any B.

    The kernel is (f g/D + 1)^3 of standardised features, as in the kernel distance of `ornstein evaluate`, but of other
    features. Of few samples, such as a batch of a training, its gradient is that of many in the mean; the Fréchet
    distance of few samples would pull them together.

    Args:
        real, features: as for `FeatureDistance`.
    """

    def __init__(self, real: Tensor, features: Callable[[Tensor], Tensor] = _flat) -> None:
        self._features = features
        self._given, self._mean, self._std = (each.float() for each in _standardised(real, features))
        inside = _cubic(self._given, self._given)
        self._own = float((inside.sum() - inside.diagonal().sum()) / (len(real) * (len(real) - 1)))

    def __call__(self, x: Tensor) -> Tensor:
        """The distance of x (B, *), B > 1."""
        return self.shares(x).mean()

    def shares(self, x: Tensor) -> Tensor:
        """The share (B,) of each sample in the distance: the mean over its pairs with the others. Their mean is it."""
        f = (self._features(x).float() - self._mean) / self._std
        inside, others = _cubic(f, f), len(f) - 1
        pairs = (inside.sum(1) - inside.diagonal()) / others
        cross = _cubic(f, self._given).mean(1)
        return pairs - cross - (cross.sum() - cross) / others + self._own


def _cubic(f: Tensor, g: Tensor) -> Tensor:
    return (f @ g.T / f.shape[1] + 1) ** 3


def _standardised(real: Tensor, features: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Features (M, D) of mean 0 and variance 1, and the means and deviations that they had."""
    if len(real) < 2:
        raise ValueError(f"a distance of distributions needs two samples or more, got {len(real)}")
    with torch.no_grad():
        f = torch.cat([in_float64(features(part)) for part in real.split(_AT_ONCE)])
    mean, std = f.mean(0), f.std(0).clamp(min=_LEAST_SPREAD)
    return (f - mean) / std, mean, std

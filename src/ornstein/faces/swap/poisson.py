"""The membrane of Poisson blending: harmonic inside a region, with given values around it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["membrane"]

_TOLERANCE = 1e-6  # of the residual's root mean square, in the units of the values: far below 1/255
_ITERATIONS = 100
_DAMPING = 0.2  # 0.8 of Jacobi's 1/4
_COARSEST, _SWEEPS = 4, 8


def membrane(values: Tensor, inside: Tensor) -> Tensor:
    """u (C, H, W) with u = values outside the region, and a discrete Laplacian of 0 inside it.

    The array's border is free (its normal derivative is 0). If the region is everything, u = 0. Conjugate gradients,
    preconditioned by one multigrid cycle: the work is proportional to the number of pixels.

    Args:
        values: (C, H, W).
        inside: the region, bool (H, W).
    """
    if bool(inside.all()):
        return torch.zeros_like(values)
    weights = _pyramid(inside.to(torch.float64)[None])
    weight = weights[0]
    u = values.double() * (1 - weight)
    residual = _laplacian(u) * weight
    enough = _TOLERANCE**2 * float(weight.sum())
    direction, power = torch.zeros_like(u), torch.ones(len(u), 1, 1, dtype=u.dtype)
    for _ in range(_ITERATIONS):
        if float(residual.square().sum((1, 2)).max()) <= enough:
            break
        smooth = _cycle(residual, weights)
        before, power = power, _dot(residual, smooth)
        # A channel that is solved already has no power and takes no step.
        direction = smooth + power / before.clamp_min(1e-300) * direction
        bent = -_laplacian(direction) * weight
        step = power / _dot(direction, bent).clamp_min(1e-300)
        u, residual = u + step * direction, residual - step * bent
    return u.to(values.dtype)


def _cycle(residual: Tensor, weights: list[Tensor]) -> Tensor:
    """An approximate solution for the residual: smoothed here, corrected on half the grid, smoothed again."""
    weight = weights[0]
    e = _DAMPING * residual * weight
    if len(weights) == 1:
        for _ in range(_SWEEPS):
            e = e + _DAMPING * (residual + _laplacian(e)) * weight
        return e
    left = (residual + _laplacian(e)) * weight
    e = e + _enlarge(_cycle(_reduce(left), weights[1:]), e.shape) * weight
    return e + _DAMPING * (residual + _laplacian(e)) * weight


def _pyramid(weight: Tensor) -> list[Tensor]:
    """The region on each grid: a cell belongs to it if more than half of what it covers does."""
    levels = [weight]
    while min(levels[-1].shape[1:]) > _COARSEST and bool(levels[-1].any()):
        share = F.avg_pool2d(_even(levels[-1])[None], 2)[0]
        levels.append((share > 0.5).to(weight.dtype))
    return levels


# Interpolation between the centres of cells, and its transpose: the cycle must be symmetric.
_WEIGHTS = torch.tensor([1, 3, 3, 1], dtype=torch.float64) / 4
_KERNEL = torch.outer(_WEIGHTS, _WEIGHTS)[None, None]


def _reduce(x: Tensor) -> Tensor:
    return F.conv2d(_even(x)[:, None], _KERNEL, stride=2, padding=1)[:, 0]


def _enlarge(x: Tensor, shape: torch.Size) -> Tensor:
    return F.conv_transpose2d(x[:, None], _KERNEL, stride=2, padding=1)[:, 0, : shape[1], : shape[2]]


def _even(x: Tensor) -> Tensor:
    return F.pad(x, (0, x.shape[2] % 2, 0, x.shape[1] % 2))


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum((1, 2), keepdim=True)


def _laplacian(u: Tensor) -> Tensor:
    """The sum of (neighbour - pixel) over the neighbours inside the array."""
    across, along = u[:, :, 1:] - u[:, :, :-1], u[:, 1:] - u[:, :-1]
    total = torch.zeros_like(u)
    total[:, :, :-1] += across
    total[:, :, 1:] -= across
    total[:, :-1] += along
    total[:, 1:] -= along
    return total

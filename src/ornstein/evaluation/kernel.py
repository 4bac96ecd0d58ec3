"""Kernel distance: the squared maximum mean discrepancy of features under a cubic kernel (Binkowski et al. 2018).

    k(x, y) = (x . y / D + 1)^3
    d^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),   x, x' ~ P and y, y' ~ Q independent

Unlike that of the Fréchet distance its estimate is unbiased: few images give a noisy value, but not a larger one. For
equal distributions its expectation is zero, and about half of the estimates are negative.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["KernelScore", "checked_features", "kernel_distance"]

_BLOCK = 2**22  # doubles of the kernel matrix held at once: 32 MiB
_SUBSETS = 10


@dataclass(frozen=True)
class KernelScore:
    """A squared kernel distance (no unit) and its standard error, over `subsets` disjoint subsets of both sets."""

    value: float
    error: float
    subsets: int


def checked_features(a: Tensor, b: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """a (N, D) and b (M, D) as float64 on the CPU. ValueError if they do not fit, are too few or not finite."""
    for name, value in (("a", a), ("b", b)):
        if value.ndim != 2 or len(value) < least or value.shape[1] < 1:
            raise ValueError(f"{name} must be (N, D) features of at least {least} images, got {tuple(value.shape)}")
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name} holds values that are not finite")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features differ in length: {a.shape[1]} against {b.shape[1]}")
    return a.detach().cpu().double(), b.detach().cpu().double()


def _kernel_sum(x: Tensor, y: Tensor) -> float:
    """The sum of k over all pairs, block by block."""
    rows = max(1, _BLOCK // len(y))
    return sum(float((part @ y.T / x.shape[1] + 1).pow(3).sum()) for part in x.split(rows))


def _pairs_mean(x: Tensor) -> float:
    """The mean of k over pairs of different rows; the diagonal would bias it."""
    diagonal = float((x.square().sum(1) / x.shape[1] + 1).pow(3).sum())
    return (_kernel_sum(x, x) - diagonal) / (len(x) * (len(x) - 1))


def _estimate(x: Tensor, y: Tensor) -> float:
    return _pairs_mean(x) + _pairs_mean(y) - 2 * _kernel_sum(x, y) / (len(x) * len(y))


def kernel_distance(a: Tensor, b: Tensor, subsets: int = _SUBSETS) -> KernelScore:
    """Unbiased squared kernel distance between features a (N, D) and b (M, D), with its standard error.

    The value uses all pairs. The error is that of the mean of the same estimate on disjoint subsets, which varies at
    least as much (Hoeffding 1948), so it is not too small. Time grows with (N + M)^2 D, memory with N + M.

    Args:
        a, b: features.
        subsets: how many disjoint subsets; fewer if they would hold less than 2 images. With one the error is NaN.

    Raises:
        ValueError: fewer than two rows, different D, values that are not finite, or subsets < 1.

    Source: Binkowski et al. 2018 (arXiv:1801.01401), eq. 4; Gretton et al. 2012, lemma 6.
    """
    if subsets < 1:
        raise ValueError(f"at least one subset is needed, got {subsets}")
    x, y = checked_features(a, b, least=2)
    subsets = min(subsets, len(x) // 2, len(y) // 2)
    # Every subsets-th row: samples are in the order of their classes, real images in that of their folders.
    parts = torch.tensor([_estimate(x[i::subsets], y[i::subsets]) for i in range(subsets)], dtype=torch.float64)
    error = float(parts.std() / subsets**0.5) if subsets > 1 else float("nan")
    return KernelScore(_estimate(x, y), error, subsets)

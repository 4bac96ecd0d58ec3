"""Precision and recall of samples: how many look real, and how much of the real they reach (Kynkaanniemi et al. 2019).

The support of a set of features is estimated by balls around its points; the radius of each is the distance to the k-th
nearest neighbour in the set. Precision is the share of samples in the support of the real images, recall the share of
real images in the support of the samples. Both lie in [0, 1]. Two halves of one set score below 1, about equally in
both: compare with that. An outlier among the real images has a large ball, which raises precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.evaluation.kernel import checked_features

__all__ = ["PrecisionRecall", "precision_recall"]

_BLOCK = 2**22  # doubles of a distance matrix held at once: 32 MiB

# Squared distances are |x|^2 + |y|^2 - 2 x.y, whose rounding is of this order; equal points get distance zero.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares in [0, 1]; k: the neighbour that the radius of a ball is the distance to."""

    precision: float
    recall: float
    k: int


def precision_recall(samples: Tensor, real: Tensor, k: int = 3) -> PrecisionRecall:
    """Precision and recall of samples (N, D) against real features (M, D).

    Both depend on N and M: compare only values of equal counts. The distance matrix is never held whole.

    Raises:
        ValueError: unless both sets have more than k rows, the same D, and finite values.

    Source: Kynkaanniemi et al. 2019 (arXiv:1904.06991), eq. 1 and 2.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    x, y = checked_features(samples, real, least=k + 1)
    centre = y.mean(0)
    x, y = x - centre, y - centre
    return PrecisionRecall(_covered(x, y, _radii(y, k)), _covered(y, x, _radii(x, k)), k)


def _radii(x: Tensor, k: int) -> Tensor:
    """Squared distance of each point to its k-th nearest neighbour, (N,)."""
    out = []
    for low, squared in _squared_distances(x, x):
        squared.diagonal(low).fill_(torch.inf)
        out.append(squared.kthvalue(k, dim=1).values)
    return torch.cat(out)


def _covered(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    """Share of points in at least one ball."""
    inside = sum(int((squared <= radii).any(1).sum()) for _, squared in _squared_distances(points, centres))
    return inside / len(points)


def _squared_distances(x: Tensor, y: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first row, |x_i - y_j|^2) in blocks of rows."""
    norms = y.square().sum(1)
    rows = max(1, _BLOCK // len(y))
    for low in range(0, len(x), rows):
        part = x[low : low + rows]
        lengths = part.square().sum(1, keepdim=True)
        squared = torch.addmm(norms, part, y.T, alpha=-2).add_(lengths)
        yield low, torch.where(squared > _ROUNDING * (lengths + norms), squared, 0.0)

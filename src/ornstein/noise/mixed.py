"""Equicorrelated noise: a part shared by all frames, and a part of each frame's own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.noise.covariance import POWERS, Covariance, Operation, SingularCovarianceError, check_floor
from ornstein.noise.frames import SHORT_AXIS, FrameCovariance

__all__ = ["Mixed"]


@dataclass(frozen=True)
class Mixed(FrameCovariance):
    """C = (1-c) I + c 11^T over `length` frames: any two frames have correlation c (E5).

    The mean over frames has eigenvalue 1 - c + c L, deviations from it 1 - c. With P = 11^T/L every function of C is
    f(1-c) (I - P) + f(1-c+cL) P. R is the symmetric root. O(L) time and memory at any length.
    Source: the "mixed noise model" of Ge et al. 2023, "Preserve Your Own Correlation" (arXiv:2305.10474), section 3.

    Args:
        length: number of frames, at least 1.
        c: correlation in [-1/(L-1), 1]; both ends are singular.

    Raises:
        ValueError: c is outside its range, or the length is below 1.
    """

    length: int
    c: float

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"Mixed needs at least one frame, got length {self.length}")
        lowest = -1 / (self.length - 1) if self.length > 1 else -1.0
        if not (lowest <= self.c <= 1):
            raise ValueError(
                f"Mixed over {self.length} frames needs a correlation in [{lowest:.4g}, 1], got {self.c}: "
                f"the smallest eigenvalue would be {min(self._eigenvalues):.3g}"
            )

    @property
    def _eigenvalues(self) -> tuple[float, float]:
        """Of a deviation from the mean over frames, and of that mean."""
        if self.length == 1:  # one frame has no correlation with others, whatever c is
            return 1.0, 1.0
        mean = 1 + self.c * (self.length - 1)
        return 1 - self.c, 0.0 if abs(mean) < 1e-12 else mean

    @property
    def singular(self) -> bool:
        return min(self._eigenvalues) <= 0

    def dense(self) -> Tensor:
        c = torch.full((self.length, self.length), self.c, dtype=torch.float64)
        return c.fill_diagonal_(1)

    def axis_logdet(self) -> float:
        deviation, mean = self._eigenvalues
        return (self.length - 1) * math.log(deviation) + math.log(mean)

    def _factors(self, operation: Operation) -> tuple[float, float]:
        """The factor of a deviation from the mean over frames, and the factor of that mean."""
        if self.singular and operation in ("whiten", "solve"):
            raise SingularCovarianceError(self)
        deviation, mean = self._eigenvalues
        return deviation ** POWERS[operation], mean ** POWERS[operation]

    def _matrix(self, operation: str) -> Tensor:
        if operation not in POWERS:
            return super()._matrix(operation)
        deviation, mean = self._factors(operation)
        return deviation * torch.eye(self.length, dtype=torch.float64) + (mean - deviation) / self.length

    def _apply(self, operation: Operation, x: Tensor) -> Tensor:
        if self.length <= SHORT_AXIS:
            return super()._apply(operation, x)
        deviation, mean = self._factors(operation)
        return (deviation * x).add_(x.mean(dim=1, keepdim=True), alpha=mean - deviation)

    def floored(self, g: float) -> Covariance:
        """(1 - g) C + g I, again Mixed."""
        check_floor(g)
        return Mixed(self.length, (1 - g) * self.c)

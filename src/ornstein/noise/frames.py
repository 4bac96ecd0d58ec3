"""Covariances over one axis of length L, the frames of a clip: the shared base, and the one given by its matrix."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.noise.covariance import Covariance, Operation, SingularCovarianceError, check_floor

__all__ = ["NULL", "SHORT_AXIS", "FrameCovariance", "Matrix", "check_eigenvalues", "frame_axis"]

SHORT_AXIS = 64
"""Up to this length one product with a cached matrix is fastest (benchmarks/noise.py)."""

NULL = 1e-12
"""An eigenvalue below this share of the largest one is a null direction, not a small variance."""


class FrameCovariance(Covariance):
    """A covariance over one axis of `length` elements.

    Subclasses define `dense`; subclasses for long axes override the operations. R is the lower triangular Cholesky
    factor, unless the subclass says otherwise or C is singular. Matrices are computed once, in float64, and cast once
    for each dtype and device.
    """

    length: int

    def dense(self) -> Tensor:
        raise NotImplementedError

    def _cached(self, operation: str) -> Tensor:
        cache: dict[str, Tensor] = self.__dict__.setdefault("_matrices", {})
        if operation not in cache:
            with torch.inference_mode(False):
                cache[operation] = self._matrix(operation)
        return cache[operation]

    def _matrix(self, operation: str) -> Tensor:
        if operation == "matvec":
            return self.dense()
        if operation == "eigenvalues":
            return torch.linalg.eigvalsh(self.dense())
        if operation == "eigenvectors":
            return torch.linalg.eigh(self.dense())[1]
        if operation == "color":
            return self._null_root() if self.singular else torch.linalg.cholesky(self.dense())
        if self.singular:
            raise SingularCovarianceError(self)
        if operation == "whiten":
            unit = torch.eye(self.length, dtype=torch.float64)
            return torch.linalg.solve_triangular(self._cached("color"), unit, upper=False)
        return self._cached("whiten").mT @ self._cached("whiten")

    def _null_root(self) -> Tensor:
        """V diag(sqrt(l)) with exact zeros in the null directions, where rounding alone has a root of 1e-8."""
        values = self.eigenvalues
        return self.eigenvectors * torch.where(values > NULL * values[-1], values, 0.0).sqrt()

    @property
    def eigenvalues(self) -> Tensor:
        """The eigenvalues of C, ascending, (L,) float64, clamped at zero."""
        return self._cached("eigenvalues").clamp(min=0)

    @property
    def eigenvectors(self) -> Tensor:
        """The eigenvectors of C as columns, in the order of `eigenvalues`, (L, L) float64."""
        return self._cached("eigenvectors")

    @property
    def singular(self) -> bool:
        """Whether C has a null direction: such noise has no density."""
        return bool(self.eigenvalues[0] <= NULL * self.eigenvalues[-1])

    def _apply(self, operation: Operation, x: Tensor) -> Tensor:
        """`operation` along dim 1 of x (outer, L, inner)."""
        matrix = self._cast(operation, lambda: self._cached(operation), x)
        if x.shape[2] == 1:  # one product of matrices instead of many of a matrix with a vector
            return (x[..., 0] @ matrix.mT)[..., None]
        return matrix @ x

    def along(self, operation: Operation, x: Tensor, axis: int) -> Tensor:
        """Apply `operation` along dim `axis` of x.

        Raises:
            ValueError: that dim does not have `length` elements.
        """
        if x.shape[axis] != self.length:
            raise ValueError(
                f"{self} acts on an axis of {self.length}, but dim {axis} of {tuple(x.shape)} has {x.shape[axis]}"
            )
        outer, inner = math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :])
        return self._apply(operation, x.reshape(outer, self.length, inner)).reshape(x.shape)

    def _operate(self, operation: Operation, x: Tensor) -> Tensor:
        if x.ndim == 4:
            warnings.warn(
                f"{self} acts on dim 2 of {tuple(x.shape)}: the rows, if these are images (B, C, H, W). For noise over "
                "pixels use Kronecker(space=(over H, over W)); images have no frames",
                UserWarning,
                stacklevel=3,
            )
        return self.along(operation, x, frame_axis(x.shape[1:]) + 1)

    def axis_logdet(self) -> float:
        """log det of the (L, L) matrix."""
        return float(self.eigenvalues.log().sum())

    def logdet(self, sample_shape: Sequence[int]) -> float:
        shape = tuple(sample_shape)
        if len(shape) > 4:
            raise ValueError(f"{self} acts on samples (N,) or (C, F, H, W), without the batch; got {shape}")
        axis = frame_axis(shape)
        if shape[axis] != self.length:
            raise ValueError(f"{self} acts on an axis of {self.length}, but a sample of {shape} has {shape[axis]}")
        if self.singular:
            raise SingularCovarianceError(self)
        return math.prod(shape) // self.length * self.axis_logdet()

    def floored(self, g: float) -> Covariance:
        check_floor(g)
        return Matrix((1 - g) * self.dense() + g * torch.eye(self.length, dtype=torch.float64))


@dataclass(frozen=True, eq=False)
class Matrix(FrameCovariance):
    """Any covariance matrix over the frame axis.

    Args:
        matrix: (L, L), symmetric, positive semidefinite, finite.

    Raises:
        ValueError: the matrix is not a covariance; the message names its smallest eigenvalue.
    """

    matrix: Tensor

    def __post_init__(self) -> None:
        c = torch.as_tensor(self.matrix, dtype=torch.float64, device="cpu").detach()
        if c.ndim != 2 or c.shape[0] != c.shape[1] or len(c) == 0:
            raise ValueError(f"a covariance matrix is square, got shape {tuple(c.shape)}")
        if not bool(c.isfinite().all()):
            raise ValueError("the covariance matrix has values that are not finite")
        if not torch.allclose(c, c.mT, rtol=1e-10, atol=1e-12):
            raise ValueError("the covariance matrix is not symmetric")
        object.__setattr__(self, "matrix", (c + c.mT) / 2)
        check_eigenvalues(self._cached("eigenvalues"))

    @property
    def length(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.matrix)

    def dense(self) -> Tensor:
        return self.matrix

    def __repr__(self) -> str:
        return f"Matrix({self.length}x{self.length})"


def check_eigenvalues(values: Tensor) -> None:
    """Raise ValueError unless the ascending eigenvalues are >= 0, up to rounding."""
    if not float(values[0]) >= -1e-10 * float(values[-1].abs()):
        raise ValueError(f"not a covariance: the smallest eigenvalue is {float(values[0]):.3g}, below zero")


def frame_axis(sample_shape: Sequence[int]) -> int:
    """The axis of one sample that a covariance over frames acts on: 0 of (N,), 1 of (C, F, H, W) and of other ranks.

    Raises:
        ValueError: the sample has no axis.
    """
    if len(sample_shape) == 0:
        raise ValueError("noise acts on batches, (B, N) or (B, C, F, H, W); got a tensor without a batch")
    return 0 if len(sample_shape) == 1 else 1

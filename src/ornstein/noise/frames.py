"""Covariances over one axis of length L, the frames of a clip: what they share, and the one given by its matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.noise.covariance import Covariance, Operation, SingularCovarianceError, check_floor

# Up to this length one product with a cached matrix is fastest (benchmarks/noise.py).
SHORT_AXIS = 64

# An eigenvalue below this share of the largest one is a null direction, not a small variance.
NULL = 1e-12


class FrameCovariance(Covariance):
    """A covariance over one axis of `length` elements. Subclasses give `dense`; long axes may override the operations.

    R is the Cholesky factor, lower triangular, unless the subclass says otherwise or C is singular.
    The matrices of short axes are made once in float64 and cast to what they are applied to.
    """

    length: int

    def dense(self) -> Tensor:
        raise NotImplementedError

    def _cached(self, operation: str) -> Tensor:
        cache: dict[str, Tensor] = self.__dict__.setdefault("_matrices", {})
        if operation not in cache:
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
        """V diag(sqrt(l)), with nothing at all in the null directions: there rounding has a root of 1e-8."""
        values = self.eigenvalues
        return self.eigenvectors * torch.where(values > NULL * values[-1], values, 0.0).sqrt()

    @property
    def eigenvalues(self) -> Tensor:
        """The eigenvalues of C, ascending, (L,) float64; none below zero."""
        return self._cached("eigenvalues").clamp(min=0)

    @property
    def eigenvectors(self) -> Tensor:
        """The eigenvectors of C as columns, in the order of `eigenvalues`, (L, L) float64."""
        return self._cached("eigenvectors")

    @property
    def singular(self) -> bool:
        """Whether C has a null direction: noise without a density."""
        return bool(self.eigenvalues[0] <= NULL * self.eigenvalues[-1])

    def _apply(self, operation: Operation, x: Tensor) -> Tensor:
        """`operation` along the covariance's axis of x (outer, L, inner)."""
        matrix = self._cached(operation).to(x)
        if x.shape[2] == 1:  # one product of matrices instead of many of a matrix with a vector
            return (x[..., 0] @ matrix.mT)[..., None]
        return matrix @ x

    def along(self, operation: Operation, x: Tensor, axis: int) -> Tensor:
        """`operation` along dim `axis` of x. Raises ValueError where that has another length."""
        if x.shape[axis] != self.length:
            raise ValueError(
                f"{self} acts on an axis of {self.length}, but dim {axis} of {tuple(x.shape)} has {x.shape[axis]}"
            )
        outer, inner = math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :])
        return self._apply(operation, x.reshape(outer, self.length, inner)).reshape(x.shape)

    def _operate(self, operation: Operation, x: Tensor) -> Tensor:
        return self.along(operation, x, frame_axis(x.ndim))

    def axis_logdet(self) -> float:
        """log det of the (L, L) matrix."""
        return float(self.eigenvalues.log().sum())

    def logdet(self, shape: tuple[int, ...]) -> float:
        shape = tuple(shape)
        if len(shape) in (1, 4):  # a sample (N,) or (C, F, H, W) by itself
            shape = (1, *shape)
        axis = frame_axis(len(shape))
        if shape[axis] != self.length:
            raise ValueError(f"{self} acts on an axis of {self.length}, but a sample of {shape[1:]} has {shape[axis]}")
        if self.singular:
            raise SingularCovarianceError(self)
        return math.prod(shape[1:]) // self.length * self.axis_logdet()

    def floored(self, g: float) -> Covariance:
        check_floor(g)
        return Matrix((1 - g) * self.dense() + g * torch.eye(self.length, dtype=torch.float64))


@dataclass(frozen=True, eq=False)
class Matrix(FrameCovariance):
    """Any covariance matrix (L, L) over the frame axis: symmetric, positive semidefinite, finite.

    Raises ValueError for anything else, naming the smallest eigenvalue.
    """

    matrix: Tensor

    def __post_init__(self) -> None:
        c = torch.as_tensor(self.matrix, dtype=torch.float64)
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

    def __str__(self) -> str:
        return f"Matrix({self.length}x{self.length})"


def check_eigenvalues(values: Tensor) -> None:
    """ValueError unless the ascending eigenvalues are those of a covariance: none below zero, but for rounding."""
    if not float(values[0]) >= -1e-10 * float(values[-1].abs()):
        raise ValueError(f"not a covariance: the smallest eigenvalue is {float(values[0]):.3g}, below zero")


def frame_axis(ndim: int) -> int:
    """The axis that a covariance over one axis acts on: dim 1 of (B, N), dim 2 of (B, C, F, H, W)."""
    if ndim < 2:
        raise ValueError("noise acts on batches, (B, N) or (B, C, F, H, W); got a tensor without a batch")
    return 1 if ndim == 2 else 2

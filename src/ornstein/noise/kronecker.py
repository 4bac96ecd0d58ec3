"""Noise with one covariance over frames and others over pixels: their Kronecker product."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.noise.covariance import Covariance, Operation, SingularCovarianceError, check_floor
from ornstein.noise.frames import FrameCovariance

_POWERS: dict[Operation, float] = {"color": 0.5, "matvec": 1.0, "whiten": -0.5, "solve": -1.0}


@dataclass(frozen=True)
class Kronecker(Covariance):
    """C = (1 - white) C_time x C_space + white I on clips (B, C, F, H, W) and images (B, C, H, W) (E5).

    time: the covariance over frames, dim 2 of a clip; None where frames are independent, and for images.
    space: a pair (over H, over W), the cheap and usual case, whose product acts on the pixels of a frame; or one
        covariance over the pixels flattened to H*W; None where pixels are independent.
    white: the share of white noise, which `floored` sets.

    With white = 0, R is the product of the factors' roots, one axis after the other; otherwise it is the symmetric
    root in the factors' joint eigenbasis, an (L, L) matrix of eigenvectors for each factor (so a covariance over
    flattened pixels is then quadratic in pixels: give a pair). Singular where a factor is and white = 0.
    Raises ValueError without any factor, for a factor that is no covariance over one axis, and white outside [0, 1].
    """

    time: FrameCovariance | None = None
    space: FrameCovariance | tuple[FrameCovariance, FrameCovariance] | None = None
    white: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.space, list):
            object.__setattr__(self, "space", tuple(self.space))
        if isinstance(self.space, tuple) and len(self.space) != 2:
            raise ValueError(f"space is one covariance or a pair (over H, over W), got {len(self.space)}")
        if not self._factors:
            raise ValueError("a Kronecker product needs a covariance over time, over space, or both")
        for factor in self._factors:
            if not isinstance(factor, FrameCovariance):
                raise ValueError(f"a factor is a covariance over one axis, got {factor}; for white noise leave it out")
        if not 0 <= self.white <= 1:
            raise ValueError(f"white is a share in [0, 1], got {self.white}")

    @property
    def _factors(self) -> list[FrameCovariance]:
        space = self.space if isinstance(self.space, tuple) else (self.space,)
        return [factor for factor in (self.time, *space) if factor is not None]

    @property
    def singular(self) -> bool:
        return self.white == 0 and any(factor.singular for factor in self._factors)

    def _axes(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], list[int]]:
        """The shape to view a batch of `shape` in, and the axis of each factor there."""
        if len(shape) != 5 and (len(shape) != 4 or self.time is not None):
            kinds = "clips (B, C, F, H, W)" + ("" if self.time is not None else " or images (B, C, H, W)")
            raise ValueError(f"{self} acts on {kinds}, got shape {shape}")
        axes = [] if self.time is None else [2]
        if isinstance(self.space, tuple):
            axes += [len(shape) - 2, len(shape) - 1]
        elif self.space is not None:
            shape = (*shape[:-2], shape[-2] * shape[-1])
            axes.append(len(shape) - 1)
        for factor, axis in zip(self._factors, axes, strict=True):
            if shape[axis] != factor.length:
                raise ValueError(f"{factor} acts on an axis of {factor.length}, but {shape} has {shape[axis]} there")
        return shape, axes

    def _operate(self, operation: Operation, x: Tensor) -> Tensor:
        shape, axes = self._axes(tuple(x.shape))
        if operation in ("whiten", "solve") and self.singular:
            raise SingularCovarianceError(self)
        if self.white == 0:
            y = x.reshape(shape)
            for factor, axis in zip(self._factors, axes, strict=True):
                y = factor.along(operation, y, axis)
            return y.reshape(x.shape)
        return self._in_eigenbasis(lambda values: values ** _POWERS[operation], x.reshape(shape), axes).reshape(x.shape)

    def _in_eigenbasis(self, f: Callable[[Tensor], Tensor], x: Tensor, axes: list[int]) -> Tensor:
        """V f(eigenvalues) V^T x, V the product of the factors' eigenvectors."""
        bases = [factor.eigenvectors.to(x) for factor in self._factors]
        for axis, basis in zip(axes, bases, strict=True):
            x = torch.movedim(torch.movedim(x, axis, -1) @ basis, -1, axis)
        values = f(self._eigenvalues())
        x = x * values.reshape([x.shape[i] if i in axes else 1 for i in range(x.ndim)]).to(x)
        for axis, basis in zip(axes, bases, strict=True):
            x = torch.movedim(torch.movedim(x, axis, -1) @ basis.mT, -1, axis)
        return x

    def _eigenvalues(self) -> Tensor:
        """The eigenvalues of C, one axis for each factor, float64."""
        values = torch.ones((), dtype=torch.float64)
        for factor in self._factors:
            values = values[..., None] * factor.eigenvalues
        return (1 - self.white) * values + self.white

    def logdet(self, shape: tuple[int, ...]) -> float:
        """log det of the covariance of one sample: of shape (C, F, H, W), or (C, H, W) where there is no time.

        Batches of these, (B, C, F, H, W) and (B, C, H, W), are read as such. A batch of images may carry a trailing 1.
        """
        shape = tuple(shape)
        if len(shape) == 5 and shape[4] == 1 and self.time is None and self._is_image(shape[:4]):
            shape = shape[:4]
        if len(shape) == (3 if self.time is None else 4):
            shape = (1, *shape)
        self._axes(shape)
        if self.singular:
            raise SingularCovarianceError(self)
        size = math.prod(shape[1:])
        if self.white == 0:
            return sum(size // factor.length * factor.axis_logdet() for factor in self._factors)
        values = self._eigenvalues()
        return size // values.numel() * float(values.log().sum())

    def _is_image(self, shape: tuple[int, ...]) -> bool:
        lengths = [factor.length for factor in self._factors]
        return lengths in ([shape[2], shape[3]], [shape[2] * shape[3]]) and lengths != [shape[3], 1]

    def dense(self) -> Tensor:
        """The matrix over (F, H, W) flattened, or over the axes that have a factor; float64."""
        product = torch.ones(1, 1, dtype=torch.float64)
        for factor in self._factors:
            product = torch.kron(product, factor.dense())
        return (1 - self.white) * product + self.white * torch.eye(len(product), dtype=torch.float64)

    def floored(self, g: float) -> Covariance:
        """(1 - g) C + g I, again a Kronecker product with white noise."""
        check_floor(g)
        return Kronecker(self.time, self.space, 1 - (1 - g) * (1 - self.white))

    def __str__(self) -> str:
        white = f", {self.white:g} white" if self.white else ""
        return f"Kronecker({' x '.join(map(str, self._factors))}{white})"

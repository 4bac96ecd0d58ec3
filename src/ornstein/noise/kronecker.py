"""Noise with one covariance over frames and others over pixels: their Kronecker product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.noise.covariance import POWERS, Covariance, Operation, SingularCovarianceError, check_floor
from ornstein.noise.frames import FrameCovariance
from ornstein.noise.spectral import conjugates
from ornstein.noise.spectrum import Spectrum

__all__ = ["Kronecker"]


@dataclass(frozen=True)
class Kronecker(Covariance):
    """C = (1 - white) C_time x C_space + white I on clips (B, C, F, H, W) and images (B, C, H, W) (E5).

    With white = 0, R is the product of the factors' roots, one axis after the other. Otherwise R is the symmetric root
    in the factors' joint eigenbasis, which needs an (L, L) matrix of eigenvectors for each factor: quadratic in pixels
    for a covariance over flattened pixels, so give a pair. C is singular where a factor is and white = 0.

    Args:
        time: the covariance over frames, dim 2 of a clip; None for independent frames, and for images.
        space: a pair (over H, over W), whose product acts on the pixels of a frame; or one covariance over the pixels
            flattened to H*W; or a `Spectrum`, in whose Fourier transform all is cheap; None for independent pixels.
        white: the share of white noise in [0, 1]; `floored` sets it.

    Raises:
        ValueError: no factor is given, a factor is not a covariance over one axis, or white is outside [0, 1].
    """

    time: FrameCovariance | None = None
    space: FrameCovariance | tuple[FrameCovariance, FrameCovariance] | Spectrum | None = None
    white: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.space, list):
            object.__setattr__(self, "space", tuple(self.space))
        if isinstance(self.space, tuple) and len(self.space) != 2:
            raise ValueError(f"space is one covariance or a pair (over H, over W), got {len(self.space)}")
        if not self._factors and not isinstance(self.space, Spectrum):
            raise ValueError("a Kronecker product needs a covariance over time, over space, or both")
        for factor in self._factors:
            if not isinstance(factor, FrameCovariance):
                raise ValueError(f"a factor is a covariance over one axis, got {factor}; for white noise leave it out")
        if not 0 <= self.white <= 1:
            raise ValueError(f"white is a share in [0, 1], got {self.white}")

    @property
    def _factors(self) -> list[FrameCovariance]:
        space = self.space if isinstance(self.space, tuple) else (self.space,)
        return [factor for factor in (self.time, *space) if factor is not None and not isinstance(factor, Spectrum)]

    @property
    def _spectrum(self) -> Spectrum | None:
        return self.space if isinstance(self.space, Spectrum) else None

    @property
    def singular(self) -> bool:
        spectrum = self._spectrum
        null = any(factor.singular for factor in self._factors) or (spectrum is not None and spectrum.singular)
        return self.white == 0 and null

    def _axes(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], list[int]]:
        """The shape to view a batch of `shape` in, and the axis of each factor there."""
        if len(shape) != 5 and (len(shape) != 4 or self.time is not None):
            kinds = "clips (B, C, F, H, W)" + ("" if self.time is not None else " or images (B, C, H, W)")
            raise ValueError(f"{self} acts on {kinds}, got shape {shape}")
        axes = [] if self.time is None else [2]
        spectrum = self._spectrum
        if spectrum is not None and tuple(shape[-2:]) != spectrum.frame:
            raise ValueError(f"{spectrum} acts on frames of its size, but {shape} has others")
        if isinstance(self.space, tuple):
            axes += [len(shape) - 2, len(shape) - 1]
        elif self.space is not None and spectrum is None:
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
        y = x.reshape(shape)
        if self.white == 0:
            for factor, axis in zip(self._factors, axes, strict=True):
                y = factor.along(operation, y, axis)
            if self._spectrum is not None:
                y = self._spectrum._operate(operation, y)
        else:
            y = self._in_eigenbasis(operation, y, axes)
        return y.reshape(x.shape)

    def _in_eigenbasis(self, operation: Operation, x: Tensor, axes: list[int]) -> Tensor:
        """V f(eigenvalues) V^T x, V the product of the factors' eigenvectors, and of the Fourier transform."""
        bases = [f._cast("eigenvectors", lambda f=f: f.eigenvectors, x) for f in self._factors]
        for axis, basis in zip(axes, bases, strict=True):
            x = torch.movedim(torch.movedim(x, axis, -1) @ basis, -1, axis)
        values = self._cast(operation, lambda: self._eigenvalues() ** POWERS[operation], x)
        if self._spectrum is None:
            x = x * values.reshape([x.shape[i] if i in axes else 1 for i in range(x.ndim)])
        else:
            size = self._spectrum.frame
            values = values.reshape([x.shape[i] if i in axes else 1 for i in range(x.ndim - 2)] + [*values.shape[-2:]])
            work = x if x.dtype in (torch.float32, torch.float64) else x.float()
            x = torch.fft.irfft2(torch.fft.rfft2(work) * values, s=size).to(x.dtype)
        for axis, basis in zip(axes, bases, strict=True):
            x = torch.movedim(torch.movedim(x, axis, -1) @ basis.mT, -1, axis)
        return x

    def _eigenvalues(self) -> Tensor:
        """The eigenvalues of C, one axis for each factor, and those of rfft2 of a spectrum; float64."""
        values = torch.ones((), dtype=torch.float64)
        for factor in self._factors:
            values = values[..., None] * factor.eigenvalues
        if self._spectrum is not None:
            values = values[..., None, None] * self._spectrum.half
        return (1 - self.white) * values + self.white

    def logdet(self, sample_shape: Sequence[int]) -> float:
        """log det of the covariance of one sample, (C, F, H, W), or (C, H, W) where there is no factor over time."""
        shape, _ = self._axes((1, *sample_shape))
        if self.singular:
            raise SingularCovarianceError(self)
        size, spectrum = math.prod(shape), self._spectrum
        if self.white == 0:
            over_space = 0.0 if spectrum is None else spectrum.logdet(shape[1:])
            return over_space + sum(size // factor.length * factor.axis_logdet() for factor in self._factors)
        logs = self._eigenvalues().log()
        if spectrum is None:
            return size // logs.numel() * float(logs.sum())
        times = 1 if self.time is None else self.time.length
        return size // (math.prod(spectrum.frame) * times) * float((logs * conjugates(*spectrum.frame)).sum())

    def dense(self) -> Tensor:
        """The matrix over (F, H, W) flattened, or over the axes that have a factor; float64."""
        product = torch.ones(1, 1, dtype=torch.float64)
        for factor in self._factors:
            product = torch.kron(product, factor.dense())
        if self._spectrum is not None:
            product = torch.kron(product, self._spectrum.dense())
        return (1 - self.white) * product + self.white * torch.eye(len(product), dtype=torch.float64)

    def floored(self, g: float) -> Covariance:
        """(1 - g) C + g I, again a Kronecker product with white noise."""
        check_floor(g)
        return Kronecker(self.time, self.space, 1 - (1 - g) * (1 - self.white))

    def __repr__(self) -> str:
        white = f", {self.white:g} white" if self.white else ""
        factors = [*self._factors, *([] if self._spectrum is None else [self._spectrum])]
        return f"Kronecker({' x '.join(map(repr, factors))}{white})"

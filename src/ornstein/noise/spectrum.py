"""Noise of any power spectrum over the pixels of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.noise.covariance import POWERS, Covariance, Operation, SingularCovarianceError, check_floor
from ornstein.noise.frames import NULL
from ornstein.noise.spectral import conjugates

__all__ = ["Spectrum"]


@dataclass(frozen=True, eq=False)
class Spectrum(Covariance):
    """C = F* diag(P_k) F over the last two axes of a sample, (B, *, H, W): stationary noise with spectrum P (E41).

    F is the orthonormal 2-D Fourier transform. P is scaled to mean 1, so that every pixel has unit variance. With P_k
    the data's power at frequency k every frequency has the same log-SNR at every t ("equal SNR", arXiv:2505.11278).
    P rising with |k| is blue noise. R = F* diag(sqrt P_k) F is the symmetric root. O(H W log(HW)) time.

    Args:
        power: (H, W) in the order of fft2, >= 0, equal at k and -k. A frequency without power makes C singular.

    Raises:
        ValueError: power is not (H, W), is negative or not finite, is zero everywhere, or differs between k and -k.
    """

    power: Tensor | Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        power = torch.as_tensor(self.power, dtype=torch.float64, device="cpu").detach()
        if power.ndim != 2 or power.numel() == 0:
            raise ValueError(f"power is (H, W), in the order of fft2, got shape {tuple(power.shape)}")
        if not bool(power.isfinite().all()):
            raise ValueError("power has values that are not finite")
        if bool((power < 0).any()):
            raise ValueError(f"not a covariance: the smallest eigenvalue is {float(power.min()):.3g}, below zero")
        if not bool(power.any()):
            raise ValueError("power is zero at every frequency: there is no noise to scale to unit variance")
        mean = float(power.mean())
        if abs(mean - 1) > 1e-12:  # a power that is scaled already keeps its bits
            power = power / mean
        mirrored = power.flip(0, 1).roll((1, 1), (0, 1))
        if not torch.allclose(power, mirrored, rtol=1e-6, atol=1e-9):
            raise ValueError("power must be the same at a frequency k and at -k: the noise would not be real")
        object.__setattr__(self, "power", (power + mirrored) / 2)

    @property
    def frame(self) -> tuple[int, int]:
        """(H, W)."""
        height, width = torch.as_tensor(self.power).shape
        return int(height), int(width)

    @property
    def half(self) -> Tensor:
        """P at the frequencies of rfft2, (H, W//2 + 1) float64."""
        power = torch.as_tensor(self.power)
        return power[:, : power.shape[1] // 2 + 1]

    @property
    def singular(self) -> bool:
        power = torch.as_tensor(self.power)
        return bool(power.min() <= NULL * power.max())

    def _factors(self, operation: Operation) -> Tensor:
        # No variance at all in a null direction, where rounding alone has a root of 1e-8.
        half = torch.where(self.half > NULL * self.half.max(), self.half, 0.0)
        return half ** POWERS[operation]

    def _operate(self, operation: Operation, x: Tensor) -> Tensor:
        if x.ndim < 3 or tuple(x.shape[-2:]) != self.frame:
            raise ValueError(f"{self} acts on the last two axes, (B, *, H, W); got shape {tuple(x.shape)}")
        if operation in ("whiten", "solve") and self.singular:
            raise SingularCovarianceError(self)
        if x.numel() == 0:  # the Fourier transform refuses it
            return x
        work = x if x.dtype in (torch.float32, torch.float64) else x.float()
        factors = self._cast(operation, lambda: self._factors(operation), work)
        return torch.fft.irfft2(torch.fft.rfft2(work) * factors, s=self.frame).to(x.dtype)

    def logdet(self, sample_shape: Sequence[int]) -> float:
        shape = tuple(sample_shape)
        if len(shape) < 2 or shape[-2:] != self.frame:
            raise ValueError(f"{self} acts on samples (*, H, W), got a sample of {shape}")
        if self.singular:
            raise SingularCovarianceError(self)
        return math.prod(shape[:-2]) * float((self.half.log() * conjugates(*self.frame)).sum())

    def dense(self) -> Tensor:
        """The matrix over (H, W) flattened, float64, (HW, HW)."""
        n = math.prod(self.frame)
        return self.matvec(torch.eye(n, dtype=torch.float64).reshape(n, *self.frame)).reshape(n, n)

    def floored(self, g: float) -> Covariance:
        """(1 - g) C + g I, again Spectrum."""
        check_floor(g)
        return Spectrum((1 - g) * torch.as_tensor(self.power) + g)

    def __repr__(self) -> str:
        height, width = self.frame
        return f"Spectrum({height}x{width})"

"""Noise whose correlation over frames differs from one spatial frequency to another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.noise.covariance import Covariance, Operation, SingularCovarianceError, check_floor
from ornstein.noise.markov import Chain

__all__ = ["SpectralAR1", "conjugates", "radial_bands"]


@dataclass(frozen=True, eq=False)
class SpectralAR1(Covariance):
    """AR(rho_k) over the `length` frames of each spatial frequency k of clips (B, C, F, H, W) (E5).

    C = F^T diag_k[(1 - white) rho_k^|i-j| + white I] F with F the orthonormal 2-D Fourier transform of a frame. Each
    frame by itself is white with unit variance; slow frequencies persist while fast ones renew.

    R is the Cholesky factor over frames between two FFTs: O(F H W log(HW)) time, memory of a sample's size, at any
    length. C is singular where some |rho_k| = 1 and white = 0.

    Args:
        length: number of frames.
        rho: (H, W), one for each frequency in the order of fft2, equal at k and -k; or (bands,), one for each of
            equally wide bands of the radius |k| from 0 to the corner of the spectrum, together with `size`.
        size: (H, W), the frame that the bands are laid out on.
        white: the share of white noise in [0, 1]; `floored` sets it.

    Raises:
        ValueError: |rho| > 1 (the message names the smallest eigenvalue), rho differs between k and -k (R would not be
            real), or bands come without a size.
    """

    length: int
    rho: Tensor | Sequence[float] | Sequence[Sequence[float]]
    size: Sequence[int] | None = None
    white: float = 0.0

    def __post_init__(self) -> None:
        rho = torch.as_tensor(self.rho, dtype=torch.float64, device="cpu").detach()
        object.__setattr__(self, "rho", rho)
        if self.length < 1:
            raise ValueError(f"SpectralAR1 needs at least one frame, got length {self.length}")
        if rho.ndim not in (1, 2) or rho.numel() == 0:
            raise ValueError(f"rho is (H, W), or (bands,) with size=(H, W), got shape {tuple(rho.shape)}")
        if (rho.ndim == 1) != (self.size is not None):
            raise ValueError("give size=(H, W) with a rho for each band, and only then")
        if self.size is not None:
            size = tuple(int(n) for n in self.size)
            if len(size) != 2 or min(size) < 1:
                raise ValueError(f"size is (H, W), got {tuple(self.size)}")
            object.__setattr__(self, "size", size)
        if not bool(rho.isfinite().all()):
            raise ValueError("rho has values that are not finite")
        if not 0 <= self.white <= 1:
            raise ValueError(f"white is a share in [0, 1], got {self.white}")
        largest = float(rho.abs().max())
        if largest > 1:
            raise ValueError(
                f"SpectralAR1 needs correlations in [-1, 1], got one of size {largest:.6g}: "
                f"neighbours would have eigenvalue {1 - largest:.3g}"
            )
        if rho.ndim == 2 and not torch.allclose(rho, rho.flip(0, 1).roll((1, 1), (0, 1)), rtol=1e-9, atol=1e-12):
            raise ValueError("rho must be the same at a frequency k and at -k: the noise would not be real")

    @property
    def frame(self) -> tuple[int, int]:
        """(H, W) of a frame."""
        height, width = self.size if self.size is not None else torch.as_tensor(self.rho).shape
        return int(height), int(width)

    @property
    def _grid(self) -> Tensor:
        """rho of each frequency of rfft2, (H, W//2 + 1) float64."""
        rho = torch.as_tensor(self.rho)
        height, width = self.frame
        return rho[radial_bands(height, width, len(rho))] if rho.ndim == 1 else rho[:, : width // 2 + 1]

    def band_rho(self, bands: int) -> Tensor:
        """The mean of rho over each radial band, (bands,) float64."""
        index = radial_bands(*self.frame, bands).flatten()
        weight = conjugates(*self.frame).expand(self._grid.shape).flatten()
        zeros = torch.zeros(bands, dtype=torch.float64)
        count = zeros.index_add(0, index, weight)
        return zeros.index_add(0, index, weight * self._grid.flatten()) / count.clamp(min=1)

    @property
    def _chain(self) -> Chain:
        if "_coefficients" not in self.__dict__:
            grid = self._grid
            rho = grid.expand(self.length, *grid.shape)
            self.__dict__["_coefficients"] = Chain.filtered(rho, self.white)
        return self.__dict__["_coefficients"]

    @property
    def singular(self) -> bool:
        return self.length > 1 and self.white == 0 and bool((self._grid.abs() == 1).any())

    def _operate(self, operation: Operation, x: Tensor) -> Tensor:
        wanted = (self.length, *self.frame)
        if x.ndim != 5 or tuple(x.shape[2:]) != wanted:
            raise ValueError(f"{self} acts on clips (B, C, {', '.join(map(str, wanted))}), got shape {tuple(x.shape)}")
        if operation in ("whiten", "solve") and self.singular:
            raise SingularCovarianceError(self)
        if x.numel() == 0:  # the Fourier transform refuses it
            return x
        work = x if x.dtype in (torch.float32, torch.float64) else x.float()
        f = torch.fft.rfft2(work.flatten(0, 1), norm="ortho")
        f = self._cast("chain", lambda: self._chain, work).apply(operation, f)
        return torch.fft.irfft2(f, s=self.frame, norm="ortho").reshape(x.shape).to(x.dtype)

    def logdet(self, sample_shape: Sequence[int]) -> float:
        """log det of the covariance of one clip, of shape (C, F, H, W)."""
        shape, wanted = tuple(sample_shape), (self.length, *self.frame)
        if len(shape) != 4 or shape[1:] != wanted:
            raise ValueError(f"{self} acts on clips (C, {', '.join(map(str, wanted))}), got a sample of {shape}")
        if self.singular:
            raise SingularCovarianceError(self)
        per_frequency = 2 * self._chain.scale.log().sum(0)
        return shape[0] * float((per_frequency * conjugates(*self.frame)).sum())

    def dense(self) -> Tensor:
        """The matrix over (F, H, W) flattened, float64: for tests and plots of small clips."""
        n = self.length * math.prod(self.frame)
        units = torch.eye(n, dtype=torch.float64).reshape(n, 1, self.length, *self.frame)
        return self.matvec(units).reshape(n, n)

    def floored(self, g: float) -> Covariance:
        """(1 - g) C + g I, again SpectralAR1 with white noise."""
        check_floor(g)
        return SpectralAR1(self.length, torch.as_tensor(self.rho), self.size, 1 - (1 - g) * (1 - self.white))

    def __repr__(self) -> str:
        height, width = self.frame
        return f"SpectralAR1({self.length} frames of {height}x{width})"


def radial_bands(height: int, width: int, bands: int) -> Tensor:
    """The band of each frequency of rfft2, (H, W//2 + 1) int64: equal steps of |k| from 0 to the spectrum's corner."""
    y, x = torch.fft.fftfreq(height, dtype=torch.float64), torch.fft.rfftfreq(width, dtype=torch.float64)
    radius = torch.sqrt(y[:, None] ** 2 + x[None] ** 2)
    return (radius / math.sqrt(0.5) * bands).long().clamp(max=bands - 1)


def conjugates(height: int, width: int) -> Tensor:
    """How many frequencies of fft2 each one of rfft2 stands for, (1, W//2 + 1) float64: 2, or 1 if -k is k itself."""
    count = torch.full((1, width // 2 + 1), 2.0, dtype=torch.float64)
    count[:, 0] = 1
    if width % 2 == 0:
        count[:, -1] = 1
    return count

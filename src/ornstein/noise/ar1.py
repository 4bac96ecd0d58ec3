"""Autoregressive noise of order one over frames, at equal or at irregular times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.noise.covariance import Covariance
from ornstein.noise.markov import Chain, Markov
from ornstein.noise.toeplitz import Toeplitz

__all__ = ["AR1", "OU"]


@dataclass(frozen=True)
class AR1(Markov):
    """C_ij = rho^|i-j| over `length` frames: e_1 = z_1, e_k = rho e_{k-1} + sqrt(1-rho^2) z_k (E5; source S2).

    R is the Cholesky factor; R^-1 has two diagonals. |rho| = 1 is singular: samples exist, a density does not.

    Args:
        length: number of frames, at least 1.
        rho: correlation of neighbouring frames, in [-1, 1].

    Raises:
        ValueError: |rho| > 1, or a length below 1.
    """

    length: int
    rho: float

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"AR1 needs at least one frame, got length {self.length}")
        if not -1 <= self.rho <= 1:
            smallest = 1 - abs(self.rho)
            raise ValueError(
                f"AR1 needs a correlation in [-1, 1], got {self.rho}: neighbours would have eigenvalue {smallest:.3g}"
            )

    @property
    def _chain(self) -> Chain:
        rho = torch.full((self.length, 1), self.rho, dtype=torch.float64)
        scale = torch.full_like(rho, math.sqrt((1 - self.rho) * (1 + self.rho)))
        scale[0] = 1
        return Chain(rho, scale)

    @property
    def singular(self) -> bool:
        return self.length > 1 and abs(self.rho) == 1

    def dense(self) -> Tensor:
        frames = torch.arange(self.length, dtype=torch.float64)
        return torch.as_tensor(self.rho, dtype=torch.float64) ** (frames[:, None] - frames[None]).abs()

    def floored(self, g: float) -> Covariance:
        """(1 - g) C + g I, a Toeplitz matrix."""
        lags = torch.arange(self.length, dtype=torch.float64)
        return Toeplitz(torch.as_tensor(self.rho, dtype=torch.float64) ** lags).floored(g)


@dataclass(frozen=True, eq=False)
class OU(Markov):
    """C_ij = exp(-rate |t_i - t_j|): the Ornstein-Uhlenbeck process at `times`, one for each frame (E5).

    e_1 = z_1, e_k = rho_k e_{k-1} + sqrt(1-rho_k^2) z_k with rho_k = exp(-rate (t_k - t_{k-1})). A rate of 0 or two
    equal times are singular. With equal steps it is AR1. Source: Uhlenbeck & Ornstein 1930.

    Args:
        times: (L,) in any unit, not decreasing.
        rate: >= 0, in the inverse unit.

    Raises:
        ValueError: the times decrease, the rate is negative, or values are not finite.
    """

    times: Tensor | Sequence[float]
    rate: float

    def __post_init__(self) -> None:
        times = torch.as_tensor(self.times, dtype=torch.float64, device="cpu").detach()
        object.__setattr__(self, "times", times)
        if times.ndim != 1 or len(times) == 0:
            raise ValueError(f"OU needs one time for each frame, got shape {tuple(times.shape)}")
        if not bool(times.isfinite().all()) or not math.isfinite(self.rate):
            raise ValueError("OU needs finite times and a finite rate")
        if bool((times.diff() < 0).any()):
            raise ValueError(f"OU needs times that do not decrease, got a step of {float(times.diff().min()):.3g}")
        if self.rate < 0:
            raise ValueError(
                f"OU needs a rate >= 0, got {self.rate}: correlations above 1 have eigenvalues below zero, the smallest"
                f" {float(torch.linalg.eigvalsh(self.dense())[0]):.3g}"
            )

    @property
    def length(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.times)

    @property
    def _steps(self) -> Tensor:
        """rate (t_k - t_{k-1}), (L - 1,)."""
        return self.rate * torch.as_tensor(self.times).diff()

    @property
    def _chain(self) -> Chain:
        first = torch.ones(1, dtype=torch.float64)
        rho = torch.cat([first, torch.exp(-self._steps)])
        scale = torch.cat([first, torch.sqrt(-torch.expm1(-2 * self._steps))])
        return Chain(rho[:, None], scale[:, None])

    def dense(self) -> Tensor:
        times = torch.as_tensor(self.times)
        return torch.exp(-self.rate * (times[:, None] - times[None]).abs())

    def __repr__(self) -> str:
        return f"OU({self.length} times, rate {self.rate:g})"

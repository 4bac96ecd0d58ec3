"""Straight paths between data and noise."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.schedules.schedule import Schedule

__all__ = ["Rectified"]


@dataclass(frozen=True)
class Rectified(Schedule):
    """Straight paths: a = 1 - u, s = u, u = k t/(1 + (k - 1) t) with k the shift (Liu et al. 2023; flow matching).

    Zero terminal SNR. Its flow is u' (R z - x_0); at a shift of 1 that is R z - x_0. A shift above 1 gives more of the
    times to the noise, as large pictures need (Esser et al. 2024, arXiv:2403.03206, section 5.3.2).

    Args:
        shift: k > 0.
    """

    shift: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.shift < math.inf:
            raise ValueError(f"shift must be positive and finite, got {self.shift}")

    def _warp(self, t: Tensor) -> Tensor:
        """u(t)."""
        return self.shift * t / (1 + (self.shift - 1) * t)

    def _speed(self, t: Tensor) -> Tensor:
        """u'(t)."""
        return self.shift / (1 + (self.shift - 1) * t) ** 2

    def _alpha(self, t: Tensor) -> Tensor:
        return (1 - t) / (1 + (self.shift - 1) * t)  # 1 - u without cancellation near t = 1

    def _sigma(self, t: Tensor) -> Tensor:
        return self._warp(t)

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return -self._speed(t)

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return self._speed(t)

    def _drift(self, t: Tensor) -> Tensor:
        return -self._speed(t) / self._alpha(t)

    def _g2(self, t: Tensor) -> Tensor:
        return 2 * self._warp(t) * self._speed(t) / self._alpha(t)

    def _time(self, log_snr: Tensor) -> Tensor:
        u = torch.sigmoid(-log_snr / 2)
        return u / (self.shift - (self.shift - 1) * u)

"""Schedules that leave the data as they are, a = 1, and let the noise grow."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.schedules.schedule import Schedule

__all__ = ["EDM", "VE"]


class _Exploding(Schedule):
    """a = 1. Subclasses give `_sigma`, `_g2` and `_time`. The curve (1, s) is a line with parameter s."""

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return self._g2(t) / (2 * self._sigma(t))

    def _drift(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def curve(self, t: float) -> float:
        return float(self.sigma(t))

    def curve_time(self, u: float) -> float:
        return self._time_at_ratio(u)

    def curve_tangent(self, u: float) -> tuple[float, float]:
        return 0.0, 1.0


@dataclass(frozen=True)
class VE(_Exploding):
    """Variance-exploding: a = 1, s^2 = sigma_min^2 ((sigma_max/sigma_min)^{2t} - 1).

    This is the exact kernel of the VE-SDE of Song et al. (2021) started at the data: their s^2(t) minus their s^2(0),
    so that s(0) = 0.

    Args:
        sigma_min, sigma_max: noise levels, 0 < sigma_min < sigma_max.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        _check_sigmas(self.sigma_min, self.sigma_max)

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.sqrt(torch.expm1(2 * self._rate * t))

    def _g2(self, t: Tensor) -> Tensor:
        return 2 * self._rate * self.sigma_min**2 * torch.exp(2 * self._rate * t)

    def _time(self, log_snr: Tensor) -> Tensor:
        return torch.log1p(torch.exp(-log_snr) / self.sigma_min**2) / (2 * self._rate)


@dataclass(frozen=True)
class EDM(_Exploding):
    """a = 1 and the noise levels of Karras et al. (2022): k(t) = (m + t (M - m))^rho.

    m and M are the rho-th roots of sigma_min and sigma_max. As for `VE`, s^2 = k^2 - sigma_min^2 starts at the data, so
    s(0) = 0.

    Args:
        sigma_min, sigma_max: noise levels, 0 < sigma_min < sigma_max.
        rho: > 0.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        _check_sigmas(self.sigma_min, self.sigma_max)
        if not 0 < self.rho < math.inf:
            raise ValueError(f"rho must be positive and finite, got {self.rho}")

    @property
    def _slope(self) -> float:
        return (self.sigma_max / self.sigma_min) ** (1 / self.rho) - 1

    def _level(self, t: Tensor) -> Tensor:
        return self.sigma_min * (1 + self._slope * t) ** self.rho

    def _sigma(self, t: Tensor) -> Tensor:
        # k^2 - sigma_min^2 by expm1: no cancellation near t = 0.
        return self.sigma_min * torch.sqrt(torch.expm1(2 * self.rho * torch.log1p(self._slope * t)))

    def _g2(self, t: Tensor) -> Tensor:
        return 2 * self.rho * self._slope * self._level(t) ** 2 / (1 + self._slope * t)

    def _time(self, log_snr: Tensor) -> Tensor:
        growth = torch.log1p(torch.exp(-log_snr) / self.sigma_min**2) / (2 * self.rho)
        return torch.expm1(growth) / self._slope


def _check_sigmas(low: float, high: float) -> None:
    if not 0 < low < high < math.inf:
        raise ValueError(f"noise levels need 0 < sigma_min < sigma_max, got {low} and {high}")

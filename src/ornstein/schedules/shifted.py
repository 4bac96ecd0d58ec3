"""A schedule whose log-SNR is moved by a constant."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.schedules.preserving import VariancePreserving

__all__ = ["Shifted"]


@dataclass(frozen=True)
class Shifted(VariancePreserving):
    """lambda(t) = lambda of `schedule` + log_snr_shift, at the same t; variance is preserved.

    With c = e^(-shift/2) and n^2 = a^2 + c^2 s^2 of the schedule: a -> a/n, s -> c s/n. Noise of covariance c^2 C under
    the schedule differs from noise of covariance C under this one only by the factor n of x_t. A shift of
    -`noise.log_snr_shift(C, Sigma)` centres the log-SNRs of the data's modes, logdet(C^-1 Sigma) = 0.

    Source: Hoogeboom et al. 2023 (simple diffusion), section 2.2, for the shift; S2 for C.

    Args:
        schedule: a variance-preserving schedule.
        log_snr_shift: finite.

    Raises:
        ValueError: the schedule does not preserve variance (scale its s instead), or the shift is not finite.
    """

    schedule: VariancePreserving
    log_snr_shift: float

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, VariancePreserving):
            raise ValueError(f"only a schedule that preserves variance can be shifted, got {self.schedule}")
        if not math.isfinite(self.log_snr_shift):
            raise ValueError(f"log_snr_shift must be finite, got {self.log_snr_shift}")

    @property
    def _c(self) -> float:
        return math.exp(-self.log_snr_shift / 2)

    def _n(self, t: Tensor) -> Tensor:
        return torch.sqrt(self.schedule._alpha(t) ** 2 + (self._c * self.schedule._sigma(t)) ** 2)

    def _alpha(self, t: Tensor) -> Tensor:
        return self.schedule._alpha(t) / self._n(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self._c * self.schedule._sigma(t) / self._n(t)

    def _log_snr(self, t: Tensor) -> Tensor:
        return self.schedule._log_snr(t) + self.log_snr_shift

    # a a' + s s' = 0 of the schedule removes the terms that would be infinite at either end.
    def _alpha_dot(self, t: Tensor) -> Tensor:
        return self._c**2 * self.schedule._alpha_dot(t) / self._n(t) ** 3

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return self._c * self.schedule._sigma_dot(t) / self._n(t) ** 3

    def _beta(self, t: Tensor) -> Tensor:
        return self._c**2 * self.schedule._beta(t) / self._n(t) ** 2

    def _integral(self, t: Tensor) -> Tensor:
        return self.schedule._integral(t) + 2 * torch.log(self._n(t))

    def _time(self, log_snr: Tensor) -> Tensor:
        return self.schedule._time(log_snr - self.log_snr_shift)

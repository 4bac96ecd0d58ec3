"""The variance of a reverse step (E9): its two bounds, what the network learned between them, and the optimum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ornstein.process import Prediction, check_times, expand

__all__ = ["AnalyticVariance", "ReverseVariance", "check_variance", "position", "reverse_log_variance"]

_NAMES = ("lower", "upper", "learned")


@dataclass(frozen=True, eq=False)
class AnalyticVariance:
    """The optimal reverse variance sigma^2 C of a denoiser, for any number of steps; see `likelihood.fit_variance`.

    sigma^2 = beta~ + c^2 E||x_0 - x0_hat||^2_{C^-1}/N with c the factor of x_0 in the posterior mean (E6): the minimum
    over sigma of the expected KL divergence of the step. Source: Bao et al. 2022, Analytic-DPM (arXiv:2201.06503),
    theorem 1, which writes the error of an exact denoiser with E||score||^2.

    Args:
        log_snr: (K,), falling.
        error: (K,), that mean squared error over s^2/(a^2 + s^2): near 1 at the data, the variance of the data at the
            other end. Between the nodes it is linear in sigmoid(-log_snr/4).

    Raises:
        ValueError: the tables do not have one length, log_snr does not fall, or an error is negative.
    """

    log_snr: Tensor
    error: Tensor

    def __repr__(self) -> str:
        return f"AnalyticVariance({len(self.log_snr)} levels)"

    def __post_init__(self) -> None:
        level, error = self.log_snr, self.error
        if level.ndim != 1 or level.shape != error.shape or len(level) == 0:
            raise ValueError(
                f"log_snr and error are tables of one length, got {tuple(level.shape)}, {tuple(error.shape)}"
            )
        if bool((level.diff() >= 0).any()) or not bool((error >= 0).all()):
            raise ValueError("log_snr must fall strictly, and the errors be >= 0")

    def x0_error(self, log_snr: Tensor) -> Tensor:
        """E||x_0 - x0_hat||^2_{C^-1}/N at each log-SNR, in its shape; constant beyond the table."""
        nodes, place = position(self.log_snr).to(log_snr.device), position(log_snr)
        table = self.error.to(log_snr.device)
        right = torch.searchsorted(nodes, place.contiguous()).clamp(1, max(len(nodes) - 1, 1))
        if len(nodes) == 1:
            value = table.expand(place.shape)
        else:
            share = ((place - nodes[right - 1]) / (nodes[right] - nodes[right - 1])).clamp(0, 1)
            value = torch.lerp(table[right - 1], table[right], share)
        return value * torch.sigmoid(-log_snr)

    def log_variance(self, prediction: Prediction, s: float | Tensor) -> Tensor:
        """log sigma^2 of the step from the prediction's t to s, (B or 1, 1, ...) or a scalar."""
        schedule, x = prediction.process.schedule, prediction.x_t
        s64, t64 = check_times(s, x), check_times(prediction.t, x)
        share = -torch.expm1(schedule.log_snr(t64) - schedule.log_snr(s64))
        lower = share * schedule.sigma(s64) ** 2
        gain = (schedule.alpha(s64) * share) ** 2 * self.x0_error(schedule.log_snr(t64))
        return expand(torch.log(lower + gain), x)


def position(log_snr: Tensor) -> Tensor:
    """sigmoid(-log_snr/4): from 0 at the data to 1 at pure noise, with room at both ends."""
    return torch.sigmoid(-log_snr / 4)


ReverseVariance = Literal["lower", "upper", "learned"] | AnalyticVariance


def check_variance(variance: ReverseVariance) -> None:
    """Raise ValueError unless it is one of E9."""
    if not isinstance(variance, AnalyticVariance) and variance not in _NAMES:
        raise ValueError(
            f'variance is "lower" (beta~), "upper" (beta), "learned", or a table from likelihood.fit_variance, '
            f"got {variance!r}"
        )


def reverse_log_variance(prediction: Prediction, s: float | Tensor, variance: ReverseVariance) -> Tensor:
    """log sigma^2 of the reverse step from the prediction's t to s (E9), shaped to multiply x (B, *).

    The step's covariance is R diag(sigma^2) R^T; (B, *) where it is learned, one number a sample or for all otherwise.
    """
    check_variance(variance)
    if isinstance(variance, AnalyticVariance):
        return variance.log_variance(prediction, s)
    if variance == "learned":
        return prediction.log_variance(s)
    p, x, t = prediction.process, prediction.x_t, prediction.t
    std = p.posterior_factors(x, s, t)[2] if variance == "lower" else p.transition(x, s, t).std
    return 2 * std.log()

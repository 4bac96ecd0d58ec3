"""Straight paths between data and noise."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.schedules.schedule import Schedule

__all__ = ["Rectified"]


@dataclass(frozen=True)
class Rectified(Schedule):
    """Straight paths: a = 1 - t, s = t (Liu et al. 2023; flow matching). Zero terminal SNR; its flow is R z - x_0."""

    def _alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def _sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _drift(self, t: Tensor) -> Tensor:
        return -1 / (1 - t)

    def _g2(self, t: Tensor) -> Tensor:
        return 2 * t / (1 - t)

    def _time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2)

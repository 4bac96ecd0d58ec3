"""Guidance: a denoiser that wraps a denoiser and moves its prediction towards its condition."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.process import Prediction, check_times
from ornstein.schedules import Times
from ornstein.wrapper import Wrapper

__all__ = ["ClassifierFree"]


@dataclass(frozen=True)
class ClassifierFree(Wrapper):
    """Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598): x0 = u + scale (c - u) (E38).

    c is the prediction with the condition, u the one without. A learned variance (E9) is the conditional model's.

    Args:
        denoiser: a model that was trained with and without its condition.
        scale: 1 is the plain conditional model, 0 the unconditional one.
        interval: guidance applies to times low <= t <= high (Kynkaanniemi et al. 2024, arXiv:2404.07724); outside, the
            prediction is the conditional model's.

    Raises:
        ValueError: an interval outside [0, 1]; a call without a condition.
    """

    denoiser: Denoises
    scale: float
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise ValueError(f"a guidance interval lies in [0, 1] with low < high, got {self.interval}")

    def __call__(self, x_t: Tensor, t: Times, /, **cond: Any) -> Prediction:
        if all(value is None for value in cond.values()):
            raise ValueError("guidance needs a condition, such as label=...; none was given")
        with_condition = self.denoiser(x_t, t, **cond)
        if self.scale == 1:
            return with_condition
        factor: float | Tensor = self.scale - 1
        if self.interval != (0.0, 1.0):
            low, high = self.interval
            times = check_times(t, x_t)
            inside = (times >= low) & (times <= high)
            if times.device.type == "cpu" and not bool(inside.any()):  # known without waiting for a device
                return with_condition
            factor = (factor * inside.to(x_t)).reshape(-1, *[1] * (x_t.ndim - 1))
        without = self.denoiser(x_t, t)
        return replace(
            with_condition,
            x0=with_condition.x0 + factor * (with_condition.x0 - without.x0),
            eps=with_condition.eps + factor * (with_condition.eps - without.eps),
        )

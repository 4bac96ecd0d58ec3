"""Guidance: a denoiser that wraps a denoiser and leans towards its condition."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.process import Prediction, Process, check_times
from ornstein.schedules import Times


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance (Ho & Salimans 2022): x0 = u + scale (c - u), c with the condition and u without.

    scale 1 is the plain conditional model, 0 the unconditional one. `interval` (low, high) limits it to those times t
    (Kynkaanniemi et al. 2024); outside, the conditional model stands. A learned variance (E9) is the conditional
    model's. Raises ValueError without a condition.
    """

    denoiser: Denoises
    scale: float
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise ValueError(f"a guidance interval lies in [0, 1] with low < high, got {self.interval}")

    @property
    def process(self) -> Process:
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Times, /, **cond: Any) -> Prediction:
        if all(value is None for value in cond.values()):
            raise ValueError("guidance needs a condition to lean towards, such as label=...; none was given")
        with_condition = self.denoiser(x_t, t, **cond)
        times = check_times(t, x_t)
        low, high = self.interval
        inside = (times >= low) & (times <= high)
        if self.scale == 1 or not bool(inside.any()):
            return with_condition
        without = self.denoiser(x_t, t)
        scale = ((self.scale - 1) * inside.to(x_t)).reshape(-1, *[1] * (x_t.ndim - 1))
        return replace(
            with_condition,
            x0=with_condition.x0 + scale * (with_condition.x0 - without.x0),
            eps=with_condition.eps + scale * (with_condition.eps - without.eps),
        )

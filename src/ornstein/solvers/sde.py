"""Stochastic steps: Euler-Maruyama on the reverse SDE (E19) and Langevin dynamics at a fixed time (E22)."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.schedules import Times
from ornstein.solvers.stepping import Noise, knots, pairs

__all__ = ["euler_maruyama", "langevin", "langevin_step"]


def euler_maruyama(d: Denoises, x: Tensor, times: Tensor, noise: Noise) -> Iterator[Tensor]:
    """x_{t-h} = x_t - h f x_t + h g^2 C score + sqrt(h) g R z (E19): weak order 1. No noise in a step into t = 0.

    Raises:
        ValueError: the schedule has a zero terminal SNR, where f is infinite.
    """
    p = d.process
    for k, (t, s) in enumerate(pairs(times, down=True)):
        if not math.isfinite(float(p.schedule.drift(t))):
            raise ValueError("the reverse SDE has an infinite drift at a zero terminal SNR; use ddim, ddpm or dpmpp-3m")
        h, g = t - s, p.diffusion(t, x)
        x = x - h * p.drift(x, t) + h * g**2 * d(x, t).C_score
        if s > 0:
            x = x + math.sqrt(h) * g * p.noise.color(noise(k))
        yield x


def langevin_step(d: Denoises, x: Tensor, t: Times, step: float, z: Tensor) -> Tensor:
    """x + step/2 C grad log p_t + sqrt(step) R z: leaves p_t invariant up to O(step) (E22; appendix 2 of S0)."""
    return x + step / 2 * d(x, t).C_score + math.sqrt(step) * d.process.noise.color(z)


def langevin(
    d: Denoises, x: Tensor, times: Tensor, noise: Noise, corrections: int = 1, size: float = 0.1
) -> Iterator[Tensor]:
    """Predictor-corrector sampling (Song et al. 2021, algorithm 1): a DDIM step, then Langevin steps at the new time.

    Args:
        d, x, times, noise: as for every solver.
        corrections: Langevin steps (E22) after each step; none at the data.
        size: the length of a Langevin step in units of s^2, the variance of the noise at that time.

    Raises:
        ValueError: corrections < 0 or size <= 0.
    """
    if corrections < 0 or size <= 0:
        raise ValueError(f"corrections must be >= 0 and size > 0, got {corrections} and {size}")
    p = d.process
    for k, (start, end) in enumerate(knots(p, times, down=True)):
        prediction = d(x, start.t)
        x = end.a * prediction.x0 + end.s * prediction.eps
        if end.t > 0:
            for draw in range(corrections):
                x = langevin_step(d, x, end.t, size * end.s**2, noise(k, draw))
        yield x

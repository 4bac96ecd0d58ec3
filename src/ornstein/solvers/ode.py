"""Runge-Kutta steps in t on the probability-flow ODE dx/dt = a' x0_hat + s' eps_hat (E20)."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.solvers.stepping import Noise, pairs


def _steps(d: Denoises, times: Tensor) -> Iterator[tuple[float, float]]:
    """(from, to) of each step. Raises ValueError where the flow is infinite, which the start alone can be."""
    if not math.isfinite(float(d.process.schedule.alpha_dot(float(times[0])))):
        raise ValueError("the flow is infinite at the zero terminal SNR of this schedule; use ddim, ddpm or dpmpp-3m")
    return pairs(times, down=True)


def euler(d: Denoises, x: Tensor, times: Tensor, noise: Noise) -> Iterator[Tensor]:
    """x_s = x_t + (s - t) flow: order 1, one evaluation a step."""
    for t, s in _steps(d, times):
        x = x + (s - t) * d(x, t).flow
        yield x


def heun(d: Denoises, x: Tensor, times: Tensor, noise: Noise, churn: float = 0.0) -> Iterator[Tensor]:
    """The mean of the flow at both ends of the step: order 2, two evaluations a step.

    The step into t = 0, where the flow is a limit and not a number, is Euler's. With `churn` every step first goes
    back up, by fresh noise, to (1 + min(churn/N, sqrt 2 - 1)) of its level s/a, N the number of steps (Karras et al.
    2022, algorithm 2); not above t = 1, so that the first step is without. Raises ValueError for churn < 0.
    """
    if not 0 <= churn < math.inf:
        raise ValueError(f"churn is a number >= 0, got {churn}")
    p, gain = d.process, min(churn / (len(times) - 1), math.sqrt(2) - 1)
    for k, (t, s) in enumerate(_steps(d, times)):
        if gain > 0 and t < 1:
            above = min(1.0, float(p.schedule.time(p.schedule.log_snr(t) - 2 * math.log1p(gain))))
            x, t = p.transition(x, t, above).sample(noise(k)), above
        h, first = s - t, d(x, t).flow
        ahead = x + h * first
        x = ahead if s == 0 else x + h / 2 * (first + d(ahead, s).flow)
        yield x


def rk4(d: Denoises, x: Tensor, times: Tensor, noise: Noise) -> Iterator[Tensor]:
    """The classical Runge-Kutta method: order 4, four evaluations a step.

    The step into t = 0 is the midpoint rule, which needs no flow there.
    """
    for t, s in _steps(d, times):
        h, middle = s - t, (t + s) / 2
        k1 = d(x, t).flow
        k2 = d(x + h / 2 * k1, middle).flow
        if s == 0:
            x = x + h * k2
        else:
            k3 = d(x + h / 2 * k2, middle).flow
            k4 = d(x + h * k3, s).flow
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        yield x

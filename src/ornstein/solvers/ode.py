"""Runge-Kutta steps on the probability-flow ODE (E20), in the parameter in which the curve (a, s) is smooth.

With u the angle atan(s/a) of a variance-preserving schedule, the noise level s of a variance-exploding one and t of
straight paths (`Schedule.curve`), dx/du = (da/du) x0_hat + (ds/du) eps_hat. The path is then the same function of u for
every schedule of a kind: it has no kinks between the steps of a chain, does not start as sqrt(t), and is finite at a
zero terminal SNR. For a = 1 these are the steps of Karras et al. (2022, arXiv:2206.00364).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.solvers.stepping import Noise, pairs

__all__ = ["euler", "heun", "rk4"]


def _velocity(d: Denoises, x: Tensor, t: float, u: float) -> Tensor:
    """dx/du at time t, the parameter u."""
    prediction = d(x, t)
    a, s = d.process.schedule.curve_tangent(u)
    return a * prediction.x0 + s * prediction.eps


def euler(d: Denoises, x: Tensor, times: Tensor, noise: Noise) -> Iterator[Tensor]:
    """x + h dx/du: order 1, one evaluation a step."""
    curve = d.process.schedule.curve
    for t, s in pairs(times, down=True):
        x = x + (curve(s) - curve(t)) * _velocity(d, x, t, curve(t))
        yield x


def heun(d: Denoises, x: Tensor, times: Tensor, noise: Noise, churn: float = 0.0) -> Iterator[Tensor]:
    """The mean of the velocity at both ends of the step: order 2, two evaluations a step.

    The step into t = 0, where the velocity is a limit and not a number, is Euler's.

    Args:
        d, x, times, noise: as for every solver.
        churn: every step first goes back up, by fresh noise, to (1 + min(churn/N, sqrt 2 - 1)) of its level s/a, with N
            the number of steps (Karras et al. 2022, algorithm 2); not above t = 1, so the first step does not.

    Raises:
        ValueError: churn < 0.
    """
    if not 0 <= churn < math.inf:
        raise ValueError(f"churn is a number >= 0, got {churn}")
    p, gain = d.process, min(churn / (len(times) - 1), math.sqrt(2) - 1)
    curve = p.schedule.curve
    for k, (t, s) in enumerate(pairs(times, down=True)):
        if gain > 0 and t < 1:
            above = min(1.0, float(p.schedule.time(p.schedule.log_snr(t) - 2 * math.log1p(gain))))
            x, t = p.transition(x, t, above).sample(noise(k)), above
        h, first = curve(s) - curve(t), _velocity(d, x, t, curve(t))
        ahead = x + h * first
        x = ahead if s == 0 else x + h / 2 * (first + _velocity(d, ahead, s, curve(s)))
        yield x


def rk4(d: Denoises, x: Tensor, times: Tensor, noise: Noise) -> Iterator[Tensor]:
    """The classical Runge-Kutta method: order 4, four evaluations a step.

    The step into t = 0 is the midpoint rule, which needs no velocity there.
    """
    schedule = d.process.schedule
    for t, s in pairs(times, down=True):
        start, end = schedule.curve(t), schedule.curve(s)
        h, middle = end - start, (start + end) / 2
        between = schedule.curve_time(middle)
        k1 = _velocity(d, x, t, start)
        k2 = _velocity(d, x + h / 2 * k1, between, middle)
        if s == 0:
            x = x + h * k2
        else:
            k3 = _velocity(d, x + h / 2 * k2, between, middle)
            k4 = _velocity(d, x + h * k3, s, end)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        yield x

"""Moment matching: the posterior mean of a Gaussian with the mean and the covariance of p(x_0 | x_t)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ornstein.inverse.operators import Operator
from ornstein.inverse.posterior import Linearised, Posterior
from ornstein.noise import Identity
from ornstein.process import check_times, expand
from ornstein.schedules import Times
from ornstein.wrapper import networks_of

__all__ = ["Moments", "conjugate_gradients"]

_TRUST = 0.02


@dataclass(frozen=True, eq=False)
class Moments(Posterior):
    """x0_hat + Cov A^T (noise_std^2 + A Cov A^T)^-1 (y - A x0_hat), Cov = (s^2/a) J C (E39): the recommended method.

    p(x_0 | x_t) is replaced by the Gaussian of its first two moments, which is exact for Gaussian data at any
    covariance C. Sources: TMPD (Boys et al. 2023, arXiv:2310.06721) and MMPS (Rozet et al. 2024, arXiv:2405.13712), who
    write it for white noise. The linear system is solved by conjugate gradients; an iteration takes one product with
    the network's derivative, about two evaluations of time.

    White noise on a whole picture needs no approximation: x_t and y are together one noisier look at x_0, which the
    denoiser knows at another time. There the posterior mean is exact for any data, with one evaluation.

    Args:
        iterations: most iterations of conjugate gradients; M of them are exact for M measured numbers.
        tolerance: the share of the residual at which a sample is finished.
        trust: a network's derivative is no exact covariance: this share of s^2/(a^2 + s^2), the variance that data of
            unit variance have left at t, is added to that of y. None is 0 for an exact denoiser, and else 0.02.
    """

    iterations: int = 3
    tolerance: float = 1e-4
    trust: float | None = None

    def posterior_mean(self, x_t: Tensor, t: Times, y: Tensor, cond: dict[str, Any]) -> Tensor:
        if self.A.whole and isinstance(self.process.noise, Identity):
            return self.joint_mean(x_t, t, y, cond)
        p = self.linearised(x_t, t, cond)
        A, value = self.A.at(p.x0)
        return p.x0 + p.times_cov(A.adjoint(self.weights(p, A, y - value)))

    def joint_mean(self, x_t: Tensor, t: Times, y: Tensor, cond: dict[str, Any]) -> Tensor:
        """E[x_0 | x_t, y] for y = x_0 + noise_std n and white noise: both measure x_0, and their precisions add."""
        schedule, t = self.process.schedule, check_times(t, x_t)
        if self.noise_std == 0:
            return y.expand_as(x_t)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t).clamp(min=1e-8)
        precision = (alpha / sigma) ** 2 + self.noise_std**-2
        time = schedule.time(precision.log()).clamp(0, 1)  # a^2/s^2 there is the precision
        mean = expand(alpha / sigma**2, x_t) * x_t + y / self.noise_std**2
        return self.denoiser(expand(schedule.alpha(time) / precision, x_t) * mean, time, **cond).x0

    def doubt(self, p: Linearised) -> Tensor:
        """What is added to the variance of y, a number or one a sample."""
        trust = self.trust if self.trust is not None else _TRUST if networks_of(self.denoiser) else 0.0
        variance = trust * p.s**2 / (p.a**2 + p.s**2)
        return variance if variance.ndim == 0 else variance.reshape(-1, *[1] * len(self.A.measured))

    def weights(self, p: Linearised, A: Operator, residual: Tensor) -> Tensor:
        """(noise_std^2 + A Cov A^T)^-1 (y - A x0_hat), in the space of measurements."""

        doubt = self.doubt(p)

        def system(v: Tensor) -> Tensor:
            return (self.noise_std**2 + doubt) * v + A.linear(p.times_cov(A.adjoint(v)))

        return conjugate_gradients(system, residual, self.iterations, self.tolerance)


def conjugate_gradients(system: Callable[[Tensor], Tensor], b: Tensor, iterations: int, tolerance: float) -> Tensor:
    """u with system(u) = b for each row of b (B, *), from u = 0 (Hestenes & Stiefel 1952).

    A row is finished at `tolerance` |b|, or where a direction has no positive curvature: a network's derivative need
    not be symmetric, and its steps up to there are still an answer.
    """
    axes = tuple(range(1, b.ndim))

    def dot(v: Tensor, w: Tensor) -> Tensor:
        return (v * w).sum(axes, keepdim=True)

    u, r = torch.zeros_like(b), b
    p, rr = r, dot(r, r)
    enough = tolerance**2 * rr
    for _ in range(iterations):
        q = system(p)
        curvature = dot(p, q)
        going = (rr > enough) & (curvature > 0)
        if not bool(going.any()):
            break
        step = torch.where(going, rr / torch.where(going, curvature, 1.0), 0.0)
        u, r = u + step * p, r - step * q
        new = dot(r, r)
        p = r + torch.where(going, new / torch.where(going, rr, 1.0), 0.0) * p
        rr = torch.where(going, new, 0.0)
    return u

"""Twisted sampling by particles, exact as their number grows (Wu et al. 2023, arXiv:2306.17775)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.inverse.moments import Moments
from ornstein.inverse.operators import Operator
from ornstein.inverse.posterior import Linearised
from ornstein.solvers import Noise
from ornstein.solvers.stepping import pairs
from ornstein.wrapper import Conditioned, rows_of

__all__ = ["twisted"]

_DENSE = 64  # measured numbers up to which the covariance of y is a matrix, with its determinant
_CHOICE, _FIRST = 1, 2  # draws of a step: which particles go on, and the noise of the first one
_LEAST = 0.5  # share of the particles that must still count, or they are resampled


def twisted(d: Denoises, x: Tensor, times: Tensor, noise: Noise, particles: int = 16) -> Iterator[Tensor]:
    """A solver for `Moments`: ancestral steps of weighted particles, of which each sample has its own.

    A particle at x_t counts in proportion to the moments' p(y | x_t). It moves by their posterior step, and its weight
    is multiplied by the prior's step over that one and the ratio of both likelihoods. So the approximation decides how
    many particles are needed, not where they end: with many they are draws from the posterior under the prior's own
    chain of these steps. The states that it yields are those of one particle a sample.

    Args:
        d: a `Moments`, or one with its conditions filled in.
        x: (B, *), the first particle of each sample; the others are drawn from N(0, s^2 C).
        times, noise: as for every solver.
        particles: of each sample; as many times the evaluations.

    Raises:
        ValueError: d is no `Moments`, or has no measurement; fewer than 1 particle; a singular C.
    """
    method, cond = (d.denoiser, dict(d.cond)) if isinstance(d, Conditioned) else (d, {})
    if not isinstance(method, Moments):
        raise ValueError("twisted sampling corrects moment matching: wrap the denoiser in ornstein.inverse.Moments")
    if particles < 1:
        raise ValueError(f"a sample has at least one particle, got {particles}")
    p, size = method.process, len(x)
    y = cond.pop("y", method.y)
    if y is None:
        raise ValueError("there is no measurement: give y to the wrapper or as a condition")
    y = y.repeat_interleave(particles, 0) if len(y) == size else y
    cond = rows_of(cond, torch.arange(size).repeat_interleave(particles))
    twist = _Twist(method, y.to(x), cond)

    def draws(step: int) -> Tensor:
        return torch.stack([noise(step, _FIRST + i) for i in range(particles)], 1).flatten(0, 1)

    prior = p.prior(tuple(x.shape), x.dtype, float(times[0]), x.device)
    others = [prior.sample(noise(-1, _FIRST + i)) for i in range(particles - 1)]
    state = torch.stack([x, *others], 1).flatten(0, 1)
    x0, moved, likelihood = twist(state, float(times[0]))
    log_weight = likelihood
    for k, (t, s) in enumerate(pairs(times, down=True)):
        u = torch.special.ndtr(noise(k, _CHOICE).flatten(1)[:, 0].double())
        if s == 0:  # one of each sample's particles, by weight; the step to the data has no noise
            chosen = _systematic(log_weight.reshape(size, particles), u, 1)[:, 0]
            yield moved.reshape(size, particles, *x.shape[1:])[torch.arange(size, device=x.device), chosen]
            return
        index, log_weight = _resampled(log_weight.reshape(size, particles), u)
        state, x0, moved, likelihood = (v[index] for v in (state, x0, moved, likelihood))
        of_x0, of_x, std = p.posterior_factors(state, s, t)
        z, gap = draws(k), p.noise.whiten(of_x0 * (moved - x0)) / std
        state = of_x0 * moved + of_x * state + std * p.noise.color(z)
        # log of the prior's step over this one, which differ in the mean
        ratio = -(z * gap + gap**2 / 2).flatten(1).sum(1)
        x0, moved, after = twist(state, s)
        log_weight, likelihood = log_weight + ratio + after - likelihood, after
        yield state[::particles]


@dataclass(frozen=True)
class _Twist:
    """The moments at particles (B, *): x0_hat, E[x_0 | x_t, y], and log p(y | x_t) but for a constant."""

    method: Moments
    y: Tensor
    cond: dict[str, Any]

    def __call__(self, x: Tensor, t: float) -> tuple[Tensor, Tensor, Tensor]:
        p = self.method.linearised(x, t, self.cond)
        A, value = self.method.A.at(p.x0)
        residual = self.y - value
        if math.prod(A.measured) <= _DENSE:
            weights, logdet = self._dense(p, A, residual)
        else:  # without the determinant: the weights are less even, their limit is the same
            weights, logdet = self.method.weights(p, A, residual), 0.0
        quadratic = (residual * weights).flatten(1).sum(1)
        return p.x0, p.x0 + p.times_cov(A.adjoint(weights)), -(quadratic + logdet) / 2

    def _dense(self, p: Linearised, A: Operator, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(noise_std^2 I + A Cov A^T)^-1 residual and log det, over what is measured at all."""
        shape = residual.shape
        units = torch.eye(math.prod(shape[1:]), dtype=residual.dtype, device=residual.device)
        columns = [A.linear(p.times_cov(A.adjoint(e.reshape(1, *shape[1:])))).flatten(1) for e in units]
        cov = torch.stack(columns, 2).double()
        cov = (cov + cov.mT) / 2
        values, vectors = torch.linalg.eigh(cov)
        # a direction of no variance is one that no sample has: unmeasured, or known exactly
        noise = self.method.noise_std**2 + float(self.method.doubt(p))
        values = values.clamp(min=0) + noise + 1e-9 * values.amax(1, keepdim=True)
        turned = (vectors.mT @ residual.flatten(1).double()[..., None])[..., 0]
        weights = (vectors @ (turned / values)[..., None])[..., 0]
        return weights.to(residual.dtype).reshape(shape), values.log().sum(1)


def _resampled(log_weight: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The rows (B P,) of the particles that go on, and their log-weights, normalised, for log-weights (B, P)."""
    size, particles = log_weight.shape
    weight = torch.softmax(log_weight, 1)
    few = 1 / weight.square().sum(1) < _LEAST * particles
    kept = torch.arange(particles, device=weight.device).expand(size, -1)
    index = torch.where(few[:, None], _systematic(log_weight, u, particles), kept)
    after = torch.where(few[:, None], -math.log(particles), torch.log_softmax(log_weight, 1))
    start = particles * torch.arange(size, device=weight.device)[:, None]
    return (start + index).flatten(), after.flatten()


def _systematic(log_weight: Tensor, u: Tensor, count: int) -> Tensor:
    """Systematic resampling: `count` of the particles of each row, (B, count), by one uniform number u (B,) a row."""
    places = (u.to(log_weight.device)[:, None] + torch.arange(count, device=log_weight.device)) / count
    below = torch.softmax(log_weight.double(), 1).cumsum(1)
    return torch.searchsorted(below, places.clamp(max=1 - 1e-12)).clamp(max=log_weight.shape[1] - 1)

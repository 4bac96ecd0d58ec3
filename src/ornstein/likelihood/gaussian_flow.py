"""The probability flow in coordinates in which the flow of one Gaussian stands still (E32)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ornstein.likelihood.model import Model

__all__ = ["Coordinates", "GaussianFlow", "gaussian_of"]

_MOST_DENSE = 4096  # numbers of a sample: above, only the variance of each is known, and no covariance
_LEAST_VARIANCE = 1e-10  # of the largest
_ENDS = {torch.float64: 1e-9}  # q keeps so far from 0 and 1; a network in float32 answers with noise nearer the data
_END = 1e-3
_FINE = 4  # Runge-Kutta steps of the fine solution between two places


@dataclass(frozen=True)
class Coordinates:
    """mean, variances (N,) and basis, columns (N, N) or (0, 0), of whitened data; q/(1 - q) = (s/a)^(2 slope)."""

    mean: Tensor
    basis: Tensor
    variances: Tensor
    slope: float


def gaussian_of(white: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, basis and variances of whitened samples (M, N)."""
    mean, n = white.mean(0), white.shape[1]
    if n <= _MOST_DENSE:
        values, basis = torch.linalg.eigh(torch.cov(white.T).reshape(n, n))
    else:
        values, basis = white.var(0), white.new_zeros(0, 0)
    return mean, basis, values.clamp(min=_LEAST_VARIANCE * float(values.max()))


@dataclass(frozen=True)
class GaussianFlow:
    """dy/dq and its divergence for the samples `rows` of a batch of `shape`; `probe` (B, N) estimates it."""

    model: Model
    coordinates: Coordinates
    rows: Tensor
    probe: Tensor | None
    shape: tuple[int, ...]

    @property
    def low(self) -> float:
        """q at the data."""
        return self._place(0.0)

    @property
    def span(self) -> float:
        """How far q goes, from the data to the noise."""
        return self._place(1.0) - self.low

    def _place(self, t: float) -> float:
        end = _ENDS.get(self.model.dtype, _END)
        slope = self.coordinates.slope
        return float(torch.sigmoid(-slope * self.model.process.schedule.log_snr(t)).clamp(end, 1 - end))

    def _at(self, q: float) -> tuple[float, float, Tensor]:
        """cos and sin of the angle, and D."""
        ratio = (q / (1 - q)) ** (0.5 / self.coordinates.slope)
        cosine = 1 / math.sqrt(1 + ratio**2)
        sine = ratio * cosine
        return cosine, sine, torch.sqrt(cosine**2 * self.coordinates.variances + sine**2)

    def start(self, x0: Tensor) -> Tensor:
        """y (B, N) of data x0 (B, *)."""
        cosine, _, size = self._at(self.low)
        return self._in_basis(cosine * (self.model.process.noise.whiten(x0).flatten(1) - self.coordinates.mean)) / size

    def _white(self, y: Tensor, q: float) -> Tensor:
        """R^-1 x_t/sqrt(a^2 + s^2), (B, N)."""
        known, (cosine, _, size) = self.coordinates, self._at(q)
        white = size * y if not known.basis.numel() else (size * y) @ known.basis.T
        return cosine * known.mean + white

    def __call__(self, q: float, y: Tensor) -> tuple[Tensor, Tensor]:
        """dy/dq (B, N) and its divergence (B,)."""
        known, process, (cosine, sine, size) = self.coordinates, self.model.process, self._at(q)
        angle = sine * cosine / (2 * known.slope * q * (1 - q))  # d angle/dq
        schedule = process.schedule
        t = schedule.time(torch.tensor(-2 * math.log(sine / cosine), dtype=torch.float64)).clamp(0, 1)
        scale = float(torch.sqrt(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2))
        rate = sine * cosine * (1 - known.variances) / size**2  # of the Gaussian's own flow, d log D/d angle
        with torch.enable_grad():
            leaf = self._white(y, q).requires_grad_()
            x = process.noise.color(leaf.reshape(self.shape))
            out = self.model(x * scale, t.expand(len(y)), self.rows)
            white = process.noise.whiten(cosine * out.eps - sine * out.x0).flatten(1)
            # The trace of the difference of two Jacobians in the coordinates of R^-1 x: those of y would blow up what
            # narrow directions and wide ones share, and with it the spread of the estimate.
            divergence = torch.zeros(len(y), dtype=y.dtype, device=y.device)
            for k, w in self._directions(white):
                (pulled,) = torch.autograd.grad((white * w).sum(), leaf, retain_graph=True)
                divergence += (pulled * w).sum(1) if k is None else pulled[:, k]
        if self.probe is None:
            divergence -= rate.sum()
        else:
            divergence -= (self._in_basis(self.probe).square() * rate).sum(1)
        along = self._in_basis(white.detach() + sine * known.mean) / size
        return angle * (along - y * rate), angle * divergence

    def _in_basis(self, white: Tensor) -> Tensor:
        return white @ self.coordinates.basis if self.coordinates.basis.numel() else white

    def _directions(self, white: Tensor) -> Iterator[tuple[int | None, Tensor]]:
        if self.probe is not None:
            yield None, self.probe
            return
        for k in range(white.shape[1]):
            yield k, torch.eye(white.shape[1], dtype=white.dtype, device=white.device)[k]

    def log_prob(self, y: Tensor) -> Tensor:
        """log p_1 of the state at the end, and the log-determinant of D, (B,)."""
        process, high = self.model.process, self.low + self.span
        x = process.noise.color(self._white(y, high).reshape(self.shape))
        a, s = process.coefficients(1.0, x)
        scale = torch.sqrt(a**2 + s**2)
        start, end = self._at(self.low), self._at(high)
        prior = process.prior(tuple(x.shape), x.dtype, 1.0, x.device).log_prob(x * scale)
        # the data are x over the cosine at the start
        return prior + len(y[0]) * float(scale.log() + math.log(start[0])) + (end[2].log() - start[2].log()).sum()

    def places(self, count: int) -> list[float]:
        """q in the middle of so many equal steps."""
        return [self.low + self.span * (k + 0.5) / count for k in range(count)]

    def fine(self, x0: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """log p(x_0) (B,) in many steps of order 4, and the states at `count` places and the end, (B, count + 1, N)."""
        y, total, states = self.start(x0), 0.0, []
        for low, high in pairwise([self.low, *self.places(count), self.low + self.span]):
            h = (high - low) / _FINE
            for i in range(_FINE):
                q = low + i * h
                k1 = self(q, y)
                k2 = self(q + h / 2, y + h / 2 * k1[0])
                k3 = self(q + h / 2, y + h / 2 * k2[0])
                k4 = self(q + h, y + h * k3[0])
                y = y + h / 6 * (k1[0] + 2 * k2[0] + 2 * k3[0] + k4[0])
                total = total + h / 6 * (k1[1] + 2 * k2[1] + 2 * k3[1] + k4[1])
            states.append(y)
        return self.log_prob(y) + total, torch.stack(states, 1)

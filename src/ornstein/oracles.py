"""Exact denoisers: what a perfect network would say when the data are a mixture of Gaussians, under any C."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.process import Prediction, Process, check_times
from ornstein.schedules import Times

# A share of the variance below this is none.
_NULL = 1e-12


class GaussianMixture:
    """Data p(x_0) = sum_k weights_k N(means_k, covs_k): every marginal, score and likelihood in closed form.

    weights (K,), means (K, *) of the shape of a sample, covs (K, N, N) over the flattened sample. All arithmetic is in
    float64. Raises ValueError for weights that are not a distribution, shapes that do not fit, or a covariance that is
    not symmetric positive semidefinite.
    """

    def __init__(
        self,
        weights: Sequence[float] | Tensor,
        means: Sequence[Sequence[float]] | Tensor,
        covs: Sequence[Sequence[Sequence[float]]] | Tensor,
    ) -> None:
        self.weights = torch.as_tensor(weights, dtype=torch.float64)
        means_ = torch.as_tensor(means, dtype=torch.float64)
        self.covs = torch.as_tensor(covs, dtype=torch.float64)
        if means_.ndim < 2:
            raise ValueError(f"means must have shape (components, *sample), got {tuple(means_.shape)}")
        self.sample_shape = tuple(means_.shape[1:])
        self.means = means_.flatten(1)
        k, n = self.means.shape
        if (
            self.weights.shape != (k,)
            or bool((self.weights < 0).any())
            or not abs(float(self.weights.sum()) - 1) <= 1e-9
        ):
            raise ValueError(f"weights must be {k} numbers >= 0 that sum to 1, got {self.weights.tolist()}")
        if self.covs.shape != (k, n, n):
            raise ValueError(f"covs must have shape {(k, n, n)}, got {tuple(self.covs.shape)}")
        if not bool(self.means.isfinite().all() and self.covs.isfinite().all()):
            raise ValueError("means and covs must be finite")
        smallest = float(torch.linalg.eigvalsh(self.covs).min())
        if not torch.allclose(self.covs, self.covs.mT) or smallest < -1e-9:
            raise ValueError(f"covs must be symmetric positive semidefinite; the smallest eigenvalue is {smallest:.3g}")

    def denoiser(self, p: Process) -> Oracle:
        """The exact E[x_0 | x_t] of process `p` on these data, to be used like any denoiser."""
        c = _matrix_of(p, self.sample_shape)
        # Both are diagonal in one basis W_k: Sigma_k = W diag(1-c) W^T, C = W diag(c) W^T; either may be singular.
        values = torch.linalg.eigvalsh(self.covs + c)
        if bool((values[:, 0] <= _NULL * values[:, -1]).any()):
            raise ValueError("data and noise share a direction without variance: no density exists there")
        factor = torch.linalg.cholesky(self.covs + c)
        inner = torch.linalg.solve_triangular(factor, c.expand_as(factor), upper=False)
        inner = torch.linalg.solve_triangular(factor, inner.mT, upper=False)
        share, rotation = torch.linalg.eigh((inner + inner.mT) / 2)
        # Rounding must not give a null direction of the noise (share 0) or of the data (share 1) a variance.
        share = torch.where(share < _NULL, 0.0, torch.where(share > 1 - _NULL, 1.0, share))
        inverse = torch.linalg.solve_triangular(factor.mT, rotation, upper=True).mT
        logdet = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return Oracle(self, p, factor @ rotation, inverse, share, logdet)

    def log_prob(self, x: Tensor, p: Process, t: Times) -> Tensor:
        """log p_t(x) in nats, (B,): the exact density of x_t. x: (B, *)."""
        return self.denoiser(p).log_prob(x, t)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws from the data, (n, *) float64."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        values, vectors = torch.linalg.eigh(self.covs)
        root = vectors * values.clamp(min=0).sqrt()[:, None]
        z = torch.randn(n, self.means.shape[1], 1, generator=generator, dtype=torch.float64)
        return (self.means[k] + (root[k] @ z)[..., 0]).reshape(n, *self.sample_shape)

    def ode_map(self, x: Tensor, p: Process, t: Times, s: Times) -> Tensor:
        """Where the probability-flow ODE (E20) carries x from time t to time s: exact, for a single component.

        y_s = M_s^{1/2} M_t^{-1/2} y_t about the mean, in the basis where data and noise are both diagonal.
        Raises ValueError for more than one component, whose flow has no closed form, and at a time t when some
        direction has no variance: the flow is not determined from there.
        """
        if len(self.weights) != 1:
            raise ValueError(f"the flow of one Gaussian is a closed form; this mixture has {len(self.weights)}")
        return self.denoiser(p).ode_map(x, t, s)


@dataclass(frozen=True)
class Oracle:
    """The exact denoiser of a mixture, from `GaussianMixture.denoiser`. `label` (B,) restricts x_0 to a component."""

    mixture: GaussianMixture
    process: Process
    basis: Tensor
    inverse: Tensor
    share: Tensor
    logdet: Tensor

    def __call__(self, x_t: Tensor, t: Times, /, *, label: Tensor | None = None) -> Prediction:
        coordinates, a, variance = self._coordinates(x_t, t)
        # Where nothing of the data is left, x_t says nothing of the component.
        weight = torch.where(
            a == 0, self.mixture.weights, torch.softmax(self._log_joint(coordinates, variance), dim=-1)
        )
        if label is not None:
            if label.shape != x_t.shape[:1] or bool(((label < 0) | (label >= len(self.mixture.weights))).any()):
                raise ValueError(
                    f"label must name one of {len(self.mixture.weights)} components for each of {len(x_t)} samples"
                )
            weight = torch.nn.functional.one_hot(label, len(self.mixture.weights)).to(weight)
        # a Sigma M^-1 in the common basis; a direction without variance stays at the mean.
        gain = torch.where(variance > 0, a[..., None] * (1 - self.share) / variance, torch.zeros_like(variance))
        means = self.mixture.means + torch.einsum("kij,bkj->bki", self.basis, gain * coordinates)
        x0 = torch.einsum("bk,bki->bi", weight, means)
        return self.process.convert(x_t, t, x0=x0.reshape(x_t.shape).to(x_t.dtype))

    def _coordinates(self, x: Tensor, t: Times) -> tuple[Tensor, Tensor, Tensor]:
        """W^-1 (x - a mu_k): (B, K, N); a: (B or 1, 1); the diagonal of M_k there: (B or 1, K, N)."""
        if tuple(x.shape[1:]) != self.mixture.sample_shape:
            raise ValueError(f"the mixture lives on {self.mixture.sample_shape}, the sample has {tuple(x.shape[1:])}")
        t = check_times(t, x).reshape(-1, 1)
        a, s = self.process.schedule.alpha(t), self.process.schedule.sigma(t)
        variance = a[..., None] ** 2 * (1 - self.share) + s[..., None] ** 2 * self.share
        centred = x.double().flatten(1)[:, None] - a[..., None] * self.mixture.means
        return torch.einsum("kij,bkj->bki", self.inverse, centred), a, variance

    def _log_joint(self, coordinates: Tensor, variance: Tensor) -> Tensor:
        """log weights_k N(x; a mu_k, M_k): (B, K)."""
        n = coordinates.shape[-1]
        quadratic = (coordinates**2 / variance + variance.log()).sum(-1)
        return self.mixture.weights.log() - self.logdet - 0.5 * (quadratic + n * math.log(2 * math.pi))

    def log_prob(self, x: Tensor, t: Times) -> Tensor:
        """log p_t(x) in nats, (B,). ValueError at a time when some direction has no variance."""
        coordinates, _, variance = self._coordinates(x, t)
        _check_density(variance)
        return torch.logsumexp(self._log_joint(coordinates, variance), dim=-1)

    def ode_map(self, x: Tensor, t: Times, s: Times) -> Tensor:
        """See `GaussianMixture.ode_map`."""
        coordinates, _, variance = self._coordinates(x, t)
        _check_density(variance)
        _, a_s, variance_s = self._coordinates(x, s)
        moved = coordinates[:, 0] * torch.sqrt(variance_s[:, 0] / variance[:, 0])
        out = a_s * self.mixture.means[0] + moved @ self.basis[0].mT
        return out.reshape(x.shape).to(x.dtype)


def _check_density(variance: Tensor) -> None:
    if bool((variance == 0).any()):
        raise ValueError("at this time the mixture has a direction without variance: no density exists there")


def _matrix_of(p: Process, sample_shape: tuple[int, ...]) -> Tensor:
    """C over a whole flattened sample, (N, N)."""
    n = math.prod(sample_shape)
    units = torch.eye(n, dtype=torch.float64).reshape(n, *sample_shape)
    return p.noise.matvec(units).reshape(n, n)

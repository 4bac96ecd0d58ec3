"""Exact denoisers: what a perfect network would predict when the data are a mixture of Gaussians, under any C."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ornstein.devices import float64_device
from ornstein.noise.covariance import cast_like
from ornstein.process import Prediction, Process, check_times, linear_marginal
from ornstein.schedules import Times

__all__ = ["GaussianMixture", "Oracle"]

# A smaller share of the variance counts as none.
_NULL = 1e-12


class GaussianMixture:
    """Data p(x_0) = sum_k weights_k N(means_k, covs_k): every marginal, score and likelihood in closed form.

    All arithmetic is in float64. Samples may be on any device; the mixture itself is on the CPU.

    Args:
        weights: (K,), >= 0, with sum 1.
        means: (K, *), of the shape of a sample.
        covs: (K, N, N) over the flattened sample, symmetric positive semidefinite.

    Raises:
        ValueError: the weights are not a distribution, the shapes do not fit, or a covariance is not one.
    """

    def __init__(
        self,
        weights: Sequence[float] | Tensor,
        means: Sequence[Sequence[float]] | Tensor,
        covs: Sequence[Sequence[Sequence[float]]] | Tensor,
    ) -> None:
        self.weights, means_, self.covs = (
            torch.as_tensor(v, dtype=torch.float64, device="cpu").detach() for v in (weights, means, covs)
        )
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

    def __repr__(self) -> str:
        k = len(self.weights)
        return f"GaussianMixture({k} component{'s' * (k != 1)}, samples of {self.sample_shape})"

    def denoiser(self, p: Process) -> Oracle:
        """The exact E[x_0 | x_t] of process `p` on these data, to be used like any denoiser.

        Raises:
            ValueError: data and noise share a direction without variance.
        """
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
        basis = _Basis(self.weights, self.means, factor @ rotation, inverse, share, logdet)
        return Oracle(self, p, basis)

    def log_prob(self, x: Tensor, p: Process, t: Times) -> Tensor:
        """log p_t(x) in nats, (B,): the exact density of x_t. x: (B, *)."""
        return self.denoiser(p).log_prob(x, t)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws from the data, (n, *) float64 on the CPU; the generator may be on any device."""
        device = torch.device("cpu") if generator is None else generator.device
        k = torch.multinomial(self.weights.to(device), n, replacement=True, generator=generator).cpu()
        values, vectors = torch.linalg.eigh(self.covs)
        root = vectors * values.clamp(min=0).sqrt()[:, None]
        shape = (n, self.means.shape[1], 1)
        z = torch.randn(shape, generator=generator, dtype=torch.float64, device=device).cpu()
        return (self.means[k] + (root[k] @ z)[..., 0]).reshape(n, *self.sample_shape)

    def posterior(self, A: Tensor, y: Tensor, noise_std: float) -> GaussianMixture:
        """p(x_0 | y) for y = A x_0 + noise_std n with n ~ N(0, I): again a mixture, in closed form (E39).

        With S_k = A Sigma_k A^T + noise_std^2 I and K_k = Sigma_k A^T S_k^-1: means mu_k + K_k (y - A mu_k),
        covariances Sigma_k - K_k A Sigma_k, weights in proportion to pi_k N(y; A mu_k, S_k).

        Args:
            A: (M, N) over the flattened sample, or (M, *) with the shape of a sample.
            y: M numbers, of any shape.
            noise_std: >= 0; 0 needs A Sigma_k A^T to be invertible.

        Raises:
            ValueError: the shapes do not fit, noise_std is negative or not finite, or some S_k is singular.
        """
        matrix, value = (torch.as_tensor(v).detach().cpu().double() for v in (A, y))
        matrix, value, n = matrix.flatten(1) if matrix.ndim > 1 else matrix, value.flatten(), self.means.shape[1]
        if matrix.ndim != 2 or matrix.shape[1] != n:
            raise ValueError(f"A is (M, {n}) over the flattened sample, got shape {tuple(torch.as_tensor(A).shape)}")
        if len(value) != len(matrix):
            raise ValueError(f"A maps a sample to {len(matrix)} numbers, but y has {len(value)}")
        if not 0 <= noise_std < math.inf:
            raise ValueError(f"noise_std is a standard deviation, got {noise_std}")
        noise_cov = noise_std**2 * torch.eye(len(matrix), dtype=torch.float64)
        mean, cov = linear_marginal(self.means, self.covs, matrix, noise_cov)
        root, failed = torch.linalg.cholesky_ex(cov)
        if bool((failed != 0).any()):
            raise ValueError("without noise A Sigma A^T must be invertible: give a noise_std > 0 or fewer rows of A")
        gain = torch.cholesky_solve(matrix @ self.covs, root).mT  # Sigma A^T S^-1
        offset = value - mean
        # Joseph's form of Sigma - K A Sigma, which stays positive semidefinite.
        keep = torch.eye(n, dtype=torch.float64) - gain @ matrix
        covs = keep @ self.covs @ keep.mT + noise_std**2 * gain @ gain.mT
        means = self.means + (gain @ offset[..., None])[..., 0]
        white = torch.linalg.solve_triangular(root, offset[..., None], upper=False)[..., 0]
        log_weight = self.weights.log() - root.diagonal(dim1=-2, dim2=-1).log().sum(-1) - 0.5 * white.square().sum(-1)
        weights = torch.softmax(log_weight, 0)
        return GaussianMixture(weights, means.reshape(-1, *self.sample_shape), (covs + covs.mT) / 2)

    def ode_map(self, x: Tensor, p: Process, t: Times, s: Times) -> Tensor:
        """The probability-flow ODE (E20) from x at time t to time s, in closed form for a single component.

        y_s = M_s^{1/2} M_t^{-1/2} y_t about the mean, in the basis where data and noise are both diagonal.

        Raises:
            ValueError: there is more than one component, whose flow has no closed form; or some direction has no
                variance at time t, from where the flow is not determined.
        """
        if len(self.weights) != 1:
            raise ValueError(f"the flow of one Gaussian is a closed form; this mixture has {len(self.weights)}")
        return self.denoiser(p).ode_map(x, t, s)


@dataclass(frozen=True)
class _Basis:
    """The mixture in the bases W_k in which its covariances and the noise are diagonal."""

    weights: Tensor
    means: Tensor
    basis: Tensor
    inverse: Tensor
    share: Tensor
    logdet: Tensor


@dataclass(frozen=True, repr=False)
class Oracle:
    """The exact denoiser of a mixture, from `GaussianMixture.denoiser`.

    `label` (B,) restricts x_0 to a component; `negative` is for guidance around it.
    """

    mixture: GaussianMixture
    process: Process
    exact: _Basis
    _moved: dict[torch.device, _Basis] = field(default_factory=dict, init=False, compare=False)

    def __repr__(self) -> str:
        return f"Oracle({self.mixture!r}, {self.process!r})"

    def _on(self, device: torch.device) -> _Basis:
        """The basis on a device, float64; copied there once."""
        if device not in self._moved:
            self._moved[device] = cast_like(self.exact, torch.empty(0, dtype=torch.float64, device=device))
        return self._moved[device]

    def __call__(
        self, x_t: Tensor, t: Times, /, *, label: Tensor | Sequence[int] | None = None, negative: object = None
    ) -> Prediction:
        coordinates, a, variance, m = self._coordinates(x_t, t)
        # If nothing of the data is left, x_t does not depend on the component.
        weight = torch.where(a == 0, m.weights, torch.softmax(self._log_joint(coordinates, variance, m), dim=-1))
        if label is not None:
            weight = self._one_hot(torch.as_tensor(label), len(x_t)).to(weight)
        # a Sigma M^-1 in the common basis; a direction without variance stays at the mean.
        gain = torch.where(variance > 0, a[..., None] * (1 - m.share) / variance, 0.0)
        means = m.means + torch.einsum("kij,bkj->bki", m.basis, gain * coordinates)
        x0 = torch.einsum("bk,bki->bi", weight, means).reshape(x_t.shape)
        return self.process.convert(x_t, t, x0=x0.to(x_t.dtype).to(x_t.device))

    def _one_hot(self, label: Tensor, rows: int) -> Tensor:
        k = len(self.mixture.weights)
        wrong = label.device.type == "cpu" and bool(((label < 0) | (label >= k)).any())
        if label.shape != (rows,) or wrong:
            raise ValueError(f"label must name one of {k} components for each of {rows} samples")
        return label[:, None] == torch.arange(k, device=label.device)

    def _coordinates(self, x: Tensor, t: Times) -> tuple[Tensor, Tensor, Tensor, _Basis]:
        """W^-1 (x - a mu_k): (B, K, N); a: (B or 1, 1); the diagonal of M_k there: (B or 1, K, N); and the basis."""
        if tuple(x.shape[1:]) != self.mixture.sample_shape:
            raise ValueError(f"the mixture lives on {self.mixture.sample_shape}, the sample has {tuple(x.shape[1:])}")
        device = float64_device(x.device)
        m = self._on(device)
        t = check_times(t, x).reshape(-1, 1)
        a, s = (f(t).to(device, non_blocking=True) for f in (self.process.schedule.alpha, self.process.schedule.sigma))
        variance = a[..., None] ** 2 * (1 - m.share) + s[..., None] ** 2 * m.share
        centred = x.to(device).double().flatten(1)[:, None] - a[..., None] * m.means
        return torch.einsum("kij,bkj->bki", m.inverse, centred), a, variance, m

    def _log_joint(self, coordinates: Tensor, variance: Tensor, m: _Basis) -> Tensor:
        """log weights_k N(x; a mu_k, M_k): (B, K)."""
        n = coordinates.shape[-1]
        quadratic = (coordinates**2 / variance + variance.log()).sum(-1)
        return m.weights.log() - m.logdet - 0.5 * (quadratic + n * math.log(2 * math.pi))

    def log_prob(self, x: Tensor, t: Times) -> Tensor:
        """log p_t(x) in nats, (B,).

        Raises:
            ValueError: some direction has no variance at this time.
        """
        coordinates, _, variance, m = self._coordinates(x, t)
        _check_density(variance)
        return torch.logsumexp(self._log_joint(coordinates, variance, m), dim=-1)

    def ode_map(self, x: Tensor, t: Times, s: Times) -> Tensor:
        """See `GaussianMixture.ode_map`."""
        coordinates, _, variance, m = self._coordinates(x, t)
        _check_density(variance)
        _, a_s, variance_s, _ = self._coordinates(x, s)
        moved = coordinates[:, 0] * torch.sqrt(variance_s[:, 0] / variance[:, 0])
        out = a_s * m.means[0] + moved @ m.basis[0].mT
        return out.reshape(x.shape).to(x.dtype).to(x.device)


def _check_density(variance: Tensor) -> None:
    if bool((variance == 0).any()):
        raise ValueError("at this time the mixture has a direction without variance: no density exists there")


def _matrix_of(p: Process, sample_shape: tuple[int, ...]) -> Tensor:
    """C over a whole flattened sample, (N, N)."""
    n = math.prod(sample_shape)
    units = torch.eye(n, dtype=torch.float64).reshape(n, *sample_shape)
    return p.noise.matvec(units).reshape(n, n)

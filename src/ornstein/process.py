"""The diffusion process: a schedule and a covariance, every Gaussian kernel and every conversion (E1-E8, E18).

x_t = a(t) x_0 + s(t) R z with z ~ N(0, I) and C = R R^T. Times are floats, scalars or (B,) tensors in [0, 1]; samples
are (B, *) of any rank. Coefficients are computed in float64 and cast when they meet a sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ornstein.noise import Covariance, Identity
from ornstein.schedules import Schedule, Times


def expand(coefficient: Tensor, x: Tensor) -> Tensor:
    """A scalar or (B,) coefficient in float64, cast to x and shaped to multiply it.

    A scalar of the CPU stays there: tensors of every device take it without a copy.
    """
    c = coefficient.to(x.dtype)
    if c.ndim == 0 and c.device.type == "cpu":
        return c
    c = c.to(x.device, non_blocking=True)
    return c.reshape(-1, *[1] * (x.ndim - 1)) if c.ndim else c


@dataclass(frozen=True)
class Gaussian:
    """N(mean, std^2 C): mean (B, *), std a scalar or (B, 1, ...), C the process's covariance."""

    mean: Tensor
    std: Tensor
    noise: Covariance

    def sample(self, z: Tensor | None = None) -> Tensor:
        """mean + std R z, (B, *); z ~ N(0, I) is drawn where it is not given."""
        z = torch.randn_like(self.mean) if z is None else z
        return self.mean + self.std * self.noise.color(z)

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; mean, std^2 C) of each sample in nats: (B, *) -> (B,). ValueError where C is singular."""
        size = math.prod(x.shape[1:])
        std = self.std.to(x)
        log_std = std.log().flatten().expand(x.shape[0]) if std.numel() == 1 else std.log().flatten()
        quadratic = self.noise.mahalanobis((x - self.mean) / std)
        # Four dimensions would be read as a sample without a batch.
        shape = (*x.shape, 1) if x.ndim == 4 else tuple(x.shape)
        return -0.5 * (quadratic + self.noise.logdet(shape) + size * math.log(2 * math.pi)) - size * log_std

    def kl(self, other: Gaussian) -> Tensor:
        """KL(self || other) of each sample in nats, for two Gaussians over the same C (E26; S3): (B, *) -> (B,).

        N log(s2/s1) + (N s1^2 + (m1 - m2)^T C^-1 (m1 - m2))/(2 s2^2) - N/2 with N elements a sample. Raises ValueError
        where the covariances are not the same, the means differ in shape, or C is singular.
        """
        if self.noise != other.noise:
            raise ValueError(f"both Gaussians must have the same noise, got {self.noise} and {other.noise}")
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"the means have shapes {tuple(self.mean.shape)} and {tuple(other.mean.shape)}: not the same space"
            )
        size, batch = math.prod(self.mean.shape[1:]), self.mean.shape[0]
        std1, std2 = (g.std.to(self.mean).flatten().expand(batch) for g in (self, other))
        quadratic = self.noise.mahalanobis(self.mean - other.mean) / std2**2
        ratio = std1 / std2
        # (r^2 - 1)/2 - log r, in a form that does not cancel where the two are nearly the same.
        excess = ratio - 1
        return size * ((ratio + 1) * excess / 2 - torch.log1p(excess)) + quadratic / 2


def kl_gaussians(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> Tensor:
    """KL(N(mean1, cov1) || N(mean2, cov2)) in nats with full covariances (E26): means (*, N), covs (*, N, N) -> (*).

    1/2 [tr(S2^-1 S1) + d^T S2^-1 d - N + log det S2/det S1], d = mean2 - mean1. Raises ValueError for a covariance that
    is not positive definite. Source: S3.
    """
    (root1, failed1), (root2, failed2) = torch.linalg.cholesky_ex(cov1), torch.linalg.cholesky_ex(cov2)
    if bool((failed1 != 0).any() or (failed2 != 0).any()):
        raise ValueError("the KL divergence of two Gaussians needs positive definite covariances")
    trace = torch.linalg.solve_triangular(root2, root1, upper=False).square().sum((-2, -1))
    difference = torch.linalg.solve_triangular(root2, (mean2 - mean1)[..., None], upper=False)
    quadratic = difference.square().sum((-2, -1))
    log_ratio = (root2.diagonal(dim1=-2, dim2=-1).log() - root1.diagonal(dim1=-2, dim2=-1).log()).sum(-1)
    return 0.5 * (trace + quadratic - mean1.shape[-1]) + log_ratio


@dataclass(frozen=True)
class Prediction:
    """What a denoiser says of x_t, in every form (E8). x0 is E[x_0 | x_t]; the others are linear in it.

    eps = R z; v = a eps - s x0; score = -C^-1 eps / s; flow = a' x0 + s' eps, the velocity of the probability-flow ODE.
    At t = 0, where x_t is the data, eps is 0 and x0 is x_t: the score there is not known, nor the flow of a schedule
    whose s grows as sqrt(t), which holds the score. `variance_mix` is the v of E9 where the network learned it:
    the place of the reverse variance between beta~ (0) and beta (1), (B, *).
    """

    process: Process
    x_t: Tensor
    t: Times
    x0: Tensor
    eps: Tensor
    variance_mix: Tensor | None = None

    @cached_property
    def v(self) -> Tensor:
        a, s = self.process.coefficients(self.t, self.x_t)
        return a * self.eps - s * self.x0

    @cached_property
    def score(self) -> Tensor:
        """grad log p_t(x_t). Raises SingularCovarianceError where C has no inverse, and ValueError at t = 0."""
        return self.process.noise.solve(self.C_score)

    @cached_property
    def C_score(self) -> Tensor:
        """C grad log p_t(x_t) = -eps / s, which needs no inverse of C. Raises ValueError at t = 0."""
        _, s = self.process.coefficients(self.t, self.x_t)
        if _anywhere(s == 0):
            raise ValueError("at t = 0 there is no noise to tell the score by; ask for it at a small t > 0")
        return -self.eps / s

    @cached_property
    def flow(self) -> Tensor:
        """a' x0 + s' eps. Raises ValueError at t = 0 where s' is infinite there (all but Cosine and Rectified)."""
        t, schedule = _float64(self.t), self.process.schedule
        s_dot = schedule.sigma_dot(t)
        if _anywhere(s_dot.isinf() & (t == 0)):
            # s' eps -> -(s^2)'/2 C grad log p_0, and of p_0 nothing is known
            raise ValueError(
                "at t = 0 this schedule's flow holds the score, which is unknown there; take a small t > 0"
            )
        a_dot, s_dot = expand(schedule.alpha_dot(t), self.x_t), expand(s_dot, self.x_t)
        return a_dot * self.x0 + s_dot * self.eps

    def log_variance(self, s: Times) -> Tensor:
        """The learned log variance of the reverse step to s < t: v log beta + (1 - v) log beta~ (E9), (B, *).

        beta and beta~ are those of the step from t to s itself, so it serves a chain of any length; -inf at s = 0. The
        step's covariance is R diag(variance) R^T: element by element of R^-1 x (Nichol & Dhariwal 2021, eq. 15).
        Raises ValueError where the network has no variance.
        """
        if self.variance_mix is None:
            raise ValueError('the network learned no variance (it has not twice the channels); use "lower" or "upper"')
        lower = self.process.posterior(self.x_t, self.x0, s, self.t).std.log() * 2
        schedule, s64, t64 = self.process.schedule, _float64(s), _float64(self.t)
        width = 2 * (schedule.sigma(t64).log() - schedule.sigma(s64).log())  # beta/beta~ = s_t^2/s_s^2
        return torch.where(lower.isneginf(), lower, lower + self.variance_mix * expand(width, self.x_t))


@dataclass(frozen=True)
class Process:
    """A forward process: `schedule` gives a(t) and s(t), `noise` the covariance C (identity unless said otherwise)."""

    schedule: Schedule
    noise: Covariance = field(default_factory=Identity)

    def coefficients(self, t: Times, x: Tensor) -> tuple[Tensor, Tensor]:
        """a(t) and s(t), shaped and cast to multiply x (B, *)."""
        t = check_times(t, x)
        return expand(self.schedule.alpha(t), x), expand(self.schedule.sigma(t), x)

    def add_noise(self, x0: Tensor, t: Times, z: Tensor) -> Tensor:
        """x_t = a x_0 + s R z (E2). x0, z: (B, *)."""
        a, s = self.coefficients(t, x0)
        return a * x0 + s * self.noise.color(z)

    def marginal(self, x0: Tensor, t: Times) -> Gaussian:
        """q(x_t | x_0) = N(a x_0, s^2 C) (E2)."""
        a, s = self.coefficients(t, x0)
        return Gaussian(a * x0, s, self.noise)

    def prior(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        t: Times = 1.0,
        device: torch.device | str = "cpu",
    ) -> Gaussian:
        """The law N(0, s_t^2 C) that sampling starts from, for samples of `shape` (B, *)."""
        return self.marginal(torch.zeros(shape, dtype=dtype, device=device), t)

    def _between(self, s: Times, t: Times, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """a_{t|s}, s_{t|s}^2 and 1 - SNR_t/SNR_s in float64 (E3), for s <= t."""
        s64, t64 = _same_device(check_times(s, x), check_times(t, x))
        if _anywhere(s64 > t64):
            raise ValueError("the kernels go from an earlier time s to a later time t: here s > t")
        schedule = self.schedule
        difference = schedule.log_snr(t64) - schedule.log_snr(s64)
        # Both ends at t = 0: inf - inf, and nothing happens between them.
        share = -torch.expm1(torch.where(s64 == t64, torch.zeros_like(difference), difference))
        ratio = schedule.alpha(t64) / schedule.alpha(s64)
        ratio = torch.where(s64 == t64, torch.ones_like(ratio), ratio)
        return ratio, schedule.sigma(t64) ** 2 * share, share

    def transition(self, x_s: Tensor, s: Times, t: Times) -> Gaussian:
        """q(x_t | x_s) = N(a_{t|s} x_s, s_{t|s}^2 C) for s <= t (E1, E3). Raises ValueError for s > t."""
        ratio, variance, _ = self._between(s, t, x_s)
        return Gaussian(expand(ratio, x_s) * x_s, expand(variance.sqrt(), x_s), self.noise)

    def posterior(self, x_t: Tensor, x0: Tensor, s: Times, t: Times) -> Gaussian:
        """q(x_s | x_t, x_0) = N(mu~, beta~ C) for s <= t (E6); on the grid of a chain it is E6 to the letter.

        mu~ = a_s (s_{t|s}^2/s_t^2) x_0 + a_{t|s} (s_s^2/s_t^2) x_t, beta~ = s_{t|s}^2 s_s^2/s_t^2.
        Raises ValueError for s > t.
        """
        ratio, _, share = self._between(s, t, x_t)
        s64, t64 = _same_device(check_times(s, x_t), check_times(t, x_t))
        a_s, s_s, s_t = self.schedule.alpha(s64), self.schedule.sigma(s64), self.schedule.sigma(t64)
        keep = torch.where(s64 == t64, torch.ones_like(s_s), ratio * s_s**2 / s_t**2)
        mean = expand(a_s * share, x_t) * x0 + expand(keep, x_t) * x_t
        return Gaussian(mean, expand(share.sqrt() * s_s, x_t), self.noise)

    def convert(
        self,
        x_t: Tensor,
        t: Times,
        *,
        x0: Tensor | None = None,
        eps: Tensor | None = None,
        v: Tensor | None = None,
        score: Tensor | None = None,
        flow: Tensor | None = None,
    ) -> Prediction:
        """From any one of the five predictions to all of them (E8), for any C. All are (B, *).

        Raises ValueError unless exactly one is given, and where that one says nothing of x_0 (noise or score at zero
        SNR).
        """
        forms = {"x0": x0, "eps": eps, "v": v, "score": score, "flow": flow}
        given = {name: form for name, form in forms.items() if form is not None}
        if len(given) != 1:
            raise ValueError(f"give exactly one of x0, eps, v, score, flow; got {', '.join(given) or 'none'}")
        ((name, value),) = given.items()
        if value.shape != x_t.shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, but x_t has {tuple(x_t.shape)}")
        t64 = check_times(t, x_t)
        a64, s64 = self.schedule.alpha(t64), self.schedule.sigma(t64)
        a, s = expand(a64, x_t), expand(s64, x_t)
        if name == "score":
            name, value = "eps", -s * self.noise.matvec(value)
        if name == "eps" and _anywhere(a64.to(x_t.dtype) == 0):
            raise ValueError(
                "at zero SNR x_t is all noise: the noise and the score say nothing of x_0; predict v or x0"
            )
        if name == "x0":
            x0, eps = value, (x_t - a * value) / s
        elif name == "eps":
            x0, eps = (x_t - s * value) / a, value
        elif name == "v":
            norm = a**2 + s**2
            x0, eps = (a * x_t - s * value) / norm, (s * x_t + a * value) / norm
        else:
            rates = self.schedule.alpha_dot(t64), self.schedule.sigma_dot(t64)
            if _anywhere((a64 * rates[1] - rates[0] * s64).to(x_t.dtype).isinf() & (s64 > 0)):
                raise ValueError("the flow is infinite here (zero SNR) and says nothing of x_0; predict v or x0")
            a_dot, s_dot = (expand(rate, x_t) for rate in rates)
            norm = a * s_dot - a_dot * s
            x0, eps = (s_dot * x_t - s * value) / norm, (a * value - a_dot * x_t) / norm
        at_data = s64.to(x_t.dtype) == 0
        if at_data.device.type != "cpu" or bool(at_data.any()):
            mask = at_data.to(x_t.device).reshape(-1, *[1] * (x_t.ndim - 1))
            x0, eps = torch.where(mask, x_t, x0), torch.where(mask, torch.zeros_like(eps), eps)
        return Prediction(self, x_t, t, x0, eps)

    def drift(self, x: Tensor, t: Times) -> Tensor:
        """f(t) x, the drift of the forward SDE dx = f x dt + g R dW (E18); f = -beta/2 when variance preserving."""
        return expand(self.schedule.drift(check_times(t, x)), x) * x

    def diffusion(self, t: Times, x: Tensor) -> Tensor:
        """g(t) of the forward SDE (E18), shaped and cast to multiply x; g = sqrt(beta) when variance preserving."""
        return expand(self.schedule.g2(check_times(t, x)).sqrt(), x)


def _float64(t: Times) -> Tensor:
    t = torch.as_tensor(t, dtype=None if isinstance(t, Tensor) else torch.float64)
    return (t.cpu() if t.device.type == "mps" else t).double()  # MPS has no float64


def check_times(t: Times, x: Tensor) -> Tensor:
    """Times in float64, on their own device.

    Args:
        t: a scalar, or one time for each sample of x (B, *).

    Raises:
        ValueError: t has another shape, or lies outside [0, 1]. Times on an accelerator are not read, which would wait
            for it at every step: keep times on the CPU to have them checked.
    """
    t = _float64(t)
    if t.ndim > 1 or (t.ndim == 1 and t.shape[0] not in (1, x.shape[0])):
        raise ValueError(f"times have shape {tuple(t.shape)}; give one, or one for each of the {x.shape[0]} samples")
    if _anywhere(~((t >= 0) & (t <= 1))):
        raise ValueError("times lie in [0, 1], 0 being the data")
    return t


def _anywhere(condition: Tensor) -> bool:
    """Whether a condition holds for any of its elements; False on an accelerator, which is not waited for."""
    return condition.device.type == "cpu" and bool(condition.any())


def _same_device(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Both times on the accelerator where one of them is."""
    if s.device == t.device:
        return s, t
    return (s.to(t.device), t) if s.device.type == "cpu" else (s, t.to(s.device))

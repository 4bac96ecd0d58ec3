"""The diffusion process: a schedule and a covariance, every Gaussian kernel and every conversion (E1-E8, E18).

x_t = a(t) x_0 + s(t) R z with z ~ N(0, I) and C = R R^T. Times are floats, scalars or (B,) tensors in [0, 1]; samples
are (B, *) of any rank. Coefficients are computed in float64 and cast when they meet a sample.

Times that are Python numbers or CPU tensors never make an accelerator wait: their coefficients are computed on the CPU,
whatever device the samples are on. Times on an accelerator are not checked, since a check would wait for them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ornstein.devices import in_float64
from ornstein.noise import Covariance, Identity
from ornstein.schedules import Schedule, Times

__all__ = [
    "Gaussian",
    "Prediction",
    "Process",
    "check_times",
    "expand",
    "kl_gaussians",
    "linear_marginal",
]

_MOST_TIMES = 128  # of a process whose coefficients are kept: those of a trajectory
_NO_X0 = "at zero SNR x_t is all noise: the noise and the score say nothing of x_0; predict v or x0"


def expand(coefficient: Tensor, x: Tensor) -> Tensor:
    """A scalar or (B,) coefficient in float64, cast to the dtype of x and shaped to multiply it.

    A scalar on the CPU stays there: it multiplies samples on any device without a copy.
    """
    c = coefficient.to(dtype=x.dtype)
    if c.ndim == 0:
        return c if c.device.type == "cpu" else c.to(x.device)
    return c.to(x.device, non_blocking=True).reshape(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True)
class Gaussian:
    """N(mean, std^2 C): mean (B, *), std a scalar or (B, 1, ...), C the covariance `noise` of the process."""

    mean: Tensor
    std: Tensor
    noise: Covariance

    def sample(self, z: Tensor | None = None) -> Tensor:
        """mean + std R z, (B, *). By default z ~ N(0, I) comes from torch's global generator."""
        z = torch.randn_like(self.mean) if z is None else z
        return self.mean + self.std * self.noise.color(z)

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; mean, std^2 C) of each sample in nats: (B, *) -> (B,).

        Raises:
            SingularCovarianceError: C has no inverse.
        """
        size = math.prod(x.shape[1:])
        std = self.std.to(x)
        log_std = std.log().flatten().expand(x.shape[0])
        quadratic = self.noise.mahalanobis((x - self.mean) / std)
        logdet = self.noise.logdet(tuple(x.shape[1:]))
        return -0.5 * (quadratic + logdet + size * math.log(2 * math.pi)) - size * log_std

    def kl(self, other: Gaussian) -> Tensor:
        """KL(self || other) of each sample in nats, for two Gaussians over the same C (E26; S3): (B, *) -> (B,).

        N log(s2/s1) + (N s1^2 + (m1 - m2)^T C^-1 (m1 - m2))/(2 s2^2) - N/2, with N the elements of a sample.

        Raises:
            ValueError: the covariances or the shapes of the means differ, or C is singular.
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
        # (r^2 - 1)/2 - log r, in a form without cancellation where the two are nearly the same.
        excess = ratio - 1
        return size * ((ratio + 1) * excess / 2 - torch.log1p(excess)) + quadratic / 2


def kl_gaussians(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> Tensor:
    """KL(N(mean1, cov1) || N(mean2, cov2)) in nats with full covariances (E26): means (*, N), covs (*, N, N) -> (*).

    1/2 [tr(S2^-1 S1) + d^T S2^-1 d - N + log det S2/det S1], d = mean2 - mean1. Source: S3.

    Raises:
        ValueError: a covariance is not positive definite.
    """
    (root1, failed1), (root2, failed2) = torch.linalg.cholesky_ex(cov1), torch.linalg.cholesky_ex(cov2)
    if bool((failed1 != 0).any() or (failed2 != 0).any()):
        raise ValueError("the KL divergence of two Gaussians needs positive definite covariances")
    trace = torch.linalg.solve_triangular(root2, root1, upper=False).square().sum((-2, -1))
    difference = torch.linalg.solve_triangular(root2, (mean2 - mean1)[..., None], upper=False)
    quadratic = difference.square().sum((-2, -1))
    log_ratio = (root2.diagonal(dim1=-2, dim2=-1).log() - root1.diagonal(dim1=-2, dim2=-1).log()).sum(-1)
    return 0.5 * (trace + quadratic - mean1.shape[-1]) + log_ratio


def linear_marginal(
    mean: Tensor, cov: Tensor, matrix: Tensor, noise_cov: Tensor, offset: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """The marginal of y = A x + b + n with x ~ N(mean, cov), n ~ N(0, noise_cov): mean A m + b, covariance A S A^T + L.

    S4 derives DDIM's marginals from it (there misprinted as A L^-1 A^-1). Source: Bishop 2006, eq. 2.115.

    Args:
        mean, cov: of x, (*, N) and (*, N, N).
        matrix: A, (M, N).
        noise_cov: L, (M, M).
        offset: b, (M,).

    Returns:
        Mean (*, M) and covariance (*, M, M) of y.
    """
    return mean @ matrix.mT + offset, matrix @ cov @ matrix.mT + noise_cov


@dataclass(frozen=True)
class Prediction:
    """The prediction of a denoiser at x_t in every form (E8). x0 is E[x_0 | x_t]; the other forms are linear in it.

    eps = R z; v = a eps - s x0; score = -C^-1 eps / s; flow = a' x0 + s' eps, the velocity of the probability-flow ODE.
    At t = 0, where x_t is the data, eps is 0 and x0 is x_t; the score is unknown there, and so is the flow of a
    schedule whose s grows as sqrt(t), which contains the score. `variance_mix`, (B, *), is the v of E9 of a network
    that learned it: 0 puts the reverse variance at beta~, 1 at beta.
    """

    process: Process
    x_t: Tensor
    t: Times
    x0: Tensor
    eps: Tensor
    variance_mix: Tensor | None = None

    @cached_property
    def v(self) -> Tensor:
        """a eps - s x0."""
        a, s = self.process.coefficients(self.t, self.x_t)
        return a * self.eps - s * self.x0

    @cached_property
    def score(self) -> Tensor:
        """grad log p_t(x_t).

        Raises:
            SingularCovarianceError: C has no inverse.
            ValueError: t = 0.
        """
        return self.process.noise.solve(self.C_score)

    @cached_property
    def C_score(self) -> Tensor:
        """C grad log p_t(x_t) = -eps / s, which needs no inverse of C.

        Raises:
            ValueError: t = 0.
        """
        sigma = self.process.schedule.sigma(check_times(self.t, self.x_t))
        if _any(sigma == 0):
            raise ValueError("at t = 0 there is no noise to tell the score by; ask for it at a small t > 0")
        return -self.eps / expand(sigma, self.x_t)

    @cached_property
    def flow(self) -> Tensor:
        """a' x0 + s' eps.

        Raises:
            ValueError: t = 0 and s' is infinite there (all schedules but Cosine and Rectified).
        """
        t, schedule = check_times(self.t, self.x_t), self.process.schedule
        s_dot = schedule.sigma_dot(t)
        if _any(s_dot.isinf() & (t == 0)):
            # s' eps -> -(s^2)'/2 C grad log p_0, and p_0 is unknown
            raise ValueError(
                "at t = 0 this schedule's flow holds the score, which is unknown there; take a small t > 0"
            )
        return expand(schedule.alpha_dot(t), self.x_t) * self.x0 + expand(s_dot, self.x_t) * self.eps

    def log_variance(self, s: Times) -> Tensor:
        """The learned log variance of the reverse step to s < t: v log beta + (1 - v) log beta~ (E9), (B, *).

        beta and beta~ belong to the step from t to s, so a chain of any length can use it; -inf at s = 0. The step's
        covariance is R diag(variance) R^T: element by element of R^-1 x (Nichol & Dhariwal 2021, eq. 15).

        Raises:
            ValueError: the network has no variance.
        """
        if self.variance_mix is None:
            raise ValueError('the network learned no variance (it has not twice the channels); use "lower" or "upper"')
        lower = self.process.posterior_factors(self.x_t, s, self.t)[2].log() * 2
        sigma_s, sigma_t = (self.process.schedule.sigma(check_times(u, self.x_t)) for u in (s, self.t))
        width = 2 * (sigma_t.log() - sigma_s.log())  # beta/beta~ = s_t^2/s_s^2
        width = torch.where(sigma_s == 0, 0.0, width)  # the lower end is -inf there, and stays
        return lower + self.variance_mix * expand(width, self.x_t)


@dataclass(frozen=True)
class Process:
    """A forward process: `schedule` gives a(t) and s(t), `noise` the covariance C (the identity by default)."""

    schedule: Schedule
    noise: Covariance = field(default_factory=Identity)
    _known: dict[float, tuple[float, float, float]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def at(self, t: float) -> tuple[float, float, float]:
        """a, s and the log-SNR at one time as Python numbers. Kept: denoiser and solver ask for the same times.

        Raises:
            ValueError: t is outside [0, 1].
        """
        known = self._known.get(t)
        if known is None:
            if not 0 <= t <= 1:
                raise ValueError("times lie in [0, 1], 0 being the data")
            t64 = torch.tensor(t, dtype=torch.float64)
            known = float(self.schedule.alpha(t64)), float(self.schedule.sigma(t64)), float(self.schedule.log_snr(t64))
            if len(self._known) >= _MOST_TIMES:
                self._known.clear()
            self._known[t] = known
        return known

    def coefficients(self, t: Times, x: Tensor) -> tuple[Tensor, Tensor]:
        """a(t) and s(t), shaped and cast to multiply x (B, *)."""
        if isinstance(t, float) and x.is_floating_point():
            a, s, _ = self.at(t)
            return torch.tensor(a, dtype=x.dtype), torch.tensor(s, dtype=x.dtype)
        t = check_times(t, x)
        return expand(self.schedule.alpha(t), x), expand(self.schedule.sigma(t), x)

    def add_noise(self, x0: Tensor, t: Times, z: Tensor) -> Tensor:
        """x_t = a x_0 + s R z (E2).

        Args:
            x0, z: (B, *), floating point.
            t: a scalar or (B,).

        Raises:
            ValueError: x0 is not floating point, or the times are outside [0, 1].
        """
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
        """N(0, s_t^2 C), the law that sampling starts from, for samples of `shape` (B, *).

        It leaves out the part a_t x_0 of the data: at t = 1 that part is small, at earlier times it is not.
        """
        return self.marginal(torch.zeros(shape, dtype=dtype, device=device), t)

    def _between(self, s: Times, t: Times, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """s, t, a_{t|s} and 1 - SNR_t/SNR_s in float64 (E3), for s <= t."""
        s64, t64 = _together(check_times(s, x), check_times(t, x))
        if _any(s64 > t64):
            raise ValueError("the kernels go from an earlier time s to a later time t: here s > t")
        schedule = self.schedule
        difference = schedule.log_snr(t64) - schedule.log_snr(s64)
        # With both ends at t = 0 it is inf - inf, and nothing happens between them.
        share = -torch.expm1(torch.where(s64 == t64, 0.0, difference))
        ratio = torch.where(s64 == t64, 1.0, schedule.alpha(t64) / schedule.alpha(s64))
        return s64, t64, ratio, share

    def transition(self, x_s: Tensor, s: Times, t: Times) -> Gaussian:
        """q(x_t | x_s) = N(a_{t|s} x_s, s_{t|s}^2 C) for s <= t (E1, E3).

        Raises:
            ValueError: s > t.
        """
        _, t64, ratio, share = self._between(s, t, x_s)
        std = self.schedule.sigma(t64) * share.sqrt()
        return Gaussian(expand(ratio, x_s) * x_s, expand(std, x_s), self.noise)

    def posterior_factors(self, x_t: Tensor, s: Times, t: Times) -> tuple[Tensor, Tensor, Tensor]:
        """The factors of x_0 and x_t in the mean of `posterior`, and its standard deviation; each multiplies x_t."""
        s64, t64, ratio, share = self._between(s, t, x_t)
        a_s, s_s, s_t = self.schedule.alpha(s64), self.schedule.sigma(s64), self.schedule.sigma(t64)
        keep = torch.where(s64 == t64, 1.0, ratio * s_s**2 / s_t**2)
        return expand(a_s * share, x_t), expand(keep, x_t), expand(share.sqrt() * s_s, x_t)

    def posterior(self, x_t: Tensor, x0: Tensor, s: Times, t: Times) -> Gaussian:
        """q(x_s | x_t, x_0) = N(mu~, beta~ C) for s <= t (E6); on the grid of a chain it is E6 to the letter.

        mu~ = a_s (s_{t|s}^2/s_t^2) x_0 + a_{t|s} (s_s^2/s_t^2) x_t, beta~ = s_{t|s}^2 s_s^2/s_t^2.

        Raises:
            ValueError: s > t.
        """
        of_x0, of_x_t, std = self.posterior_factors(x_t, s, t)
        return Gaussian(of_x0 * x0 + of_x_t * x_t, std, self.noise)

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

        Raises:
            ValueError: not exactly one is given, or the given one does not determine x_0 (noise or score at zero SNR).
        """
        forms = {"x0": x0, "eps": eps, "v": v, "score": score, "flow": flow}
        given = {name: form for name, form in forms.items() if form is not None}
        if len(given) != 1:
            raise ValueError(f"give exactly one of x0, eps, v, score, flow; got {', '.join(given) or 'none'}")
        ((name, value),) = given.items()
        if value.shape != x_t.shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, but x_t has {tuple(x_t.shape)}")
        if isinstance(t, float) and name in ("x0", "eps", "v") and x_t.is_floating_point():
            return self._convert_at(x_t, t, name, value)
        t64 = check_times(t, x_t)
        # Cast, as the arithmetic below sees them: a sigma that underflows is 0 there.
        alpha, sigma = (f(t64).to(x_t.dtype) for f in (self.schedule.alpha, self.schedule.sigma))
        a, s = expand(alpha, x_t), expand(sigma, x_t)
        if name == "score":
            name, value = "eps", -s * self.noise.matvec(value)
        if name == "eps" and _any(alpha == 0):
            raise ValueError(_NO_X0)
        if name == "x0":
            x0, eps = value, (x_t - a * value) / s
        elif name == "eps":
            x0, eps = (x_t - s * value) / a, value
        elif name == "v":
            norm = a**2 + s**2
            x0, eps = (a * x_t - s * value) / norm, (s * x_t + a * value) / norm
        else:
            x0, eps = self._from_flow(x_t, t64, value)
        at_data = sigma == 0
        if at_data.device.type != "cpu" or bool(at_data.any()):
            mask = at_data.to(x_t.device).reshape(-1, *[1] * (x_t.ndim - 1))
            x0, eps = torch.where(mask, x_t, x0), torch.where(mask, 0.0, eps)
        return Prediction(self, x_t, t, x0, eps)

    def _convert_at(self, x_t: Tensor, t: float, name: str, value: Tensor) -> Prediction:
        """`convert` of x0, eps or v at one time for all samples: few passes over them, by numbers."""
        a, s = (float(c) for c in self.coefficients(t, x_t))  # cast: a sigma that underflows is 0
        if name == "eps" and a == 0:
            raise ValueError(_NO_X0)
        if s == 0:
            return Prediction(self, x_t, t, x_t, torch.zeros_like(x_t))
        if name == "x0":
            x0, eps = value, torch.sub(x_t, value, alpha=a) / s
        elif name == "eps":
            x0, eps = torch.sub(x_t, value, alpha=s) / a, value
        else:
            a, s = a / (a**2 + s**2), s / (a**2 + s**2)
            x0, eps = torch.sub(a * x_t, value, alpha=s), torch.add(s * x_t, value, alpha=a)
        return Prediction(self, x_t, t, x0, eps)

    def _from_flow(self, x_t: Tensor, t: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
        """x0 and eps of a' x0 + s' eps."""
        schedule = self.schedule
        a, s, a_dot, s_dot = (f(t) for f in (schedule.alpha, schedule.sigma, schedule.alpha_dot, schedule.sigma_dot))
        norm = a * s_dot - a_dot * s
        if _any(norm.isinf() & (s > 0)):
            raise ValueError("the flow is infinite here (zero SNR) and says nothing of x_0; predict v or x0")
        a, s, a_dot, s_dot, norm = (expand(c, x_t) for c in (a, s, a_dot, s_dot, norm))
        return (s_dot * x_t - s * flow) / norm, (a * flow - a_dot * x_t) / norm

    def drift(self, x: Tensor, t: Times) -> Tensor:
        """f(t) x, the drift of the forward SDE dx = f x dt + g R dW (E18); f = -beta/2 when variance preserving."""
        return expand(self.schedule.drift(check_times(t, x)), x) * x

    def diffusion(self, t: Times, x: Tensor) -> Tensor:
        """g(t) of the forward SDE (E18), shaped and cast to multiply x; g = sqrt(beta) when variance preserving."""
        return expand(self.schedule.g2(check_times(t, x)).sqrt(), x)


def check_times(t: Times, x: Tensor) -> Tensor:
    """t in float64, on its own device; on the CPU if that device has no float64.

    Args:
        t: a scalar or (B,), in [0, 1]. Times on an accelerator are not checked.
        x: the samples (B, *).

    Raises:
        ValueError: t has another shape, is outside [0, 1], or x is not floating point.
    """
    if not x.is_floating_point():
        raise ValueError(
            f"samples are floating point, data in [-1, 1]; got {x.dtype}: convert 8-bit x by x / 127.5 - 1"
        )
    t = in_float64(t) if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)
    if t.ndim > 1 or (t.ndim == 1 and t.shape[0] not in (1, x.shape[0])):
        raise ValueError(f"times have shape {tuple(t.shape)}; give one, or one for each of the {x.shape[0]} samples")
    if _any(~((t >= 0) & (t <= 1))):
        raise ValueError("times lie in [0, 1], 0 being the data")
    return t


def _any(condition: Tensor) -> bool:
    """Whether it holds anywhere; False without looking if it is on an accelerator, which a look would wait for."""
    return condition.device.type == "cpu" and bool(condition.any())


def _together(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Both on one device: a tensor (B,) on the CPU follows the other one to an accelerator."""
    if s.device == t.device or s.ndim == 0 or t.ndim == 0:
        return s, t
    return (s.to(t.device), t) if s.device.type == "cpu" else (s, t.to(s.device))

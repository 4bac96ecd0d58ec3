"""Training objectives: losses of a denoiser at time t (E10, E13-E17), and distributions of the times.

Every objective is f(d, x0, t, z, **cond) -> (B,): the loss of each sample at its own time, x_t = a x_0 + s R z with
z ~ N(0, I) of x0's shape (B, *) and t (B,) in (0, 1]. All are means over the N numbers of a sample, so that one
learning rate fits every size; those of the bound are nats per dimension. `Denoiser.loss`, the error of the network's
output, is the default of training; these are the others, by name in `OBJECTIVES`. Times may be on the CPU, samples on
any device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ornstein.denoiser import Denoises, Norm, mean_square
from ornstein.process import Prediction, check_times, expand
from ornstein.schedules import Schedule
from ornstein.solvers.variance import ReverseVariance, check_variance, reverse_log_variance

__all__ = [
    "OBJECTIVES",
    "T_MIN",
    "Objective",
    "RunningLoss",
    "Uncertainty",
    "continuous",
    "edm",
    "explicit_score_matching",
    "hybrid",
    "log_normal",
    "logit_normal",
    "low_discrepancy",
    "min_snr",
    "score_matching",
    "sigmoid",
    "simple",
    "soft_min_snr",
    "step_times",
    "uniform",
    "vlb_eps",
    "vlb_x0",
]

T_MIN = 1e-4
"""The smallest time that is drawn: at t = 0 there is nothing to predict."""

Objective = Callable[..., Tensor]


def _predict(d: Denoises, x0: Tensor, t: Tensor, z: Tensor, cond: dict[str, Any]) -> Prediction:
    return d(d.process.add_noise(x0, t, z), t, **cond)


def _x0_error(prediction: Prediction, x0: Tensor) -> Tensor:
    """||x_0 - x0_hat||^2/N."""
    return (x0 - prediction.x0).flatten(1).square().mean(1)


def _eps_error(prediction: Prediction, z: Tensor, norm: Norm = mean_square) -> Tensor:
    """||eps - eps_hat||^2/N."""
    return norm(prediction.process.noise.color(z) - prediction.eps, torch.as_tensor(prediction.t))


def _weight(f: Callable[[Tensor], Tensor], t: Tensor, x: Tensor) -> Tensor:
    """A function of the time, computed in float64 and cast, (B,)."""
    return f(check_times(t, x)).to(x, non_blocking=True)


def simple(d: Denoises, x0: Tensor, t: Tensor, z: Tensor, *, norm: Norm = mean_square, **cond: Any) -> Tensor:
    """L_simple = ||eps - eps_hat||^2/N (E10; Ho et al. 2020, eq. 14).

    In the `norm` of R^-1 it is ||z - z_hat||^2/N, the regression on white noise (E14; S2).
    """
    return _eps_error(_predict(d, x0, t, z, cond), z, norm)


def score_matching(
    d: Denoises, x0: Tensor, t: Tensor, z: Tensor, *, weight: Callable[[Tensor], Tensor] | None = None, **cond: Any
) -> Tensor:
    """lambda(t) ||C s_hat - C grad log q(x_t | x_0)||^2/N (E16; Vincent 2011; S1), with `weight` for lambda.

    Denoising score matching. C score = -eps/s exists for a singular C too. With lambda = s^2, the default, it is E10
    under any C. It differs from `explicit_score_matching` by a constant.
    """
    prediction = _predict(d, x0, t, z, cond)
    std = prediction.process.coefficients(t, x0)[1]
    error = (prediction.C_score + prediction.process.noise.color(z) / std).flatten(1).square().mean(1)
    return _weight(weight or (lambda u: d.process.schedule.sigma(u) ** 2), t, x0) * error


def explicit_score_matching(
    d: Denoises,
    x0: Tensor,
    t: Tensor,
    z: Tensor,
    *,
    exact: Denoises,
    weight: Callable[[Tensor], Tensor] | None = None,
    **cond: Any,
) -> Tensor:
    """lambda(t) ||C s_hat - C grad log p_t(x_t)||^2/N: score matching against the score of the marginal (E16; S1).

    Its expectation and that of `score_matching` differ by lambda E||C grad log q(x_t|x_0) - C grad log p_t||^2/N, which
    does not depend on `d`: both have the same gradient and the same optimum (Vincent 2011, theorem 1).

    Args:
        d, x0, t, z, cond: as for every objective.
        exact: the denoiser whose score is that of the marginal, such as an `oracles.Oracle`.
        weight: lambda, s^2 by default.
    """
    prediction = _predict(d, x0, t, z, cond)
    error = (prediction.C_score - exact(prediction.x_t, t).C_score).flatten(1).square().mean(1)
    return _weight(weight or (lambda u: d.process.schedule.sigma(u) ** 2), t, x0) * error


def vlb_x0(
    d: Denoises,
    x0: Tensor,
    t: Tensor,
    z: Tensor,
    *,
    steps: int = 1000,
    variance: ReverseVariance = "lower",
    **cond: Any,
) -> Tensor:
    """A term of the bound by the error of x_0 (E13; S3): c^2/(2 sigma^2) ||x_0 - x0_hat||^2_{C^-1}/N, nats/dim.

    c = sqrt(abar_{n-1}) (1 - alpha_n)/(1 - abar_n), the factor of x_0 in the posterior mean (E6), for the step from t
    to t - 1/steps; sigma^2 is beta~ or beta (E9). The terms n = 2..T sum to the diffusion part of the bound but for
    what depends on the variances alone. Infinite for "lower" at n = 1, where the decoder stands instead: `step_times`.
    """
    prediction = _predict(d, x0, t, z, cond)
    scale, log_variance = _step(prediction, t, steps, variance)
    error = prediction.process.noise.whiten(x0 - prediction.x0)
    return 0.5 * (scale**2 * torch.exp(-log_variance) * error**2).flatten(1).mean(1)


def vlb_eps(
    d: Denoises,
    x0: Tensor,
    t: Tensor,
    z: Tensor,
    *,
    steps: int = 1000,
    variance: ReverseVariance = "lower",
    **cond: Any,
) -> Tensor:
    """The same term by the error of the noise (E13; Ho et al. 2020, eq. 12), in the norm of C^-1 (E14; S2), nats/dim.

    (1-alpha_n)^2/(2 sigma^2 alpha_n (1-abar_n)) ||eps - eps_hat||^2_{C^-1}/N; with sigma^2 = beta~ the weight is
    beta_n/(2 alpha_n (1-abar_{n-1})). The norm is that of white noise, ||z - z_hat||^2, whatever C is.
    """
    prediction = _predict(d, x0, t, z, cond)
    p = prediction.process
    scale, log_variance = _step(prediction, t, steps, variance)
    a, s = p.coefficients(t, x0)
    error = (scale * s / a) * (z - p.noise.whiten(prediction.eps))
    return 0.5 * (torch.exp(-log_variance) * error**2).flatten(1).mean(1)


def _step(prediction: Prediction, t: Tensor, steps: int, variance: ReverseVariance) -> tuple[Tensor, Tensor]:
    """The factor of x_0 in the posterior mean of the step from t to t - 1/steps, and the log of its variance."""
    check_variance(variance)
    x, schedule = prediction.x_t, prediction.process.schedule
    t64 = check_times(t, x)
    s64 = _earlier(t64, steps)
    share = -torch.expm1(schedule.log_snr(t64) - schedule.log_snr(s64))
    return expand(schedule.alpha(s64) * share, x), reverse_log_variance(prediction, s64, variance)


def _earlier(t: Tensor, steps: int) -> Tensor:
    if steps < 1:
        raise ValueError(f"a chain has at least one step, got {steps}")
    if t.device.type == "cpu" and bool((t * steps < 1 - 1e-6).any()):
        raise ValueError(f"a step of 1/{steps} ends before t = 0; draw the times of a chain with `step_times`")
    s = t - 1 / steps
    # n/T - 1/T is not exactly (n-1)/T, and at n = 1 it must be the data.
    return torch.where(t * steps < 1 + 1e-6, 0.0, s.clamp(min=0))


def hybrid(
    d: Denoises, x0: Tensor, t: Tensor, z: Tensor, *, steps: int = 1000, weight: float = 0.001, **cond: Any
) -> Tensor:
    """L_simple + weight L_vlb with a learned variance (E15; Nichol & Dhariwal 2021, eq. 16).

    L_vlb is steps times KL(q(x_s|x_t,x_0) || p(x_s|x_t)), s = t - 1/steps, in nats/dim: the sum over the chain for a
    time drawn uniformly. The mean enters without a gradient, so L_vlb trains the variance alone. The term of n = 1,
    where the decoder stands, is left out: there is no variance to learn.

    Raises:
        ValueError: the network learns no variance.
    """
    prediction = _predict(d, x0, t, z, cond)
    p, t64 = prediction.process, check_times(t, x0)
    s64 = _earlier(t64, steps)
    first = s64 == 0
    s64 = torch.where(first, t64 / 2, s64)  # any step, since its term is left out
    frozen = replace(prediction, x0=prediction.x0.detach(), eps=prediction.eps.detach())
    posterior, reverse = (p.posterior(prediction.x_t, x, s64, t) for x in (x0, frozen.x0))
    difference = p.noise.whiten(posterior.mean - reverse.mean)
    learned = frozen.log_variance(s64)
    log_ratio = 2 * posterior.std.log() - learned
    kl = 0.5 * (torch.expm1(log_ratio) - log_ratio + difference**2 * torch.exp(-learned)).flatten(1).mean(1)
    return _eps_error(prediction, z) + weight * steps * kl.masked_fill(first.to(kl.device), 0.0)


def continuous(d: Denoises, x0: Tensor, t: Tensor, z: Tensor, **cond: Any) -> Tensor:
    """1/2 (-dSNR/dt) ||x_0 - x0_hat||^2_{C^-1}/N (E17; Kingma et al. 2021, eq. 18), nats/dim.

    For uniform t it is an unbiased estimate of the continuous-time bound without prior and reconstruction. Its mean
    does not depend on the shape of the schedule; its variance does.
    """
    prediction = _predict(d, x0, t, z, cond)
    error = prediction.process.noise.mahalanobis(x0 - prediction.x0) / math.prod(x0.shape[1:])
    return 0.5 * _weight(lambda u: -_snr_dot(d.process.schedule, u), t, x0) * error


def _snr_dot(schedule: Schedule, t: Tensor) -> Tensor:
    """dSNR/dt, finite at a zero terminal SNR."""
    a, s = schedule.alpha(t), schedule.sigma(t)
    return 2 * a * (s * schedule.alpha_dot(t) - a * schedule.sigma_dot(t)) / s**3


def min_snr(d: Denoises, x0: Tensor, t: Tensor, z: Tensor, *, gamma: float = 5.0, **cond: Any) -> Tensor:
    """min(SNR, gamma) ||x_0 - x0_hat||^2/N (Hang et al. 2023, section 3.4)."""
    _check_positive("gamma", gamma)
    return _weight(lambda u: _snr(d, u).clamp(max=gamma), t, x0) * _x0_error(_predict(d, x0, t, z, cond), x0)


def soft_min_snr(d: Denoises, x0: Tensor, t: Tensor, z: Tensor, *, gamma: float = 5.0, **cond: Any) -> Tensor:
    """SNR gamma/(SNR + gamma) ||x_0 - x0_hat||^2/N: `min_snr` without the corner (Crowson et al. 2024, section 3.3)."""
    _check_positive("gamma", gamma)
    error = _x0_error(_predict(d, x0, t, z, cond), x0)
    return _weight(lambda u: gamma / (1 + gamma / _snr(d, u)), t, x0) * error


def sigmoid(d: Denoises, x0: Tensor, t: Tensor, z: Tensor, *, bias: float = 2.0, **cond: Any) -> Tensor:
    """1/2 (-dSNR/dt) sigmoid(bias - log-SNR) ||x_0 - x0_hat||^2_{C^-1}/N (Kingma & Gao 2023; Hoogeboom et al. 2024).

    `continuous` with a weight that falls from 1 where the noise exceeds log-SNR = bias to 0 at the data.
    """
    weight = _weight(lambda u: torch.sigmoid(bias - d.process.schedule.log_snr(u)), t, x0)
    return weight * continuous(d, x0, t, z, **cond)


def edm(
    d: Denoises,
    x0: Tensor,
    t: Tensor,
    z: Tensor,
    *,
    data_std: float = 0.5,
    uncertainty: Callable[[Tensor], Tensor] | None = None,
    **cond: Any,
) -> Tensor:
    """(1/data_std^2 + a^2/s^2) ||x_0 - x0_hat||^2/N (Karras et al. 2022, table 1), with times from `log_normal`.

    With `uncertainty`, log-SNR (B,) -> u (B,), the loss L becomes L e^-u + u: at its best u is log L at that noise
    level, and every level weighs the same (Karras et al. 2024, eq. 21-22); see `Uncertainty`.
    """
    _check_positive("data_std", data_std)
    loss = _weight(lambda u: data_std**-2 + _snr(d, u), t, x0) * _x0_error(_predict(d, x0, t, z, cond), x0)
    if uncertainty is None:
        return loss
    u = uncertainty(d.process.schedule.log_snr(check_times(t, x0)).to(x0))
    return loss * torch.exp(-u) + u


class Uncertainty(nn.Module):
    """u(log-SNR), the learned log loss of a noise level: linear in Fourier features, 0 before training."""

    def __init__(self, features: int = 64, seed: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.frequency: Tensor
        self.phase: Tensor
        self.register_buffer("frequency", torch.randn(features, generator=draw) / 4)
        self.register_buffer("phase", 2 * math.pi * torch.rand(features, generator=draw))
        self.linear = nn.Linear(features, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, log_snr: Tensor) -> Tensor:
        waves = torch.cos(log_snr[:, None].to(self.frequency) * self.frequency + self.phase)
        return self.linear(waves * math.sqrt(2 / len(self.phase)))[:, 0].to(log_snr.dtype)


def _snr(d: Denoises, t: Tensor) -> Tensor:
    return torch.exp(d.process.schedule.log_snr(t))


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive, got {value}")


OBJECTIVES: dict[str, Objective] = {
    "simple": simple,
    "score-matching": score_matching,
    "vlb-x0": vlb_x0,
    "vlb-eps": vlb_eps,
    "hybrid": hybrid,
    "continuous": continuous,
    "min-snr": min_snr,
    "soft-min-snr": soft_min_snr,
    "sigmoid": sigmoid,
    "edm": edm,
}


def uniform(n: int, generator: torch.Generator | None = None) -> Tensor:
    """n times, independent and uniform in (0, 1], (n,) float64, at least 1e-4, on the generator's device."""
    return (1 - torch.rand(n, generator=generator, dtype=torch.float64, device=_device(generator))).clamp(min=T_MIN)


def low_discrepancy(n: int, generator: torch.Generator | None = None) -> Tensor:
    """n times, each uniform in (0, 1], together evenly spread: one offset, n equal steps (Kingma et al. 2021, I.1)."""
    offset = torch.rand(1, generator=generator, dtype=torch.float64, device=_device(generator))
    return (1 - (offset + torch.arange(n, dtype=torch.float64, device=offset.device) / n) % 1).clamp(min=T_MIN)


def log_normal(
    n: int, schedule: Schedule, generator: torch.Generator | None = None, mean: float = -1.2, std: float = 1.2
) -> Tensor:
    """n times with log(s/a) ~ N(mean, std^2) (Karras et al. 2022, table 1), held within the schedule; (n,) float64.

    The density is part of the objective, as in Karras et al.: the loss is not divided by it.
    """
    _check_positive("std", std)
    level = mean + std * torch.randn(n, generator=generator, dtype=torch.float64, device=_device(generator))
    return schedule.time(-2 * level).clamp(T_MIN, 1)


def logit_normal(n: int, generator: torch.Generator | None = None, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """n times with log(t/(1 - t)) ~ N(mean, std^2), (n,) float64 (Esser et al. 2024, arXiv:2403.03206, eq. 19).

    The density is part of the objective, as in `log_normal`.
    """
    _check_positive("std", std)
    level = mean + std * torch.randn(n, generator=generator, dtype=torch.float64, device=_device(generator))
    return torch.sigmoid(level).clamp(T_MIN, 1)


def step_times(n: int, steps: int, generator: torch.Generator | None = None) -> Tensor:
    """n times of a chain of `steps` steps, k/steps with k = 2..steps evenly spread: the terms of E11; (n,) float64."""
    if steps < 2:
        raise ValueError(f"a chain has terms from its second step on, got {steps} steps")
    u = 1 - low_discrepancy(n, generator)
    return (2 + torch.floor(u.clamp(0, 1 - 1e-9) * (steps - 1))) / steps


def _device(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device


@dataclass
class RunningLoss:
    """Times drawn in proportion to the root mean square of the loss so far, in equal bins of t.

    The weights from `sample` make the mean loss unbiased (Nichol & Dhariwal 2021, arXiv:2102.09672, section 3.3).
    `square` (bins,) and `count` (bins,), on the CPU, are all the state: save them with a checkpoint.

    Args:
        bins: of t.
        decay: of the mean squares of a bin, in [0, 1).
        warmup: times are uniform until each bin has this many losses.
        floor: the share of times that stays uniform, in (0, 1].

    Raises:
        ValueError: an argument is out of its range.
    """

    bins: int = 32
    decay: float = 0.95
    warmup: int = 10
    floor: float = 0.05
    square: Tensor = field(init=False)
    count: Tensor = field(init=False)

    def __post_init__(self) -> None:
        if self.bins < 1 or not 0 <= self.decay < 1 or not 0 < self.floor <= 1:
            raise ValueError(
                f"needs bins >= 1, decay in [0, 1), floor in (0, 1]; got {self.bins}, {self.decay}, {self.floor}"
            )
        self.square = torch.zeros(self.bins, dtype=torch.float64)
        self.count = torch.zeros(self.bins, dtype=torch.int64)

    def probabilities(self) -> Tensor:
        """The probability of each bin, (bins,) float64."""
        even = torch.full((self.bins,), 1 / self.bins, dtype=torch.float64)
        if bool((self.count < self.warmup).any()) or not bool(self.square.sum() > 0):
            return even
        root = self.square.sqrt()
        return (1 - self.floor) * root / root.sum() + self.floor * even

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw n times.

        Returns:
            Times (n,) and the weights of their losses (n,), the density of uniform times over the density drawn from;
            float64, on the generator's device.
        """
        p = self.probabilities().to(_device(generator))
        edges = torch.cat([p.new_zeros(1), p.cumsum(0)])
        u = (1 - low_discrepancy(n, generator)).clamp(0, 1) * edges[-1]
        k = (torch.searchsorted(edges, u, right=True) - 1).clamp(0, self.bins - 1)
        t = (k + ((u - edges[k]) / p[k]).clamp(0, 1)) / self.bins
        return t.clamp(T_MIN, 1), 1 / (self.bins * p[k])

    def update(self, t: Tensor, loss: Tensor) -> None:
        """Add the unweighted losses (B,) at t (B,), on any device; later ones count more."""
        t, loss = t.detach().cpu().double(), loss.detach().cpu().double()
        bins = (t * self.bins).long().clamp(max=self.bins - 1)
        for k in bins.unique().tolist():
            here = loss[bins == k].square()
            self.add(k, float(here.mean()), len(here))

    def add(self, k: int, square: float, count: int) -> None:
        """Add `count` losses in bin k by the mean of their squares."""
        keep = self.decay if self.count[k] > 0 else 0.0
        self.square[k] = keep * self.square[k] + (1 - keep) * square
        self.count[k] += count

"""The variational bound on -log p(x_0), in three forms that agree in expectation (E11, E12, E17)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.likelihood.decoders import DECODERS, pixel_indices
from ornstein.likelihood.model import STREAM, Model, chunks, open_model
from ornstein.noise import Covariance
from ornstein.process import Process
from ornstein.randomness import normal
from ornstein.solvers.variance import ReverseVariance, check_variance, reverse_log_variance
from ornstein.wrapper import evaluation_mode

__all__ = ["Bound", "kl_step", "vlb"]

_RECONSTRUCTION, _EARLIER, _LATER, _PLACE, _LAST = range(STREAM, STREAM + 5)

# Below this log-SNR the continuous form has under 1e-9 nats a dimension left.
_LEAST_LOG_SNR = -20.0


@dataclass(frozen=True)
class Bound:
    """-log p(x_0) <= total = prior + diffusion + reconstruction in expectation, each (B,) float64 in nats.

    Attributes:
        decoder: what they measure: a probability of 8-bit pixels ("discrete", "vdm") or a density ("gaussian").
    """

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor
    decoder: str

    @property
    def total(self) -> Tensor:
        return self.prior + self.diffusion + self.reconstruction


@dataclass(frozen=True)
class _Rows:
    """Draws of samples: x0 (R, *) float64, the samples' rows in this call and addresses (CPU), the draws' numbers."""

    x0: Tensor
    rows: Tensor
    index: Tensor
    draws: list[int]

    def normal(self, seed: int, stream: int) -> Tensor:
        """White noise (R, *), row by row addressed by (seed, sample, draw)."""
        size = len(self.x0) // len(self.draws)
        parts = zip(self.x0.split(size), self.index.split(size), self.draws, strict=True)
        z = [normal(tuple(x.shape), seed, i, k, stream, torch.float64, x.device) for x, i, k in parts]
        return torch.cat(z)


def vlb(
    d: Denoises,
    x0: Tensor,
    steps: int = 1000,
    form: Literal["matching", "consistency", "continuous"] = "matching",
    decoder: Literal["discrete", "vdm", "gaussian"] = "discrete",
    *,
    variance: ReverseVariance | None = None,
    terms: int | None = None,
    draws: int = 1,
    seed: int = 0,
    first: int = 0,
    batch: int = 256,
    cond: dict[str, Any] | None = None,
) -> Bound:
    """The variational bound on -log p(x_0) of the chain on the grid n/steps, for x0 (B, *), under any C.

    Args:
        x0: samples (B, *), floating point.
        steps: of the chain.
        form: "matching", sum over n >= 2 of KL(q(x_{n-1}|x_n, x_0) || p(x_{n-1}|x_n)) (E11; Ho et al. 2020,
            arXiv:2006.11239, eq. 5); "consistency", E[log q(x_n|x_{n-1}) - log p(x_n|x_{n+1})] (E12; S3), the same
            bound in expectation with a larger variance; its prior is KL(q(x_T|x_{T-1}) || p), its diffusion term the
            rest, of either sign; "continuous", 1/2 int SNR ||x_0 - x0_hat||^2_{C^-1} d log-SNR from t = 1 to 1/steps
            (E17; Kingma et al. 2021, arXiv:2107.00630), the limit of infinitely many steps between the same ends: it
            has no reverse variance.
        decoder: p(x_0 | x_1): "discrete", the discretised Gaussian of Ho et al. (2020) on 8-bit pixels in [-1, 1];
            "vdm", p ~ q(x_1 | x_0) over the 256 values; "gaussian", N(x0_hat, (s_1/a_1)^2 C), for continuous data.
        variance: of the reverse steps (E9): "lower" (beta~), "upper" (beta), "learned", or a table from `fit_variance`.
            Default: what the network learned; if it learned none, "lower" for pixels, which x_1 determines, and "upper"
            for continuous data, where "lower" keeps a gap however many the steps.
        terms: how many of the steps - 1 terms of the diffusion sum to draw for each sample, evenly spread and unbiased;
            default: all of them (for "continuous" as many noise levels).
        draws: how often to draw every term; the mean counts. One call of the network each.
        seed, first: noise is addressed by (seed, first + row, draw): the same in any batch and on any device.
        batch: rows of (sample, draw) that go through the network at once.
        cond: conditions by name, one a sample or one for all.

    Returns:
        prior, diffusion and reconstruction, each (B,) in nats: KL(q(x_T|x_0) || N(0, s_1^2 C)), the sum, and
        -E log p(x_0|x_1).

    Raises:
        ValueError: wrong arguments; there are no samples, or they are not finite or not the model's; elements are not
            8-bit pixels and the decoder needs them; C is singular; or predictions are not finite.
    """
    if steps < 1 or draws < 1 or (terms is not None and terms < 1):
        raise ValueError(f"steps, draws and terms must be at least 1, got {steps}, {draws} and {terms}")
    if form not in _DIFFUSION:
        raise ValueError(f"unknown form {form!r}; known: {', '.join(_DIFFUSION)}")
    if decoder not in DECODERS:
        raise ValueError(f"unknown decoder {decoder!r}; known: {', '.join(DECODERS)}")
    if variance is not None:
        check_variance(variance)
        if form == "continuous":
            raise ValueError("the continuous form has no reverse variance; leave it out")
    model = open_model(d, x0, cond)
    if decoder != "gaussian":
        pixel_indices(x0)
    chain = _Chain(model, steps, variance, "upper" if decoder == "gaussian" else "lower", seed)
    count = max(steps - 1, 1) if terms is None else terms
    place = _Places(count, seed if terms is not None or form == "continuous" else None)
    scale = {"continuous": 1}.get(form, steps - 1)
    prior, diffusion, reconstruction = torch.zeros(3, len(x0), dtype=torch.float64).unbind()
    with torch.no_grad(), evaluation_mode(d):
        for rows in chunks(len(x0), batch):
            exact = x0[rows.to(x0.device)].to(model.exact).double()
            part = _Part(exact, rows, first, max(1, batch // len(rows)))
            if form == "consistency":
                prior[rows] = part.mean(lambda r: _prior_of_step(chain, r), draws)
            else:
                prior[rows] = part.mean(lambda r: _prior(chain, r), 1)
            if steps > 1:
                term = _DIFFUSION[form]
                diffusion[rows] = scale * part.mean(lambda r: term(chain, r, place(r)), count * draws)  # noqa: B023
            reconstruction[rows] = part.mean(lambda r: _reconstruction(chain, r, decoder), draws)
    bound = Bound(prior, diffusion, reconstruction, decoder)
    if not bool(bound.total.isfinite().all()):
        lost = int((~bound.total.isfinite()).sum())
        raise ValueError(f"the bound of {lost} of {len(x0)} samples is not finite: the denoiser's predictions are not")
    return bound


@dataclass(frozen=True)
class _Part:
    """The samples that go through the network together, x0 (B, *), and how many draws of them at once."""

    x0: Tensor
    rows: Tensor
    first: int
    together: int

    def mean(self, term: Callable[[_Rows], Tensor], draws: int) -> Tensor:
        """The mean of a term over draws 0, 1, ..., (B,)."""
        total = torch.zeros(len(self.x0), dtype=torch.float64)
        for k in range(0, draws, self.together):
            numbers = list(range(k, min(k + self.together, draws)))
            n = len(numbers)
            repeated = self.rows.repeat(n)
            draw = _Rows(self.x0.repeat(n, *[1] * (self.x0.ndim - 1)), repeated, repeated + self.first, numbers)
            total += term(draw).cpu().unflatten(0, (n, -1)).sum(0)
        return total / draws


@dataclass(frozen=True)
class _Chain:
    """The chain on the grid n/steps, and the variance of its reverse steps."""

    model: Model
    steps: int
    variance: ReverseVariance | None
    fallback: ReverseVariance
    seed: int

    @property
    def process(self) -> Process:
        return self.model.process

    def reverse(self, x_t: Tensor, s: Tensor, t: Tensor, rows: _Rows) -> tuple[Tensor, Tensor]:
        """Mean and log variance of p(x_s | x_t)."""
        prediction = self.model(x_t, t, rows.rows)
        learned = prediction.variance_mix is not None
        variance = self.variance or ("learned" if learned else self.fallback)
        return self.process.posterior(x_t, prediction.x0, s, t).mean, reverse_log_variance(prediction, s, variance)


@dataclass(frozen=True)
class _Places:
    """The place of draw k of a sample: on the steps in turn, or, given a seed, evenly spread from a random offset."""

    count: int
    seed: int | None

    def __call__(self, rows: _Rows) -> Tensor:
        """u in [0, 1), (R,) float64 on the CPU, uniform over the draws of a sample (Kingma et al. 2021, I.1)."""
        size = len(rows.x0) // len(rows.draws)
        out = []
        for k, index in zip(rows.draws, rows.index.split(size), strict=True):
            turn, number = divmod(k, self.count)
            if self.seed is None:
                offset = torch.full((size,), 0.5, dtype=torch.float64)
            else:
                offset = torch.special.ndtr(normal((size, 1), self.seed, index, turn, _PLACE, torch.float64))[:, 0]
            out.append((number + offset) / self.count)
        return torch.cat(out).clamp(max=1 - 1e-12)


def kl_step(mean1: Tensor, log_var1: Tensor, mean2: Tensor, log_var2: Tensor, noise: Covariance) -> Tensor:
    """KL(N(mean1, v1 C) || N(mean2, R diag(v2) R^T)) in nats, (B, *) -> (B,) (E26); v2 (B, *) or a number a sample."""
    difference = noise.whiten(mean1 - mean2)
    # r - 1 - log r with r = v1/v2, without cancellation where the two are nearly the same.
    log_ratio = (log_var1 - log_var2).to(mean1.device).expand(mean1.shape)
    excess = torch.expm1(log_ratio) - log_ratio
    return 0.5 * (excess + difference**2 * torch.exp(-log_var2)).flatten(1).sum(1)


def _matching(c: _Chain, rows: _Rows, place: Tensor) -> Tensor:
    """KL(q(x_{n-1} | x_n, x_0) || p(x_{n-1} | x_n)), n = 2..T (E11), of the x_n drawn."""
    n = 2 + torch.floor(place * (c.steps - 1))
    s, t = (n - 1) / c.steps, n / c.steps
    x_t = c.process.add_noise(rows.x0, t, rows.normal(c.seed, _LATER))
    posterior = c.process.posterior(x_t, rows.x0, s, t)
    mean, log_variance = c.reverse(x_t, s, t, rows)
    return kl_step(posterior.mean, 2 * posterior.std.log(), mean, log_variance, c.process.noise)


def _consistency(c: _Chain, rows: _Rows, place: Tensor) -> Tensor:
    """E[log q(x_n | x_{n-1}) - log p(x_n | x_{n+1})], n = 1..T-1 (E12), given the x_{n-1} and x_{n+1} drawn.

    S3 has KL(q(x_n | x_{n-1}) || p(x_n | x_{n+1})) here, as if x_n did not depend on x_{n+1}. Between its neighbours
    it is the bridge b = q(x_n | x_{n-1}, x_{n+1}), and the expectation KL(b || p) - KL(b || q(x_n | x_{n-1})).
    """
    n, p = 1 + torch.floor(place * (c.steps - 1)), c.process
    r, s, t = (n - 1) / c.steps, n / c.steps, (n + 1) / c.steps
    x_r = p.add_noise(rows.x0, r, rows.normal(c.seed, _EARLIER))
    step, whole = p.transition(x_r, r, s), p.transition(x_r, r, t)
    x_t = whole.sample(rows.normal(c.seed, _LATER))
    mean, log_variance = c.reverse(x_t, s, t, rows)
    ahead = p.transition(torch.ones_like(x_r), s, t)  # its mean is a_{t|s}
    share = step.std**2 * ahead.mean / whole.std**2
    bridge = step.mean + share * (x_t - whole.mean)
    log_bridge = 2 * torch.log(step.std * ahead.std / whole.std)
    to_reverse = kl_step(bridge, log_bridge, mean, log_variance, p.noise)
    return to_reverse - kl_step(bridge, log_bridge, step.mean, 2 * step.std.log(), p.noise)


def _continuous(c: _Chain, rows: _Rows, place: Tensor) -> Tensor:
    """1/2 (lambda_max - lambda_min) ||z - z_hat||^2 at a log-SNR uniform between the ends (E17).

    SNR ||x_0 - x0_hat||^2_{C^-1} = ||z - z_hat||^2, so that in the log-SNR the integrand is bounded.
    """
    schedule = c.process.schedule
    low = schedule.log_snr(1.0).clamp(min=_LEAST_LOG_SNR)
    high = schedule.log_snr(1 / c.steps)
    level = torch.lerp(low, high, place)
    t = schedule.time(level)
    x_t = c.process.add_noise(rows.x0, t, rows.normal(c.seed, _LATER))
    error = c.process.noise.mahalanobis(rows.x0 - c.model(x_t, t, rows.rows).x0)
    return 0.5 * (high - low) * torch.exp(level).to(error.device) * error


_DIFFUSION: dict[str, Callable[[_Chain, _Rows, Tensor], Tensor]] = {
    "matching": _matching,
    "consistency": _consistency,
    "continuous": _continuous,
}


def _reconstruction(c: _Chain, rows: _Rows, decoder: str) -> Tensor:
    t = 1 / c.steps
    x_t = c.process.add_noise(rows.x0, t, rows.normal(c.seed, _RECONSTRUCTION))
    return -DECODERS[decoder](c.model(x_t, t, rows.rows), rows.x0, t)


def _prior(c: _Chain, rows: _Rows) -> Tensor:
    """KL(q(x_T | x_0) || N(0, s_1^2 C))."""
    return c.process.marginal(rows.x0, 1.0).kl(c.process.marginal(torch.zeros_like(rows.x0), 1.0))


def _prior_of_step(c: _Chain, rows: _Rows) -> Tensor:
    """KL(q(x_T | x_{T-1}) || N(0, s_1^2 C)) of the x_{T-1} drawn (E12)."""
    p, s = c.process, (c.steps - 1) / c.steps
    step = p.transition(p.add_noise(rows.x0, s, rows.normal(c.seed, _LAST)), s, 1.0)
    return step.kl(p.marginal(torch.zeros_like(rows.x0), 1.0))

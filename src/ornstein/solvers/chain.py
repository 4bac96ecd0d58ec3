"""Steps of the reverse chain: ancestral DDPM and DDIM (E6, E7, E9, E24)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.solvers.stepping import Noise, knots, pairs
from ornstein.solvers.variance import ReverseVariance, check_variance, reverse_log_variance

__all__ = ["ddim", "ddpm"]


def ddpm(d: Denoises, x: Tensor, times: Tensor, noise: Noise, variance: ReverseVariance = "lower") -> Iterator[Tensor]:
    """Ancestral sampling (E6; E7 is the same mean): x_s = mu~(x_t, x0_hat) + R sigma z (Ho et al. 2020, algorithm 2).

    No noise is added in a step that ends at the data.

    Args:
        d, x, times, noise: as for every solver.
        variance: sigma^2 is beta~ ("lower"), beta ("upper"), what the network learned between them ("learned"), or the
            optimum, an `AnalyticVariance` (E9); for a step that skips times of a chain, that of the longer step.

    Raises:
        ValueError: the variance is something else, or "learned" and the network learned none.
    """
    check_variance(variance)
    p = d.process
    for k, (t, s) in enumerate(pairs(times, down=True)):
        prediction = d(x, t)
        of_x0, of_x, std = p.posterior_factors(x, s, t)
        if s > 0 and variance != "lower":
            std = torch.exp(reverse_log_variance(prediction, s, variance) / 2)
        x = of_x0 * prediction.x0 + of_x * x
        if s > 0:
            x = x + p.noise.color(std * noise(k))
        yield x


def ddim(d: Denoises, x: Tensor, times: Tensor, noise: Noise, eta: float = 0.0) -> Iterator[Tensor]:
    """x_s = a_s x0_hat + sqrt(s_s^2 - sigma^2) eps_hat + sigma R z (E24; Song et al. 2021, arXiv:2010.02502).

    sigma = eta sqrt(beta~) = eta s_s sqrt(1 - SNR_t/SNR_s), which is E24's root where a^2 + s^2 = 1.

    Args:
        d, x, times, noise: as for every solver.
        eta: in [0, 1]. 1 is `ddpm`; 0 is deterministic and, alone, also runs upwards in t (E25).

    Raises:
        ValueError: eta is outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta lies in [0, 1], got {eta}")
    p = d.process
    for k, (start, end) in enumerate(knots(p, times, down=eta > 0)):
        prediction = d(x, start.t)
        sigma = eta * end.s * math.sqrt(-math.expm1(start.log_snr - end.log_snr)) if eta > 0 else 0.0
        x = torch.add(end.a * prediction.x0, prediction.eps, alpha=math.sqrt(end.s**2 - sigma**2))
        if sigma > 0:
            x = x + sigma * p.noise.color(noise(k))
        yield x

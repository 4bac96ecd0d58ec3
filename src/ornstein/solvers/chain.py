"""Steps of the reverse chain: ancestral DDPM and DDIM (E6, E7, E9, E24)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.solvers.stepping import Noise, pairs
from ornstein.solvers.variance import ReverseVariance, check_variance, reverse_log_variance


def ddpm(d: Denoises, x: Tensor, times: Tensor, noise: Noise, variance: ReverseVariance = "lower") -> Iterator[Tensor]:
    """Ancestral sampling (E6; E7 is the same mean): x_s = mu~(x_t, x0_hat) + R sigma z (Ho et al. 2020, algorithm 2).

    sigma^2 is beta~ ("lower"), beta ("upper"), what the network learned between them ("learned"), or the optimum, an
    `AnalyticVariance` (E9); on a grid that skips, those of the skipping chain. No noise is added where the step ends at
    the data. Raises ValueError for another variance, and "learned" of a network that learned none.
    """
    check_variance(variance)
    p = d.process
    for k, (t, s) in enumerate(pairs(times, down=True)):
        prediction = d(x, t)
        x = p.posterior(x, prediction.x0, s, t).mean
        if s > 0:
            x = x + p.noise.color(torch.exp(reverse_log_variance(prediction, s, variance) / 2) * noise(k))
        yield x


def ddim(d: Denoises, x: Tensor, times: Tensor, noise: Noise, eta: float = 0.0) -> Iterator[Tensor]:
    """x_s = a_s x0_hat + sqrt(s_s^2 - sigma^2) eps_hat + sigma R z (E24; Song et al. 2021).

    sigma = eta sqrt(beta~) = eta s_s sqrt(1 - SNR_t/SNR_s), which is E24's root where a^2 + s^2 = 1: eta = 1 is `ddpm`,
    eta = 0 deterministic and, alone, also runs upwards in t (E25).
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta lies in [0, 1], got {eta}")
    p = d.process
    for k, (t, s) in enumerate(pairs(times, down=eta > 0)):
        prediction = d(x, t)
        a, std = p.coefficients(s, x)
        if eta == 0:
            x = a * prediction.x0 + std * prediction.eps
        else:
            sigma = eta * p.posterior(x, prediction.x0, s, t).std
            x = a * prediction.x0 + torch.sqrt(std**2 - sigma**2) * prediction.eps
            if s > 0:
                x = x + sigma * p.noise.color(noise(k))
        yield x

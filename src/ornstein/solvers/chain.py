"""Steps of the reverse chain: ancestral DDPM and DDIM (E6, E7, E9, E24)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.solvers.stepping import Noise, pairs


def ddpm(
    d: Denoises, x: Tensor, times: Tensor, noise: Noise, variance: Literal["lower", "upper"] = "lower"
) -> Iterator[Tensor]:
    """Ancestral sampling (E6; E7 is the same mean): x_s = mu~(x_t, x0_hat) + sigma R z (Ho et al. 2020, algorithm 2).

    sigma^2 is beta~ ("lower") or beta ("upper"), the bounds of E9; on a grid that skips, those of the skipping chain.
    No noise is added where the step ends at the data.
    """
    if variance not in ("lower", "upper"):
        raise ValueError(f'variance is "lower" (beta~) or "upper" (beta), got {variance!r}')
    p = d.process
    for k, (t, s) in enumerate(pairs(times, down=True)):
        posterior = p.posterior(x, d(x, t).x0, s, t)
        if s == 0:
            x = posterior.mean
        else:
            std = posterior.std if variance == "lower" else p.transition(x, s, t).std
            x = posterior.mean + std * p.noise.color(noise(k))
        yield x


def ddim(d: Denoises, x: Tensor, times: Tensor, noise: Noise, eta: float = 0.0) -> Iterator[Tensor]:
    """x_s = a_s x0_hat + sqrt(s_s^2 - sigma^2) eps_hat + sigma R z (E24; Song et al. 2021).

    sigma = eta (s_s/s_t) sqrt(1 - SNR_t/SNR_s), that is eta sqrt(beta~): eta = 1 is `ddpm`, eta = 0 deterministic and,
    alone, also runs upwards in t (E25).
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

"""The last step of the bound, p(x_0 | x_1): densities for continuous data, probabilities for 8-bit pixels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ornstein.process import Gaussian, Prediction, Process

__all__ = [
    "DECODERS",
    "LEVELS",
    "discrete",
    "discretised_gaussian",
    "gaussian",
    "log_bins",
    "pixel_indices",
    "pixel_levels",
    "vdm",
]

LEVELS = 256


# Pixels of a sample that `vdm` takes at once.
_PIXELS = 64


def pixel_levels() -> Tensor:
    """The values of 8-bit pixels in [-1, 1]: k/127.5 - 1, (256,) float64."""
    return torch.arange(LEVELS, dtype=torch.float64) / ((LEVELS - 1) / 2) - 1


def pixel_indices(x: Tensor) -> Tensor:
    """Which of the 256 values each element is, int64 in x's shape.

    Raises:
        ValueError: an element is none of them.
    """
    place = (x.double() + 1) * (LEVELS - 1) / 2
    index = place.round()
    if bool(((place - index).abs() > 1e-2).any() | (index < 0).any() | (index > LEVELS - 1).any()):
        raise ValueError(
            "these are not 8-bit pixels, k/127.5 - 1 with k = 0..255, of which alone there is a probability; "
            'use decoder="gaussian" for continuous data'
        )
    return index.long()


def log_bins(mean: Tensor, std: Tensor) -> Tensor:
    """log of the probability that N(mean, std^2) gives to each of the 256 bins, (*, 256); they sum to 1.

    A bin reaches half way to the next value; the first and the last take the tails (Ho et al. 2020, eq. 13).
    """
    middle = (pixel_levels()[1:] + pixel_levels()[:-1]).to(mean) / 2
    infinity = middle.new_full((1,), torch.inf)
    edges = (torch.cat([-infinity, middle, infinity]) - mean[..., None]) / std[..., None]
    return _log_normal_mass(edges[..., :-1], edges[..., 1:])


def discretised_gaussian(index: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log probability of the pixels `index` under `log_bins`, element by element, without making the other bins."""
    half, centre = 1 / (LEVELS - 1), pixel_levels().to(mean)[index]
    low = torch.where(index == 0, -torch.inf, (centre - half - mean) / std)
    high = torch.where(index == LEVELS - 1, torch.inf, (centre + half - mean) / std)
    return _log_normal_mass(low, high)


def _log_normal_mass(low: Tensor, high: Tensor) -> Tensor:
    """log(Phi(high) - Phi(low)) for low < high, exact in both tails."""
    # An interval mostly above 0 is mirrored: Phi is near 1 there, and differences are lost.
    mirrored = low + high > 0
    low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    log_high, log_low = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    return log_high + torch.log(-torch.expm1(log_low - log_high))


def _std(p: Process, t: float) -> Tensor:
    """s/a, the standard deviation of x_t/a about x_0."""
    return p.schedule.sigma(t) / p.schedule.alpha(t)


def discrete(prediction: Prediction, x0: Tensor, t: float) -> Tensor:
    """log p of 8-bit pixels, (B,) nats: N(x0_hat, (s/a)^2) of each pixel alone, in bins (Ho et al. 2020, eq. 13)."""
    mean = prediction.x0
    return discretised_gaussian(pixel_indices(x0), mean, _std(prediction.process, t).to(mean)).flatten(1).sum(1)


def vdm(prediction: Prediction, x0: Tensor, t: float) -> Tensor:
    """log p of 8-bit pixels, (B,) nats: p(x_0 | x_t) ~ q(x_t | x_0) over the 256 values (Kingma et al. 2021, eq. 17).

    The network is not used: x_t alone determines the pixel, and at a high SNR that is enough.
    """
    index, std = pixel_indices(x0), _std(prediction.process, t)
    observed = (prediction.x_t / prediction.process.coefficients(t, prediction.x_t)[0]).flatten(1)
    levels, index = pixel_levels().to(observed.device), index.flatten(1)
    out = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    # Not all pixels at once: each of them takes 256 numbers.
    for part, place in zip(observed.split(_PIXELS, 1), index.split(_PIXELS, 1), strict=True):
        logits = -((part[..., None] - levels.to(part)) ** 2) / (2 * std**2)
        out += torch.log_softmax(logits, dim=-1).gather(-1, place[..., None])[..., 0].sum(1)
    return out


def gaussian(prediction: Prediction, x0: Tensor, t: float) -> Tensor:
    """log density N(x_0; x0_hat, (s/a)^2 C) of continuous data, (B,) nats."""
    p = prediction.process
    return Gaussian(prediction.x0, _std(p, t), p.noise).log_prob(x0)


DECODERS: dict[str, Callable[[Prediction, Tensor, float], Tensor]] = {
    "discrete": discrete,
    "vdm": vdm,
    "gaussian": gaussian,
}

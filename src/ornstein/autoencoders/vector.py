"""The variational autoencoder with one vector of latents an image (E27)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ornstein.autoencoders.autoencoder import GaussianAutoencoder
from ornstein.autoencoders.networks import Decoder, Encoder, Plan

_INNER = 8  # channels between the convolutions and the vector, as many on both sides


def vector_factor(size: int) -> int:
    """The reduction to 4 pixels, or to where the side is odd."""
    factor = 1
    while (size // factor) % 2 == 0 and size // factor > 4:
        factor *= 2
    return factor


class VAE(GaussianAutoencoder):
    """A VAE with latents (n,): q(z|x) = N(mean(x), diag(std(x)^2)), p(z) = N(0, I), p(x|z) = N(x_hat(z), scale^2).

    The bound is E_q log p(x|z) - KL(q(z|x) || p(z)), with z = mean + std noise so that its gradient passes (E27).

    Args:
        latent_channels: n, the numbers of the vector.
        factor: the reduction of the convolutions before the vector, a power of two; to 4 pixels unless given.
        channels, size, width, depths, attention: those of `KLAutoencoder`.

    Raises:
        ValueError: an argument is out of range, or `factor` does not divide `size` (it says which sizes work).

    Source: Kingma & Welling 2014 (arXiv:1312.6114); S3; a learned scale: Rybkin et al. 2021 (arXiv:2006.13202).
    """

    kind = "vae"

    def __init__(
        self,
        channels: int,
        size: int,
        *,
        factor: int | None = None,
        latent_channels: int = 32,
        width: int = 48,
        depths: Sequence[int] = (1, 1, 2),
        attention: int = 16,
    ) -> None:
        factor = vector_factor(size) if factor is None else factor
        plan = Plan(size, factor, width, depths, attention)
        super().__init__(
            channels,
            size,
            (latent_channels,),
            {
                "factor": factor,
                "latent_channels": latent_channels,
                "width": width,
                "depths": list(depths),
                "attention": attention,
            },
        )
        side = size // factor
        inner = _INNER * side**2
        self.encoder = nn.Sequential(
            Encoder(channels, _INNER, plan), nn.SiLU(), nn.Flatten(), nn.Linear(inner, 2 * latent_channels)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent_channels, inner), nn.Unflatten(1, (_INNER, side, side)), Decoder(_INNER, channels, plan)
        )

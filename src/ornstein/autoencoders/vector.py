"""The variational autoencoder with one vector of latents an image (E27)."""

from __future__ import annotations

from typing import Unpack

from torch import nn

from ornstein.autoencoders.autoencoder import GaussianAutoencoder, NetworkSettings
from ornstein.autoencoders.networks import Decoder, Encoder

__all__ = ["VAE", "vector_factor"]

_INNER = 8  # channels between the convolutions and the vector, on both sides


def vector_factor(size: int) -> int:
    """The default reduction before the vector: to 4 pixels, or to an odd side."""
    factor = 1
    while (size // factor) % 2 == 0 and size // factor > 4:
        factor *= 2
    return factor


class VAE(GaussianAutoencoder):
    """A VAE with latents (n,): q(z|x) = N(mean(x), diag(std(x)^2)), p(z) = N(0, I), p(x|z) = N(x_hat(z), scale^2).

    The bound is E_q log p(x|z) - KL(q(z|x) || p(z)), with z = mean + std noise for its gradient (E27).

    Args:
        latent_channels: n, the length of the vector.
        channels, size, settings: see `Autoencoder`; factor is the reduction of the convolutions before the vector, by
            default to 4 pixels.

    Raises:
        ValueError: as `Autoencoder`.

    Source: Kingma & Welling 2014 (arXiv:1312.6114); S3; a learned scale: Rybkin et al. 2021 (arXiv:2006.13202).
    """

    kind = "vae"
    default_factor = staticmethod(vector_factor)

    def __init__(
        self, channels: int, size: int, *, latent_channels: int = 32, **settings: Unpack[NetworkSettings]
    ) -> None:
        super().__init__(channels, size, latent_channels, **settings)
        side = self.latent_shape[1]
        self.latent_shape = (latent_channels,)
        self.layer_shapes = [self.latent_shape]
        inner = _INNER * side**2
        self.encoder = nn.Sequential(
            Encoder(channels, _INNER, self.plan), nn.SiLU(), nn.Flatten(), nn.Linear(inner, 2 * latent_channels)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent_channels, inner),
            nn.Unflatten(1, (_INNER, side, side)),
            Decoder(_INNER, channels, self.plan),
        )

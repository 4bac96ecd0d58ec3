"""Autoencoders whose latents are small images: without regularisation, and regularised by a KL divergence."""

from __future__ import annotations

from typing import ClassVar, Unpack

from torch import Tensor

from ornstein.autoencoders.autoencoder import GaussianAutoencoder, NetworkSettings, Terms
from ornstein.autoencoders.gaussian import Latents
from ornstein.autoencoders.hierarchy import Elbo, Noise
from ornstein.autoencoders.networks import Decoder, Encoder

__all__ = ["KLAutoencoder", "PlainAutoencoder"]


class KLAutoencoder(GaussianAutoencoder):
    """A VAE with spatial latents (c, H/factor, W/factor), q(z|x) diagonal, p(z) = N(0, I) (E27).

    Args:
        channels, size, latent_channels, settings: see `Autoencoder`.

    Raises:
        ValueError: as `Autoencoder`.

    Source: Kingma & Welling 2014 (arXiv:1312.6114); Rombach et al. 2022 (arXiv:2112.10752), section 3.1.
    """

    kind = "kl"
    _outputs: ClassVar[int] = 2  # for each latent channel: mean and log std

    def __init__(
        self, channels: int, size: int, *, latent_channels: int = 4, **settings: Unpack[NetworkSettings]
    ) -> None:
        super().__init__(channels, size, latent_channels, **settings)
        self.layer_shapes = [self.latent_shape] if self._outputs == 2 else []
        self.encoder = Encoder(channels, self._outputs * latent_channels, self.plan)
        self.decoder = Decoder(latent_channels, channels, self.plan)


class PlainAutoencoder(KLAutoencoder):
    """The autoencoder of E27 without noise: one z for each x, (c, H/factor, W/factor), and no prior.

    Arguments and errors are those of `KLAutoencoder`. Its latents have no density, so it has no bound on -log p(x) and
    generates no images by itself.
    """

    kind = "ae"
    _outputs = 1

    def encode(self, x: Tensor) -> Latents:
        z = self.encoder(self.checked(x))
        return Latents(z, z.new_zeros(z.shape))

    def forward(self, x: Tensor, noise: Noise) -> Terms:
        return self._terms(x, self.decode(self.encode(x).mean), x.new_zeros(0, len(x)))

    def prior(self, n: int, noise: Noise) -> Tensor:
        raise ValueError("a plain autoencoder has no prior over its latents: train a diffusion model on them")

    def bound(self, x: Tensor, noise: Noise) -> Elbo:
        raise ValueError(
            "a plain autoencoder has no bound on -log p(x): its latents are numbers without noise, of infinite rate; "
            "use a vae, hvae, kl or vq"
        )

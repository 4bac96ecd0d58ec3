"""Autoencoders whose latents are small images: the plain one, and the one regularised by a KL divergence."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ornstein.autoencoders.autoencoder import GaussianAutoencoder, Terms
from ornstein.autoencoders.gaussian import Latents
from ornstein.autoencoders.hierarchy import Elbo, Noise
from ornstein.autoencoders.networks import Decoder, Encoder, Plan


def default_factor(size: int) -> int:
    """2 for images below 32 pixels, 4 from there on."""
    return 2 if size < 32 else 4


class KLAutoencoder(GaussianAutoencoder):
    """A VAE with spatial latents (c, H/factor, W/factor), q(z|x) diagonal, p(z) = N(0, I) (E27).

    Args:
        channels, size: C and H = W of the images.
        factor: H/h, a power of two; 2 for images below 32 pixels, else 4, unless given.
        latent_channels: c.
        width: channels of the first level; the others have twice as many.
        depths: residual blocks of the first, the middle and the last level, on each side.
        attention: the largest resolution of the latents (pixels) at which the last block attends.

    Raises:
        ValueError: an argument is out of range, or `factor` does not divide `size` (it says which sizes work).

    Source: Kingma & Welling 2014 (arXiv:1312.6114); Rombach et al. 2022 (arXiv:2112.10752), section 3.1.
    """

    kind = "kl"
    _outputs = 2  # for each latent channel: mean and log std

    def __init__(
        self,
        channels: int,
        size: int,
        *,
        factor: int | None = None,
        latent_channels: int = 4,
        width: int = 48,
        depths: Sequence[int] = (1, 1, 2),
        attention: int = 16,
    ) -> None:
        factor = default_factor(size) if factor is None else factor
        plan = Plan(size, factor, width, depths, attention)
        super().__init__(
            channels,
            size,
            (latent_channels, size // factor, size // factor),
            {
                "factor": factor,
                "latent_channels": latent_channels,
                "width": width,
                "depths": list(depths),
                "attention": attention,
            },
        )
        self.layer_shapes = [self.latent_shape] if self._outputs == 2 else []
        self.encoder = Encoder(channels, self._outputs * latent_channels, plan)
        self.decoder = Decoder(latent_channels, channels, plan)


class PlainAutoencoder(KLAutoencoder):
    """The autoencoder of E27 without its noise: one z for each x, (c, H/factor, W/factor), and no prior.

    Arguments and errors are those of `KLAutoencoder`. Its latents have no density, so that it has no bound on
    -log p(x) and makes no images by itself.
    """

    kind = "ae"
    _outputs = 1

    def encode(self, x: Tensor) -> Latents:
        self.check(x)
        z = self.encoder(x)
        return Latents(z, z.new_zeros(z.shape))

    def forward(self, x: Tensor, noise: Noise) -> Terms:
        return self._terms(x, self.decode(self.encode(x).mean), x.new_zeros(0, len(x)))

    def prior(self, n: int, noise: Noise) -> Tensor:
        raise ValueError("a plain autoencoder has no prior over its latents: train a diffusion model on them")

    def bound(self, x: Tensor, noise: Noise) -> Elbo:
        raise ValueError(
            "a plain autoencoder has no bound on -log p(x): its latents are numbers without noise, of infinite rate; "
            "take a vae, hvae, kl or vq"
        )

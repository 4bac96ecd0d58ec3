"""What every autoencoder is: an encoder, a decoder, the decoder's scale, and a bound on -log p(x)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ornstein.autoencoders.gaussian import Latents
from ornstein.autoencoders.hierarchy import Elbo, Noise
from ornstein.likelihood.decoders import discretised_gaussian, pixel_indices
from ornstein.nets.unet import PRESETS
from ornstein.randomness import normal

_STREAM = 0x41450000  # of the layers' noise: sampling and likelihoods have others

# The scale has a long way to go, from the spread of the data to the error of the last step: with this gain a step
# of the optimizer moves its logarithm that much further than a weight.
_GAIN = 4.0
_FIRST_LOG_SCALE = -1.0


def drawn(generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Noise:
    """Noise drawn from `generator`, on its device, layer by layer as it is asked for."""
    return lambda _, shape: torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)


def addressed(
    seed: int,
    index: Tensor,
    step: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Noise:
    """Noise of the samples `index` (B,), addressed by (seed, layer, sample, step): the same in any batch."""
    return lambda layer, shape: normal(shape, seed, index, step, _STREAM + layer, dtype, device)


@dataclass(frozen=True)
class Terms:
    """What one pass says of a batch; training and reports need no other.

    reconstruction: x_hat (B, C, H, W), the mean of p(x|z), not clamped. rates: (L, B) nats, what each layer of
    latents costs, the lowest first; (0, B) for the plain autoencoder, tokens log K for a codebook of K entries.
    penalty: (B,), what the model adds to its own loss (a codebook's commitment), 0 elsewhere. log_scale: of the
    decoder, a scalar. figures: scalars to log, by name.
    """

    reconstruction: Tensor
    rates: Tensor
    penalty: Tensor
    log_scale: Tensor
    figures: dict[str, Tensor] = field(default_factory=dict)


class Autoencoder(ABC, nn.Module):
    """Images x (B, C, H, W) in [-1, 1] to latents z and back; p(x|z) = N(x_hat(z), scale^2) with a learned scale.

    kind: its name in `AUTOENCODERS`. shape: (C, H, W) of the images. latent_shape: (c, h, w) or (n,) of z.
    layer_shapes: of the latents that `Terms.rates` is about, layer by layer. config: the arguments that make it again,
    in JSON types. networks: the parts that may compute in half precision; what is around them keeps its precision.
    """

    kind: ClassVar[str]
    encoder: nn.Module
    decoder: nn.Module

    def __init__(self, channels: int, size: int, latent_shape: Sequence[int], config: dict[str, Any]) -> None:
        super().__init__()
        if channels < 1 or size < 1 or min(latent_shape) < 1:
            raise ValueError(f"channels, size and latent_channels are positive, got {channels}, {size}, {latent_shape}")
        self.shape = (channels, size, size)
        self.latent_shape = tuple(latent_shape)
        self.layer_shapes: list[tuple[int, ...]] = [self.latent_shape]
        self.config = {"channels": channels, "size": size} | config
        self.scale = nn.Parameter(torch.tensor(_FIRST_LOG_SCALE / _GAIN))

    @classmethod
    def preset(cls, name: str, *, channels: int, size: int, **settings: Any) -> Self:
        """A model with the width and depth of the U-Net's preset "xs", "s", "m" or "l"; settings go to the constructor.

        Raises ValueError where there is no such preset, or as the constructor does.
        """
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}: choose one of {', '.join(PRESETS)}")
        width, depths, _ = PRESETS[name]
        return cls(channels, size, width=width, depths=depths, **settings)  # pyright: ignore[reportCallIssue]

    @property
    def log_scale(self) -> Tensor:
        """log of the standard deviation of the decoder, a scalar."""
        return _GAIN * self.scale

    @property
    def networks(self) -> list[nn.Module]:
        """See the class."""
        return [self.encoder, self.decoder]

    def encode(self, x: Tensor) -> Latents:
        """q(z|x), of the lowest layer where there are several. Raises ValueError for another shape than the model's."""
        self.check(x)
        return Latents.of(self.encoder(x).to(x.dtype))

    def decode(self, z: Tensor) -> Tensor:
        """x_hat (B, C, H, W), the mean of p(x|z), not clamped; spatial latents of any size give an image of theirs.

        Raises ValueError for another number of latent channels.
        """
        self.check_latents(z)
        return self.decoder(z).to(z.dtype)

    @abstractmethod
    def forward(self, x: Tensor, noise: Noise) -> Terms:
        """One pass: encode, draw z with `noise`, decode. In training mode a codebook learns from it."""

    @abstractmethod
    def prior(self, n: int, noise: Noise) -> Tensor:
        """n latents (n, *latent_shape) of the model's own prior. ValueError where it has none."""

    def sample(self, n: int, noise: Noise) -> Tensor:
        """n images (n, C, H, W): the decoder's means for latents of the model's own prior."""
        return self.decode(self.prior(n, noise))

    def log_prob(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """log p(x|z) of 8-bit pixels under the Gaussian in bins, (B,) float64 nats. ValueError for other numbers."""
        index, std = pixel_indices(x), self.log_scale.double().exp()
        return discretised_gaussian(index, x_hat.double(), std).flatten(1).sum(1)

    def log_density(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """log N(x; x_hat, scale^2) as a density, (B,) nats: what training maximises."""
        terms = (x - x_hat) ** 2 * torch.exp(-2 * self.log_scale) + 2 * self.log_scale + math.log(2 * math.pi)
        return -0.5 * terms.flatten(1).sum(1)

    def bound(self, x: Tensor, noise: Noise) -> Elbo:
        """-log p(x) <= total in expectation over the noise, for 8-bit pixels x in [-1, 1]; nothing is learned.

        total/(C H W log 2) are bits/dim. Raises ValueError for a plain autoencoder, whose latents have no finite rate,
        and for x that are not 8-bit pixels.
        """
        was = self.training
        try:
            with torch.no_grad():
                terms = self.eval()(x, noise)
                return Elbo(-self.log_prob(x, terms.reconstruction), terms.rates.double())
        finally:
            self.train(was)

    def check(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != self.shape or not x.is_floating_point():
            c, h, w = self.shape
            raise ValueError(f"x is {x.dtype} {tuple(x.shape)}, but this model takes floats (B, {c}, {h}, {w})")

    def check_latents(self, z: Tensor) -> None:
        # convolutions take latents of any height and width: parts of a large one, say
        if z.ndim != 1 + len(self.latent_shape) or z.shape[1] != self.latent_shape[0]:
            raise ValueError(f"z is {tuple(z.shape)}, but this model's latents are (B, *{self.latent_shape})")

    def _terms(self, x: Tensor, reconstruction: Tensor, rates: Tensor) -> Terms:
        return Terms(reconstruction, rates, x.new_zeros(len(x)), self.log_scale)


class GaussianAutoencoder(Autoencoder):
    """One layer of Gaussian latents with the prior N(0, I): the rate is KL(q(z|x) || N(0, I)) (E27)."""

    def forward(self, x: Tensor, noise: Noise) -> Terms:
        q = self.encode(x)
        z = q.sample(noise(1, tuple(q.mean.shape)))
        return self._terms(x, self.decode(z), q.kl()[None])

    def prior(self, n: int, noise: Noise) -> Tensor:
        return noise(1, (n, *self.latent_shape))

"""The base class of autoencoders: an encoder, a decoder, the decoder's scale, and a bound on -log p(x)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypedDict

import torch
from torch import Tensor, nn

from ornstein.autoencoders.gaussian import Latents
from ornstein.autoencoders.hierarchy import Elbo, Noise
from ornstein.autoencoders.networks import Plan
from ornstein.likelihood.decoders import discretised_gaussian, pixel_indices
from ornstein.nets.recorded import Recorded
from ornstein.nets.unet import PRESETS
from ornstein.randomness import normal

__all__ = ["Autoencoder", "GaussianAutoencoder", "NetworkSettings", "Terms", "addressed", "drawn", "spatial_factor"]

_STREAM = 0x41450000  # of the layers' noise: sampling and likelihoods have others

# The log scale moves a long way, from the spread of the data to the error of the last step: with this gain a step of
# the optimizer moves it that much further than a weight.
_GAIN = 4.0
_FIRST_LOG_SCALE = -1.0


def drawn(generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Noise:
    """Noise drawn from `generator`, on its device, layer by layer in the order of use."""
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
    """The result of one forward pass.

    Attributes:
        reconstruction: x_hat (B, C, H, W), the mean of p(x|z), not clamped.
        rates: (L, B) nats, the cost of each layer of latents, the lowest layer first; (0, B) for the plain autoencoder,
            tokens log K for a codebook of K entries.
        penalty: (B,), a loss of the model's own (the commitment to a codebook), else 0.
        log_scale: log standard deviation of the decoder, a scalar.
        figures: scalars to log, by name.
    """

    reconstruction: Tensor
    rates: Tensor
    penalty: Tensor
    log_scale: Tensor
    figures: dict[str, Tensor] = field(default_factory=dict)


class NetworkSettings(TypedDict, total=False):
    """The arguments of encoder and decoder, which all autoencoders share; see `Autoencoder`."""

    factor: int | None
    width: int
    depths: Sequence[int]
    attention: int


def spatial_factor(size: int) -> int:
    """The default reduction for latents with a height and width: 2 for images below 32 pixels, else 4."""
    return 2 if size < 32 else 4


class Autoencoder(ABC, Recorded):
    """Images x (B, C, H, W) in [-1, 1] to latents z and back; p(x|z) = N(x_hat(z), scale^2) with a learned scale.

    Args:
        channels: C of the images.
        size: H = W of the images in pixels.
        latent_channels: c, channels of the latents.
        factor: H/h, the reduction of the convolutions, a power of two; by default `default_factor(size)`.
        width: channels of the first level; the others have twice as many.
        depths: residual blocks of the first, the middle and the last level, on each side.
        attention: the largest resolution of the latents (pixels) at which the last block attends.

    Attributes:
        kind: its name in `AUTOENCODERS`.
        shape: (C, H, W) of the images.
        latent_shape: (c, h, w) or (n,) of z.
        layer_shapes: shapes of the layers of latents that `Terms.rates` counts.
        plan: the levels of encoder and decoder.
        config: the arguments that build it again.
        networks: the parts that may compute in half precision; the code around them keeps its precision.

    Raises:
        ValueError: an argument is out of range, or `factor` does not divide `size` (it says which sizes work).
    """

    kind: ClassVar[str]
    encoder: nn.Module
    decoder: nn.Module
    default_factor = staticmethod(spatial_factor)

    def __init__(
        self,
        channels: int,
        size: int,
        latent_channels: int,
        *,
        factor: int | None = None,
        width: int = 48,
        depths: Sequence[int] = (1, 1, 2),
        attention: int = 16,
    ) -> None:
        super().__init__()
        if min(channels, size, latent_channels) < 1:
            raise ValueError(
                f"channels, size and latent_channels are positive, got {channels}, {size}, {latent_channels}"
            )
        factor = self.default_factor(size) if factor is None else factor
        self.config |= {"latent_channels": latent_channels, "factor": factor}
        self.config |= {"width": width, "depths": list(depths), "attention": attention}
        self.plan = Plan(size, factor, width, depths, attention)
        self.shape = (channels, size, size)
        self.latent_shape: tuple[int, ...] = (latent_channels, size // factor, size // factor)
        self.layer_shapes: list[tuple[int, ...]] = [self.latent_shape]
        self.scale = nn.Parameter(torch.tensor(_FIRST_LOG_SCALE / _GAIN))

    @classmethod
    def preset(cls, name: str, *, channels: int, size: int, **settings: Any) -> Self:
        """A model with the width and depth of the U-Net's preset "xs", "s", "m" or "l"; settings go to the constructor.

        Raises:
            ValueError: no such preset, or as the constructor.
        """
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}: choose one of {', '.join(PRESETS)}")
        width, depths, _ = PRESETS[name]
        return cls(channels, size, width=width, depths=depths, **settings)  # pyright: ignore[reportCallIssue]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.scale.device

    @property
    def log_scale(self) -> Tensor:
        """log of the standard deviation of the decoder, a scalar."""
        return _GAIN * self.scale

    @property
    def networks(self) -> list[nn.Module]:
        """See the class."""
        return [self.encoder, self.decoder]

    def encode(self, x: Tensor) -> Latents:
        """q(z|x), of the lowest layer if there are several.

        Args:
            x: images (B, C, H, W) on any device.

        Raises:
            ValueError: another shape than the model's.
        """
        return Latents.of(self.encoder(self.checked(x)).to(x.dtype))

    def decode(self, z: Tensor) -> Tensor:
        """x_hat (B, C, H, W), the mean of p(x|z), not clamped; spatial latents may have any height and width.

        Raises:
            ValueError: another number of latent channels than the model's.
        """
        return self.decoder(self.checked_latents(z)).to(z.dtype)

    @abstractmethod
    def forward(self, x: Tensor, noise: Noise) -> Terms:
        """One pass: encode, draw z with `noise`, decode. In training mode a codebook learns from it."""

    @abstractmethod
    def prior(self, n: int, noise: Noise) -> Tensor:
        """n latents (n, *latent_shape) of the model's own prior. Raises ValueError if it has none."""

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

        total/(C H W log 2) are bits/dim.

        Raises:
            ValueError: a plain autoencoder, whose latents have an infinite rate; x are not 8-bit pixels.
        """
        training, x = self.training, x.to(self.device)
        try:
            with torch.no_grad():
                terms = self.eval()(x, noise)
                return Elbo(-self.log_prob(x, terms.reconstruction), terms.rates.double())
        finally:
            self.train(training)

    def checked(self, x: Tensor) -> Tensor:
        """Images on the device of the model. Raises ValueError unless they have the model's shape."""
        if tuple(x.shape[1:]) != self.shape or not x.is_floating_point():
            c, h, w = self.shape
            raise ValueError(f"x is {x.dtype} {tuple(x.shape)}, but this model takes floats (B, {c}, {h}, {w})")
        return x.to(self.device)

    def checked_latents(self, z: Tensor) -> Tensor:
        """Latents on the device of the model. Raises ValueError unless they are the model's, of any height and width.

        Convolutions take latents of any size, such as tiles of a large one.
        """
        if z.ndim != 1 + len(self.latent_shape) or z.shape[1] != self.latent_shape[0]:
            raise ValueError(f"z is {tuple(z.shape)}, but this model's latents are (B, *{self.latent_shape})")
        return z.to(self.device)

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

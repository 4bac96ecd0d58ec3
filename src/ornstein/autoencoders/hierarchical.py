"""The Markov VAE with any number of layers: two of them are E28, L of them E29."""

from __future__ import annotations

from itertools import pairwise
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ornstein.autoencoders.autoencoder import Autoencoder, NetworkSettings, Terms
from ornstein.autoencoders.gaussian import Latents
from ornstein.autoencoders.hierarchy import Noise, path_rates
from ornstein.autoencoders.networks import Decoder, Encoder
from ornstein.nets.blocks import Block, Stage, group_norm, zeroed

__all__ = ["HierarchicalVAE", "Step"]

_SMALLEST = 2  # pixels: layers are not halved below it


class HierarchicalVAE(Autoencoder):
    """q(z_1|x) q(z_2|z_1) ... up, p(z_L) p(z_{L-1}|z_L) ... p(x|z_1) down; every factor a diagonal Gaussian (E28, E29).

    z_1 is (c, H/factor, W/factor); every further layer has half the height and width of the one below it, if that is
    even and above 2 pixels. p(z_L) = N(0, I), p(x|z_1) = N(x_hat(z_1), scale^2). `encode` and `decode` are of z_1,
    which therefore can be given another prior than the layers above it. The rates are those of `hierarchy.path_rates`:
    of the lower layers one draw each, which may be negative, of the top layer a divergence.

    Args:
        layers: L.
        channels, size, latent_channels, settings: see `Autoencoder`.

    Raises:
        ValueError: as `Autoencoder`.

    Source: S3, sections 4 and 5 (Markovian hierarchical VAE).
    """

    kind = "hvae"

    def __init__(
        self,
        channels: int,
        size: int,
        *,
        layers: int = 2,
        latent_channels: int = 4,
        **settings: Unpack[NetworkSettings],
    ) -> None:
        if layers < 1:
            raise ValueError(f"a hierarchy has at least 1 layer, got {layers}")
        super().__init__(channels, size, latent_channels, **settings)
        sides = [self.latent_shape[1]]
        for _ in range(layers - 1):
            sides.append(sides[-1] // 2 if sides[-1] % 2 == 0 and sides[-1] > _SMALLEST else sides[-1])
        self.layer_shapes = [(latent_channels, side, side) for side in sides]
        self.encoder = Encoder(channels, 2 * latent_channels, self.plan)
        self.decoder = Decoder(latent_channels, channels, self.plan)
        inner = 2 * self.config["width"]
        steps = list(pairwise(sides))
        self.up = nn.ModuleList(Step(latent_channels, inner, down=a != b) for a, b in steps)
        self.down = nn.ModuleList(Step(latent_channels, inner, up=a != b, zero=True) for a, b in steps)

    @property
    def layers(self) -> int:
        return len(self.layer_shapes)

    @property
    def networks(self) -> list[nn.Module]:
        return [*super().networks, *self.up, *self.down]

    def infer(self, layer: int, below: Tensor) -> Latents:
        """q(z_l | z_{l-1}), of x for layer 1."""
        return self.encode(below) if layer == 1 else Latents.of(self.up[layer - 2](below))

    def generate(self, layer: int, above: Tensor) -> Latents:
        """p(z_l | z_{l+1}), l < L."""
        return Latents.of(self.down[layer - 1](above))

    def top(self, like: Tensor) -> Latents:
        """p(z_L) = N(0, I)."""
        return Latents.standard(like)

    def forward(self, x: Tensor, noise: Noise) -> Terms:
        z, rates = path_rates(self, x, noise)
        return self._terms(x, self.decode(z), rates)

    def prior(self, n: int, noise: Noise) -> Tensor:
        """z_1 by ancestral sampling: z_L ~ N(0, I), then p(z_{L-1}|z_L) down to p(z_1|z_2)."""
        z = noise(self.layers, (n, *self.layer_shapes[-1])).to(self.device)
        for layer in range(self.layers - 1, 0, -1):
            p = self.generate(layer, z)
            z = p.sample(noise(layer, tuple(p.mean.shape)))
        return z


class Step(nn.Module):
    """From the latents of one layer (B, c, h, w) to the parameters (B, 2c, h', w') of its neighbour's Gaussian.

    With `zero` the Gaussian is N(0, I) before training, whatever the latents are.
    """

    def __init__(self, channels: int, width: int, down: bool = False, up: bool = False, zero: bool = False) -> None:
        super().__init__()
        self.enlarge = up
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = Stage([Block(width, width, 0, down=down), Block(width, width, 0)])
        head = nn.Conv2d(width, 2 * channels, 3, padding=1)
        self.head = nn.Sequential(group_norm(width), nn.SiLU(), zeroed(head) if zero else head)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (missing from the stubs)

    def forward(self, z: Tensor) -> Tensor:
        h = self.stem(z.to(self.stem.weight.dtype).contiguous(memory_format=torch.channels_last))
        if self.enlarge:
            h = F.interpolate(h, scale_factor=2.0)
        return self.head(self.blocks(h)).to(z.dtype)

"""Networks of the contrast: generators and critics of the papers at this scale, and a denoiser of points."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ornstein.nets.unet import Embedding

__all__ = ["NOISE", "PointNet", "critic", "fitted", "generator_network", "parameter_count"]

NOISE = 64
"""Numbers that a generator starts from."""

_TOLERANCE = 0.1
_SMALLEST = 4  # pixels a side where a convolutional generator starts


def generator_network(shape: tuple[int, ...], width: int) -> nn.Module:
    """Noise (B, 64) -> samples (B, *shape) in [-1, 1] or near it.

    Points: two hidden layers with ReLU, orthogonal weights scaled by 0.8 (Metz et al. 2017, appendix A). Images: DCGAN
    (Radford et al. 2016, arXiv:1511.06434), from 4x4 pixels up, batch norm and ReLU, tanh at the end.
    """
    if len(shape) == 1:
        return _orthogonal(_perceptron(NOISE, width, shape[0], nn.ReLU))
    channels, size, _ = shape
    wide = width * size // _SMALLEST
    layers: list[nn.Module] = [
        nn.Linear(NOISE, wide * _SMALLEST**2),
        nn.Unflatten(1, (wide, _SMALLEST, _SMALLEST)),
        nn.BatchNorm2d(wide),
        nn.ReLU(),
    ]
    while wide > width:
        layers += [nn.ConvTranspose2d(wide, wide // 2, 4, 2, 1), nn.BatchNorm2d(wide // 2), nn.ReLU()]
        wide //= 2
    layers += [nn.Conv2d(width, channels, 3, padding=1), nn.Tanh()]
    return _small_normal(nn.Sequential(*layers))


def critic(
    shape: tuple[int, ...], width: int, norm: Literal["batch", "none"] = "none", slope: float = 0.2
) -> nn.Module:
    """Samples (B, *shape) -> one number each, (B, 1).

    Points: two hidden layers with ReLU. Images: the mirror image of the generator, leaky ReLU of `slope`, batch norm
    after all but the first convolution or none: a penalty on the gradient of each sample forbids it.
    """
    if len(shape) == 1:
        return _orthogonal(_perceptron(shape[0], width, 1, nn.ReLU))
    channels, size, _ = shape
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.LeakyReLU(slope)]
    while size > _SMALLEST:
        layers.append(nn.Conv2d(width, 2 * width, 4, 2, 1))
        # statistics of the batch alone: a critic is never used without one
        layers += [nn.BatchNorm2d(2 * width, track_running_stats=False)] if norm == "batch" else []
        layers.append(nn.LeakyReLU(slope))
        size, width = size // 2, 2 * width
    layers += [nn.Flatten(), nn.Linear(width * _SMALLEST**2, 1)]
    return _small_normal(nn.Sequential(*layers))


def _perceptron(inputs: int, width: int, outputs: int, activation: type[nn.Module]) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, outputs)
    )


def _orthogonal(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.Linear):
            if not module.weight.is_meta:
                nn.init.orthogonal_(module.weight, 0.8)
            nn.init.zeros_(module.bias)
    return net


def _small_normal(net: nn.Module) -> nn.Module:
    """DCGAN's initial weights."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.02)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return net


class PointNet(nn.Module):
    """Network `(x, log_snr) -> (B, D)` of a denoiser of points: residual layers modulated by the log-SNR.

    Points enter with sines and cosines of their coordinates: a denoiser of narrow modes is steep.

    Args:
        dimensions: D.
        width: of all layers.
        depth: residual layers.
        octaves: frequencies of each coordinate, pi 2^k.
    """

    def __init__(self, dimensions: int, width: int = 64, depth: int = 3, octaves: int = 4) -> None:
        super().__init__()
        self.octaves = octaves
        self.embedding = Embedding(0, width)
        self.stem = nn.Linear(dimensions * (1 + 2 * octaves), width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.modulation = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(depth))
        self.head = nn.Linear(width, dimensions)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        embedding = self.embedding(log_snr, None)
        angle = (x[:, :, None] * (math.pi * 2.0 ** torch.arange(self.octaves))).flatten(1)
        h = self.stem(torch.cat([x, angle.sin(), angle.cos()], 1))
        for norm, modulation, layer in zip(self.norms, self.modulation, self.layers, strict=True):
            scale, shift = modulation(embedding).chunk(2, 1)
            h = h + layer(F.silu(norm(h) * (1 + scale) + shift))
        return self.head(F.silu(h))


def parameter_count(*modules: nn.Module) -> int:
    """Numbers that are trained."""
    return sum(p.numel() for module in modules for p in module.parameters())


def fitted(build: Callable[[int], tuple[nn.Module, ...]], target: int, widths: range) -> int:
    """The width of `widths` whose networks have the number of parameters nearest to `target`.

    Raises:
        ValueError: none comes within 10 %.
    """

    def count(width: int) -> int:
        with torch.device("meta"):
            return parameter_count(*build(width))

    above = min(bisect.bisect_left(widths, target, key=count), len(widths) - 1)  # more width, more parameters
    best = min(widths[max(0, above - 1) : above + 1], key=lambda width: abs(count(width) - target))
    found = count(best)
    if abs(found - target) > _TOLERANCE * target:
        raise ValueError(f"no width gives {target:,} parameters within 10 %; the nearest, {best}, has {found:,}")
    return best

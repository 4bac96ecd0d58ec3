"""The convolutional encoder and decoder of all autoencoders, built from the blocks of the U-Net."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ornstein.nets.blocks import Block, Stage, group_norm, zeroed

__all__ = ["Decoder", "Encoder", "Plan", "check_factor", "patch_of"]


def check_factor(size: int, factor: int) -> None:
    """Raises ValueError unless the factor is a power of two that divides the size; it says which sizes work."""
    if factor < 1 or factor & (factor - 1):
        raise ValueError(f"factor is a power of two, 1, 2, 4, 8, ..., got {factor}")
    if size < 1 or size % factor:
        below, above = size // factor * factor, (size // factor + 1) * factor
        near = f"{below} or {above}" if below > 0 else f"{above}"
        divides = max(1, size & -size)
        other = f", or factor {divides} for this one" if size > 0 and divides > 1 else ""
        raise ValueError(
            f"images of {size} pixels cannot be reduced by a factor of {factor}: sizes that work are multiples of "
            f"{factor}, the nearest {near}{other}"
        )


def patch_of(size: int, factor: int) -> int:
    """Side of the patches in which large images enter and leave: convolutions at full size are the most expensive."""
    return min(factor, 1 if size < 64 else 2 if size < 256 else 4)


class Plan:
    """Resolutions (pixels), channels and depths of the levels between an image and its latents.

    Raises:
        ValueError: `factor` does not divide `size`, or width and depths are not positive.
    """

    def __init__(self, size: int, factor: int, width: int, depths: Sequence[int], attention: int) -> None:
        check_factor(size, factor)
        if len(depths) != 3 or min(width, *depths) < 1:
            raise ValueError(
                f"width is positive and depths three positive numbers (first, middle, last level), got {width}, "
                f"{list(depths)}"
            )
        self.patch = patch_of(size, factor)
        count = (factor // self.patch).bit_length()
        self.resolutions = [size // self.patch >> i for i in range(count)]
        # as in the U-Net, the first level is narrow
        self.widths = [width if i == 0 and count > 1 else 2 * width for i in range(count)]
        first, middle, last = depths
        self.depths = [first, *[middle] * (count - 2), last] if count > 1 else [last]
        # only in the last block of the last level: at 16x16 it costs about as much as a convolution
        self.attention = self.resolutions[-1] <= attention

    def attends(self, level: int, block: int) -> bool:
        """Whether a block has self-attention."""
        return self.attention and level == len(self.widths) - 1 and block == self.depths[level] - 1


class Encoder(nn.Module):
    """Images (B, C, H, W) to features (B, `outputs`, H/factor, W/factor), in the dtype of the images."""

    def __init__(self, channels: int, outputs: int, plan: Plan) -> None:
        super().__init__()
        self.patch = plan.patch
        self.stem = nn.Conv2d(channels * self.patch**2, plan.widths[0], 3, padding=1)
        self.stages = nn.ModuleList()
        now = plan.widths[0]
        for level, (out, depth) in enumerate(zip(plan.widths, plan.depths, strict=True)):
            stage = Stage()
            for i in range(depth):
                stage.append(Block(now, out, 0, down=level > 0 and i == 0, attention=plan.attends(level, i)))
                now = out
            self.stages.append(stage)
        self.head = nn.Sequential(group_norm(now), nn.SiLU(), nn.Conv2d(now, outputs, 3, padding=1))
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (missing from the stubs)

    def forward(self, x: Tensor) -> Tensor:
        h = F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x
        h = self.stem(h.to(self.stem.weight.dtype).contiguous(memory_format=torch.channels_last))
        for stage in self.stages:
            h = stage(h)
        return self.head(h).to(x.dtype)


class Decoder(nn.Module):
    """Latents (B, c, h, w) to images (B, C, h factor, w factor), in the dtype of the latents; starts at 0."""

    def __init__(self, latent_channels: int, channels: int, plan: Plan) -> None:
        super().__init__()
        self.patch = plan.patch
        now = plan.widths[-1]
        self.stem = nn.Conv2d(latent_channels, now, 3, padding=1)
        self.stages, self.up = nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(len(plan.widths))):
            out = plan.widths[level]
            if level < len(plan.widths) - 1:
                self.up.append(nn.Conv2d(now, out, 1))
            stage = Stage()
            for i in reversed(range(plan.depths[level])):
                stage.append(Block(out, out, 0, attention=plan.attends(level, i)))
            self.stages.append(stage)
            now = out
        self.head = nn.Sequential(
            group_norm(now), nn.SiLU(), zeroed(nn.Conv2d(now, channels * self.patch**2, 3, padding=1))
        )
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (missing from the stubs)

    def forward(self, z: Tensor) -> Tensor:
        h = self.stem(z.to(self.stem.weight.dtype).contiguous(memory_format=torch.channels_last))
        for i, stage in enumerate(self.stages):
            if i:
                h = F.interpolate(self.up[i - 1](h), scale_factor=2.0)
            h = stage(h)
        h = self.head(h).to(z.dtype)
        return F.pixel_shuffle(h, self.patch) if self.patch > 1 else h

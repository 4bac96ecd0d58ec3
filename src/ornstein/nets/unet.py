"""A compact U-Net: adaptive group norm on log-SNR and class, attention at the low resolutions."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ornstein.nets.blocks import Block, Stage, group_norm, zeroed
from ornstein.nets.recorded import Recorded

__all__ = ["FREQUENCIES", "LOG_SNR_RANGE", "PRESETS", "Embedding", "UNet"]

LOG_SNR_RANGE = (-20.0, 20.0)
"""Log-SNR is clamped to this: beyond it the data, or the noise, is below the resolution of float32."""

FREQUENCIES = 16
"""Fourier features of the log-SNR: so many cosines and sines."""

PRESETS = {
    "xs": (32, (1, 1, 1), 8),
    "s": (48, (1, 1, 2), 8),
    "m": (64, (1, 2, 3), 8),
    "l": (128, (2, 2, 3), 16),
}
"""By name: width, blocks at the first, middle and last level, largest resolution with attention."""


class UNet(Recorded):
    """Network `(x, log_snr, label) -> (B, C, H, W)` for square images, conditioned by adaptive group norm.

    The image enters and leaves as patches of `patch` pixels, each a vector of channels: that saves the convolutions at
    full resolution, the most expensive ones. The encoder halves the resolution once per level after the first; the
    decoder mirrors it and adds the encoder's last features to each level. Log-SNR and class modulate the second norm
    of each block. The last convolution starts at zero: an untrained network returns 0.

    Args:
        channels: C of the images.
        size: H = W of the images in pixels, or (H, W). It places the attention; images of any size are taken, and
            padded inside to multiples of patch * 2^(levels - 1).
        classes: number of classes; 0 for an unconditional network.
        patch: side of the patches in pixels.
        width: channels of the first level.
        multipliers: channels of each level, as multiples of `width`; their number is the number of levels.
        depths: residual blocks of each level, on each side.
        attention: the resolutions, of size / patch / 2^level, with self-attention.
        dropout: probability of dropping a feature inside the residual blocks.
        learned_variance: return (B, 2C, H, W), the second half for the variance of the reverse steps (E9; Nichol &
            Dhariwal 2021, arXiv:2102.09672, eq. 15), as `Denoiser` reads it.

    Raises:
        ValueError: an argument is out of range.

    Source: Ronneberger et al. 2015 (arXiv:1505.04597); Dhariwal & Nichol 2021 (arXiv:2105.05233), section 3, adaptive
    group norm; Kingma et al. 2021 (arXiv:2107.00630), conditioning on log-SNR.
    """

    places_conditions = True  # labels may be on any device: see `_check_label`

    def __init__(
        self,
        channels: int,
        size: int | Sequence[int],
        classes: int = 0,
        *,
        patch: int = 1,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        depths: Sequence[int] = (1, 2, 2),
        attention: Sequence[int] = (8,),
        dropout: float = 0.0,
        learned_variance: bool = False,
    ) -> None:
        super().__init__()
        levels = len(multipliers)
        side = reference(size)
        if min(channels, side, patch, width, levels, *multipliers, *depths) < 1 or classes < 0:
            raise ValueError("channels, size, patch, width, multipliers and depths must be positive, classes >= 0")
        if len(depths) != levels:
            raise ValueError(f"depths has {len(depths)} entries and multipliers {levels}: give one per level")
        self.channels, self.size, self.classes, self.patch = channels, size, classes, patch
        self.multiple = patch * 2 ** (levels - 1)
        self._checked: weakref.ref[Tensor] | None = None  # the labels that were checked last
        side = side // patch
        widths = [width * m for m in multipliers]
        embedding = 4 * width
        self.embedding = Embedding(classes, embedding)
        self.stem = nn.Conv2d(channels * patch**2, width, 3, padding=1)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        now = width
        for level, (out, depth) in enumerate(zip(widths, depths, strict=True)):
            attend = side >> level in attention
            stage = Stage()
            for i in range(depth):
                down = level > 0 and i == 0
                stage.append(Block(now, out, embedding, down, attend, dropout))
                now = out
            self.encoder.append(stage)
        self.up = nn.ModuleList()
        for level in reversed(range(levels)):
            out = widths[level]
            attend = side >> level in attention
            if level < levels - 1:
                self.up.append(nn.Conv2d(now, out, 1))
            stage = Stage()
            for _ in range(depths[level]):
                stage.append(Block(out, out, embedding, False, attend, dropout))
            self.decoder.append(stage)
            now = out
        out = (2 * channels if learned_variance else channels) * patch**2
        self.head = nn.Sequential(group_norm(now), nn.SiLU(), zeroed(nn.Conv2d(now, out, 3, padding=1)))
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (missing from the stubs)

    @staticmethod
    def preset_config(
        name: str,
        *,
        channels: int,
        size: int | Sequence[int],
        classes: int = 0,
        patch: int | None = None,
        learned_variance: bool = False,
    ) -> dict[str, Any]:
        """The constructor's arguments for one of the presets, as for `preset`."""
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}: choose one of {', '.join(PRESETS)}")
        width, (first, middle, last), largest = PRESETS[name]
        if patch is None:
            side = reference(size)
            patch = 1 if side < 64 or side % 4 else 2 if side < 128 or side % 8 else 4
        side = reference(size) // patch
        resolutions = [side]
        while resolutions[-1] % 2 == 0 and (resolutions[-1] > 8 or resolutions == [side]):
            resolutions.append(resolutions[-1] // 2)
        inner = len(resolutions) - 2
        return {
            "channels": channels,
            "size": size if isinstance(size, int) else list(size),
            "classes": classes,
            "patch": patch,
            "width": width,
            # the first level and those above 64 pixels stay narrow: their convolutions are the most expensive
            "multipliers": [1 if r == side or r > 64 else 2 for r in resolutions],
            "depths": [first, *[middle] * inner, last] if inner >= 0 else [last],
            "attention": [r for r in resolutions if r <= largest and r < side],
            "learned_variance": learned_variance,
        }

    @classmethod
    def preset(cls, name: str, **settings: Any) -> UNet:
        """A network of one of four sizes.

        Args:
            name: "xs", "s", "m" or "l".
            settings: channels and size of the images; optionally classes, learned_variance, and patch, by default 1
                below 64 pixels, 2 from 64 and 4 from 128 pixels on.

        The patches are halved (at least once) until there are 8 a side, or an odd number. Attention is used below the
        first level at resolutions of up to 8 (16 in "l"). Parameters, and processor time of a training step (AdamW,
        bf16) on one core with AVX512-bf16; two cores take half of it, float32 takes 1.5 to 2 times as long:

        | name | 8x8, batch 128 | 32x32, batch 32 |
        |------|----------------|-----------------|
        | xs   | 0.28 M,  43 ms | 0.46 M, 128 ms  |
        | s    | 1.10 M, 113 ms | 1.52 M, 292 ms  |
        | m    | 2.80 M, 225 ms | 4.26 M, 670 ms  |
        | l    | 12.0 M, 852 ms | 18.9 M, 3.48 s  |

        Raises:
            ValueError: no such preset, or as the constructor.
        """
        return cls(**cls.preset_config(name, **settings))

    def forward(self, x: Tensor, log_snr: Tensor, label: Tensor | None = None) -> Tensor:
        """The network's prediction.

        Args:
            x: images (B, C, H, W).
            log_snr: (B,) a^2/s^2 in nats; infinite values are allowed (clamped to [-20, 20]).
            label: class indices (B,) int64, -1 for no class; None is -1 for all. On any device.

        Returns:
            (B, C, H, W), or (B, 2C, H, W) with a learned variance, in the dtype of x.

        Raises:
            ValueError: shapes that do not fit the network, a label for an unconditional network, or one out of range.
        """
        if not torch.compiler.is_compiling():  # compiled code cannot read values
            self.check(x, log_snr, label)
        dtype = self.stem.weight.dtype
        embedding = self.embedding(log_snr, label)
        h = self.stem(self.patches(x.to(dtype)))
        skips = []
        for stage in self.encoder:
            h = stage(h, embedding)
            skips.append(h)
        h = skips.pop()
        for i, stage in enumerate(self.decoder):
            if i:
                h = F.interpolate(self.up[i - 1](h), scale_factor=2.0) + skips.pop()
            h = stage(h, embedding)
        return self.pixels(self.head(h), x.shape[-2:]).to(x.dtype)

    def patches(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) as patches, (B, C p^2, H'/p, W'/p), in channels-last memory.

        H' and W' are multiples of p 2^(levels - 1), with zeros below and to the right of the image.
        """
        below, right = -x.shape[-2] % self.multiple, -x.shape[-1] % self.multiple
        if below or right:
            x = F.pad(x, (0, right, 0, below))
        return F.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last)

    def pixels(self, h: Tensor, size: Sequence[int]) -> Tensor:
        """The inverse of `patches`, for images of `size`, (H, W)."""
        return F.pixel_shuffle(h, self.patch)[..., : size[0], : size[1]]

    def check(self, x: Tensor, log_snr: Tensor, label: Tensor | None) -> None:
        """Raises ValueError as `forward`."""
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"x is {tuple(x.shape)}, but this net takes (B, {self.channels}, H, W)")
        if log_snr.shape != x.shape[:1]:
            raise ValueError(f"log_snr is {tuple(log_snr.shape)}; it must be ({len(x)},), one per sample")
        if label is not None:
            self._check_label(label, len(x))

    def _check_label(self, label: Tensor, batch: int) -> None:
        if not self.classes:
            raise ValueError("a label was given, but this net is unconditional (classes=0): leave label out")
        if label.shape != (batch,) or label.dtype != torch.long:
            raise ValueError(f"label is {label.dtype} {tuple(label.shape)}; it must be int64 ({batch},)")
        if label.device.type != "cpu":
            # To read a value is to wait for the device. A sampler gives the same tensor at every step, which is read
            # once; a training has checked its labels on the CPU.
            if self.training or (self._checked is not None and self._checked() is label):
                return
            self._checked = weakref.ref(label)
        low, high = torch.stack(label.aminmax()).tolist() if batch else (0, 0)
        if low < -1 or high >= self.classes:
            self._checked = None
            wrong = low if low < -1 else high
            raise ValueError(f"label {wrong} is out of range: 0..{self.classes - 1}, or -1 for no class")


def reference(size: int | Sequence[int]) -> int:
    """The side of the square that a network for (H, W) is laid out for: of about its area, a multiple of 8."""
    if isinstance(size, int):
        return size
    height, width = size
    if height == width or min(size) < 1:
        return min(size)
    return max(8, 8 * round(math.sqrt(height * width) / 8))


class Embedding(nn.Module):
    """Log-SNR (B,) and class (B,) -> the vector (B, width) that modulates every block."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        # Periods from 125 (the whole clamped range and more) to 1.25 in log-SNR: finer detail in the noise level than
        # that is not in the optimal denoiser, and would only let the network memorise it.
        frequencies = torch.logspace(math.log10(0.05), math.log10(5.0), FREQUENCIES)
        self.frequencies: Tensor
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.first = nn.Linear(2 * FREQUENCIES, width)
        self.second = nn.Linear(width, width)
        self.classes = classes
        self.label = nn.Embedding(classes + 1, width) if classes else None  # the last row: no class

    def forward(self, log_snr: Tensor, label: Tensor | None) -> Tensor:
        angle = log_snr.float().clamp(*LOG_SNR_RANGE)[:, None] * self.frequencies
        features = torch.cat([angle.cos(), angle.sin()], dim=1).to(self.first.weight.dtype)
        out = self.second(F.silu(self.first(features)))
        if self.label is not None:
            if label is None:
                label = log_snr.new_full(log_snr.shape, -1, dtype=torch.long)
            label = label.to(log_snr.device, non_blocking=True)
            out = out + self.label(torch.where(label < 0, self.classes, label))
        return F.silu(out)

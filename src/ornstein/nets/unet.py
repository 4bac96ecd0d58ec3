"""A compact U-Net: adaptive group norm on log-SNR, class and text, attention at the low resolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ornstein.nets.blocks import Block, Stage, group_norm, heads_of, zeroed
from ornstein.nets.conditions import TEXT, Context, Embedding, TextTokens, check_log_snr, check_text
from ornstein.nets.recorded import Recorded
from ornstein.nets.sizes import padded, reference
from ornstein.nets.widths import Widths

__all__ = ["PRESETS", "UNet"]

PRESETS = {
    "xs": (32, (1, 1, 1), 8),
    "s": (48, (1, 1, 2), 8),
    "m": (64, (1, 2, 3), 8),
    "l": (128, (2, 2, 3), 16),
}
"""By name: width, blocks at the first, middle and last level, largest resolution with attention."""


class UNet(Recorded):
    """Network `(x, log_snr, label, text, text_mask) -> (B, C, H, W)` for images, conditioned by adaptive group norm.

    The image enters and leaves as patches of `patch` pixels, each a vector of channels: that saves the convolutions at
    full resolution, the most expensive ones. The encoder halves the resolution once per level after the first; the
    decoder mirrors it and adds the encoder's last features to each level. Log-SNR and class modulate the second norm
    of each block. The last convolution starts at zero: an untrained network returns 0.

    Images of any height and width are taken: those that the patches and levels do not divide are padded inside, by
    their last row and column, and the output is cut to their size. With `text_width` the blocks with attention also
    attend to the states of a text, and its mean joins the embedding.

    Args:
        channels: C of the images.
        size: H = W of the images in pixels, or (H, W). It places the attention; images of any size are taken, and
            padded inside to multiples of patch * 2^(levels - 1).
        classes: number of classes; 0 for an unconditional network.
        patch: side of the patches in pixels.
        width: channels of the first level.
        multipliers: channels of each level, as multiples of `width`; their number is the number of levels.
        depths: residual blocks of each level, on each side.
        attention: the resolutions, of the longer side / patch / 2^level (rounded up), with self-attention.
        dropout: probability of dropping a feature inside the residual blocks.
        learned_variance: return (B, 2C, H, W), the second half for the variance of the reverse steps (E9; Nichol &
            Dhariwal 2021, arXiv:2102.09672, eq. 15), as `Denoiser` reads it.
        text_width: D of the token states of a text; 0 for a network without text.
        widths: the channels of parts that were pruned, by name (`ornstein.compress`): "stem", "level1", ... for the
            levels, "encoder.1.0" for what is between the convolutions of a block, and "encoder.1.0.attention" and
            "encoder.1.0.reading" for queries; 0 leaves the convolutions, or the attention, out.

    Raises:
        ValueError: an argument is out of range.

    Source: Ronneberger et al. 2015 (arXiv:1505.04597); Dhariwal & Nichol 2021 (arXiv:2105.05233), section 3, adaptive
    group norm; Kingma et al. 2021 (arXiv:2107.00630), conditioning on log-SNR.
    """

    places_conditions = True  # conditions may be on any device

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
        text_width: int = 0,
        widths: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        levels = len(multipliers)
        if (
            min(channels, reference(size), patch, width, levels, *multipliers, *depths) < 1
            or min(classes, text_width) < 0
        ):
            raise ValueError(
                "channels, size, patch, width, multipliers and depths must be positive, classes and text_width >= 0"
            )
        if len(depths) != levels:
            raise ValueError(f"depths has {len(depths)} entries and multipliers {levels}: give one per level")
        self.channels, self.classes, self.patch = channels, classes, patch
        self.multiple = patch * 2 ** (levels - 1)
        side = -(-reference(size) // patch)
        if widths is None:
            self.config.pop("widths", None)  # a network that is not pruned is described as before there were such
        kept = Widths(widths)
        full = [width * m for m in multipliers]
        # levels of equal width share their channels: nothing but sums connects them
        self.streams = ["stem"]
        for level, out in enumerate(full):
            same = out == (full[level - 1] if level else width)
            self.streams.append(self.streams[-1] if same else f"level{level}")
        channels_of = {"stem": kept.of("stem", width)}
        for level, name in enumerate(self.streams[1:]):
            channels_of[name] = kept.of(name, full[level])
        embedding = 4 * width
        self.embedding = Embedding(classes, embedding)
        self.text = TextTokens(text_width, embedding, embedding) if text_width else None
        context = embedding if text_width else 0
        self.stem = nn.Conv2d(channels * patch**2, channels_of["stem"], 3, padding=1)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()

        def block(name: str, source: str, level: int, down: bool) -> Block:
            stream, heads = self.streams[level + 1], heads_of(full[level])
            attend = -(-side >> level) in attention
            return Block(
                channels_of[source], channels_of[stream], embedding, down, attend, dropout, context,
                inner=kept.of(name, full[level], least=0), shortcut=source != stream, heads=heads,
                attends=kept.of(f"{name}.attention", full[level], heads, least=0) if attend else None,
                reads=kept.of(f"{name}.reading", full[level], heads, least=0) if attend and context else None,
            )  # fmt: skip

        now = "stem"
        for level, depth in enumerate(depths):
            stage = Stage()
            for i in range(depth):
                stage.append(block(f"encoder.{level}.{i}", now, level, down=level > 0 and i == 0))
                now = self.streams[level + 1]
            self.encoder.append(stage)
        self.up = nn.ModuleList()
        for k, level in enumerate(reversed(range(levels))):
            own = self.streams[level + 1]
            if k:
                self.up.append(nn.Conv2d(channels_of[now], channels_of[own], 1))
            names = [f"decoder.{k}.{i}" for i in range(depths[level])]
            self.decoder.append(Stage(block(name, own, level, down=False) for name in names))
            now = own
        kept.check()
        out = (2 * channels if learned_variance else channels) * patch**2
        last = channels_of[now]
        self.head = nn.Sequential(group_norm(last), nn.SiLU(), zeroed(nn.Conv2d(last, out, 3, padding=1)))
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
        text_width: int = 0,
    ) -> dict[str, Any]:
        """The constructor's arguments for one of the presets, as for `preset`."""
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}: choose one of {', '.join(PRESETS)}")
        width, (first, middle, last), largest = PRESETS[name]
        longer = reference(size)
        if patch is None:
            patch = 1 if longer < 64 or longer % 4 else 2 if longer < 128 or longer % 8 else 4
        side = -(-longer // patch)
        resolutions = [side]
        while (resolutions[-1] % 2 == 0 or resolutions[-1] > 16) and (resolutions[-1] > 8 or resolutions == [side]):
            resolutions.append(-(-resolutions[-1] // 2))
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
            "text_width": text_width,
        }

    @classmethod
    def preset(cls, name: str, **settings: Any) -> UNet:
        """A network of one of four sizes.

        Args:
            name: "xs", "s", "m" or "l".
            settings: channels and size of the images; optionally classes, learned_variance, text_width, and patch, by
                default 1 below 64 pixels, 2 from 64 and 4 from 128 pixels on.

        The patches are halved (at least once) until there are 8 a side, or an odd number of at most 15. Attention is
        used below the first level at resolutions of up to 8 (16 in "l"). Parameters, and processor time of a training
        step (AdamW, bf16) on one core with AVX512-bf16; two cores take half of it, float32 takes 1.5 to 2 times as
        long:

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

    @property
    def without(self) -> tuple[str, ...]:
        """Conditions of `forward` that this network was made without."""
        return TEXT if self.text is None else ()

    def forward(
        self,
        x: Tensor,
        log_snr: Tensor,
        label: Tensor | None = None,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """The network's prediction.

        Args:
            x: images (B, C, H, W) of any size.
            log_snr: (B,) a^2/s^2 in nats; infinite values are allowed (clamped to [-20, 20]).
            label: class indices (B,) int64, -1 for no class; None is -1 for all. On any device.
            text: states of the tokens of a text (B, L, D), for a network with `text_width`; None is no text.
            text_mask: which tokens there are, (B, L) bool; None: all. A sample without any has no text.

        Returns:
            (B, C, H, W), or (B, 2C, H, W) with a learned variance, in the dtype of x.

        Raises:
            ValueError: shapes that do not fit the network, a label for an unconditional network, or one out of range;
                a text for a network without.
        """
        h, embedding, context = self.first(x, log_snr, label, text, text_mask)
        if len(self.encoder) > 1:
            h = self.below(h, embedding, context) + h
        return self.last(h, embedding, context, x)

    def first(
        self,
        x: Tensor,
        log_snr: Tensor,
        label: Tensor | None = None,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Context | None]:
        """The features of the first level of the encoder, and what `conditioned` makes."""
        if not torch.compiler.is_compiling():  # compiled code cannot read values
            self.check(x, log_snr, label, text, text_mask)
        embedding, context = self.conditioned(log_snr, label, text, text_mask)
        h = self.stem(self.patches(x.to(self.stem.weight.dtype)))
        return self.encoder[0](h, embedding, context), embedding, context

    def below(self, h: Tensor, embedding: Tensor, context: Context | None) -> Tensor:
        """What the levels below the first add to its features."""
        skips = []
        for stage in list(self.encoder)[1:]:
            h = stage(h, embedding, context)
            skips.append(h)
        h = skips.pop()
        for i, stage in enumerate(list(self.decoder)[:-1]):
            if i:
                h = F.interpolate(self.up[i - 1](h), scale_factor=2.0) + skips.pop()
            h = stage(h, embedding, context)
        return F.interpolate(self.up[-1](h), scale_factor=2.0)

    def last(self, h: Tensor, embedding: Tensor, context: Context | None, x: Tensor) -> Tensor:
        """The last level of the decoder and the head: the prediction, in size and dtype of x."""
        return self.pixels(self.head(self.decoder[-1](h, embedding, context)), x.shape[-2:]).to(x.dtype)

    def conditioned(
        self, log_snr: Tensor, label: Tensor | None, text: Tensor | None, text_mask: Tensor | None
    ) -> tuple[Tensor, Context | None]:
        """The embedding (B, E), and for a network with text the tokens that attention reads."""
        if self.text is None:
            return self.embedding(log_snr, label), None
        context, pooled = self.text(text, text_mask, log_snr.shape[0])
        return self.embedding(log_snr, label, pooled), context

    def patches(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) as patches, (B, C p^2, H'/p, W'/p), in channels-last memory.

        H' and W' are multiples of p 2^(levels - 1): the last row and column are repeated.
        """
        x = padded(x, self.multiple)
        return F.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last)

    def pixels(self, h: Tensor, size: Sequence[int]) -> Tensor:
        """The inverse of `patches`, for images of `size`, (H, W)."""
        return F.pixel_shuffle(h, self.patch)[..., : size[0], : size[1]]

    def check(
        self,
        x: Tensor,
        log_snr: Tensor,
        label: Tensor | None,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> None:
        """Raises ValueError as `forward`."""
        if x.ndim != 4 or x.shape[1] != self.channels or 0 in x.shape[2:]:
            raise ValueError(f"x is {tuple(x.shape)}, but this net takes (B, {self.channels}, H, W)")
        check_log_snr(log_snr, len(x))
        self.embedding.check(label, len(x))
        check_text(self.text, text, text_mask, len(x))

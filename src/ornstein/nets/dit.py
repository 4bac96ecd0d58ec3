"""A diffusion transformer: images and clips as sequences of patches, modulated by log-SNR, class and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ornstein.nets.blocks import attend, zeroed
from ornstein.nets.conditions import TEXT, Context, Embedding, TextTokens, check_log_snr, check_text
from ornstein.nets.recorded import Recorded
from ornstein.nets.sizes import padded, reference, sides
from ornstein.nets.video import HELD, Conditioning, check_conditioning, check_known, clean_frames
from ornstein.nets.widths import Widths

__all__ = ["DIT_PRESETS", "DiT"]

DIT_PRESETS = {"xs": (64, 6, 2), "s": (96, 8, 3), "m": (144, 9, 3), "l": (256, 12, 4)}
"""By name: width, blocks, heads."""

_TOKENS = 16  # a side of an image, by which a preset chooses its patches
_PERIOD = 100.0  # of the slowest rotation, in patches / 2 pi


class DiT(Recorded):
    """Network `(x, log_snr, label, known, known_mask, text, text_mask) -> (B, C, [F,] H, W)` of images or clips.

    Patches of `patch` pixels become tokens. Each block is self-attention and an MLP; the embedding of log-SNR and class
    gives the scale, shift and gate of both (adaLN-zero). Queries and keys have unit RMS and are rotated by the position
    of their patch (RoPE over rows, columns and frames), so that only distances of positions matter and other sizes are
    taken. A few register tokens without a place hold what belongs to no patch. The tokens of a text are part of the
    same sequence (joint attention). Gates and head start at zero: an untrained network returns 0.

    For clips, with `frames`, all tokens of a clip attend to each other (time="full"), or those of a frame and then
    those of a place, in turn (time="factorised").

    Args:
        channels: C.
        size: (H, W) that it is made for, or the side; recorded, any other size is taken and padded inside.
        classes: number of classes; 0 for an unconditional network.
        frames: the largest number of frames of clips; 0 for images.
        patch: side of the patches in pixels.
        width: of the tokens.
        depth: number of blocks.
        heads: of attention; divides `width` into even parts.
        registers: how many register tokens.
        time: how the frames of clips attend.
        conditioning: take known frames, as `VideoUNet`.
        dropout: probability of dropping a feature of the MLPs.
        learned_variance: return 2C channels, as `UNet`.
        text_width: D of the token states of a text; 0 for a network without text.
        widths: of parts that were pruned, by name (`ornstein.compress`): "blocks.0.heads" and "across.0.heads", the
            heads of a block, and "blocks.0.mlp", the hidden features of its MLP; 0 leaves the attention or the MLP out.

    Raises:
        ValueError: an argument is out of range; `heads` does not divide `width` into even parts.

    Source: Peebles & Xie 2023 (arXiv:2212.09748), adaLN-zero; Su et al. 2021 (arXiv:2104.09864), rotary positions;
    Esser et al. 2024 (arXiv:2403.03206), joint attention and normalised queries and keys; Darcet et al. 2024
    (arXiv:2309.16588), registers.
    """

    places_conditions = True  # conditions may be on any device

    def __init__(
        self,
        channels: int,
        size: int | Sequence[int],
        classes: int = 0,
        *,
        frames: int = 0,
        patch: int = 2,
        width: int = 96,
        depth: int = 8,
        heads: int = 3,
        registers: int = 4,
        time: Literal["full", "factorised"] = "factorised",
        conditioning: Conditioning = False,
        dropout: float = 0.0,
        learned_variance: bool = False,
        text_width: int = 0,
        widths: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        positive = min(channels, *sides(size), patch, width, depth, heads)
        if positive < 1 or min(classes, frames, registers, text_width) < 0:
            raise ValueError(
                "channels, size, patch, width, depth and heads must be positive, the other numbers not negative"
            )
        if width % (2 * heads):
            raise ValueError(f"{heads} heads do not divide the width {width} into even parts")
        if time not in ("full", "factorised"):
            raise ValueError(f"time is full or factorised, not {time!r}")
        check_conditioning(conditioning)
        if conditioning and not frames:
            raise ValueError("conditioning takes known frames, and images have none: give frames")
        self.channels, self.classes, self.frames, self.patch, self.heads = channels, classes, frames, patch, heads
        self.factorised = bool(frames) and time == "factorised"
        self.embedding = Embedding(classes, width)
        self.text = TextTokens(text_width, width, width) if text_width else None
        self.stem = nn.Linear(channels * patch**2, width)
        # Without a bias, so that an empty mask is the same as no mask.
        given = zeroed(nn.Linear((channels + 1) * patch**2, width, bias=False)) if conditioning else None
        self.given = given
        self.registers = nn.Parameter(torch.randn(registers, width) * width**-0.5)
        if widths is None:
            self.config.pop("widths", None)  # a network that is not pruned is described as before there were such
        kept, each = Widths(widths), width // heads
        self.blocks = nn.ModuleList(
            DiTBlock(
                width, kept.of(f"blocks.{i}.heads", heads, least=0), dropout, each=each,
                hidden=kept.of(f"blocks.{i}.mlp", 4 * width, least=0),
            )
            for i in range(depth)
        )  # fmt: skip
        self.across = nn.ModuleList(
            DiTBlock(width, kept.of(f"across.{i}.heads", heads, least=0), dropout, each=each, hidden=0)
            for i in range(depth * self.factorised)
        )
        kept.check()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        outputs = (2 * channels if learned_variance else channels) * patch**2
        self.head = zeroed(nn.Linear(width, outputs))

    @classmethod
    def preset(cls, name: str, *, patch: int | None = None, **settings: Any) -> DiT:
        """A network of one of four sizes: "xs", "s", "m" or "l".

        Args:
            name: of the preset.
            patch: by default the power of two with at most 16 x 16 patches, or about as many in a rectangle.
            settings: channels and size; optionally the other arguments of the constructor.

        Raises:
            ValueError: no such preset, or as the constructor.
        """
        if name not in DIT_PRESETS:
            raise ValueError(f"no preset {name!r}: choose one of {', '.join(DIT_PRESETS)}")
        width, depth, heads = DIT_PRESETS[name]
        if patch is None:
            patch = 1
            while patch * _TOKENS < reference(settings["size"]):
                patch *= 2
        given: dict[str, Any] = {"width": width, "depth": depth, "heads": heads, "patch": patch} | settings
        return cls(**given)

    @property
    def without(self) -> tuple[str, ...]:
        """Conditions of `forward` that this network was made without."""
        return TEXT if self.text is None else ()

    def forward(
        self,
        x: Tensor,
        log_snr: Tensor,
        label: Tensor | None = None,
        known: Tensor | None = None,
        known_mask: Tensor | None = None,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """The network's prediction.

        Args:
            x: images (B, C, H, W), or clips (B, C, F, H, W) for a network with frames.
            log_snr: (B,) nats, as of `UNet`.
            label: class indices (B,), as of `UNet`.
            known, known_mask: known frames, as of `VideoUNet`.
            text, text_mask: states of tokens and which there are, as of `UNet`.

        Returns:
            As x, or with 2C channels with a learned variance, in the dtype of x.

        Raises:
            ValueError: shapes that do not fit the network, a wrong label, or a condition that it does not take.
        """
        if not torch.compiler.is_compiling():
            self.check(x, log_snr, label, known, known_mask, text, text_mask)
        dtype, (height, width) = self.stem.weight.dtype, x.shape[-2:]
        clips = x if self.frames else x[:, :, None]
        h, grid = self._tokens(clips.to(dtype))
        h = self.stem(h)
        if self.given is not None and known is not None and known_mask is not None:
            held = self.config["conditioning"] == HELD
            h = h + self.given(self._tokens(clean_frames(known, known_mask, dtype, x.device, held))[0])
        context, pooled = (None, None) if self.text is None else self.text(text, text_mask, x.shape[0])
        embedding = self.embedding(log_snr, label, pooled)
        h = (
            self._factorised(h, grid, embedding, context)
            if self.factorised
            else self._full(h, grid, embedding, context)
        )
        scale, shift = self.modulation(embedding)[:, None].chunk(2, dim=-1)
        out = self.head(self.norm(h) * (1 + scale) + shift)
        out = out.unflatten(1, grid).unflatten(-1, (-1, self.patch, self.patch))  # (B, F, h, w, C, p, p)
        out = out.permute(0, 4, 1, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)
        out = out[..., :height, :width].to(x.dtype)
        return out if self.frames else out[:, :, 0]

    def _tokens(self, clips: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """Patches (B, F h w, C p^2) of clips (B, C, F, H, W), and (F, h, w)."""
        images = clips.transpose(1, 2)
        if any(side % self.patch for side in clips.shape[-2:]):
            images = padded(images.flatten(0, 1), self.patch).unflatten(0, (-1, clips.shape[2]))
        patches = F.pixel_unshuffle(images, self.patch)
        grid = (clips.shape[2], patches.shape[3], patches.shape[4])
        return patches.permute(0, 1, 3, 4, 2).flatten(1, 3), grid

    def _beside(self, batch: int, context: Context | None) -> tuple[Tensor, Tensor | None]:
        """The tokens without a place (B, N, width), registers and text, and the bias of attention to them."""
        registers = self.registers.expand(batch, -1, -1)
        if context is None:
            return registers, None
        tokens, bias = context
        return torch.cat([registers, tokens], 1), F.pad(bias, (registers.shape[1], 0))

    def _full(self, h: Tensor, grid: tuple[int, int, int], embedding: Tensor, context: Context | None) -> Tensor:
        beside, bias = self._beside(h.shape[0], context)
        n = beside.shape[1]
        rotation = self._rotation(grid, (0, 1, 2) if self.frames else (1, 2), n, h)
        bias = None if bias is None else F.pad(bias, (0, h.shape[1]))
        h = torch.cat([beside, h], 1)
        for block in self.blocks:
            h = block(h, embedding, rotation, bias)
        return h[:, n:]

    def _factorised(self, h: Tensor, grid: tuple[int, int, int], embedding: Tensor, context: Context | None) -> Tensor:
        batch, (frames, rows, columns) = h.shape[0], grid
        beside, bias = self._beside(batch, context)
        n = beside.shape[1]
        space = self._rotation((1, rows, columns), (1, 2), n, h)
        time = self._rotation((frames, 1, 1), (0,), 0, h)
        bias = None if bias is None else F.pad(bias, (0, rows * columns)).repeat_interleave(frames, 0)
        h = h.unflatten(1, (frames, -1)).flatten(0, 1)  # (B F, h w, width)
        h = torch.cat([beside.repeat_interleave(frames, 0), h], 1)
        each_frame, each_place = embedding.repeat_interleave(frames, 0), embedding.repeat_interleave(h.shape[1], 0)
        for within, across in zip(self.blocks, self.across, strict=True):
            h = within(h, each_frame, space, bias)
            places = h.unflatten(0, (batch, frames)).transpose(1, 2).flatten(0, 1)
            h = across(places, each_place, time).unflatten(0, (batch, -1)).transpose(1, 2).flatten(0, 1)
        return h[:, n:].unflatten(0, (batch, frames)).flatten(1, 2)

    def _rotation(self, grid: tuple[int, int, int], axes: Sequence[int], beside: int, like: Tensor) -> Rotation:
        """The rotations of tokens on a grid (F, h, w) by their places along `axes`.

        The `beside` tokens before them have no place and are not turned.
        """
        pairs = self.stem.weight.shape[0] // self.heads // 2
        share = [pairs // len(axes) + (i < pairs % len(axes)) for i in range(len(axes))]
        lines = (torch.arange(n, dtype=torch.float32, device=like.device) for n in grid)
        places = torch.meshgrid(*lines, indexing="ij")
        angles = []
        for axis, count in zip(axes, share, strict=True):
            speed = _PERIOD ** -(torch.arange(count, dtype=torch.float32, device=like.device) / max(count, 1))
            angles.append(places[axis].reshape(-1, 1) * speed)
        angle = F.pad(torch.cat(angles, 1), (0, 0, beside, 0))
        return Rotation(angle.cos().to(like.dtype), angle.sin().to(like.dtype))

    def check(
        self,
        x: Tensor,
        log_snr: Tensor,
        label: Tensor | None,
        known: Tensor | None,
        known_mask: Tensor | None,
        text: Tensor | None,
        text_mask: Tensor | None,
    ) -> None:
        """Raises ValueError as `forward`."""
        form = f"(B, {self.channels}, F, H, W)" if self.frames else f"(B, {self.channels}, H, W)"
        if x.ndim != (5 if self.frames else 4) or x.shape[1] != self.channels or 0 in x.shape[2:]:
            raise ValueError(f"x is {tuple(x.shape)}, but this net takes {form}")
        if self.frames and x.shape[2] > self.frames:
            raise ValueError(f"a clip of {x.shape[2]} frames, but this net was made for up to {self.frames}")
        check_log_snr(log_snr, len(x))
        self.embedding.check(label, len(x))
        check_text(self.text, text, text_mask, len(x))
        check_known(self.given is not None, x, known, known_mask)


class Rotation(NamedTuple):
    """Cosines and sines (N, D / 2) of the angles by which pairs of features, i and D/2 + i, of N tokens are turned."""

    cosine: Tensor
    sine: Tensor

    def turn(self, x: Tensor) -> Tensor:
        """x (..., N, D)."""
        a, b = x.chunk(2, dim=-1)
        cosine, sine = self.cosine.to(x.dtype), self.sine.to(x.dtype)
        return torch.cat([a * cosine - b * sine, b * cosine + a * sine], -1)


class DiTBlock(nn.Module):
    """Self-attention and an MLP, each with scale, shift and gate from the embedding; the gates start at zero.

    `each` is the width of a head, by default `width` / `heads`; `hidden` that of the MLP, by default 4 `width`. Without
    heads there is no attention, and without hidden features no MLP.
    """

    def __init__(
        self, width: int, heads: int, dropout: float = 0.0, *, each: int | None = None, hidden: int | None = None
    ) -> None:
        super().__init__()
        each = width // heads if each is None else each
        hidden = 4 * width if hidden is None else hidden
        self.heads, self.hidden = heads, hidden
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.parts = 3 * (bool(heads) + bool(hidden))
        if self.parts:
            self.modulation = zeroed(nn.Linear(width, self.parts * width))
        if heads:
            self.qkv = nn.Linear(width, 3 * heads * each)
            self.temperature = nn.Parameter(torch.ones(2, heads, 1, each))  # of queries and keys
            self.out = nn.Linear(heads * each, width)
        if hidden:
            self.up = nn.Linear(width, hidden)
            self.dropout = nn.Dropout(dropout)
            self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor, embedding: Tensor, rotation: Rotation, bias: Tensor | None = None) -> Tensor:
        """x (B, N, width), embedding (B, E), bias (B, 1, 1, N) of the scores."""
        if not self.parts:
            return x
        rest = self.modulation(embedding)[:, None].chunk(self.parts, dim=-1)
        if self.heads:
            scale, shift, gate, *rest = rest
            x = x + gate * self._attention(self.norm(x) * (1 + scale) + shift, rotation, bias)
        if self.hidden:
            scale, shift, gate = rest
            h = F.gelu(self.up(self.norm(x) * (1 + scale) + shift), approximate="tanh")
            x = x + gate * self.down(self.dropout(h))
        return x

    def _attention(self, x: Tensor, rotation: Rotation, bias: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        of_queries, of_keys = self.temperature.to(q.dtype)
        # The scale of the scores is in the queries, which are fewer numbers.
        q = rotation.turn(_normalised(q) * (of_queries * q.shape[-1] ** -0.5))
        k = rotation.turn(_normalised(k) * of_keys)
        mixed = attend(q, k, v, None if bias is None else bias.to(q.dtype), scale=1.0)
        return self.out(mixed.transpose(1, 2).flatten(2))


def _normalised(x: Tensor) -> Tensor:
    """x of unit root mean square along its last axis, in its own dtype."""
    return x * (x.float().square().mean(-1, keepdim=True) + 1e-6).rsqrt().to(x.dtype)

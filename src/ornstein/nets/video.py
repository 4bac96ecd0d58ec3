"""A U-Net for clips: the image U-Net frame by frame, and layers along time between its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ornstein.nets.blocks import Attention, attend, group_norm, heads_of, zeroed
from ornstein.nets.conditions import TEXT, Context
from ornstein.nets.recorded import Recorded
from ornstein.nets.sizes import reference
from ornstein.nets.unet import UNet

__all__ = [
    "HELD",
    "Conditioning",
    "Temporal",
    "TemporalAttention",
    "VideoUNet",
    "check_conditioning",
    "check_known",
    "clean_frames",
    "folded",
    "frames_known",
    "known_masks",
]

HELD = "held"
Conditioning = bool | Literal["held"]
"""Whether a network takes known frames, and what it sees in the place of unknown ones: 0, or the nearest known one."""


class VideoUNet(Recorded):
    """Network `(x, log_snr, label, known, known_mask) -> (B, C, F, H, W)` for clips of up to `frames` frames.

    Factorised space-time: each residual block of the image `UNet` processes one frame, with the frames in the batch
    axis. After it a convolution over three frames, and at the resolutions of `temporal_attention` self-attention over
    all frames of a pixel, pass information along time. Both start at zero, so that a network made by `from_image`
    first returns what its image network does, frame by frame. Positions enter only by the distance of two frames (a
    learned bias): a shorter clip is treated as part of a longer one.

    With `conditioning` the network takes known frames: they and their mask are further input channels. In place of an
    unknown frame stands the nearest known one ("held"), or 0 (True, as in networks of earlier versions). The noise of a
    known frame is x - a known; if the noise is correlated over frames, it carries information on the noise
    of the other frames.

    Args:
        channels: C of the clips.
        size: H = W of the frames in pixels, or (H, W), as of `UNet`.
        frames: the largest number of frames; shorter clips are allowed.
        classes: number of classes; 0 for an unconditional network.
        temporal_attention: the resolutions with attention over frames; None for those of `attention`.
        conditioning: take known frames: "held" or True, see above.
        image: further arguments of the image `UNet`: patch, width, multipliers, depths, attention, dropout,
            learned_variance, text_width, widths.

    Raises:
        ValueError: an argument is out of range.

    Source: Ho et al. 2022 (arXiv:2204.03458), section 3, factorised space-time U-Net; Blattmann et al. 2023
    (arXiv:2304.08818), section 3.1, temporal layers in an image model; Shaw et al. 2018 (arXiv:1803.02155), relative
    positions.
    """

    places_conditions = True  # labels and known frames may be on any device

    def __init__(
        self,
        channels: int,
        size: int | Sequence[int],
        frames: int,
        classes: int = 0,
        *,
        temporal_attention: Sequence[int] | None = None,
        conditioning: Conditioning = False,
        **image: Any,
    ) -> None:
        super().__init__()
        if frames < 1:
            raise ValueError(f"a clip has at least 1 frame, not {frames}")
        check_conditioning(conditioning)
        self.image = UNet(channels, size, classes, **image)
        settings = self.image.config
        across = settings["attention"] if temporal_attention is None else list(temporal_attention)
        self.config = settings | {"frames": frames, "temporal_attention": across, "conditioning": conditioning}
        self.frames = frames
        full = [settings["width"] * m for m in settings["multipliers"]]
        widths = [settings.get("widths", {}).get(name, n) for name, n in zip(self.image.streams[1:], full, strict=True)]
        levels = range(len(widths))
        embedding = 4 * settings["width"]
        patch = self.image.patch
        side = -(-reference(size) // patch)

        def between(level: int) -> nn.ModuleList:
            attention = frames if -(-side >> level) in across else 0
            about = (widths[level], embedding, attention, full[level])
            layers = (Temporal(*about) for _ in range(settings["depths"][level]))
            return nn.ModuleList(layers)

        self.encoder = nn.ModuleList(between(level) for level in levels)
        self.decoder = nn.ModuleList(between(level) for level in reversed(levels))
        # The stem for the channels [known frames, mask]: one convolution over all channels is a sum of convolutions.
        # Without a bias, so that an empty mask is the same as no mask.
        given = (channels + 1) * patch**2
        stem = self.image.stem.out_channels
        self.given = zeroed(nn.Conv2d(given, stem, 3, padding=1, bias=False)) if conditioning else None
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (missing from the stubs)

    @classmethod
    def preset(cls, name: str, *, frames: int, conditioning: Conditioning = False, **image: Any) -> VideoUNet:
        """A network around the `UNet` of that preset, without patches unless given.

        Attention over frames is used at the resolutions at which the image network attends. A training step takes 1.3
        to 1.4 times as long as that of the image network on the same frames: for "xs" with 8 clips of 16 frames at
        32x32, in bf16 on one core, 0.7 s and 0.5 s.

        Raises:
            ValueError: no such preset, or as the constructor.
        """
        settings: dict[str, Any] = {"patch": 1} | image
        return cls(**UNet.preset_config(name, **settings), frames=frames, conditioning=conditioning)

    @classmethod
    def from_image(cls, image: UNet, frames: int, *, conditioning: Conditioning = False) -> VideoUNet:
        """A network with the weights of an image network; untrained, it treats each frame as that one does."""
        net = cls(**image.config, frames=frames, conditioning=conditioning)
        net.image.load_state_dict(image.state_dict())
        return net

    @property
    def without(self) -> tuple[str, ...]:
        """Conditions of `forward` that this network was made without."""
        return TEXT if self.image.text is None else ()

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
            x: clips (B, C, F, H, W).
            log_snr: (B,) nats, as of `UNet`.
            label: class indices (B,), as of `UNet`.
            known: clips (B, C, F, H, W) with clean frames where known_mask is true; the other frames are not read.
            known_mask: (B, F) bool. Without `known` and `known_mask` no frame is known.
            text, text_mask: as of `UNet`.

        Returns:
            (B, C, F, H, W), or (B, 2C, F, H, W) with a learned variance, in the dtype of x.

        Raises:
            ValueError: shapes that do not fit the network, more frames than it was made for, a wrong label, one of
                known and known_mask without the other, or either for a network without conditioning.
        """
        h, per_frame, embedding = self.first(x, log_snr, label, known, known_mask, text, text_mask)
        if len(self.encoder) > 1:
            h = self.below(h, per_frame, embedding) + h
        return self.last(h, per_frame, embedding, x)

    def first(
        self,
        x: Tensor,
        log_snr: Tensor,
        label: Tensor | None = None,
        known: Tensor | None = None,
        known_mask: Tensor | None = None,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> tuple[Tensor, _Frames, Tensor]:
        """The features (B F, C, H, W) of the first level of the encoder; the embeddings of frames and of clips."""
        self.check(x, log_snr, label, known, known_mask, text, text_mask)
        image, frames = self.image, x.shape[2]
        dtype = image.stem.weight.dtype
        embedding, context = image.conditioned(log_snr, label, text, text_mask)
        per_frame = _Frames(
            embedding.repeat_interleave(frames, dim=0),
            None
            if context is None
            else (context[0].repeat_interleave(frames, 0), context[1].repeat_interleave(frames, 0)),
        )

        h = image.stem(image.patches(folded(x.to(dtype))))
        if self.given is not None and known is not None and known_mask is not None:
            held = self.config["conditioning"] == HELD
            h = h + self.given(image.patches(folded(clean_frames(known, known_mask, dtype, x.device, held))))
        return _stage(image.encoder[0], self.encoder[0], h, per_frame, embedding), per_frame, embedding

    def below(self, h: Tensor, per_frame: _Frames, embedding: Tensor) -> Tensor:
        """What the levels below the first add to its features."""
        image, skips = self.image, []
        for stage, between in zip(list(image.encoder)[1:], list(self.encoder)[1:], strict=True):
            h = _stage(stage, between, h, per_frame, embedding)
            skips.append(h)
        h = skips.pop()
        for i, (stage, between) in enumerate(zip(list(image.decoder)[:-1], list(self.decoder)[:-1], strict=True)):
            if i:
                h = F.interpolate(image.up[i - 1](h), scale_factor=2.0) + skips.pop()
            h = _stage(stage, between, h, per_frame, embedding)
        return F.interpolate(image.up[-1](h), scale_factor=2.0)

    def last(self, h: Tensor, per_frame: _Frames, embedding: Tensor, x: Tensor) -> Tensor:
        """The last level of the decoder and the head: the prediction, in size and dtype of x."""
        image, frames = self.image, x.shape[2]
        h = _stage(image.decoder[-1], self.decoder[-1], h, per_frame, embedding)
        return image.pixels(image.head(h), x.shape[-2:]).unflatten(0, (-1, frames)).transpose(1, 2).to(x.dtype)

    def check(
        self,
        x: Tensor,
        log_snr: Tensor,
        label: Tensor | None,
        known: Tensor | None,
        known_mask: Tensor | None,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> None:
        """Raises ValueError as `forward`."""
        if x.ndim != 5 or x.shape[1] != self.image.channels or 0 in x.shape[2:]:
            raise ValueError(f"x is {tuple(x.shape)}, but this net takes (B, {self.image.channels}, F, H, W)")
        if x.shape[2] > self.frames:
            raise ValueError(f"a clip of {x.shape[2]} frames, but this net was made for up to {self.frames}")
        if not torch.compiler.is_compiling():
            self.image.check(x[:, :, 0], log_snr, label, text, text_mask)
        check_known(self.given is not None, x, known, known_mask)


class Temporal(nn.Module):
    """Layers along time: a convolution over three frames, then self-attention over the frames of each pixel.

    Works on frames in the batch axis, (B F, C, H, W), with one embedding (B, E) a clip. Starts as the identity.

    Args:
        channels: C.
        embedding: E.
        frames: largest number of frames that attend to each other; 0 for no attention.
        width: of the queries; C unless the network was pruned.
    """

    def __init__(self, channels: int, embedding: int, frames: int, width: int | None = None) -> None:
        super().__init__()
        self.norm = group_norm(channels, affine=False)
        self.modulation = nn.Linear(embedding, 2 * channels)
        self.conv = zeroed(nn.Conv2d(channels, channels, (3, 1), padding=(1, 0)))
        self.attention = TemporalAttention(channels, frames, width) if frames else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        batch = embedding.shape[0]  # not len(), which would fix it in an export
        modulation = self.modulation(embedding).repeat_interleave(x.shape[0] // batch, dim=0)
        scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
        h = F.silu(self.norm(x) * (1 + scale) + shift)
        # (B, C, F, HW): an image whose rows are the frames. In channels-last memory none of this moves data.
        h = self.conv(h.unflatten(0, (batch, -1)).transpose(1, 2).flatten(3))
        x = x + h.transpose(1, 2).unflatten(3, x.shape[2:]).flatten(0, 1)
        return x if self.attention is None else self.attention(x, batch)


class TemporalAttention(Attention):
    """Self-attention over the frames of each pixel, with a learned bias b[head, j - i] of frame i for frame j."""

    def __init__(self, channels: int, frames: int, width: int | None = None) -> None:
        super().__init__(channels, width, heads_of(channels if width is None else width))
        self.frames = frames
        self.bias = nn.Parameter(torch.zeros(self.heads, 2 * frames - 1))

    def forward(self, x: Tensor, batch: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """x (B F, C, H, W) of `batch` clips."""
        frames = x.shape[0] // batch
        tokens = self.norm(x).unflatten(0, (batch, frames)).flatten(3).permute(0, 3, 1, 2)  # (B, HW, F, C)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        index = torch.arange(frames, device=x.device)
        bias = self.bias[:, index[None] - index[:, None] + self.frames - 1].to(q.dtype)
        out = self.out(attend(q, k, v, bias).transpose(2, 3).flatten(3))  # (B, HW, F, C)
        return x + out.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, x.shape[2:])


def clean_frames(
    known: Tensor, known_mask: Tensor, dtype: torch.dtype, device: torch.device, held: bool = False
) -> Tensor:
    """[known frames, mask] as channels (B, C + 1, F, H, W), from clips (B, C, F, H, W) and a mask (B, F) bool.

    In place of an unknown frame stands 0, or, if `held`, the nearest known one, of two the earlier; 0 if none is known.
    """
    mask = known_mask.to(device, non_blocking=True)
    shown, frames = mask, known.to(device, dtype, non_blocking=True)
    if held:
        at = torch.arange(mask.shape[1], device=device)
        apart = torch.where(mask[:, None], (at[:, None] - at).abs().float(), torch.inf)  # (B, F, known)
        frames = frames.gather(2, apart.argmin(2)[:, None, :, None, None].expand_as(frames))
        shown = mask.any(1, keepdim=True).expand_as(mask)
    # where, not a product: unknown frames may hold anything, even NaN
    clean = torch.where(shown[:, None, :, None, None], frames, 0.0)
    return torch.cat([clean, mask.to(dtype)[:, None, :, None, None].expand_as(clean[:, :1])], dim=1)


def check_conditioning(conditioning: object) -> None:
    """Raise ValueError unless it is one of `Conditioning`."""
    if conditioning not in (True, False, HELD):
        raise ValueError(f"conditioning is true, false or {HELD!r}, not {conditioning!r}")


def check_known(conditioning: bool, x: Tensor, known: Tensor | None, known_mask: Tensor | None) -> None:
    """Raise ValueError for known frames that a network does not take, or that do not fit x (B, C, F, H, W)."""
    if (known is None) != (known_mask is None):
        raise ValueError("known and known_mask go together: one was given without the other")
    if known is None or known_mask is None:
        return
    if not conditioning:
        raise ValueError("known frames were given, but this net was made without conditioning: leave them out")
    if known.shape != x.shape or known_mask.shape != (len(x), x.shape[2]) or known_mask.dtype != torch.bool:
        raise ValueError(
            f"known is {tuple(known.shape)} and known_mask {known_mask.dtype} {tuple(known_mask.shape)}; they must "
            f"be {tuple(x.shape)} and bool {(len(x), x.shape[2])}"
        )


def folded(clips: Tensor) -> Tensor:
    """Clips (B, C, F, H, W) as images (B F, C, H, W) in channels-last memory."""
    return clips.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)


class _Frames(NamedTuple):
    """The embedding and the tokens of each frame."""

    embedding: Tensor
    context: Context | None


def _stage(stage: nn.Module, between: nn.Module, h: Tensor, per_frame: _Frames, embedding: Tensor) -> Tensor:
    assert isinstance(stage, nn.ModuleList) and isinstance(between, nn.ModuleList)
    for block, temporal in zip(stage, between, strict=True):
        h = temporal(block(h, per_frame.embedding, per_frame.context), embedding)
    return h


def known_masks(batch: int, frames: int, generator: torch.Generator) -> Tensor:
    """Which frames are known in training, (B, F) bool: none, the first k, both ends, or frames at random.

    Four kinds, each with probability 1/4; k is uniform in 1..F-1. So one network generates (none), predicts (first k)
    and interpolates (both ends). At least one frame is always unknown.

    Raises:
        ValueError: fewer than 2 frames.
    """
    if frames < 2:
        raise ValueError(f"known frames need clips of at least 2 frames, not {frames}")

    def draw() -> Tensor:
        return torch.rand(batch, 1, generator=generator, device=generator.device)

    frame = torch.arange(frames, device=generator.device)[None]
    kind = (4 * draw()).floor()
    k = 1 + ((frames - 1) * draw()).floor()
    head = 1 + ((k - 1) * draw()).floor()  # both ends: of k known frames, 1..k-1 are at the front
    order = torch.rand(batch, frames, generator=generator, device=generator.device).argsort(1)
    first, ends = frame < k, (frame < head) | (frame >= frames - (k - head))
    return torch.where(kind == 0, False, torch.where(kind == 1, first, torch.where(kind == 2, ends, order < k)))


def frames_known(frames: int, first: int = 0, last: int = 0) -> Tensor:
    """The mask (F,) bool of the `first` and `last` frames of a clip: prediction, or interpolation with both.

    Raises:
        ValueError: none or all of the frames would be known.
    """
    if min(first, last) < 0 or not 0 < first + last < frames:
        raise ValueError(f"of {frames} frames, {first} first and {last} last cannot be known: know some, not all")
    frame = torch.arange(frames)
    return (frame < first) | (frame >= frames - last)

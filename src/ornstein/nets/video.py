"""A U-Net for clips: the image U-Net frame by frame, and between its blocks layers that look along time."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ornstein.nets.blocks import Attention, group_norm, zeroed
from ornstein.nets.unet import UNet


class VideoUNet(nn.Module):
    """Network `(x, log_snr, label, known, known_mask) -> (B, C, F, H, W)` for clips of up to `frames` frames.

    Factorised space-time: each residual block of the image `UNet` sees one frame, as if the frames were a batch; after
    it a convolution over three frames, and at the resolutions of `temporal_attention` attention over all frames of a
    pixel, carry information along time. Both start at zero, so that a net made by `from_image` answers as its image
    net does, frame by frame. Position enters by the distance between two frames alone (a learned bias), so that
    shorter clips are seen as a part of longer ones.

    With `conditioning` the net takes frames that are given: `known` * mask and the mask are further input channels.
    The noise of a known frame is x - a known; where the noise is correlated over frames it tells of its neighbours'.

    Args:
        channels, size, classes, patch, width, multipliers, depths, attention, dropout, learned_variance: as of `UNet`.
        frames: the largest number of frames; any number up to it can be given.
        temporal_attention: the resolutions with attention over frames; None for those of `attention`.
        conditioning: whether the net takes known frames.

    Raises:
        ValueError: an argument is out of range, or `size` does not divide.

    Source: Ho et al. 2022 (arXiv:2204.03458), section 3, factorised space-time U-Net; Blattmann et al. 2023
    (arXiv:2304.08818), section 3.1, temporal layers in an image model; Shaw et al. 2018 (arXiv:1803.02155), relative
    positions.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        frames: int,
        classes: int = 0,
        *,
        patch: int = 1,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        depths: Sequence[int] = (1, 2, 2),
        attention: Sequence[int] = (8,),
        dropout: float = 0.0,
        temporal_attention: Sequence[int] | None = None,
        conditioning: bool = False,
        learned_variance: bool = False,
    ) -> None:
        super().__init__()
        if frames < 1:
            raise ValueError(f"a clip has at least 1 frame, not {frames}")
        self.image = UNet(
            channels,
            size,
            classes,
            patch=patch,
            width=width,
            multipliers=multipliers,
            depths=depths,
            attention=attention,
            dropout=dropout,
            learned_variance=learned_variance,
        )
        across = attention if temporal_attention is None else temporal_attention
        self.config: dict[str, Any] = self.image.config | {
            "frames": frames,
            "temporal_attention": list(across),
            "conditioning": conditioning,
        }
        widths = [width * m for m in multipliers]
        levels = range(len(widths))
        embedding = 4 * width

        def between(level: int) -> nn.ModuleList:
            attend = frames if size // patch >> level in across else 0
            return nn.ModuleList(Temporal(widths[level], embedding, attend) for _ in range(depths[level]))

        self.encoder = nn.ModuleList(between(level) for level in levels)
        self.decoder = nn.ModuleList(between(level) for level in reversed(levels))
        # the stem's part for the channels [known * mask, mask]: a sum of convolutions is one over all channels. Without
        # a bias, so that no known frames and none given are the same.
        given = (channels + 1) * patch**2
        self.given = zeroed(nn.Conv2d(given, width, 3, padding=1, bias=False)) if conditioning else None
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (missing from the stubs)

    @classmethod
    def preset(
        cls,
        name: str,
        *,
        channels: int,
        size: int,
        frames: int,
        classes: int = 0,
        conditioning: bool = False,
        learned_variance: bool = False,
    ) -> "VideoUNet":
        """A net around the `UNet` of that preset without patches, which it raises ValueError for where there is none.

        Attention over frames stands where the image net attends. A training step takes 1.3 to 1.4 times as long as the
        image net's on the same frames: of "xs" with 8 clips of 16 frames at 32x32, in bf16 on one core, 0.7 s against
        0.5 s.
        """
        image = UNet.preset(
            name, channels=channels, size=size, classes=classes, patch=1, learned_variance=learned_variance
        )
        return cls(**image.config, frames=frames, conditioning=conditioning)

    @classmethod
    def from_image(cls, image: UNet, frames: int, *, conditioning: bool = False) -> "VideoUNet":
        """A net with the weights of an image net: until it is trained, it treats each frame as that one does."""
        net = cls(**image.config, frames=frames, conditioning=conditioning)
        net.image.load_state_dict(image.state_dict())
        return net

    def forward(
        self,
        x: Tensor,
        log_snr: Tensor,
        label: Tensor | None = None,
        known: Tensor | None = None,
        known_mask: Tensor | None = None,
    ) -> Tensor:
        """The raw prediction (B, C or 2C, F, H, W) from clips x (B, C, F, H, W), log_snr (B,) and label (B,).

        It is in x's dtype. known (B, C, F, H, W) holds clean frames where known_mask (B, F) is true; the rest of it is
        not looked at. Without them no frame is known.

        Raises:
            ValueError: shapes that do not fit the net, more frames than it was made for, a wrong label, one of known
                and known_mask without the other, or either given to a net without conditioning.
        """
        self.check(x, log_snr, label, known, known_mask)
        image, frames = self.image, x.shape[2]
        dtype = image.stem.weight.dtype
        embedding = image.embedding(log_snr, label)
        per_frame = embedding.repeat_interleave(frames, dim=0)
        h = image.stem(image.patches(folded(x.to(dtype))))
        if self.given is not None and known is not None and known_mask is not None:
            mask = known_mask[:, None, :, None, None]
            # where, not a product: what is unknown may be anything, NaN included
            clean = torch.where(mask, known.to(dtype), 0.0)
            given = folded(torch.cat([clean, mask.to(dtype).expand_as(x[:, :1])], dim=1))
            h = h + self.given(image.patches(given))
        across = []
        for stage, between in zip(image.encoder, self.encoder, strict=True):
            h = _stage(stage, between, h, per_frame, embedding)
            across.append(h)
        h = across.pop()
        for i, (stage, between) in enumerate(zip(image.decoder, self.decoder, strict=True)):
            if i:
                h = F.interpolate(image.up[i - 1](h), scale_factor=2.0) + across.pop()
            h = _stage(stage, between, h, per_frame, embedding)
        return image.pixels(image.head(h)).unflatten(0, (-1, frames)).transpose(1, 2).to(x.dtype)

    def check(
        self, x: Tensor, log_snr: Tensor, label: Tensor | None, known: Tensor | None, known_mask: Tensor | None
    ) -> None:
        channels, size, most = (self.config[key] for key in ("channels", "size", "frames"))
        if x.ndim != 5 or (x.shape[1], *x.shape[3:]) != (channels, size, size) or x.shape[2] < 1:
            raise ValueError(f"x is {tuple(x.shape)}, but this net takes (B, {channels}, F, {size}, {size})")
        if x.shape[2] > most:
            raise ValueError(f"a clip of {x.shape[2]} frames, but this net was made for up to {most}")
        self.image.check(x[:, :, 0], log_snr, label)
        if (known is None) != (known_mask is None):
            raise ValueError("known and known_mask go together: one was given without the other")
        if known is None or known_mask is None:
            return
        if self.given is None:
            raise ValueError("known frames were given, but this net was made without conditioning: leave them out")
        if known.shape != x.shape or known_mask.shape != (len(x), x.shape[2]) or known_mask.dtype != torch.bool:
            raise ValueError(
                f"known is {tuple(known.shape)} and known_mask {known_mask.dtype} {tuple(known_mask.shape)}; they must "
                f"be {tuple(x.shape)} and bool {(len(x), x.shape[2])}"
            )


class Temporal(nn.Module):
    """Along time: a convolution over three frames, then attention over up to `frames` frames (0 for none).

    On frames folded into the batch, (B F, C, H, W); the embedding is one a clip, (B, E). Starts as the identity.
    """

    def __init__(self, channels: int, embedding: int, frames: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, affine=False)
        self.modulation = nn.Linear(embedding, 2 * channels)
        self.conv = zeroed(nn.Conv2d(channels, channels, (3, 1), padding=(1, 0)))
        self.attention = TemporalAttention(channels, frames) if frames else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        batch = len(embedding)
        modulation = self.modulation(embedding).repeat_interleave(len(x) // batch, dim=0)
        scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
        h = F.silu(self.norm(x) * (1 + scale) + shift)
        # (B, C, F, HW): a picture whose rows are the frames. In channels-last memory none of this moves data.
        h = self.conv(h.unflatten(0, (batch, -1)).transpose(1, 2).flatten(3))
        x = x + h.transpose(1, 2).unflatten(3, x.shape[2:]).flatten(0, 1)
        return x if self.attention is None else self.attention(x, batch)


class TemporalAttention(Attention):
    """Self-attention over the frames of each pixel, with a learned bias b[head, j - i] for frame i to look at j."""

    def __init__(self, channels: int, frames: int) -> None:
        super().__init__(channels)
        self.frames = frames
        self.bias = nn.Parameter(torch.zeros(self.heads, 2 * frames - 1))

    def forward(self, x: Tensor, batch: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """x (B F, C, H, W) of `batch` clips."""
        frames = len(x) // batch
        tokens = self.norm(x).unflatten(0, (batch, frames)).flatten(3).permute(0, 3, 1, 2)  # (B, HW, F, C)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        index = torch.arange(frames, device=x.device)
        bias = self.bias[:, index[None] - index[:, None] + self.frames - 1].to(q.dtype)
        if x.device.type == "cpu":
            mixed = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias, dim=-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), bias)
            mixed = mixed.unflatten(0, (batch, -1))
        out = self.out(mixed.transpose(2, 3).flatten(3))  # (B, HW, F, C)
        return x + out.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, x.shape[2:])


def folded(clips: Tensor) -> Tensor:
    """Clips (B, C, F, H, W) as pictures (B F, C, H, W) in channels-last memory."""
    return clips.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def _stage(stage: nn.Module, between: nn.Module, h: Tensor, per_frame: Tensor, embedding: Tensor) -> Tensor:
    assert isinstance(stage, nn.ModuleList) and isinstance(between, nn.ModuleList)
    for block, temporal in zip(stage, between, strict=True):
        h = temporal(block(h, per_frame), embedding)
    return h


def known_masks(batch: int, frames: int, generator: torch.Generator) -> Tensor:
    """Which frames are given in training, (B, F) bool: none, the first k, both ends, or frames at random.

    Four kinds, each with probability 1/4; k is uniform in 1..F-1. So one net generates (none), predicts (first k) and
    interpolates (both ends). At least one frame is always left to make.
    Raises ValueError for fewer than 2 frames: there is nothing to condition on.
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

    Raises ValueError where none or all of the frames would be known.
    """
    if min(first, last) < 0 or not 0 < first + last < frames:
        raise ValueError(f"of {frames} frames, {first} first and {last} last cannot be known: know some, not all")
    frame = torch.arange(frames)
    return (frame < first) | (frame >= frames - last)

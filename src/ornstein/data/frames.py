"""The frames of clips as images, which autoencoders are trained on."""

from __future__ import annotations

import torch

from ornstein.data.clips import Clips, ClipSet
from ornstein.data.images import ImageSet
from ornstein.data.pixels import to_uint8

__all__ = ["frames_of"]

_MOST = 40_000  # frames of generated clips, of which there is no end
_BATCH = 64


def frames_of(clips: Clips) -> ImageSet:
    """The frames of the clips as images without classes, each once; of generated clips up to 40,000 frames."""
    if isinstance(clips, ClipSet):
        used = (clips.starts[:, None] + torch.arange(clips.frames)).unique()
        images = clips.pixels[used]
    else:
        count = max(1, min(len(clips), _MOST // clips.shape[1]))
        rows = [range(i, min(i + _BATCH, count)) for i in range(0, count, _BATCH)]
        images = torch.cat([to_uint8(clips.batch(part)[0]).transpose(1, 2).flatten(0, 1) for part in rows])
    names = [f"frame {i}" for i in range(len(images))]
    return ImageSet(clips.source, images, names, [0] * len(images), skipped=clips.skipped)

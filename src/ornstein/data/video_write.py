"""One encoder of videos: H.264 in mp4, with its colours stated."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from torch import Tensor

from ornstein.data.video_colour import Colour, default_matrix, from_rgb
from ornstein.extras import deferred

if TYPE_CHECKING:
    import av
else:
    av = deferred("av", "video", "a video")

__all__ = ["MAX_RATE", "Encoder"]

MAX_RATE = 1000  # frames a second
_THREADS = 2  # of the encoder: another number gives other bytes
# Without B-frames the packets are the frames in order, and encoded parts can be set one behind another. Without the
# macroblock tree the same frames always give the same bytes: with it, x264 does not, once in 15 if a decoder runs
# beside it.
_H264 = {"crf": "16", "preset": "medium", "bf": "0", "mbtree": "0"}


class Encoder:
    """An mp4 without sound, frame by frame (H.264, yuv420p; mpeg4 if there is no H.264). Close it, or it is no file.

    Args:
        target: a path, or a file open for writing.
        width, height: of the frames; odd sides are made even by repeating the last column or row.
        rate: frames a second.
        colour: how the colours are coded; None: BT.601 or, from 1280 columns or 577 rows on, BT.709.
        comment: text to be stored in the file.
    """

    def __init__(
        self,
        target: str | Path | IO[bytes],
        width: int,
        height: int,
        rate: Fraction,
        colour: Colour | None = None,
        comment: str | None = None,
    ) -> None:
        h264 = "libx264" in av.codecs_available
        self._colour = colour or Colour(default_matrix(width, height))
        self._container = av.open(str(target) if isinstance(target, Path) else target, "w", format="mp4")
        if comment is not None:
            self._container.metadata["comment"] = comment
        stream = self._container.add_stream("libx264" if h264 else "mpeg4", rate.limit_denominator(100_000))
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt, stream.options = "yuv420p", dict(_H264) if h264 else {"qscale": "2"}
        coder = stream.codec_context
        coder.thread_count = _THREADS
        # How the colours are coded is stated: otherwise players guess it by the size.
        coder.colorspace, coder.color_range = self._colour.matrix, self._colour.range
        coder.color_primaries, coder.color_trc = self._colour.primaries, self._colour.transfer
        self._stream = stream

    def write(self, pixels: Tensor) -> None:
        """One frame uint8 (3, H, W)."""
        array = pixels.permute(1, 2, 0).numpy()
        array = np.pad(array, ((0, array.shape[0] % 2), (0, array.shape[1] % 2), (0, 0)), mode="edge")
        self._container.mux(self._stream.encode(from_rgb(array, self._colour)))

    def close(self) -> None:
        self._container.mux(self._stream.encode())
        self._container.close()

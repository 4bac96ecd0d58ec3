"""One encoder of videos: H.264, HEVC, AV1 or VP9 in mp4, with its colours stated."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ornstein.data.video_colour import Colour, default_matrix, from_rgb
from ornstein.errors import UserError
from ornstein.extras import deferred

if TYPE_CHECKING:
    import av
else:
    av = deferred("av", "video", "a video")

__all__ = ["CODECS", "MAX_RATE", "Encoder"]

MAX_RATE = 1000  # frames a second
_THREADS = 2  # of the encoder: another number gives other bytes
# Without B-frames the packets are the frames in order, and encoded parts can be set one behind another. Without the
# macroblock tree the same frames always give the same bytes: with it, x264 does not, once in 15 if a decoder runs
# beside it.
CODECS: dict[str, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", {"preset": "medium", "bf": "0", "mbtree": "0"}),
    "hevc": ("libx265", {"preset": "medium", "x265-params": "bframes=0:pools=none:frame-threads=1:log-level=error"}),
    "av1": ("libsvtav1", {"preset": "8", "svtav1-params": f"pred-struct=1:lp={_THREADS}"}),
    "vp9": ("libvpx-vp9", {"lag-in-frames": "0", "auto-alt-ref": "0", "cpu-used": "4", "row-mt": "1", "b": "0"}),
}
"""Of each codec the encoder and its options."""
_QUALITY = 68  # CRF 16 of H.264 and HEVC, 20 of the others: a loss is hardly seen
_CRF = {"h264": 0.5, "hevc": 0.5, "av1": 0.62, "vp9": 0.62}  # a point of quality


class Encoder:
    """An mp4 without sound, frame by frame (yuv420p; mpeg4 if there is no H.264). Close it, or it is no file.

    Args:
        target: a path, or a file open for writing.
        width, height: of the frames; odd sides are made even by repeating the last column or row.
        rate: frames a second.
        colour: how the colours are coded; None: BT.601 or, from 1280 columns or 577 rows on, BT.709.
        comment: text to be stored in the file.
        codec: one of `CODECS`.
        quality: from 1 to 100, which loses least; None: a loss is hardly seen.

    Raises:
        UserError: there is no encoder of that codec.
    """

    def __init__(
        self,
        target: str | Path | IO[bytes],
        width: int,
        height: int,
        rate: Fraction,
        colour: Colour | None = None,
        comment: str | None = None,
        codec: str = "h264",
        quality: int | None = None,
    ) -> None:
        encoder, options = CODECS[codec]
        there = encoder in av.codecs_available
        if not there and codec != "h264":
            raise UserError(f"there is no encoder of {codec} here ({encoder}): take another --codec")
        crf = round((100 - (_QUALITY if quality is None else quality)) * _CRF[codec])
        self._colour = colour or Colour(default_matrix(width, height))
        self._container = av.open(str(target) if isinstance(target, Path) else target, "w", format="mp4")
        if comment is not None:
            self._container.metadata["comment"] = comment
        os.environ.setdefault("SVT_LOG", "1")  # the encoder of AV1 prints its settings otherwise
        stream: Any = self._container.add_stream(encoder if there else "mpeg4", rate.limit_denominator(100_000))
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt, stream.options = "yuv420p", {"crf": str(crf)} | options if there else {"qscale": "2"}
        if codec == "hevc":
            stream.codec_context.codec_tag = "hvc1"  # what Apple's players know
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

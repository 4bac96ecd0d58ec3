"""What a video file states about itself, read and checked before anything is decoded."""

from __future__ import annotations

import errno
import math
import os
from fractions import Fraction
from typing import IO, TYPE_CHECKING

from ornstein.data.decode import BadImage
from ornstein.extras import deferred

if TYPE_CHECKING:
    import av
    import av.stream
    from av.container import InputContainer
    from av.video.stream import VideoStream
else:
    av = deferred("av", "video", "a video")

__all__ = ["declared_end", "missing_bytes", "open_container", "picture_stream", "stated_size"]

# Playlists (HLS, concat) named .mp4 would make the demuxer open other files and addresses: containers only.
_OPTIONS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg",
    "protocol_whitelist": "none",
}
_MOST_BOXES = 100_000
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"uuid", b"moof", b"mfra", b"sidx", b"styp", b"meta")


def open_container(file: IO[bytes]) -> InputContainer:
    """The demuxer of an open file. Raises av.error.FFmpegError if it is none of the containers read here."""
    file.seek(0)
    return av.open(_Reader(file), "r", options=dict(_OPTIONS), metadata_errors="replace")


class _Reader:
    """An open file for the demuxer. Damaged files make it seek to nowhere: PyAV would print the exception."""

    def __init__(self, file: IO[bytes]) -> None:
        self.read, self.tell, self.seekable, self._file = file.read, file.tell, file.seekable, file

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError):
            return -errno.EINVAL


def picture_stream(container: InputContainer) -> VideoStream:
    """The first stream of moving pictures; cover art is none.

    Raises:
        BadImage: there is none, or no decoder for it.
    """
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise BadImage("no picture in it, only sound")
    stream = streams[0]
    if stream.codec_context is None:
        raise BadImage("its picture is coded in a way that cannot be decoded here")
    stream.thread_type = "AUTO"
    return stream


def stated_size(stream: VideoStream, limit_pixels: int) -> None:
    """Raises BadImage if the frames, their pixels made square, would have more than `limit_pixels` pixels."""
    aspect = stream.sample_aspect_ratio or 1
    width, height = max(stream.width, math.ceil(stream.width * aspect)), stream.height
    if width * height > limit_pixels:
        raise BadImage(f"{width}x{height} pixels: more than the limit of {limit_pixels:,}")


def declared_end(container: InputContainer, stream: VideoStream) -> Fraction | None:
    """The second at which the last frame ends, as Matroska's DURATION tag states it; None if there is no such tag.

    (The tag is called a duration, but is counted from 0 and not from the first frame.)
    """
    try:
        hours, minutes, seconds = stream.metadata.get("DURATION", "").split(":")
        end = 3600 * int(hours) + 60 * int(minutes) + Fraction(seconds)
    except ValueError:
        return None
    # A tag from before an edit may be longer than the file.
    return min(end, Fraction(container.duration, av.time_base)) if container.duration else None


def missing_bytes(file: IO[bytes]) -> int:
    """How many bytes the file's own blocks say that it has beyond its end; 0 if it is whole or does not say.

    Known for MP4 and its kin, Matroska and AVI. The position goes back to the start.
    """
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"\x1a\x45\xdf\xa3":
        end = _ebml_end(file)
    elif head[:4] == b"RIFF" and head[8:] == b"AVI ":
        size = int.from_bytes(head[4:8], "little")
        end = 8 + size if size < 0x7FFFFFFF else 0  # larger ones are not to be relied on
    else:
        end = _boxes_end(file, length)
    file.seek(0)
    return max(0, end - length)


def _boxes_end(file: IO[bytes], length: int) -> int:
    """The end of the last of an MP4's boxes. What comes after boxes of known kinds is none of them."""
    at = 0
    for _ in range(_MOST_BOXES):
        if at + 8 > length:
            return at
        file.seek(at)
        head = file.read(16)
        size = int.from_bytes(head[:4], "big")
        if head[4:8] not in _BOXES or size == 0:  # 0: up to the end of the file
            return length
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if size < 8:
            return length
        at += size
    return length


def _ebml_end(file: IO[bytes]) -> int:
    """The end of a Matroska segment; 0 if its size is not stated, as in a live stream."""
    file.seek(0)
    _element(file)
    identity, size = _element(file, skip=False)
    return file.tell() + size if identity == 0x18538067 and size is not None else 0


def _element(file: IO[bytes], skip: bool = True) -> tuple[int, int | None]:
    """An EBML element's identity and size; its content is skipped unless told otherwise."""
    identity = _number(file, keep=True)[0]
    size, width = _number(file, keep=False)
    stated = None if size == (1 << 7 * width) - 1 else size
    if skip:
        file.seek(stated or 0, os.SEEK_CUR)
    return identity, stated


def _number(file: IO[bytes], keep: bool) -> tuple[int, int]:
    """An EBML number of variable length and its bytes; `keep`: with the bit that tells the length."""
    first = (file.read(1) or b"\0")[0]
    width = 9 - first.bit_length() if first else 8
    value = first if keep else first & ((1 << (8 - width)) - 1)
    return int.from_bytes(bytes([value]) + file.read(width - 1), "big"), width

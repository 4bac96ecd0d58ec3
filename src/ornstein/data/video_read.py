"""The frames of one video, one at a time: a video file, an animated GIF, or a folder of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import Image

from ornstein.data.decode import LIMIT_PIXELS, MAX_ENLARGEMENT, MIN_SIDE, BadImage, decode, fit, to_array
from ornstein.data.sources import MAX_FILE_BYTES, Entry
from ornstein.extras import deferred

if TYPE_CHECKING:
    import av
    import av.error
    from av.container import InputContainer
    from av.video.stream import VideoStream
else:
    av = deferred("av", "video", "a video")

GIF = ".gif"
VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", GIF}
# Playlists (HLS, concat) named .mp4 would make the demuxer open other files and addresses: containers only.
DEMUXER = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif", "protocol_whitelist": "none"}
_SOUND = 0.9  # a stream that ends before this share of its declared length was cut short


def read_video(
    file: IO[bytes], size: int | None, channels: int, stride: int = 1, limit_pixels: int = LIMIT_PIXELS
) -> Iterator[np.ndarray]:
    """Every `stride`-th frame of a video file, uint8 (C, size, size), decoded as the stream is read.

    Each frame is turned upright by the rotation that the file states, its centre square cut out and resized as in
    `decode`; pixels that are not square are made so. One frame is in memory at a time (and what the codec keeps).
    Raises BadImage, with the reason, for what is no video, or is damaged or cut short: possibly after many frames.
    """
    for count, (frame, stream) in enumerate(decoded(file, limit_pixels)):
        if count % stride == 0:
            yield _square(upright(frame, stream), size, channels)


def decoded(file: IO[bytes], limit_pixels: int = LIMIT_PIXELS) -> Iterator[tuple[av.VideoFrame, VideoStream]]:
    """Every frame of a video file as it was coded, with its stream; raises BadImage as `read_video` does."""
    try:
        with av.open(file, "r", options=DEMUXER) as container:
            if not container.streams.video:
                raise BadImage("no picture in it, only sound")
            stream = container.streams.video[0]
            if stream.width * stream.height > limit_pixels:
                raise BadImage(f"{stream.width}x{stream.height} pixels: more than the limit of {limit_pixels:,}")
            stream.thread_type = "AUTO"
            declared = _declared_seconds(container, stream)
            count, first, last = 0, None, None
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise BadImage(f"damaged: frame {count + 1} cannot be decoded")
                if frame.width * frame.height > limit_pixels:
                    raise BadImage(f"{frame.width}x{frame.height} pixels: more than the limit of {limit_pixels:,}")
                first, last = frame.time if first is None else first, frame.time
                yield frame, stream
                count += 1
            if count == 0:
                raise BadImage("not a single frame can be decoded")
            # By number where the file was edited, by time where the rate varies, one of the two may fall short.
            fewer = not stream.frames or count < _SOUND * stream.frames
            if fewer and declared and first is not None and last is not None:
                length = last - first + 1 / float(stream.average_rate or 25)
                if length < _SOUND * declared:
                    raise BadImage(f"cut short: {length:.1f} of {declared:.1f} seconds can be read")
    except BadImage:
        raise
    except av.error.FFmpegError as error:
        raise BadImage(f"not a video, or damaged: {error.strerror or type(error).__name__}") from None
    except Exception as error:  # an archive raises its own while it is read
        raise BadImage(f"cannot be read: {error or type(error).__name__}".replace("\n", " ")) from None


def read_gif(
    file: IO[bytes], size: int | None, channels: int, stride: int = 1, limit_pixels: int = LIMIT_PIXELS
) -> Iterator[np.ndarray]:
    """Every `stride`-th frame of an animated GIF, uint8 (C, size, size); transparency is laid over white.

    Raises BadImage, with the reason, for what is no GIF, or is damaged or cut short.
    """
    try:
        file.seek(-1, 2)
        if file.read(1) not in (b";", b"\0"):
            raise BadImage("cut short: its end mark is missing")
        file.seek(0)
        with Image.open(file, formats=("GIF",)) as gif:
            if gif.width * gif.height > limit_pixels:
                raise BadImage(f"{gif.width}x{gif.height} pixels: more than the limit of {limit_pixels:,}")
            for number in range(0, getattr(gif, "n_frames", 1), stride):
                gif.seek(number)
                frame = gif.convert("RGBA")
                yield _square(Image.alpha_composite(Image.new("RGBA", frame.size, "white"), frame), size, channels)
    except BadImage:
        raise
    except Exception as error:  # decoders raise nearly everything on damaged input
        raise BadImage(f"not a GIF, or damaged: {error or type(error).__name__}".replace("\n", " ")) from None


def read_folder(
    entries: Sequence[Entry], size: int | None, channels: int, stride: int = 1, limit_pixels: int = LIMIT_PIXELS
) -> Iterator[np.ndarray]:
    """Every `stride`-th image of a folder, uint8 (C, size, size), in the order of `entries`.

    Raises BadImage, with the file and the reason, for one that is no sound image.
    """
    for entry in entries[::stride]:
        name = entry.name.rsplit("/", 1)[-1]
        if entry.size > MAX_FILE_BYTES:
            raise BadImage(f"{name}: more than the limit of {MAX_FILE_BYTES // 2**20} MB a file")
        try:
            yield decode(entry.read(), size, channels, limit_pixels)[0]
        except BadImage as bad:
            raise BadImage(f"{name}: {bad}") from None


def upright(frame: av.VideoFrame, stream: VideoStream) -> Image.Image:
    """The frame in RGB as it is to be seen: turned as the file states, its pixels made square."""
    width, height = frame.width, frame.height
    aspect = stream.sample_aspect_ratio
    if aspect and aspect != 1:
        width = max(1, round(width * aspect))
    turned = np.rot90(frame.to_ndarray(format="rgb24", width=width, height=height), round(frame.rotation / 90) % 4)
    return Image.fromarray(np.ascontiguousarray(turned))


def _square(picture: Image.Image, size: int | None, channels: int) -> np.ndarray:
    side = min(picture.size)
    if side < MIN_SIDE:
        raise BadImage(f"too small: {side} pixel a side")
    if size is not None and side * MAX_ENLARGEMENT < size:
        raise BadImage(f"too small: {side} pixels a side, size {size} enlarges it more than {MAX_ENLARGEMENT} times")
    return to_array(fit(picture.convert("L" if channels == 1 else "RGB"), size))


def _declared_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """How long the file says its pictures go on; None where it does not say."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    text = stream.metadata.get("DURATION", "")  # Matroska: 00:00:03.333000000
    try:
        hours, minutes, seconds = (float(part) for part in text.split(":"))
        return 3600 * hours + 60 * minutes + seconds
    except ValueError:
        only = len(container.streams) == 1 and container.duration is not None
        return container.duration / av.time_base if only and container.duration else None

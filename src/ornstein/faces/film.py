"""A video's frames in and out, one at a time, and its sound as it is."""

from __future__ import annotations

import heapq
import io
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ornstein.data.decode import BadImage
from ornstein.data.video_read import DEMUXER, VIDEO_SUFFIXES, decoded, upright
from ornstein.errors import RunError, UserError
from ornstein.extras import deferred

if TYPE_CHECKING:
    import av
    import av.error
    from av.container import InputContainer
else:
    av = deferred("av", "video", "a video")

SUFFIXES = (".mp4", ".m4v", ".mov")  # that are written
_MATRIX, _LIMITED = 6, 1  # ITU-T H.273: the matrix of BT.601, luma from 16 to 235
_THREADS = 2  # of the encoder: another number gives other bytes
# Without B-frames the packets of a segment are its frames in order, and segments can be set one behind another.
_OPTIONS = {"crf": "16", "preset": "medium", "bf": "0"}


@dataclass(frozen=True)
class Film:
    """A video file. rate: frames a second; time_base: seconds a tick; sound: the codecs of its sound, if any."""

    path: Path
    width: int
    height: int
    rate: Fraction
    time_base: Fraction
    sound: tuple[str, ...]

    @classmethod
    def open(cls, path: str | Path) -> Film:
        """Look into the file. Raises UserError where it is no video that can be read."""
        path = Path(path)
        with closing(_frames(path)) as frames:
            frame, stream = next(frames)
            picture = upright(frame, stream)
            rate = stream.average_rate or stream.guessed_rate or Fraction(25)
            time_base = stream.time_base or 1 / rate
            width, height = picture.size
            container = stream.container
            sound = tuple(each.codec_context.name for each in container.streams.audio)
        return cls(path, width, height, Fraction(rate), Fraction(time_base), sound)

    def frames(self, start: int = 0) -> Iterator[tuple[int, int, Tensor]]:
        """Each frame from number `start` on: its number, its time in ticks, its pixels uint8 (3, H, W), upright.

        Times rise by a tick at least, whatever the file says. Raises UserError where it is damaged or cut short,
        possibly after many frames, or changes its size.
        """
        last, step = None, max(1, round(1 / (self.rate * self.time_base)))
        for number, (frame, stream) in enumerate(_frames(self.path)):
            time = frame.pts if frame.pts is not None else (0 if last is None else last + step)
            time = time if last is None else max(time, last + 1)
            last = time
            if number < start:
                continue
            picture = upright(frame, stream)
            if picture.size != (self.width, self.height):
                raise UserError(
                    f"{self.path}: frame {number + 1} is {picture.width}x{picture.height} pixels, not the first's"
                )
            yield number, time, torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).contiguous()


def is_video(path: Path) -> bool:
    """Whether the file is to be read as a video, by its name; a GIF with one picture is none."""
    suffix = path.suffix.lower()
    if suffix != ".gif":
        return suffix in VIDEO_SUFFIXES
    from PIL import Image

    try:
        with Image.open(path, formats=("GIF",)) as img:
            return getattr(img, "n_frames", 1) > 1
    except Exception:  # what is wrong with it is said by whoever reads it
        return False


def _frames(path: Path) -> Generator[tuple[Any, Any], None, None]:
    try:
        with path.open("rb") as file:
            yield from decoded(file)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except BadImage as bad:
        raise UserError(f"{path} cannot be used: {bad}") from None


class Encoder:
    """One segment of a video: H.264 without sound, its frames in order. Close it, or there is no file."""

    def __init__(self, path: Path, width: int, height: int, rate: Fraction) -> None:
        if "libx264" not in av.codecs_available:
            raise RunError("this PyAV has no H.264 encoder (libx264): install the wheel of `av` from PyPI")
        self._container = av.open(str(path), "w", format="mp4")
        stream = self._container.add_stream("libx264", rate.limit_denominator(100_000))
        # the format takes even sides only
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt, stream.options = "yuv420p", dict(_OPTIONS)
        stream.codec_context.thread_count = _THREADS
        # How the colours are coded is said: players guess it by the size else, and large pictures come out too red.
        stream.codec_context.colorspace, stream.codec_context.color_range = _MATRIX, _LIMITED
        self._stream = stream

    def write(self, pixels: Tensor) -> None:
        """One frame uint8 (3, H, W); a side that is odd gets its last row or column twice."""
        array = pixels.permute(1, 2, 0).numpy()
        array = np.pad(array, ((0, array.shape[0] % 2), (0, array.shape[1] % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        self._container.mux(self._stream.encode())
        self._container.close()


def check_sound(film: Film, out: Path) -> None:
    """Raises UserError where the sound of the film cannot be copied into a file of the output's kind."""
    if not film.sound:
        return
    try:
        with ExitStack() as stack:
            source = _container(film.path, stack)
            to = stack.enter_context(av.open(io.BytesIO(), "w", format=_kind(out)))
            for stream in source.streams.audio:
                to.add_stream_from_template(stream)
            to.start_encoding()
    except (av.error.FFmpegError, ValueError) as error:
        name, target = film.sound[0], film.path
        raise UserError(
            f"the sound of {target} ({name}) does not go into {out.suffix} ({error}): convert it first, for example "
            f"ffmpeg -i {target.name} -c:v copy -c:a aac converted.mp4"
        ) from None


def join(segments: Sequence[Path], times: Iterator[int], film: Film, out: Path) -> None:
    """Write the segments, one behind another at the given times in ticks, with the sound of `film`, packet by packet.

    Nothing is encoded anew, and nothing is held but the packets at hand. Raises RunError where that fails.
    """
    try:
        with ExitStack() as stack:
            to = stack.enter_context(av.open(str(out), "w", format=_kind(out)))
            with av.open(str(segments[0])) as first:
                video = to.add_stream_from_template(first.streams.video[0])
            video.time_base = film.time_base
            parts = [_pictures(segments, times, film, video)]
            if film.sound:
                source = _container(film.path, stack)
                parts.append(_sound(source, {s.index: to.add_stream_from_template(s) for s in source.streams.audio}))
            for _, packet in heapq.merge(*parts, key=lambda item: item[0]):
                to.mux(packet)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise RunError(f"cannot put {out.name} together: {getattr(error, 'strerror', None) or error}") from error


def _pictures(
    segments: Sequence[Path], times: Iterator[int], film: Film, stream: Any
) -> Iterator[tuple[Fraction, Any]]:
    length = max(1, round(1 / (film.rate * film.time_base)))
    for segment in segments:
        with av.open(str(segment)) as container:
            for packet in container.demux(container.streams.video[0]):
                if packet.size == 0:
                    continue  # the end of the file
                time = next(times)
                packet.pts = packet.dts = time
                packet.time_base, packet.duration, packet.stream = film.time_base, length, stream
                yield time * film.time_base, packet


def _sound(container: Any, streams: dict[int, Any]) -> Iterator[tuple[Fraction, Any]]:
    for packet in container.demux(*container.streams.audio):
        if packet.dts is None:
            continue
        at = packet.dts * packet.time_base
        packet.stream = streams[packet.stream.index]
        yield at, packet


def _container(path: Path, stack: ExitStack) -> InputContainer:
    return stack.enter_context(av.open(stack.enter_context(path.open("rb")), "r", options=DEMUXER))


def _kind(out: Path) -> str:
    return "mov" if out.suffix.lower() == ".mov" else "mp4"

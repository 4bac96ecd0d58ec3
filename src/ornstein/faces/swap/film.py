"""A video whose faces are swapped: its frames upright, one at a time, in RGB, and what is stated about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ornstein.data.containers import missing_bytes
from ornstein.data.decode import BadImage
from ornstein.data.kinds import is_animation, kind_of_file, open_regular
from ornstein.data.video_colour import SDR, Colour
from ornstein.data.video_read import VIDEO_SUFFIXES, Video, open_video
from ornstein.data.video_write import MAX_RATE, Encoder
from ornstein.errors import UserError
from ornstein.faces.swap.remux import SUFFIXES, check_codec, join

__all__ = ["SUFFIXES", "Encoder", "Film", "FilmFrame", "check_codec", "is_video", "join"]

_FINEST = Fraction(1, 1_000_000)  # seconds a tick: the times in an mp4 are 32-bit numbers
_LONGEST_SIDE = 16_384  # of what H.264 encodes


class FilmFrame(NamedTuple):
    """number: of the frame, from 0. start, end: when it is shown, in ticks. pixels: uint8 (3, H, W), upright."""

    number: int
    start: int
    end: int
    pixels: Tensor


@dataclass(frozen=True)
class Film:
    """A video file, or the part of it from `begin` to `end` in seconds, whose times begin at 0.

    rate: frames a second; time_base: seconds a tick; sound: the codecs of its sound, if any. colour: how the frames are
    coded when they are written again.
    """

    path: Path
    width: int
    height: int
    rate: Fraction
    time_base: Fraction
    sound: tuple[str, ...]
    colour: Colour = SDR
    begin: Fraction = Fraction(0)
    end: Fraction | None = None

    @classmethod
    def open(cls, path: str | Path, begin: float | None = None, end: float | None = None) -> Film:
        """Look into the file. Raises UserError if it is no video that can be read, or is cut short."""
        path = Path(path)
        with _opened(path) as video, closing(video.frames) as frames:
            first = next(frames, None)
            if first is None:
                raise BadImage("not a single frame can be decoded")
            height, width = first.picture().shape[:2]
            if max(width, height) > _LONGEST_SIDE:
                raise BadImage(f"{width}x{height} pixels: H.264 takes at most {_LONGEST_SIDE} a side")
            rate = min(max(video.rate, Fraction(1, MAX_RATE)), Fraction(MAX_RATE))
            base = max(video.time_base, _FINEST)
            part = (_seconds(begin or 0), None if end is None else _seconds(end))
            return cls(path, width, height, rate, base, video.sound, video.colour.shown, *part)

    @property
    def trimmed(self) -> bool:
        """Whether it is a part of the file."""
        return self.begin > 0 or self.end is not None

    def shown(self, start: int = 0, notes: list[str] | None = None) -> Iterator[FilmFrame]:
        """Each frame from number `start` on.

        Start times rise by a tick at least, whatever the file says. `notes` is extended, at the end, by what is not in
        the frames as it is in the file. Raises UserError if it is damaged or cut short, possibly after many frames, or
        changes its size.
        """
        with _opened(self.path) as video:
            scale, last, number = video.time_base / self.time_base, -1 << 62, -1
            least = round(self.begin / self.time_base) if self.trimmed else None
            stop = None if self.end is None else round(self.end / self.time_base) - (least or 0)
            for frame in video.frames:
                begin, end = round(frame.start * scale), round((frame.start + frame.length) * scale)
                if least is not None:  # times of the part; the frame that is shown at its beginning begins there
                    if end <= least:
                        continue
                    begin, end = max(begin - least, 0), end - least
                    if stop is not None and begin >= stop:
                        break
                    end = end if stop is None else min(end, stop)
                number += 1
                begin = max(begin, last + 1)
                last = begin
                if number < start:
                    continue
                array = frame.picture()
                if array.shape[:2] != (self.height, self.width):
                    size = f"{array.shape[1]}x{array.shape[0]}"
                    raise BadImage(f"frame {number + 1} is {size} pixels, not {self.width}x{self.height} as the first")
                end = max(end, begin + 1)
                yield FilmFrame(number, begin, end, torch.from_numpy(array.copy()).permute(2, 0, 1).contiguous())
            if notes is not None:
                notes += video.notes

    def frames(self, start: int = 0) -> Iterator[tuple[int, int, Tensor]]:
        """Each frame from number `start` on: its number, its start in ticks, its pixels; see `shown`."""
        for frame in self.shown(start):
            yield frame.number, frame.start, frame.pixels


def _seconds(value: float) -> Fraction:
    return Fraction(value).limit_denominator(1_000_000)


def is_video(path: Path) -> bool:
    """Whether the file is to be read as a video, by its content; by its name if that is of no known kind.

    An animation (GIF, WebP, PNG, AVIF) is a video, a picture of these kinds is not. Raises UserError if it cannot be
    read, is empty, or is no regular file.
    """
    kind = kind_of_file(path)
    if kind is None:
        return path.suffix.lower() in VIDEO_SUFFIXES
    if kind.video:
        return True
    with open_regular(path) as file:
        return is_animation(file)


@contextmanager
def _opened(path: Path) -> Iterator[Video]:
    try:
        with open_regular(path) as file:
            if missing := missing_bytes(file):
                raise BadImage(f"cut short: {missing:,} bytes are missing at its end")
            with open_video(file) as video:
                yield video
    except BadImage as bad:
        kind = kind_of_file(path)
        told = f" (it is {kind.name})" if kind is not None and not kind.video else ""
        raise UserError(f"{path} cannot be used: {bad}{told}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None

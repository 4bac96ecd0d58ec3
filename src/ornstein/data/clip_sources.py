"""The videos of a source: files, animations and folders of frames; and the pictures beside them that are no frames."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np

from ornstein.data.decode import BadImage
from ornstein.data.entry import VIDEO_SUFFIXES, Entry, Listing
from ornstein.data.framing import Size
from ornstein.data.kinds import is_animation, open_regular
from ornstein.data.names import natural_key, tidy
from ornstein.data.video_read import Video, read_folder, read_video
from ornstein.errors import UserError

__all__ = ["SourceVideo", "file_entry", "find_videos"]

_MAY_MOVE = {".webp", ".png", ".apng", ".avif", ".avifs"}
_THUMBNAILS = 0.5  # if more than this share of a folder's pictures have names of videos, all are their thumbnails


@dataclass(frozen=True)
class SourceVideo:
    """One video of a source: a file, or a folder of frames.

    frames: called as frames(size, channels, stride, limit_pixels); see `read_video`. opened: what the file states, once
    it was read.
    """

    name: str
    entries: list[Entry]
    frames: Callable[[Size, int, int, int], Iterator[np.ndarray]]
    opened: list[Video] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(entry.size for entry in self.entries)


def file_entry(path: Path) -> Entry:
    """A single video file. Raises UserError if it cannot be read, is empty, or no regular file."""
    with open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
    return Entry(tidy(path.name), size, partial(open_regular, path))


def find_videos(listing: Listing, path: Path) -> tuple[list[SourceVideo], list[tuple[str, str]]]:
    """The videos of a source in natural order, each file and each folder of frames; (folder, reason) of other pictures.

    Pictures in a folder with video files are covers, not frames; a folder of pictures named as videos are holds their
    thumbnails.
    """
    videos: list[SourceVideo] = []
    folders: dict[str, list[Entry]] = {}
    for entry in listing.entries:
        if Path(entry.name).suffix.lower() in VIDEO_SUFFIXES or _moves(entry):
            opened: list[Video] = []
            videos.append(SourceVideo(entry.name, [entry], partial(_read_file, entry.open, opened), opened))
        else:
            folders.setdefault(entry.name.rpartition("/")[0], []).append(entry)
    busy = {video.name.rpartition("/")[0] for video in videos}
    stems = {PurePosixPath(video.name).stem for video in videos}
    beside: list[tuple[str, str]] = []
    for folder, pictures in folders.items():
        named = sum(bool(stems & _stems(entry.name)) for entry in pictures)
        if folder in busy or named > _THUMBNAILS * len(pictures):
            beside.append((folder or path.name, f"pictures beside videos, no frames of one: {len(pictures):,}"))
        else:
            videos.append(SourceVideo(folder or path.name, pictures, partial(read_folder, pictures)))
    return sorted(videos, key=lambda video: natural_key(video.name)), beside


def _stems(name: str) -> set[str]:
    """The stems of videos whose thumbnail this may be: "a" for a.jpg and for a.mp4.jpg."""
    stem = PurePosixPath(name).stem
    return {stem, PurePosixPath(stem).stem} if PurePosixPath(stem).suffix.lower() in VIDEO_SUFFIXES else {stem}


def _moves(entry: Entry) -> bool:
    if Path(entry.name).suffix.lower() not in _MAY_MOVE:
        return False
    try:
        with entry.open() as file:
            return is_animation(file)
    except (OSError, BadImage, UserError):  # what is wrong with it is said when it is read
        return False


def _read_file(
    opener: Callable[[], IO[bytes]],
    opened: list[Video],
    size: Size,
    channels: int,
    stride: int,
    limit_pixels: int,
) -> Iterator[np.ndarray]:
    with opener() as file:
        yield from read_video(file, size, channels, stride, limit_pixels, opened)

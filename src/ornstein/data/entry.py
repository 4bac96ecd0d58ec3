"""The files of a source: how they are opened, counted and judged before anything is read."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ornstein.data.kinds import open_descriptor
from ornstein.data.names import CLIPS_HINT
from ornstein.errors import RunError, UserError

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_FILE_BYTES",
    "VIDEO_SUFFIXES",
    "BadImage",
    "Entry",
    "Listing",
    "check_size",
    "counted",
    "nothing_usable",
    "open_handle",
    "reason_of",
]

# Formats that need another package (HEIC, JPEG XL) are listed, so that their files are counted as unreadable.
IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".avif", ".avifs", ".heic", ".heif", ".hif", ".jxl"),
    *(".jp2", ".j2k", ".jpx", ".jpf", ".j2c"),
}
VIDEO_SUFFIXES = {
    *(".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif", ".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts"),
    *(".flv", ".wmv", ".asf", ".3gp", ".3g2", ".ogv"),
}
MAX_FILE_BYTES = 512 * 2**20


class BadImage(Exception):
    """The file gives no image that can be used; the message is the reason shown to the user."""


@dataclass(frozen=True)
class Entry:
    """One file that should be usable.

    name: within the source. size: bytes. open: a binary stream over the file, seekable. label: its class. crc32: the
    CRC-32 of its bytes if the archive stores it.
    """

    name: str
    size: int
    open: Callable[[], IO[bytes]]
    label: str | None = None
    crc32: int | None = None

    def read(self, first: int = 0, count: int | None = None) -> bytes:
        """`count` bytes from byte `first` on, by default all; never more than `size`.

        Raises:
            BadImage: they cannot be read, or the file is shorter than it was.
        """
        wanted = max(0, self.size - first if count is None else min(count, self.size - first))
        try:
            with self.open() as stream:
                if first:
                    stream.seek(first)
                data = stream.read(wanted)
                if count is None and not first:
                    stream.read(1)  # archives compare their checksum at the end of the file
        except (BadImage, RunError):
            raise
        except OSError as error:
            raise BadImage(reason_of(error)) from None
        except Exception as error:  # zlib, bz2, lzma, zipfile and Arrow each raise their own
            raise BadImage(f"damaged in the archive: {reason_of(error)}") from None
        if len(data) < wanted:
            raise BadImage(f"cut short: {len(data):,} of {wanted:,} bytes")
        return data


@dataclass
class Listing:
    """The files of a source: those usable, in natural order; (name, reason) of those skipped; others by suffix.

    prefixed: each name begins with that of the archive which the file lies in.
    """

    entries: list[Entry] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    prefixed: bool = False


def open_handle(path: Path, inside: Path | None = None) -> tuple[int, int]:
    """Open a regular file for reading: its descriptor and its size in bytes. It never waits for a pipe or a device.

    With `inside`, a symbolic link that leads out of that folder is refused.

    Raises:
        BadImage: it cannot be opened, or is no regular file.
    """
    try:
        if inside is not None and path.is_symlink() and not path.resolve(strict=True).is_relative_to(inside):
            raise BadImage("symbolic link that leads out of the folder")
        handle, status = open_descriptor(path)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a circle of links
        raise BadImage(reason_of(error)) from None
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise BadImage("not a regular file")
    return handle, status.st_size


def check_size(size: int, limit: int) -> int:
    """`size`, in bytes. Raises BadImage if it is 0 or above `limit`."""
    if size == 0:
        raise BadImage("empty file")
    if size > limit:
        raise BadImage(f"{size / 2**20:,.0f} MB: more than the limit of {limit // 2**20} MB a file")
    return size


def counted(counts: Counter[str]) -> str:
    """Numbers of files by suffix as text: "4 .txt, 1 .json"; the five most frequent first, then the rest."""
    most = counts.most_common()
    parts = [f"{number:,} {kind}" for kind, number in most[:5]]
    if len(most) > 5:
        parts.append(f"{sum(number for _, number in most[5:]):,} others")
    return ", ".join(parts)


def nothing_usable(
    path: Path | str, skipped: Sequence[tuple[str, str]], ignored: Counter[str], kind: str = "image"
) -> UserError:
    """The error for a source without a usable image, or other `kind`: it counts what is there instead."""
    if not skipped and not ignored:
        return UserError(f"{path} is empty: give a folder or zip archive of {kind}s")
    there = []
    if skipped:
        name, reason = skipped[0]
        there.append(f"{len(skipped)} skipped ({name}: {reason}{'; ...' if len(skipped) > 1 else ''})")
    if ignored:
        there.append(f"{ignored.total()} of other kinds ignored ({counted(ignored)})")
    hint = f"; {CLIPS_HINT}" if kind == "image" and VIDEO_SUFFIXES & set(ignored) else ""
    return UserError(f"no usable {kind} in {path}: files: {', '.join(there)}{hint}")


def reason_of(error: Exception) -> str:
    """The message of an error from a library, on one line."""
    return " ".join(str(getattr(error, "strerror", None) or str(error) or type(error).__name__).split())

"""Pictures and videos that we wrote and nobody has changed since: these alone are replaced without being asked.

A seal is a mark in the file's own format, which viewers skip, with a hash of everything else in the file.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable
from pathlib import Path

from ornstein.errors import UserError
from ornstein.store import atomic_write

__all__ = ["check_replaceable", "is_sealed", "seal_file", "sealed"]

_LARGEST = 2**30  # bytes; a larger file is not one of ours


def sealed(data: bytes) -> bytes:
    """A PNG, GIF or MP4 file with its seal: a text chunk, a comment or a free box that goes before its end."""
    end = _end(data)
    body, tail = data[: len(data) - end], data[len(data) - end :]
    return body + _mark(data, hashlib.sha256(data).hexdigest().encode()) + tail


def is_sealed(path: str | Path) -> bool:
    """Whether we wrote the file and it has not changed since."""
    path = Path(path)
    if not path.is_file() or path.is_symlink() or path.stat().st_size > _LARGEST:
        return False
    data = path.read_bytes()
    end, length = _end(data), len(_mark(data, b"0" * 64))
    cut = len(data) - end - length
    return cut > 0 and sealed(data[:cut] + data[len(data) - end :]) == data


def seal_file(path: str | Path) -> None:
    """Seal a file that was just written."""
    path = Path(path)
    atomic_write(path, sealed(path.read_bytes()))


def check_replaceable(paths: Iterable[Path], overwrite: bool) -> None:
    """Raise UserError if one of the paths exists and is not a sealed file, unless `overwrite` is set."""
    for path in () if overwrite else paths:
        if (path.exists() or path.is_symlink()) and not is_sealed(path):
            raise UserError(
                f"{path} was not written by this command, or was changed since: give another --out, or --overwrite"
            )


def _end(data: bytes) -> int:
    """The length of what must stay at the end of the file: the last chunk of a PNG, the trailer of a GIF."""
    return 12 if data.startswith(b"\x89PNG") else 1 if data.startswith(b"GIF8") else 0


def _mark(data: bytes, digest: bytes) -> bytes:
    if data.startswith(b"\x89PNG"):
        chunk = b"tEXtornstein\0" + digest
        return (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    if data.startswith(b"GIF8"):
        text = b"ornstein:" + digest
        return b"\x21\xfe" + bytes([len(text)]) + text + b"\0"
    return (16 + len(digest)).to_bytes(4, "big") + b"freeornstein" + digest

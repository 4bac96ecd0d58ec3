"""Blocks of remote files on a local disk, in a folder of bounded size: the block used longest ago goes first."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from functools import lru_cache
from pathlib import Path

from ornstein.errors import RunError, UserError
from ornstein.store import partial_name

__all__ = ["BLOCK", "FOLDER", "SIZE", "BlockCache", "cache"]

BLOCK = 2**19  # bytes: several pictures, and little beside the wait for an answer
FOLDER, SIZE = "ORNSTEIN_CACHE", "ORNSTEIN_CACHE_SIZE"
"""Environment variables: the folder, and its size such as 20GB."""

_DEFAULT = "10GB"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SUFFIX = ".block"


class BlockCache:
    """Pieces of bytes by name in `folder`, `limit` bytes of them in all; processes share a folder.

    A write that finds the folder full removes the pieces used longest ago. A piece larger than the limit is not kept.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._lock = threading.Lock()
        self._used: int | None = None  # as last counted, and what this process has written since
        self._written = 0

    def read(self, name: str, offset: int = 0, count: int = -1) -> bytes | None:
        """Bytes of a piece from `offset` on, None if it is not there."""
        path = self._path(name)
        try:
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read(count)
            os.utime(path)  # it was used now
        except OSError:
            return None
        return data

    def has(self, name: str) -> bool:
        """Whether a piece is there."""
        return self._path(name).is_file()

    def write(self, name: str, data: bytes) -> None:
        """Keep a piece. RunError if the folder cannot be written."""
        if len(data) > self.limit:
            return
        path = self._path(name)
        partial = partial_name(path)
        try:
            with self._lock:
                self._make_room(len(data))
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                partial.write_bytes(data)
                partial.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise RunError(
                f"cannot write to the cache {self.folder}: {error.strerror or error}; choose another with {FOLDER}, "
                f"or less with {SIZE}"
            ) from None

    def _make_room(self, size: int) -> None:
        # other processes write too: count again after a share of the limit
        if self._used is None or self._used + size > self.limit or self._written > self.limit // 8:
            self._used, self._written = self._trim(size), 0
        self._used += size
        self._written += size

    def _trim(self, size: int) -> int:
        """Remove pieces until `size` bytes fit, and a tenth more; the bytes that are left."""
        pieces = []
        with contextlib.suppress(OSError):
            for entry in os.scandir(self.folder):
                if entry.name.endswith(_SUFFIX):
                    with contextlib.suppress(OSError):
                        pieces.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
        used = sum(each[1] for each in pieces)
        if used + size <= self.limit:
            return used
        for _, bytes_, path in sorted(pieces):
            if used + size <= 0.9 * self.limit or not used:
                break
            with contextlib.suppress(OSError):
                Path(path).unlink(missing_ok=True)
                used -= bytes_
        return used

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{_SUFFIX}"


def cache() -> BlockCache:
    """The cache that the environment names: ORNSTEIN_CACHE, or `ornstein/blocks` in the user's cache; 10 GB.

    Raises UserError if ORNSTEIN_CACHE_SIZE is no size.
    """
    given = os.environ.get(FOLDER)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return _cache(Path(given) if given else base / "ornstein" / "blocks", os.environ.get(SIZE) or _DEFAULT)


@lru_cache(maxsize=4)
def _cache(folder: Path, size: str) -> BlockCache:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", size.strip(), re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise UserError(f"{SIZE} is a size such as 20GB or 500MB, not {size!r}")
    return BlockCache(folder, int(float(match[1]) * _UNITS[match[2].upper()]))

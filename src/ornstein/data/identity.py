"""Whether two runs read the same data: a hash of names, sizes, labels and contents."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol

import numpy as np

from ornstein.data.entry import BadImage, Entry

__all__ = ["Identified", "checksum", "checksums", "fingerprint", "names_fingerprint", "same_data"]

_ALL_BYTES = 2**30  # sets up to this size are hashed whole
_SAMPLED_FILES, _BLOCK = 8192, 2**16  # of larger ones, a block in the middle of so many files: half a gigabyte
_READERS = 8
_AT_ONCE = 4096  # files that wait for a reader


class Identified(Protocol):
    """A set of data: images or clips."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def names_fingerprint(self) -> str: ...


def fingerprint(names: Iterable[str], sizes: Iterable[int], sums: Iterable[int], labels: Iterable[str] | None) -> str:
    """16 hex digits: SHA-256 of the name, size (bytes), checksum and class of each file, in order."""
    digest = hashlib.sha256(b"content\n")
    classes = labels if labels is not None else iter(lambda: "", None)
    for name, size, checksum, label in zip(names, sizes, sums, classes, strict=False):
        digest.update(f"{name}\0{size}\0{checksum:08x}\0{label}\n".encode())
    return digest.hexdigest()[:16]


def names_fingerprint(names: Iterable[str], sizes: Iterable[int]) -> str:
    """16 hex digits: SHA-256 of names and sizes alone, which is what runs of version 0.1 stored."""
    digest = hashlib.sha256()
    for name, size in zip(names, sizes, strict=True):
        digest.update(f"{name}\0{size}\n".encode())
    return digest.hexdigest()[:16]


def checksum(data: bytes) -> int:
    """The checksum of a file's bytes: the CRC-32 that zip archives store too."""
    return zlib.crc32(data)


def checksums(count: int, entry: Callable[[int], Entry], sizes: Sequence[int] | np.ndarray) -> np.ndarray:
    """A checksum of the contents of each of `count` files, uint32 (count,).

    It is the CRC-32 that the archive stores, or else that of all bytes if the set has at most a gigabyte. Of a larger
    set it is that of 64 kB in the middle of 8,192 files, evenly spread, and 0 for the others. A file that cannot be
    read has 0.
    """
    if count and entry(0).crc32 is not None:
        return np.array([entry(i).crc32 or 0 for i in range(count)], np.uint32)
    whole = int(np.sum(sizes, dtype=np.int64)) <= _ALL_BYTES
    rows = range(count) if whole else sorted({*np.linspace(0, count - 1, _SAMPLED_FILES, dtype=int).tolist()})

    def read(i: int) -> int:
        file = entry(i)
        with suppress(BadImage):
            return _crc32(file) if whole else zlib.crc32(file.read(max(0, file.size - _BLOCK) // 2, _BLOCK))
        return 0

    sums = np.zeros(count, np.uint32)
    with ThreadPoolExecutor(_READERS) as pool:
        for first in range(0, len(rows), _AT_ONCE):
            part = rows[first : first + _AT_ONCE]
            sums[part] = list(pool.map(read, part))
    return sums


def _crc32(file: Entry) -> int:
    """The CRC-32 of all bytes of a file, read in parts."""
    total, at = 0, 0
    while at < file.size:
        part = file.read(at, 2**24)
        total, at = zlib.crc32(part, total), at + len(part)
    return total


def same_data(data: Identified, stored: str | None) -> bool:
    """Whether `data` are those of a stored fingerprint; None is that of any data.

    Runs of version 0.1 stored names and sizes only: they are recognised by these.
    """
    return stored is None or stored in (data.fingerprint, data.names_fingerprint)

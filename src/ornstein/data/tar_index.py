"""Where each sample of many tar archives lies: some 20 bytes a sample and its name, whatever the size of the images."""

from __future__ import annotations

import contextlib
import io
import os
from collections import Counter
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import IO

import numpy as np

from ornstein.data.classes import group
from ornstein.data.entry import IMAGE_SUFFIXES, MAX_FILE_BYTES, BadImage, Entry
from ornstein.data.names import natural_key
from ornstein.data.shard_file import Place, open_shard
from ornstein.data.tar_headers import read_at
from ornstein.data.webdataset import scan
from ornstein.errors import RunError, UserError

__all__ = ["TarIndex"]

_OPEN = 192  # archives held open at once: more than a window has runs, and below the limit of every system


class TarIndex:
    """The samples of tar archives by number, in the order in which they lie there.

    shards: int32 (n,), the archive of each. labels: int32 (n,) into `classes`, or None. skipped: (name, reason) of what
    cannot be used. ignored: numbers of other files by suffix. The headers of all archives are read once.
    With `by_folder` false only .cls files give classes. Raises UserError as `webdataset.scan`.
    """

    def __init__(
        self,
        paths: Sequence[Place],
        suffixes: Collection[str] = IMAGE_SUFFIXES,
        limit_bytes: int = MAX_FILE_BYTES,
        by_folder: bool = True,
    ) -> None:
        self.paths = list(paths)
        self.skipped: list[tuple[str, str]] = []
        self.ignored = Counter[str]()
        self.classes: list[str] = []
        self.labels: np.ndarray | None = None
        self._prefixes: list[str] = []
        self._names: list[bytes] = []  # of each archive, one a line: as objects they would weigh more than the rest
        offsets: list[np.ndarray] = []
        sizes: list[np.ndarray] = []
        numbers: dict[str, int] = {}
        given: list[np.ndarray] = []  # -1: no .cls file
        for shard, prefix in scan(self.paths, suffixes, limit_bytes):
            self.skipped += [(prefix + name, why) for name, why in shard.skipped]
            self.ignored += shard.ignored
            self._prefixes.append(prefix)
            self._names.append("\n".join(shard.names).encode())
            offsets.append(np.array(shard.offsets, np.int64))
            sizes.append(np.array(shard.sizes, np.int64))
            labels = [-1 if label is None else numbers.setdefault(label, len(numbers)) for label in shard.labels]
            given.append(np.array(labels, np.int32))
        self.shards = np.repeat(np.arange(len(offsets), dtype=np.int32), [len(each) for each in offsets])
        self._place = np.concatenate([np.arange(len(each)) for each in offsets])  # within its archive
        self._offsets, self._sizes = np.concatenate(offsets), np.concatenate(sizes)
        self._handle = lru_cache(maxsize=_OPEN)(lambda shard: open_shard(self.paths[shard]))
        self._names_in = lru_cache(maxsize=1)(lambda shard: self._names[shard].decode().split("\n"))
        self._classify(np.concatenate(given), list(numbers), by_folder)

    def __len__(self) -> int:
        return len(self.shards)

    def name(self, i: int) -> str:
        """The name of sample `i`, after that of its archive if there are several."""
        shard = int(self.shards[i])
        return self._prefixes[shard] + self._names_in(shard)[int(self._place[i])]

    def sizes(self) -> np.ndarray:
        """The bytes of each sample, int64 (n,)."""
        return self._sizes

    def entry(self, i: int) -> Entry:
        """Sample `i` as an entry of a listing. Reading it raises RunError if its archive is no longer what it was."""
        label = None if self.labels is None else self.classes[self.labels[i]]
        return Entry(self.name(i), int(self._sizes[i]), lambda: self._stream(i), label)

    def unnamed(self, i: int) -> Entry:
        """As `entry` without its name and label, which take time to find."""
        return Entry("", int(self._sizes[i]), lambda: self._stream(i))

    def will_need(self, rows: np.ndarray) -> None:
        """Tell the system that these samples, in the order in which they lie, will be read soon, as one piece."""
        first, last = int(rows[0]), int(rows[-1])
        begin, end = int(self._offsets[first]), int(self._offsets[last]) + int(self._sizes[last])
        with contextlib.suppress(UserError):  # reading it will fail too, and say so
            self._handle(int(self.shards[first])).will_need(begin, end - begin)

    def _read(self, i: int, first: int, count: int) -> bytes:
        path = self.paths[self.shards[i]]
        try:
            handle = self._handle(int(self.shards[i]))  # kept until the end: other threads may drop it from the cache
            return read_at(handle, int(self._offsets[i]) + first, count)
        except (BadImage, UserError) as error:
            # not the image but the disk or the network: another image in its place would change the training
            reason = str(error).removeprefix(f"cannot read {path}: ")
            raise RunError(f"cannot read {path}: {reason}; put it back as it was and go on with --resume") from None

    def _stream(self, i: int) -> IO[bytes]:
        return io.BufferedReader(_Section(self, i, int(self._sizes[i])), 2**16)

    def _classify(self, given: np.ndarray, numbered: list[str], by_folder: bool) -> None:
        """Set the labels, and leave out the samples that belong to no class, or to another part of the data."""
        if not len(self) or not (by_folder or (given >= 0).any()):
            return
        names = (name for each in self._names if each for name in each.decode().split("\n"))
        groups = group(names, True, [numbered[i] if i >= 0 else None for i in given.tolist()])
        self.ignored.update(groups.ignored.values())
        self.skipped += [(self.name(i), why) for i, why in groups.skipped.items()]
        left_out = np.array([*groups.ignored, *groups.skipped], np.int64)
        kept = np.delete(np.arange(len(self)), left_out)
        if groups.labels is not None:
            labels = [groups.labels[i] for i in kept]
            self.classes = sorted({*labels}, key=natural_key)
            number = {name: i for i, name in enumerate(self.classes)}
            self.labels = np.array([number[label] for label in labels], np.int32)
        self.shards, self._place = self.shards[kept], self._place[kept]
        self._offsets, self._sizes = self._offsets[kept], self._sizes[kept]


class _Section(io.RawIOBase):
    """The bytes of one sample as a file."""

    def __init__(self, index: TarIndex, i: int, size: int) -> None:
        self._index, self._i, self._size, self._at = index, i, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        count = max(0, min(len(buffer), self._size - self._at))
        if count:
            buffer[:count] = self._index._read(self._i, self._at, count)
            self._at += count
        return count

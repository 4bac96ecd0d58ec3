"""Where each sample of many tar archives lies: some 20 bytes a sample and its name, whatever the images weigh."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from ornstein.data.decode import BadImage
from ornstein.data.sources import MAX_FILE_BYTES, SUFFIXES, Entry, natural_key
from ornstein.data.webdataset import classes_of, read_at, scan
from ornstein.errors import RunError, UserError

_OPEN = 192  # archives held open at once: more than a window has runs, and below the limit of every system


class TarIndex:
    """The samples of tar archives by number, in the order in which they lie there.

    shards: int32 (n,), the archive of each. labels: int32 (n,) into `classes`, or None. skipped: (name, reason) of what
    cannot be used. fingerprint: SHA-256 of names and sizes (bytes), 16 hex digits. The headers of all archives are read
    once. Raises UserError as `webdataset.open_shards`.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self.skipped: list[tuple[str, str]] = []
        self.ignored = 0
        self._prefixes: list[str] = []
        self._names: list[bytes] = []  # of each archive, one a line: as objects they would weigh more than the rest
        places: list[tuple[np.ndarray, np.ndarray]] = []
        numbers: dict[str, int] = {}
        told: list[np.ndarray] = []
        digest = hashlib.sha256()
        for shard, prefix in scan(self.paths, SUFFIXES, MAX_FILE_BYTES):
            self.skipped += [(prefix + name, why) for name, why in shard.skipped]
            self.ignored += shard.ignored
            self._prefixes.append(prefix)
            self._names.append("\n".join(shard.names).encode())
            places.append((np.array(shard.offsets, np.int64), np.array(shard.sizes, np.int32)))
            # -1 where there is no .cls file
            own = [-1 if label is None else numbers.setdefault(label, len(numbers)) for label in shard.labels]
            told.append(np.array(own, np.int32))
            for name, size in zip(shard.names, shard.sizes, strict=True):
                digest.update(f"{prefix}{name}\0{size}\n".encode())
        self.shards = np.repeat(np.arange(len(places), dtype=np.int32), [len(offsets) for offsets, _ in places])
        self._first = np.concatenate([[0], np.cumsum([len(offsets) for offsets, _ in places])])
        self._offsets = np.concatenate([offsets for offsets, _ in places])
        self._sizes = np.concatenate([sizes for _, sizes in places])
        self.fingerprint = digest.hexdigest()[:16]
        self.labels, self.classes = self._classes(np.concatenate(told), numbers)
        self._handle = lru_cache(maxsize=_OPEN)(lambda shard: _Handle(self.paths[shard]))
        self._names_in = lru_cache(maxsize=1)(lambda shard: self._names[shard].decode().split("\n"))

    def __len__(self) -> int:
        return len(self.shards)

    def name(self, i: int) -> str:
        """The name of sample `i`, with that of its archive where there are several."""
        shard = int(self.shards[i])
        return self._prefixes[shard] + self._names_in(shard)[i - int(self._first[shard])]

    def read(self, i: int) -> bytes:
        """The bytes of sample `i`. Raises RunError where its archive is no longer what it was."""
        path = self.paths[self.shards[i]]
        try:
            handle = self._handle(int(self.shards[i]))
            return read_at(handle.number, int(self._offsets[i]), int(self._sizes[i]))
        except (BadImage, UserError) as error:
            # not the image but the disk or the network: another image in its place would change the training
            told = str(error).removeprefix(f"cannot read {path}: ")
            raise RunError(f"cannot read {path}: {told}; put it back as it was and go on with --resume") from None

    def entry(self, i: int) -> Entry:
        """Sample `i` as an entry of a listing."""
        label = None if self.labels is None else self.classes[self.labels[i]]
        return Entry(self.name(i), int(self._sizes[i]), lambda: self.read(i), lambda: io.BytesIO(self.read(i)), label)

    def will_need(self, rows: np.ndarray) -> None:
        """Tell the system that these samples, in the order in which they lie, will be read soon, as one piece."""
        if not hasattr(os, "posix_fadvise"):
            return
        first, last = int(rows[0]), int(rows[-1])
        begin, end = int(self._offsets[first]), int(self._offsets[last]) + int(self._sizes[last])
        with contextlib.suppress(OSError, UserError):  # it is read all the same, and then told
            handle = self._handle(int(self.shards[first]))
            os.posix_fadvise(handle.number, begin, end - begin, os.POSIX_FADV_WILLNEED)

    def _classes(self, told: np.ndarray, numbers: dict[str, int]) -> tuple[np.ndarray | None, list[str]]:
        if not len(told):
            return None, []
        if (told < 0).any():
            names = [name for each in self._names if each for name in each.decode().split("\n")]
            folders = classes_of([None] * len(names), names)
            if folders is None:
                return None, []
            numbers = {}
            told = np.array([numbers.setdefault(folder, len(numbers)) for folder in folders], np.int32)
        classes = sorted(numbers, key=natural_key)
        order = np.empty(len(classes), np.int32)
        order[[numbers[name] for name in classes]] = np.arange(len(classes))
        return order[told], classes


class _Handle:
    """An open file, closed when the last who uses it lets it go."""

    def __init__(self, path: Path) -> None:
        try:
            self.number = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from None

    def __del__(self) -> None:
        number = self.__dict__.pop("number", None)
        if number is not None:
            os.close(number)

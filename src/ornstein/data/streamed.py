"""Images decoded as they are needed, of sets that fit no memory: threads ahead of the training, in constant memory."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ornstein.data import arrays, images
from ornstein.data.decode import LIMIT_PIXELS, MIN_SIDE, BadImage, decode
from ornstein.data.images import ImageSet, decode_images
from ornstein.data.order import permutation
from ornstein.data.pixels import to_unit
from ornstein.data.sources import Entry, Listing, natural_key, nothing_usable, open_source, tar_archives
from ornstein.data.tar_index import TarIndex
from ornstein.data.windows import Windows
from ornstein.errors import RunError, UserError

_LOOKED_AT = 64  # images that are decoded when a set is opened, to tell what it holds
_IN_A_ROW = 64  # damaged images after each other, at which it is no longer the images that are damaged
_DRAWN = 10_000  # images at most that stand for a streamed set where all of them must be in memory


class Files(Protocol):
    """The files of a source by number, in the order in which they lie: a `TarIndex`, or a listing."""

    shards: np.ndarray
    labels: np.ndarray | None
    classes: list[str]
    skipped: list[tuple[str, str]]
    ignored: int
    fingerprint: str

    def __len__(self) -> int: ...

    def name(self, i: int, /) -> str: ...

    def read(self, i: int, /) -> bytes: ...

    def entry(self, i: int, /) -> Entry: ...

    def will_need(self, rows: np.ndarray, /) -> None: ...


class StreamedSet:
    """Square images of one size, decoded when they are asked for: what a training reads of a set that fits no memory.

    An image that turns out to be damaged is replaced by the next one that is not, with its label, each time alike;
    `skipped` names it from then on. Several threads decode a batch.

    files: of the whole source; rows: int64 (n,), ascending, those of them that belong to this set. damaged: of images
    that could not be used, as far as they were read, why, by their row in the files.
    """

    def __init__(self, source: str, files: Files, rows: np.ndarray, shape: tuple[int, int, int]) -> None:
        self.source, self.files, self.rows, self.shape = source, files, rows, shape
        self.classes = files.classes
        self._windows = Windows(files.shards[rows])
        self._expected: tuple[int, int, int] | None = None
        self.damaged: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> Tensor | None:
        """int64 (n,) into `classes`, or None."""
        return None if self.files.labels is None else torch.from_numpy(self.files.labels[self.rows].astype(np.int64))

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(name, reason) of every file that cannot be used, as far as they were read."""
        found = [(self.files.name(i), why) for i, why in sorted(self.damaged.items())]
        return sorted(self.files.skipped + found, key=lambda item: natural_key(item[0]))

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that tell whether two runs read the same files."""
        if len(self.rows) == len(self.files):
            return self.files.fingerprint
        digest = hashlib.sha256(self.files.fingerprint.encode())
        digest.update(self.rows.astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    @property
    def decoded_bytes(self) -> int:
        """Bytes of all its images, decoded."""
        return len(self) * int(np.prod(self.shape))

    def order(self, batch: int, step: int, seed: int) -> Tensor:
        """The images of the global batch of a step, int64 (batch,): see `Windows`."""
        address, pieces = self._windows.pieces(batch, step, seed)
        if address != self._expected:
            self._expected = address
            for first, end in pieces:
                self.files.will_need(self.rows[first:end])
        return self._windows.indices(batch, step, seed)

    def batch(self, indices: Tensor | Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """The images at `indices`, float32 (B, C, H, W) in [-1, 1], and their labels int64 (B,) or None.

        Raises RunError where many in a row cannot be read: then the source is gone, or not what it was.
        """
        asked = torch.as_tensor(indices, dtype=torch.int64).tolist()
        pixels = np.empty((len(asked), *self.shape), np.uint8)
        used = np.empty(len(asked), np.int64)

        def fill(part: range) -> None:
            for i in part:
                pixels[i], used[i] = self._image(asked[i])

        size = max(1, -(-len(asked) // (2 * self._workers)))
        list(self._pool.map(fill, [range(i, min(i + size, len(asked))) for i in range(0, len(asked), size)]))
        labels = None if self.files.labels is None else torch.from_numpy(self.files.labels[used].astype(np.int64))
        return to_unit(torch.from_numpy(pixels)), labels

    def split(self, fraction: float, seed: int) -> tuple[StreamedSet, ImageSet]:
        """(train, held-out): `fraction` of the images drawn at random, by `seed` alone, are held out, and in memory.

        No more are held out than can be judged by, 10,000 images or a quarter of what may be in memory.
        Raises ValueError unless 0 < fraction < 1, UserError on fewer than 2 images.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction must lie between 0 and 1, not {fraction}")
        n = len(self)
        if n < 2:
            raise UserError(f"{self.source} has {n} image: at least 2 are needed to hold some out")
        held_out = min(max(round(n * fraction), 1), n - 1, self._drawable)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).numpy()
        train = StreamedSet(self.source, self.files, self.rows[np.sort(order[held_out:])], self.shape)
        train.damaged = self.damaged
        return train, self._decoded(np.sort(order[:held_out]))

    def drawn(self) -> ImageSet:
        """Images of this set in memory that stand for it: always the same ones, drawn at random, 10,000 at most."""
        rows = np.sort(permutation(len(self), 0)[: self._drawable])
        found = self._decoded(rows)
        found.skipped = sorted({*self.skipped, *found.skipped}, key=lambda item: natural_key(item[0]))
        found.drawn_from = len(self)
        return found

    def require_labels(self) -> Tensor:
        """The labels (n,). Raises UserError where the images have none."""
        labels = self.labels
        if labels is None:
            raise UserError(
                f"{self.source} has no class labels: put a .cls file beside each image of an archive, or the images of "
                "each class in a folder named after it"
            )
        return labels

    @property
    def _drawable(self) -> int:
        return max(1, min(_DRAWN, images.MEMORY_BUDGET // 4 // int(np.prod(self.shape))))

    def _decoded(self, places: np.ndarray) -> ImageSet:
        entries = [self.files.entry(int(self.rows[i])) for i in places]
        found = decode_images(self.source, entries, self.classes, self.shape[1], self.shape[0])
        found.skipped = self.files.skipped + found.skipped
        return found

    def _image(self, place: int) -> tuple[np.ndarray, int]:
        """Image number `place`, or the next that is sound, and its row in the files."""
        n = len(self)
        for i in range(min(_IN_A_ROW, n)):
            row = int(self.rows[(place + i) % n])
            if row in self.damaged:
                continue
            try:
                image, _ = decode(self.files.read(row), self.shape[1], self.shape[0])
            except BadImage as bad:
                self.damaged[row] = str(bad)
                continue
            return image, row
        row = int(self.rows[place])
        raise RunError(
            f"{min(_IN_A_ROW, n)} images of {self.source} in a row cannot be used ({self.files.name(row)}: "
            f"{self.damaged[row]}): put it back as it was and go on with --resume"
        )

    @cached_property
    def _workers(self) -> int:
        # launchers say how many processes share the machine
        return max(1, min(16, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._workers, thread_name_prefix="decode")


def open_streamed(
    path: str | Path, size: int | None = None, channels: int | None = None, *, above: int = 0
) -> StreamedSet | None:
    """Open a folder, a .zip, a .tar or a folder of .tar, or a data set of Hugging Face to decode its images as needed.

    Classes, `size` and `channels` are as for `open_images`; with size=None all images must be of one size, of which
    some are looked at. None where the images, decoded, are no more than `above` bytes, or are arrays already.

    Raises UserError where there is no such source, nothing usable in it, or the sizes differ and size=None.
    """
    if size is not None and size < MIN_SIDE:
        raise UserError(f"--size must be at least {MIN_SIDE} pixels, not {size}")
    if channels not in (None, 1, 3):
        raise UserError(f"channels must be 1 (grey) or 3 (RGB), not {channels}")
    if str(path) == "digits" or (Path(path).suffix.lower() in arrays.SUFFIXES and Path(path).is_file()):
        return None
    warnings.filterwarnings("ignore", module=r"PIL\.")  # about files that are decoded all the same, or told as skipped
    shards = tar_archives(Path(path))
    files: Files = TarIndex(shards) if shards else _Listed(Path(path))
    if not len(files):
        raise nothing_usable(path, files.skipped, files.ignored)
    if size is not None and len(files) * (channels or 3) * size**2 <= above:
        return None
    shape = _shape(str(path), files, size, channels or 3)
    found = StreamedSet(str(path), files, np.arange(len(files)), shape)
    return found if found.decoded_bytes > above else None


def _shape(source: str, files: Files, size: int | None, channels: int) -> tuple[int, int, int]:
    """(C, H, W), of some images looked at."""
    skipped: list[tuple[str, str]] = []
    first: tuple[str, tuple[int, int]] | None = None
    for i in np.unique(np.linspace(0, len(files) - 1, _LOOKED_AT).astype(int)).tolist():
        try:
            own = decode(files.read(i), size, channels, LIMIT_PIXELS)[1]
        except BadImage as bad:
            skipped.append((files.name(i), str(bad)))
            continue
        if size is not None:
            return channels, size, size
        if first is not None and own != first[1]:
            sizes = [f"{name} is {w}x{h}" for name, (w, h) in (first, (files.name(i), own))]
            raise UserError(f"the images are not all one size ({', '.join(sizes)}): choose one with --size")
        first = first or (files.name(i), own)
    if first is None:
        raise nothing_usable(source, skipped, files.ignored)
    side = min(first[1])
    return channels, side, side


class _Listed:
    """The files of a source that is no tar archive, which stays open."""

    def __init__(self, path: Path) -> None:
        self._open = ExitStack()
        listing: Listing = self._open.enter_context(open_source(path))
        self._entries = listing.entries
        self.skipped, self.ignored = listing.skipped, listing.ignored
        self.shards = np.zeros(len(self._entries), np.int32)
        found = [entry.label for entry in self._entries if entry.label is not None]
        self.classes = sorted(set(found), key=natural_key)
        number = {name: i for i, name in enumerate(self.classes)}
        self.labels = np.array([number[label] for label in found], np.int32) if found else None
        digest = hashlib.sha256()
        for entry in self._entries:
            digest.update(f"{entry.name}\0{entry.size}\n".encode())
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._entries)

    def name(self, i: int) -> str:
        return self._entries[i].name

    def read(self, i: int) -> bytes:
        return self._entries[i].read()

    def entry(self, i: int) -> Entry:
        return self._entries[i]

    def will_need(self, rows: np.ndarray) -> None:
        """Files of a folder lie anywhere."""

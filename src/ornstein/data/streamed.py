"""Images decoded as they are needed, of sets that do not fit in memory: threads read ahead, in constant memory."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ornstein.data import identity, images, sets
from ornstein.data.decode import LIMIT_PIXELS, BadImage, decode_entry
from ornstein.data.entry import Entry, nothing_usable
from ornstein.data.framing import Crop, Framing, Size, framing
from ornstein.data.images import ImageSet, decode_images
from ornstein.data.names import natural_key
from ornstein.data.order import permutation
from ornstein.data.pixels import to_unit
from ornstein.data.sources import open_source
from ornstein.data.windows import Windows
from ornstein.errors import RunError, UserError

__all__ = ["Files", "ListedFiles", "StreamedSet", "shape_of"]

_SAMPLED = 64  # images that are decoded when a set is opened, to find their size
_IN_A_ROW = 64  # damaged images after each other, at which it is no longer the images that are damaged
_DRAWN = 10_000  # images at most that stand for a streamed set where all of them must be in memory


class Files(Protocol):
    """The files of a source by number, in the order in which they lie: a `TarIndex`, or a listing."""

    shards: np.ndarray
    labels: np.ndarray | None
    classes: list[str]
    skipped: list[tuple[str, str]]
    ignored: Counter[str]

    def __len__(self) -> int: ...

    def name(self, i: int, /) -> str: ...

    def entry(self, i: int, /) -> Entry: ...

    def unnamed(self, i: int, /) -> Entry:
        """As `entry` without its name and label, which take time to find."""
        ...

    def sizes(self) -> np.ndarray: ...

    def will_need(self, rows: np.ndarray, /) -> None: ...


class StreamedSet:
    """Images of one size, decoded when they are asked for: training data that do not fit in memory.

    A damaged image is replaced by the next sound one, with its label, always by the same; from then on `skipped` names
    it. Several threads decode a batch.

    files: those of the whole source; rows: int64 (n,), ascending, those that belong to this set. damaged: the reasons
    why images could not be used, by their row in the files, as far as they were read. crop: "centre", "none", or
    "random": then `batch` is told where to cut each image, and elsewhere the centre is.
    """

    def __init__(
        self, source: str, files: Files, rows: np.ndarray, shape: tuple[int, int, int], crop: Crop = "centre"
    ) -> None:
        self.source, self.files, self.rows, self.shape = source, files, rows, shape
        self.crop: Crop = crop
        self._frame = Framing((shape[1], shape[2]), crop)
        self.classes = files.classes
        self._windows = Windows(files.shards[rows])
        self._expected: tuple[int, int, int] | None = None
        self.damaged: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        c, h, w = self.shape
        line = sets.read_line(len(self), "picture", self.classes, self.labels, Counter(), [])
        return f"StreamedSet({self.source!r}: {line}, {c}x{h}x{w}, decoded as needed)"

    @property
    def labels(self) -> Tensor | None:
        """int64 (n,) into `classes`, or None."""
        return None if self.files.labels is None else torch.from_numpy(self.files.labels[self.rows].astype(np.int64))

    @property
    def ignored(self) -> Counter[str]:
        """Numbers of files of other kinds, by suffix."""
        return self.files.ignored

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(name, reason) of every file that cannot be used, as far as they were read."""
        damaged = [(self.files.name(i), why) for i, why in sorted(self.damaged.items())]
        return sorted(self.files.skipped + damaged, key=lambda item: natural_key(item[0]))

    @property
    def summary(self) -> str:
        """One line: how many images and of which classes, and what was left out."""
        notes = ["decoded as needed"]
        return sets.read_line(len(self), "picture", self.classes, self.labels, self.ignored, self.skipped, notes)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that tell whether two runs read the same data: a hash of names, sizes, contents and labels.

        Of a set above a gigabyte the contents are sampled (see `identity.checksums`).
        """
        return self._content

    @cached_property
    def _content(self) -> str:
        files = self.files
        sums = identity.checksums(len(files), files.unnamed, files.sizes())
        labels = None if files.labels is None else (files.classes[i] for i in files.labels)
        names = map(files.name, range(len(files)))
        return self._of_rows(identity.fingerprint(names, files.sizes(), sums, labels))

    @property
    def names_fingerprint(self) -> str:
        """The hash of names and sizes alone, by which runs of version 0.1 are recognised."""
        names = map(self.files.name, range(len(self.files)))
        return self._of_rows(identity.names_fingerprint(names, self.files.sizes()))

    def _of_rows(self, of_files: str) -> str:
        if len(self.rows) == len(self.files):
            return of_files
        digest = hashlib.sha256(of_files.encode())
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

    def batch(self, indices: Tensor | Sequence[int], at: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The images at `indices`, float32 (B, C, H, W) in [-1, 1], and their labels int64 (B,) or None.

        `at` (B, 2), in [0, 1], is where the part of each that is cut out lies, from the left and from the top; by
        default the centre. Raises RunError if many in a row cannot be read: then the source is gone, or has changed.
        """
        places = torch.as_tensor(indices, dtype=torch.int64).tolist()
        pixels = np.empty((len(places), *self.shape), np.uint8)
        used = np.empty(len(places), np.int64)

        def fill(part: range) -> None:
            for i in part:
                pixels[i], used[i] = self._image(places[i], None if at is None else at[i])

        size = max(1, -(-len(places) // (2 * self._workers)))
        list(self._pool.map(fill, [range(i, min(i + size, len(places))) for i in range(0, len(places), size)]))
        labels = None if self.files.labels is None else torch.from_numpy(self.files.labels[used].astype(np.int64))
        return to_unit(torch.from_numpy(pixels)), labels

    def split(self, fraction: float, seed: int, every_class: bool = False) -> tuple[StreamedSet, ImageSet]:
        """(train, held-out): `fraction` of the images are held out, drawn at random by `seed` alone, and in memory.

        No more are held out than an evaluation needs: 10,000 images, or a quarter of the memory budget. With
        `every_class`, one image of each class is never held out.

        Raises:
            ValueError: unless 0 < fraction < 1.
            UserError: on fewer than 2 images.
        """
        sets.check_fraction(fraction, len(self), self.source)
        labels = self.labels if every_class else None
        kept, held_out = sets.split_rows(len(self), fraction, seed, labels, self._drawable)
        train = StreamedSet(self.source, self.files, self.rows[kept.numpy()], self.shape, self.crop)
        train.damaged = self.damaged
        return train, self._decoded(held_out.numpy())

    def drawn(self) -> ImageSet:
        """Images of this set in memory that stand for it: always the same ones, drawn at random, 10,000 at most."""
        chosen = self._decoded(np.sort(permutation(len(self), 0)[: self._drawable]))
        chosen.skipped = sorted({*self.skipped, *chosen.skipped}, key=lambda item: natural_key(item[0]))
        chosen.drawn_from = len(self)
        return chosen

    def require_labels(self) -> Tensor:
        """The labels (n,). Raises UserError if the images have none."""
        labels = self.labels
        if labels is None:
            raise sets.no_labels(self.source)
        return labels

    @property
    def _drawable(self) -> int:
        return max(1, min(_DRAWN, images.MEMORY_BUDGET // 4 // int(np.prod(self.shape))))

    def _decoded(self, places: np.ndarray) -> ImageSet:
        entries = [self.files.entry(int(self.rows[i])) for i in places]
        decoded = decode_images(self.source, entries, self.classes, self._frame, self.shape[0], LIMIT_PIXELS)
        decoded.skipped, decoded.ignored = self.files.skipped + decoded.skipped, self.ignored
        return decoded

    def _image(self, place: int, at: Tensor | None) -> tuple[np.ndarray, int]:
        """Image number `place`, or the next sound one, cut `at` a place, and its row in the files."""
        n = len(self)
        frame = self._frame if at is None else replace(self._frame, at=(float(at[0]), float(at[1])))
        for i in range(min(_IN_A_ROW, n)):
            row = int(self.rows[(place + i) % n])
            if row in self.damaged:
                continue
            try:
                image = decode_entry(self.files.unnamed(row), frame, self.shape[0])[0]
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
        # a launcher sets how many processes share the machine
        return max(1, min(16, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._workers, thread_name_prefix="decode")


def shape_of(source: str, files: Files, size: Size, channels: int) -> tuple[int, int, int]:
    """(C, H, W) of the images, by some of them.

    Raises UserError if none can be used, or size=None and their sizes differ.
    """
    skipped: list[tuple[str, str]] = []
    first: tuple[str, tuple[int, int]] | None = None
    frame = framing(size)
    for i in np.unique(np.linspace(0, len(files) - 1, _SAMPLED).astype(int)).tolist():
        try:
            original = decode_entry(files.unnamed(i), frame, channels)[1]
        except BadImage as bad:
            skipped.append((files.name(i), str(bad)))
            continue
        if frame.size is not None:
            return channels, *frame.size
        if first is not None and original != first[1]:
            sizes = [f"{name} is {w}x{h}" for name, (w, h) in (first, (files.name(i), original))]
            raise UserError(f"the images are not all one size ({', '.join(sizes)}): choose one with --size")
        first = first or (files.name(i), original)
    if first is None:
        raise nothing_usable(source, skipped, files.ignored)
    return channels, *frame.shape(*first[1])


class ListedFiles:
    """The files of a source that is no tar archive, which stays open."""

    def __init__(self, path: Path) -> None:
        self._open = ExitStack()
        listing = self._open.enter_context(open_source(path))
        self._entries = listing.entries
        self.skipped, self.ignored = listing.skipped, listing.ignored
        self.shards = np.zeros(len(self._entries), np.int32)
        labels = [entry.label for entry in self._entries]
        self.classes = sorted({label for label in labels if label is not None}, key=natural_key)
        numbers = sets.number_labels(labels, self.classes)
        self.labels = None if numbers is None else numbers.numpy().astype(np.int32)

    def __len__(self) -> int:
        return len(self._entries)

    def name(self, i: int) -> str:
        return self._entries[i].name

    def entry(self, i: int) -> Entry:
        return self._entries[i]

    def unnamed(self, i: int) -> Entry:
        return self._entries[i]

    def sizes(self) -> np.ndarray:
        return np.array([entry.size for entry in self._entries], np.int64)

    def will_need(self, rows: np.ndarray) -> None:
        """Files of a folder lie anywhere."""

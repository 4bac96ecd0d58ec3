"""A set of images in memory, decoded once."""

import os
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ornstein.data import identity, sets
from ornstein.data.decode import MIN_SIDE, decode_entry, strict_pillow
from ornstein.data.entry import BadImage, Entry
from ornstein.data.framing import Size, framing
from ornstein.data.pixels import to_unit
from ornstein.errors import RunError, UserError

__all__ = ["MEMORY_BUDGET", "ImageSet", "allocate", "decode_images"]

MEMORY_BUDGET = 2 * 2**30  # bytes of decoded pixels held in memory; more goes to a temporary file
_CHUNK = 16  # images a task: enough that the pool's bookkeeping does not show at 32x32

Progress = Callable[[int, int], None] | None


@dataclass(eq=False, repr=False)
class ImageSet:
    """Images of one size, decoded: what training and evaluation read.

    images: uint8 (N, C, H, W), in natural order of `names`. labels: int64 (N,) into `classes`, or None.
    skipped: (name, reason) of every file of the source that could not be used. drawn_from: the size of the set that
    these were drawn from at random, if they stand for a larger one. ignored: numbers of other files by suffix.
    notes: how values were read, where it had to be decided. sums: a checksum of the contents of each file, by default
    of its pixels.
    """

    source: str
    images: Tensor
    names: list[str]
    file_sizes: list[int]
    labels: Tensor | None = None
    classes: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    drawn_from: int | None = None
    ignored: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    sums: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.sums:
            self.sums = [identity.checksum(image.numpy().tobytes()) for image in self.images]

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        c, h, w = self.shape
        line = sets.read_line(len(self), "picture", self.classes, self.labels, Counter(), [])
        return f"ImageSet({self.source!r}: {line}, {c}x{h}x{w})"

    @property
    def count(self) -> str:
        """How many images there are, and of how many if they stand for a larger set."""
        return f"{len(self)}" if self.drawn_from is None else f"{len(self)} of {self.drawn_from}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of each image."""
        _, c, h, w = self.images.shape
        return c, h, w

    @property
    def summary(self) -> str:
        """One line: how many images and of which classes, how they were read, and what was left out."""
        return sets.read_line(len(self), "picture", self.classes, self.labels, self.ignored, self.skipped, self.notes)

    def batch(self, indices: Tensor | Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """The images at `indices`, float32 (B, C, H, W) in [-1, 1], and their labels int64 (B,) or None."""
        rows = torch.as_tensor(indices, dtype=torch.int64, device="cpu")
        return to_unit(self.images[rows]), None if self.labels is None else self.labels[rows]

    def require_labels(self) -> Tensor:
        """The labels (N,). Raises UserError if the images have none."""
        if self.labels is None:
            raise sets.no_labels(self.source, self.names)
        return self.labels

    def split(self, fraction: float, seed: int, every_class: bool = False) -> tuple["ImageSet", "ImageSet"]:
        """(train, held-out): `fraction` of the images are held out, drawn at random by `seed` alone.

        Both parts keep the natural order, all classes and the list of skipped files, and own their pixels. With
        `every_class`, one image of each class is never held out.

        Raises:
            ValueError: unless 0 < fraction < 1.
            UserError: on fewer than 2 images.
        """
        sets.check_fraction(fraction, len(self), self.source)
        labels = self.labels if every_class else None
        train, held_out = sets.split_rows(len(self), fraction, seed, labels)
        return self._subset(train), self._subset(held_out)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that tell whether two runs read the same data: a hash of names, sizes, contents and labels."""
        labels = None if self.labels is None else [self.classes[i] for i in self.labels.tolist()]
        return identity.fingerprint(self.names, self.file_sizes, self.sums, labels)

    @property
    def names_fingerprint(self) -> str:
        """The hash of names and sizes alone, by which runs of version 0.1 are recognised."""
        return identity.names_fingerprint(self.names, self.file_sizes)

    def _subset(self, rows: Tensor) -> "ImageSet":
        images = torch.from_numpy(allocate((len(rows), *self.images.shape[1:])))
        torch.index_select(self.images, 0, rows, out=images)
        chosen = rows.tolist()
        return replace(
            self,
            images=images,
            names=[self.names[i] for i in chosen],
            file_sizes=[self.file_sizes[i] for i in chosen],
            sums=[self.sums[i] for i in chosen],
            labels=None if self.labels is None else self.labels[rows],
            classes=list(self.classes),
            skipped=list(self.skipped),
        )


def decode_images(
    source: str,
    entries: Sequence[Entry],
    classes: list[str],
    size: Size,
    channels: int,
    limit_pixels: int,
    progress: Progress = None,
) -> ImageSet:
    """The sound ones of `entries`, decoded by threads; the others are in `skipped`.

    Args:
        classes: those of the set, which the labels of the entries are among.
        size: how each is framed; None for the size that all have.
        progress: called with (done, total) as files are decoded.

    Raises:
        UserError: the sizes differ and size=None.
        RunError: the disk has no room for the pixels.
    """
    with strict_pillow():
        images, results = _decode_all(entries, size, channels, limit_pixels, progress)
    pairs = list(zip(entries, results, strict=True))
    used = [(entry, result) for entry, result in pairs if isinstance(result, int)]
    return ImageSet(
        source=source,
        images=torch.from_numpy(images),
        names=[entry.name for entry, _ in used],
        file_sizes=[entry.size for entry, _ in used],
        sums=[checksum for _, checksum in used],
        labels=sets.number_labels([entry.label for entry, _ in used], classes),
        classes=classes,
        skipped=[(entry.name, result) for entry, result in pairs if isinstance(result, str)],
    )


def _decode_all(
    entries: Sequence[Entry], size: Size, channels: int, limit_pixels: int, progress: Progress
) -> tuple[np.ndarray, list[int | str]]:
    """uint8 (N, C, H, W) of the sound entries, in order; for every entry its checksum, or why it is left out."""
    frame = framing(size)
    native = None if frame.size is not None else _first_sound(entries, channels, limit_pixels)
    # without a sound entry nothing is decoded, but each gets its reason
    images = allocate((len(entries), channels, *frame.shape(*(native[1] if native else (MIN_SIDE, MIN_SIDE)))))

    def work(rows: range) -> list[int | str]:
        results: list[int | str] = []
        for i in rows:
            try:
                image, original, data = decode_entry(entries[i], frame, channels, limit_pixels)
            except BadImage as bad:
                results.append(str(bad))
                continue
            if native is not None and original != native[1]:
                sizes = [f"{name} is {w}x{h}" for name, (w, h) in (native, (entries[i].name, original))]
                raise UserError(f"the images are not all one size ({', '.join(sizes)}): choose one with --size")
            images[i] = image
            results.append(identity.checksum(data))
        return results

    results: list[int | str] = []
    for part in _in_order(work, [range(i, min(i + _CHUNK, len(entries))) for i in range(0, len(entries), _CHUNK)]):
        results += part
        if progress is not None:
            progress(len(results), len(entries))
    sound = [i for i, result in enumerate(results) if isinstance(result, int)]
    for to, row in enumerate(sound):
        if to != row:
            images[to] = images[row]
    return images[: len(sound)], results


def _first_sound(entries: Sequence[Entry], channels: int, limit_pixels: int) -> tuple[str, tuple[int, int]] | None:
    for entry in entries:
        try:
            return entry.name, decode_entry(entry, None, channels, limit_pixels)[1]
        except BadImage:
            continue
    return None


def _in_order(work: Callable[[range], list[int | str]], chunks: list[range]) -> Iterator[list[int | str]]:
    """The results of `work` in the order of `chunks`, by threads (Pillow decodes outside the GIL)."""
    workers = min(os.cpu_count() or 1, 16)
    pool = ThreadPoolExecutor(workers)
    try:
        ahead: deque[Future[list[int | str]]] = deque()
        for chunk in chunks:
            ahead.append(pool.submit(work, chunk))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def allocate(shape: tuple[int, ...]) -> np.ndarray:
    """A uint8 array, in memory up to the budget and above it in a temporary file that goes with the array.

    Raises RunError if the disk has no room for it.
    """
    count = int(np.prod(shape, dtype=np.int64))
    if count <= MEMORY_BUDGET:
        return np.empty(shape, dtype=np.uint8)
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < count:
        # Checked beforehand: writing a mapped page that finds no room kills the process.
        raise RunError(
            f"the images need {count / 1e9:.1f} GB in {folder}, which has {free / 1e9:.1f} GB free: "
            "choose a smaller --size or set TMPDIR to a larger disk"
        )
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)

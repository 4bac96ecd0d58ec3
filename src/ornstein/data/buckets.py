"""Images of many aspect ratios in buckets: sizes of about equal area, each batch of one of them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ornstein.data import identity, sets
from ornstein.data.arrays import is_arrays
from ornstein.data.bundled import CAPTIONED
from ornstein.data.decode import LIMIT_PIXELS, check_form, check_picture, stored_size, strict_pillow
from ornstein.data.entry import BadImage, Entry, nothing_usable
from ornstein.data.framing import Crop, Framing
from ornstein.data.images import ImageSet, Progress, decode_images
from ornstein.data.names import natural_key
from ornstein.data.order import batch_indices, permutation
from ornstein.data.sources import open_source
from ornstein.errors import UserError
from ornstein.settings import extent_text

__all__ = ["BucketSet", "bucket_sizes", "open_buckets"]

_LONGEST, _STEPS = 2, 8  # a side is half to twice the square's, in steps of an eighth of it
_WIDEST_STEP = 64
_LEAST = 8  # images of a bucket: batches of one with fewer hold the same image many times
_BLOCK = 1024  # steps within which every bucket has its share
_GOLDEN = (math.sqrt(5) - 1) / 2
_THREADS = 16


def bucket_sizes(side: int) -> list[tuple[int, int]]:
    """(height, width) of the buckets for the area of a square of `side` pixels, from the tallest to the widest.

    Sides are multiples of a power of two near side/8, at most 64, from half to twice `side`; for every height the
    width that comes nearest to the area.
    """
    step = min(_WIDEST_STEP, 2 ** max(0, (side // _STEPS).bit_length() - 1))
    low, high = -(-side // (_LONGEST * step)) * step, _LONGEST * side // step * step
    heights = range(max(low, step), high + 1, step)
    pairs = {(h, min(max(round(side**2 / h / step) * step, low, step), high)) for h in heights}
    pairs |= {(w, h) for h, w in pairs}
    return sorted(pairs, key=lambda pair: pair[1] / pair[0])


def open_buckets(
    path: str | Path, side: int, channels: int | None = None, *, crop: Crop = "centre", progress: Progress = None
) -> BucketSet:
    """Open images and decode each into the bucket whose aspect ratio is nearest to its own.

    Classes, `channels` and `crop` are as for `open_images`. Buckets with few images are given up, the smallest first,
    and their images go to the nearest one that is left.

    Args:
        path: a folder or an archive of images.
        side: of the square whose area the buckets have.

    Raises:
        UserError: there is no such source, nothing usable in it, only one image, or it holds arrays.
    """
    check_form(side, channels)
    check_picture(channels or 3)
    if str(path) in ("digits", *CAPTIONED) or is_arrays(path):
        raise UserError(f"{path} holds images of one size: leave out --aspect buckets")
    with open_source(path) as listing:
        if not listing.entries:
            raise nothing_usable(path, listing.skipped, listing.ignored)
        if len(listing.entries) == 1:
            raise UserError(f"{path} has one image, which is one size: --aspect buckets needs several")
        labels = {entry.label for entry in listing.entries if entry.label is not None}
        classes = sorted(labels, key=natural_key)
        chosen = _assigned(_aspects(listing.entries), bucket_sizes(side))
        parts, done = [], 0
        for size in sorted(set(chosen), key=lambda size: size[1] / size[0]):
            entries = [entry for entry, own in zip(listing.entries, chosen, strict=True) if own == size]

            def advance(count: int, _: int, before: int = done) -> None:
                if progress is not None:
                    progress(before + count, len(listing.entries))

            frame = Framing(size, crop)
            parts.append(decode_images(str(path), entries, classes, frame, channels or 3, LIMIT_PIXELS, advance))
            done += len(entries)
    skipped = listing.skipped + [item for part in parts for item in part.skipped]
    for part in parts:
        part.skipped, part.ignored = sorted(skipped, key=lambda item: natural_key(item[0])), listing.ignored
    parts = [part for part in parts if len(part)]
    if not parts:
        raise nothing_usable(path, skipped, listing.ignored)
    return BucketSet(parts)


def _aspects(entries: Sequence[Entry]) -> list[float]:
    """log(width/height) of each image, 0 for those that cannot be read."""

    def aspect(entry: Entry) -> float:
        try:
            width, height = stored_size(entry)
        except BadImage:  # decoding it says why
            return 0.0
        return math.log(width / height)

    with strict_pillow(), ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(aspect, entries))


def _assigned(aspects: Sequence[float], sizes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The bucket of each image."""
    least = min(_LEAST, max(2, len(aspects) // 8))
    while True:
        ratios = [math.log(w / h) for h, w in sizes]
        chosen = [min(range(len(sizes)), key=lambda k: (abs(ratios[k] - aspect), k)) for aspect in aspects]
        counts = Counter(chosen)
        sizes = [sizes[k] for k in sorted(counts)]
        few = min(counts, key=lambda k: (counts[k], k))
        if counts[few] >= least or len(sizes) == 1:
            used = sorted(counts)
            return [sizes[used.index(k)] for k in chosen]
        del sizes[sorted(counts).index(few)]


class BucketSet:
    """Images of several sizes, in memory: those of a size are a bucket, and each batch is of one bucket.

    A step's bucket follows from (seed, step), each in proportion to its images: within a block of 1,024 steps to one
    step. A bucket is read epoch after epoch, so that all images are used equally often in the long run.

    buckets: an `ImageSet` each, not empty, of the same classes; images are numbered through them in their order. main:
    the number of the main bucket, by default the one with the most images.
    """

    def __init__(self, buckets: Sequence[ImageSet], main: int | None = None) -> None:
        self.buckets = list(buckets)
        self._main = max(range(len(self.buckets)), key=lambda k: len(self.buckets[k])) if main is None else main
        counts = [len(bucket) for bucket in self.buckets]
        self._starts = [sum(counts[:k]) for k in range(len(counts))]
        self._block = lru_cache(maxsize=2)(self._block_of)
        self._shares = np.cumsum([0, *counts]) / sum(counts)

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self.buckets)

    def __repr__(self) -> str:
        return f"BucketSet({self.source!r}: {len(self)} pictures, {self._listed})"

    @property
    def source(self) -> str:
        return self.buckets[0].source

    @property
    def classes(self) -> list[str]:
        return self.buckets[0].classes

    @property
    def skipped(self) -> list[tuple[str, str]]:
        return self.buckets[0].skipped

    @property
    def ignored(self) -> Counter[str]:
        return self.buckets[0].ignored

    @property
    def labels(self) -> Tensor | None:
        """int64 (n,) into `classes`, or None."""
        labels = [bucket.labels for bucket in self.buckets]
        return (
            None if any(each is None for each in labels) else torch.cat([each for each in labels if each is not None])
        )

    @property
    def names(self) -> list[str]:
        return [name for bucket in self.buckets for name in bucket.names]

    @property
    def main(self) -> ImageSet:
        """The bucket with the most images: what a model is evaluated on, and samples by default."""
        return self.buckets[self._main]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images of the main bucket."""
        return self.main.shape

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(H, W) of the buckets, the main one first."""
        order = sorted(range(len(self.buckets)), key=lambda k: k != self._main)
        return tuple((self.buckets[k].shape[1], self.buckets[k].shape[2]) for k in order)

    @property
    def summary(self) -> str:
        """One line: how many images and of which classes, the buckets, and what was left out."""
        notes = [f"{len(self.buckets)} bucket{'s' * (len(self.buckets) > 1)}: {self._listed}"]
        return sets.read_line(len(self), "picture", self.classes, self.labels, self.ignored, self.skipped, notes)

    @property
    def _listed(self) -> str:
        return ", ".join(f"{extent_text((b.shape[1], b.shape[2]))} {len(b):,}" for b in self.buckets)

    def order(self, batch: int, step: int, seed: int) -> Tensor:
        """The images of the global batch of a step, int64 (batch,): all of one bucket."""
        block, place = divmod(step, _BLOCK)
        slots, earlier = self._block(block, seed)
        k = int(slots[place])
        before = int(earlier[k]) + int((slots[:place] == k).sum())
        return self._starts[k] + batch_indices(len(self.buckets[k]), batch, before, seed + (k + 1) * 2**32)

    def _block_of(self, block: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The bucket of each step of a block, and the steps that each bucket has had in earlier blocks."""
        edges = self._edges(np.arange(block + 1), seed)  # (block + 1, buckets + 1)
        slots = np.searchsorted(edges[block], permutation(_BLOCK, seed, block), side="right") - 1
        return slots, np.diff(edges[:block], axis=1).sum(0)

    def _edges(self, blocks: np.ndarray, seed: int) -> np.ndarray:
        """Where the slots of each bucket begin in each block: the shares of a block, rounded from a moving offset."""
        offset = (seed % 997 / 997 + blocks * _GOLDEN) % 1
        edges = np.ceil(self._shares * _BLOCK - offset[:, None]).astype(np.int64)
        edges[:, 0], edges[:, -1] = 0, _BLOCK
        return edges

    def batch(self, indices: Tensor | Sequence[int], /) -> tuple[Tensor, Tensor | None]:
        """The images at `indices`, of one bucket, float32 (B, C, H, W) in [-1, 1], and labels int64 (B,) or None.

        Raises ValueError if they are of several buckets: their sizes differ.
        """
        rows = torch.as_tensor(indices, dtype=torch.int64, device="cpu")
        k = bisect_right(self._starts, int(rows.min())) - 1
        if int(rows.max()) >= self._starts[k] + len(self.buckets[k]):
            raise ValueError("the images of a batch are of one bucket: take the indices of `order`")
        return self.buckets[k].batch(rows - self._starts[k])

    def require_labels(self) -> Tensor:
        """The labels (N,). Raises UserError if the images have none."""
        labels = self.labels
        if labels is None:
            raise sets.no_labels(self.source, self.names)
        return labels

    def split(self, fraction: float, seed: int, every_class: bool = False) -> tuple[BucketSet, ImageSet]:
        """(train, held-out): a share of each bucket is held out; the held-out images of the main bucket are returned.

        A bucket of one image is not split. Raises as `ImageSet.split`.
        """
        sets.check_fraction(fraction, len(self), self.source)
        parts = [b.split(fraction, seed, every_class) if len(b) > 1 else (b, None) for b in self.buckets]
        held_out = parts[self._main][1]
        if held_out is None:
            raise UserError(f"{self.source} has one image in each bucket: leave out --aspect buckets")
        return BucketSet([train for train, _ in parts], self._main), held_out

    @property
    def fingerprint(self) -> str:
        """As that of an `ImageSet` of all images."""
        rows = self._in_order()
        labels = None if rows[0][3] is None else [str(row[3]) for row in rows]
        return identity.fingerprint([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows], labels)

    @property
    def names_fingerprint(self) -> str:
        """The hash of names and sizes alone."""
        rows = self._in_order()
        return identity.names_fingerprint([row[0] for row in rows], [row[1] for row in rows])

    def _in_order(self) -> list[tuple[str, int, int, str | None]]:
        """Name, bytes, checksum and class of every image, in natural order."""
        rows = []
        for b in self.buckets:
            labels = [None] * len(b) if b.labels is None else [b.classes[i] for i in b.labels.tolist()]
            rows += zip(b.names, b.file_sizes, b.sums, labels, strict=True)
        return sorted(rows, key=lambda row: natural_key(row[0]))

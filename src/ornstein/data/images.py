"""A set of images in memory: opened from a folder, an archive or the bundled digits, decoded once."""

import hashlib
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ornstein.data import arrays
from ornstein.data.decode import (
    LIMIT_PIXELS,
    MAX_ENLARGEMENT,
    MIN_SIDE,
    BadImage,
    check_side,
    decode,
    fit,
    strict_pillow,
    to_array,
)
from ornstein.data.pixels import to_unit
from ornstein.data.sources import Entry, natural_key, nothing_usable, open_source
from ornstein.errors import RunError, UserError

MEMORY_BUDGET = 2 * 2**30  # bytes of decoded pixels held in memory; more goes to a temporary file
_CHUNK = 16  # images a task: enough that the pool's bookkeeping does not show at 32x32


@dataclass(eq=False)
class ImageSet:
    """Square images of one size, decoded: what training and evaluation read.

    images: uint8 (N, C, H, W), in natural order of `names`. labels: int64 (N,) into `classes`, or None.
    skipped: (name, reason) of every file of the source that could not be used. drawn_from: the size of the set that
    these were drawn from at random, where they stand for a larger one.
    """

    source: str
    images: Tensor
    names: list[str]
    file_sizes: list[int]
    labels: Tensor | None = None
    classes: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    drawn_from: int | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def count(self) -> str:
        """How many they are, and of how many where they stand for a larger set."""
        return f"{len(self)}" if self.drawn_from is None else f"{len(self)} of {self.drawn_from}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of each image."""
        _, c, h, w = self.images.shape
        return c, h, w

    def batch(self, indices: Tensor | Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """The images at `indices`, float32 (B, C, H, W) in [-1, 1], and their labels int64 (B,) or None."""
        rows = torch.as_tensor(indices, dtype=torch.int64, device="cpu")
        return to_unit(self.images[rows]), None if self.labels is None else self.labels[rows]

    def require_labels(self) -> Tensor:
        """The labels (N,). Raises UserError where the images have none."""
        if self.labels is None:
            outside = min(self.names, key=lambda name: name.count("/"))
            raise UserError(
                f"{self.source} has no class labels: put the images of each class in a folder named after it "
                f"({outside} has no class)"
            )
        return self.labels

    def split(self, fraction: float, seed: int) -> tuple["ImageSet", "ImageSet"]:
        """(train, held-out): `fraction` of the images drawn at random, by `seed` alone, are held out.

        Both parts keep the natural order, all classes and the list of skipped files, and own their pixels.
        Raises ValueError unless 0 < fraction < 1, UserError on fewer than 2 images.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction must lie between 0 and 1, not {fraction}")
        n = len(self)
        if n < 2:
            raise UserError(f"{self.source} has {n} image: at least 2 are needed to hold some out")
        held_out = min(max(round(n * fraction), 1), n - 1)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        return self._subset(order[held_out:].sort().values), self._subset(order[:held_out].sort().values)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that tell whether two runs read the same files: SHA-256 of names and sizes (bytes)."""
        digest = hashlib.sha256()
        for name, size in zip(self.names, self.file_sizes, strict=True):
            digest.update(f"{name}\0{size}\n".encode())
        return digest.hexdigest()[:16]

    def _subset(self, rows: Tensor) -> "ImageSet":
        images = torch.from_numpy(_allocate((len(rows), *self.images.shape[1:])))
        torch.index_select(self.images, 0, rows, out=images)
        chosen = rows.tolist()
        return ImageSet(
            source=self.source,
            images=images,
            names=[self.names[i] for i in chosen],
            file_sizes=[self.file_sizes[i] for i in chosen],
            labels=None if self.labels is None else self.labels[rows],
            classes=list(self.classes),
            skipped=list(self.skipped),
        )


def open_images(
    path: str | Path,
    size: int | None = None,
    channels: int | None = None,
    *,
    limit_pixels: int = LIMIT_PIXELS,
    progress: Callable[[int, int], None] | None = None,
) -> ImageSet:
    """Open an image folder, an archive (read in place) or "digits", scikit-learn's 1,797 scans of 8x8.

    An archive is a .zip, or a .tar as WebDataset makes them, of which a folder may hold several (see `webdataset`); or
    the images are in a .npy or .npz file (see `arrays`), or a data set that Hugging Face's `datasets` saved on disk.
    Where all images lie in sub-folders, the first folder on the path is the class; where any lies directly
    in the source, there are no labels. An archive wrapped in one single folder is read as that folder.
    Each image is turned upright, its centre square cut out and resized to `size` pixels a side; size=None
    keeps the size that all have. `channels` is 3 (RGB) or 1 (luma); None means 3, and 1 for the digits.
    Files that cannot be used, among them images above `limit_pixels`, smaller than 2 pixels a side or
    enlarged more than 8 times, are listed in `skipped`. `progress(done, total)` is called as files are
    decoded. The result does not depend on the number of threads. Above 2 GB the pixels live in a temporary
    file. A folder of the name "digits" is given as "./digits".

    Raises UserError where there is no such source, nothing usable in it, or the sizes differ and size=None;
    RunError where the disk has no room for the temporary file.
    """
    if size is not None and size < MIN_SIDE:
        raise UserError(f"--size must be at least {MIN_SIDE} pixels, not {size}")
    if channels not in (None, 1, 3):
        raise UserError(f"channels must be 1 (grey) or 3 (RGB), not {channels}")
    if str(path) == "digits" and (isinstance(path, str) or not path.exists()):
        return _open_digits(size, 1 if channels is None else channels)
    if Path(path).suffix.lower() in arrays.SUFFIXES and Path(path).is_file():
        return _open_arrays(Path(path), size, channels, progress)
    with open_source(Path(path)) as listing:
        skipped = list(listing.skipped)
        if not listing.entries:
            raise nothing_usable(path, skipped, listing.ignored)
        with strict_pillow():
            images, reasons = _decode_all(listing.entries, size, channels or 3, limit_pixels, progress)
        skipped += [(e.name, why) for e, why in zip(listing.entries, reasons, strict=True) if why is not None]
        skipped.sort(key=lambda item: natural_key(item[0]))
        used = [e for e, why in zip(listing.entries, reasons, strict=True) if why is None]
        if not used:
            raise nothing_usable(path, skipped, listing.ignored)
    labels = [entry.label for entry in used if entry.label is not None]
    return _image_set(str(path), used, images, sorted(set(labels), key=natural_key), skipped)


def decode_images(source: str, entries: list[Entry], classes: list[str], size: int, channels: int) -> ImageSet:
    """The sound ones of `entries`, decoded: images (C, size, size) of a set whose classes are `classes`."""
    with strict_pillow():
        images, reasons = _decode_all(entries, size, channels, LIMIT_PIXELS, None)
    judged = list(zip(entries, reasons, strict=True))
    skipped = [(entry.name, why) for entry, why in judged if why is not None]
    return _image_set(source, [entry for entry, why in judged if why is None], images, classes, skipped)


def _image_set(
    source: str, entries: list[Entry], images: np.ndarray, classes: list[str], skipped: list[tuple[str, str]]
) -> ImageSet:
    number = {name: i for i, name in enumerate(classes)}
    labels = [number[entry.label] for entry in entries if entry.label is not None]
    return ImageSet(
        source=source,
        images=torch.from_numpy(images),
        names=[entry.name for entry in entries],
        file_sizes=[entry.size for entry in entries],
        labels=torch.tensor(labels) if labels else None,
        classes=classes,
        skipped=skipped,
    )


def _open_digits(size: int | None, channels: int) -> ImageSet:
    if size is not None and size > 8 * MAX_ENLARGEMENT:
        raise UserError(f"the digits are 8x8 pixels: --size can be at most {8 * MAX_ENLARGEMENT}, not {size}")
    from sklearn.datasets import load_digits  # a second to import, and only the digits need it

    scans, targets = load_digits(return_X_y=True)
    pixels = np.rint(np.asarray(scans).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    mode = "L" if channels == 1 else "RGB"
    images = np.stack([to_array(fit(Image.fromarray(scan).convert(mode), size)) for scan in pixels])
    return ImageSet(
        source="digits",
        images=torch.from_numpy(images),
        names=[f"digits/{i:04d}" for i in range(len(images))],
        file_sizes=[64] * len(images),
        labels=torch.from_numpy(np.asarray(targets).astype(np.int64)),
        classes=[str(digit) for digit in range(10)],
    )


def _open_arrays(
    path: Path, size: int | None, channels: int | None, progress: Callable[[int, int], None] | None
) -> ImageSet:
    found = arrays.open_arrays(path)
    height, width, own = found.shape
    side = min(height, width)
    try:
        check_side(side, size)
    except BadImage as bad:
        raise UserError(f"the images in {path} are {bad}") from None
    channels, size = channels or own, size or side
    images = _allocate((found.count, channels, size, size))
    done = 0
    for chunk in found.chunks():
        for pixels in chunk:
            if (height, width, own) == (size, size, channels):
                images[done] = pixels.transpose(2, 0, 1)
            else:
                picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if own == 1 else pixels))
                images[done] = to_array(fit(picture.convert("L" if channels == 1 else "RGB"), size))
            done += 1
        if progress is not None:
            progress(done, found.count)
    digits = len(str(found.count - 1))
    numbers, labels = (None, None) if found.labels is None else np.unique(found.labels, return_inverse=True)
    return ImageSet(
        source=f"{path} ({found.about})",
        images=torch.from_numpy(images),
        names=[f"{i:0{digits}d}" for i in range(found.count)],
        file_sizes=[height * width * own] * found.count,
        labels=None if labels is None else torch.from_numpy(labels.astype(np.int64).reshape(-1)),
        classes=[] if numbers is None else [str(number) for number in numbers],
    )


def _decode_all(
    entries: list[Entry],
    size: int | None,
    channels: int,
    limit_pixels: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[np.ndarray, list[str | None]]:
    """uint8 (N, C, size, size) of the sound entries, in order; for every entry why it is not among them."""
    native = None if size is not None else _first_sound(entries, channels, limit_pixels)
    if size is None and native is None:
        size = MIN_SIDE  # nothing will be decoded, but every entry gets its reason
    elif native is not None:
        size = min(native[1])
    assert size is not None
    images = _allocate((len(entries), channels, size, size))

    def work(rows: range) -> list[str | None]:
        reasons: list[str | None] = []
        for i in rows:
            try:
                image, original = decode(entries[i].read(), size, channels, limit_pixels)
            except BadImage as bad:
                reasons.append(str(bad))
                continue
            if native is not None and original != native[1]:
                sizes = [f"{name} is {w}x{h}" for name, (w, h) in (native, (entries[i].name, original))]
                raise UserError(f"the images are not all one size ({', '.join(sizes)}): choose one with --size")
            images[i] = image
            reasons.append(None)
        return reasons

    reasons: list[str | None] = []
    for part in _in_order(work, [range(i, min(i + _CHUNK, len(entries))) for i in range(0, len(entries), _CHUNK)]):
        reasons += part
        if progress is not None:
            progress(len(reasons), len(entries))
    sound = [i for i, why in enumerate(reasons) if why is None]
    for to, row in enumerate(sound):
        if to != row:
            images[to] = images[row]
    return images[: len(sound)], reasons


def _first_sound(entries: list[Entry], channels: int, limit_pixels: int) -> tuple[str, tuple[int, int]] | None:
    for entry in entries:
        try:
            return entry.name, decode(entry.read(), None, channels, limit_pixels)[1]
        except BadImage:
            continue
    return None


def _in_order(work: Callable[[range], list[str | None]], chunks: list[range]) -> Iterator[list[str | None]]:
    """The results of `work` in the order of `chunks`, by threads (Pillow decodes outside the GIL)."""
    workers = min(os.cpu_count() or 1, 16)
    pool = ThreadPoolExecutor(workers)
    try:
        ahead: deque[Future[list[str | None]]] = deque()
        for chunk in chunks:
            ahead.append(pool.submit(work, chunk))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _allocate(shape: tuple[int, ...]) -> np.ndarray:
    """A uint8 array, in memory up to the budget and above it in a temporary file that goes with the array."""
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

"""Images in NumPy files: .npy, and .npz with labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ornstein.data.decode import LIMIT_PIXELS
from ornstein.data.names import tidy
from ornstein.data.npy import Header, headers_of, read_rows, read_whole
from ornstein.data.rows import RowFile
from ornstein.errors import UserError

__all__ = ["ARRAY_SUFFIXES", "Arrays", "is_arrays", "open_arrays"]

ARRAY_SUFFIXES = {".npy", ".npz"}
_IMAGES = ("images", "image", "x", "data", "train_images", "x_train")
_LABELS = ("labels", "label", "y", "targets", "train_labels", "y_train")
_MANY = 2  # times an axis of channels fits into height and width, at least, if nothing else tells it
_PART_BYTES = 2**25  # read at a time
# How far values may lie outside [0, 1] or [-1, 1] and are clipped: rounding, and the overshoot of a resampling filter.
_OVERSHOOT = 0.02
_FEW_NEGATIVE = 0.01  # share of negative values below which data that do not reach -1/2 are hardly in [-1, 1]


@dataclass(frozen=True)
class Arrays:
    """Images (N, H, W, C), as `chunks` gives them uint8, in order; labels (N,) into `classes`, or None.

    notes: how values and labels were read. ignored: the arrays of the archive that were not.
    """

    count: int
    shape: tuple[int, int, int]
    labels: np.ndarray | None
    classes: list[str]
    notes: list[str]
    ignored: list[str]
    chunks: Callable[[], Iterator[np.ndarray]]


def is_arrays(path: str | Path) -> bool:
    """Whether `path` is a file of arrays by its suffix."""
    return Path(path).suffix.lower() in ARRAY_SUFFIXES and Path(path).is_file()


def open_arrays(path: Path, channels: int | None = None) -> Arrays:
    """Images in a .npy file, or in a .npz archive with their labels.

    Values are uint8; or booleans or uint8 of 0 and 1 alone, black and white; or floats in [0, 1], or in [-1, 1], of
    which an overshoot of 0.02 is clipped. Shapes are (N, H, W), (N, H, W, C) or (N, C, H, W); the axis of the
    channels has `channels` numbers, by default 1 or 3, else 2 or 4, else it is much shorter than the other two. Of an
    archive it takes the array called images, x or data, or the only one of 3 or 4 dimensions; and as labels those
    called labels, y or targets, or the only integers (N,). Labels are whole numbers, names, or one-hot (N, K). Nothing
    is unpickled. The data are read in parts, twice to find their range.

    Raises:
        UserError: the file cannot be read, has no such array, values that are out of range or not finite, or labels
            that do not fit the images.
    """
    labels, ignored = None, list[str]()
    if path.suffix.lower() == ".npz":
        headers = headers_of(path)
        many = {name: header for name, header in headers.items() if len(header.shape) in (3, 4)}
        name = _pick(path, many, _IMAGES, "array of images, (N, H, W) or (N, H, W, C)")
        header = many[name]
        labels_name = _labels_name(path, name, header, headers)
        if labels_name is not None:
            labels = read_whole(path, labels_name, headers[labels_name])
        ignored = [f"{other} {each.shape}" for other, each in headers.items() if other not in (name, labels_name)]

        def rows() -> Iterator[np.ndarray]:
            return read_rows(path, name, header)
    else:
        file = RowFile(path)
        name, header = path.name, Header(file.shape, file.dtype, 0)
        count = max(1, _PART_BYTES // max(1, header.row_bytes))

        def rows() -> Iterator[np.ndarray]:
            for first in range(0, len(file), count):
                yield file.read(range(first, min(first + count, len(file))))

    axis = _channel_axis(path, name, header.shape, channels)
    shape = header.shape
    c = 1 if axis is None else shape[axis]
    h, w = (shape[2], shape[3]) if axis == 1 else (shape[1], shape[2])
    if h * w > LIMIT_PIXELS:
        raise UserError(f"{path}: {name} has images of {w}x{h} pixels: more than the limit of {LIMIT_PIXELS:,}")
    note, offset, factor = _range(path, name, header.dtype, rows)

    def chunks() -> Iterator[np.ndarray]:
        for chunk in rows():
            if factor != 1:
                chunk = np.rint((chunk.astype(np.float32) + offset) * factor).clip(0, 255).astype(np.uint8)
            yield chunk[..., None] if axis is None else np.moveaxis(chunk, axis, -1)

    numbers, classes = (None, []) if labels is None else _classes(path, labels, shape[0])
    return Arrays(shape[0], (h, w, c), numbers, classes, [note], ignored, chunks)


def _channel_axis(path: Path, name: str, shape: tuple[int, ...], channels: int | None) -> int | None:
    """The axis of the channels; None if there is none."""
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise UserError(f"{path}: {name} has shape {shape}; images are (N, H, W), (N, H, W, C) or (N, C, H, W)")
    if len(shape) == 3:
        if shape[2] in (1, 3) or (shape[2] == 4 and shape[1] != 4):
            raise UserError(
                f"{path}: {name} has shape {shape}, which is one picture (H, W, C): stack pictures as (N, H, W, C)"
            )
        return None
    for counts in ((channels,), (1, 3), (2, 4)):
        for axis in (3, 1):
            if shape[axis] in counts:
                return axis
    for axis in (3, 1):
        if _MANY * shape[axis] <= min(shape[2], shape[4 - axis]):
            return axis
    raise UserError(
        f"{path}: {name} has shape {shape}, and neither its last nor its second axis is 1 or 3 channels: say how many "
        "there are with --channels"
    )


def _range(
    path: Path, name: str, dtype: np.dtype, rows: Callable[[], Iterator[np.ndarray]]
) -> tuple[str, float, float]:
    """How the values are read, in words, and the offset and factor that bring them to 0..255."""
    if dtype == np.bool_:
        return "booleans read as black and white", 0.0, 255.0
    if dtype == np.uint8:
        if all(int(chunk.max()) <= 1 for chunk in rows()):
            return "uint8 of 0 and 1 read as black and white", 0.0, 255.0
        return "uint8", 0.0, 1.0
    if dtype.kind != "f":
        raise UserError(
            f"{path}: {name} is {dtype}; images are uint8 (x.astype(np.uint8)), or floats in [0, 1] or [-1, 1]"
        )
    low, high, seen, negative, values = np.inf, -np.inf, 0, 0, 0
    for chunk in rows():
        flat = chunk.reshape(len(chunk), -1)
        bad = ~np.isfinite(flat).all(1)
        if bad.any():
            raise UserError(f"{path}: {name}[{seen + int(bad.argmax())}] has values that are not finite: take it out")
        low, high, seen = min(low, float(flat.min())), max(high, float(flat.max())), seen + len(chunk)
        negative, values = negative + int((flat < -_OVERSHOOT).sum()), values + flat.size
    span = f"{path}: {name} has floats from {low:.9g} to {high:.9g}"
    if low < -1 - _OVERSHOOT or high > 1 + _OVERSHOOT:
        hint = ": save them as uint8 (x.astype(np.uint8))" if low >= 0 and 1 < high <= 255 else ""
        raise UserError(f"{span}; images are in [0, 1] or [-1, 1]{hint}")
    if low >= -_OVERSHOOT:
        clipped = ", clipped" if low < 0 or high > 1 else ""
        return f"floats in [0, 1]{clipped}", 0.0, 255.0
    if low > -0.5 and negative < _FEW_NEGATIVE * values:
        raise UserError(f"{span}, {negative / values:.1%} of them negative: clip them to [0, 1], or scale to [-1, 1]")
    return f"floats in [-1, 1]{', clipped' if low < -1 or high > 1 else ''}", 1.0, 127.5


def _pick(path: Path, headers: dict[str, Header], names: tuple[str, ...], what: str) -> str:
    by_small = {name.lower(): name for name in headers}
    for name in names:
        if name in by_small:
            return by_small[name]
    if len(headers) == 1:
        return next(iter(headers))
    several = f"several, {', '.join(sorted(headers))}: call one of them {names[0]}" if headers else "none"
    raise UserError(f"{path} should have one {what}; it has {several}")


def _labels_name(path: Path, images: str, header: Header, headers: dict[str, Header]) -> str | None:
    """The array of labels: one with such a name, whatever it holds, or the only integers of the right length."""
    others = {name: each for name, each in headers.items() if name != images}
    if {name.lower() for name in others} & {*_LABELS}:
        return _pick(path, others, _LABELS, "array of labels")
    n = header.shape[0]
    fitting = {name: each for name, each in others.items() if each.dtype.kind in "iu" and each.shape in ((n,), (n, 1))}
    return _pick(path, fitting, _LABELS, "array of labels") if fitting else None


def _classes(path: Path, labels: np.ndarray, n: int) -> tuple[np.ndarray, list[str]]:
    """Labels int64 (N,) and the names of the classes, of whole numbers, names or one-hot rows."""
    if labels.shape[:1] != (n,) or labels.ndim > 2:
        raise UserError(
            f"{path} has {n} images and labels of shape {labels.shape}: give one label each, or leave them out"
        )
    if labels.ndim == 2 and labels.shape[1] > 1:
        if labels.dtype.kind not in "biuf" or not (
            ((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all()
        ):
            raise UserError(f"{path} has labels of shape {labels.shape} that are not one-hot: give one class each")
        labels = labels.argmax(1)
    labels = labels.reshape(-1)
    if labels.dtype.kind == "f":
        if not (np.isfinite(labels).all() and (labels == np.rint(labels)).all()):
            raise UserError(f"{path} has labels that are no whole numbers: give one class each, or leave them out")
        labels = labels.astype(np.int64)
    if labels.dtype.kind == "b":
        labels = labels.astype(np.int64)
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "replace")
    if labels.dtype.kind not in "iuU":
        raise UserError(f"{path} has labels of type {labels.dtype}: give whole numbers or names, or leave them out")
    values, numbers = np.unique(labels, return_inverse=True)
    return numbers.astype(np.int64).reshape(-1), [tidy(str(value)) for value in values]

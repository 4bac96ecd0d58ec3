"""Images in NumPy files: .npy, and .npz with labels."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ornstein.data.rows import RowFile
from ornstein.errors import UserError

SUFFIXES = {".npy", ".npz"}
_IMAGES = ("images", "image", "x", "data", "train_images", "x_train")
_LABELS = ("labels", "label", "y", "targets", "train_labels", "y_train")
_CHUNK = 256  # images at a time
# what zipfile, its decompressors and NumPy's parser of headers raise
_BROKEN = (
    OSError,
    ValueError,
    EOFError,
    SyntaxError,
    NotImplementedError,
    RuntimeError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class Arrays:
    """Images (N, H, W, C), as `chunks` gives them uint8, in order; labels (N,) or None. `about` says what was read."""

    count: int
    shape: tuple[int, int, int]
    labels: np.ndarray | None
    about: str
    chunks: Callable[[], Iterator[np.ndarray]]


def open_arrays(path: Path) -> Arrays:
    """Images in a .npy file, or in a .npz archive with their labels.

    uint8, or floats in [0, 1], or in [-1, 1] where one is negative; (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3
    channels. Of an archive it takes the array that is called images, x or data, or the only one of 3 or 4 dimensions;
    and as labels the integers (N,) that are called labels, y or targets, or the only ones. Nothing is unpickled. The
    data are read in parts, twice where they are floats.

    Raises:
        UserError: it cannot be read, has no such array, or values that are out of range or not finite (it says where).
    """
    labels = None
    if path.suffix.lower() == ".npz":
        headers = _headers(path)
        many = {name: header for name, header in headers.items() if len(header[0]) in (3, 4)}
        name = _pick(path, many, _IMAGES, "array of images, (N, H, W) or (N, H, W, C)")
        shape, dtype = many[name]
        ones = {
            other: header
            for other, header in headers.items()
            if header[1].kind in "iu" and header[0] in ((shape[0],), (shape[0], 1))
        }
        if ones:
            labels = _whole(path, _pick(path, ones, _LABELS, "array of labels")).reshape(-1)

        def rows() -> Iterator[np.ndarray]:
            return _streamed(path, name)
    else:
        file = RowFile(path)
        name, shape, dtype = path.name, file.shape, file.dtype

        def rows() -> Iterator[np.ndarray]:
            for first in range(0, shape[0], _CHUNK):
                yield file.read(range(first, min(first + _CHUNK, shape[0])))

    place = _channels(path, name, shape)
    if dtype == np.uint8:
        about, scale = "uint8", None
    elif dtype.kind == "f":
        about, scale = _range(path, name, rows())
    else:
        raise UserError(f"{path}: {name} is {dtype}; images are uint8, or floats in [0, 1] or [-1, 1]")

    def chunks() -> Iterator[np.ndarray]:
        for chunk in rows():
            if scale is not None:
                chunk = np.rint((chunk.astype(np.float32) + scale[0]) * scale[1]).astype(np.uint8)
            if place is None:
                yield chunk[..., None]
            else:
                yield np.moveaxis(chunk, place, -1)

    c = 1 if place is None else shape[place]
    h, w = (shape[2], shape[3]) if place == 1 else (shape[1], shape[2])
    return Arrays(shape[0], (h, w, c), labels, about, chunks)


def _channels(path: Path, name: str, shape: tuple[int, ...]) -> int | None:
    """The axis of the channels; None where there is none."""
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise UserError(f"{path}: {name} has shape {shape}; images are (N, H, W), (N, H, W, C) or (N, C, H, W)")
    if len(shape) == 3:
        return None
    for axis in (3, 1):
        if shape[axis] in (1, 3):
            return axis
    raise UserError(f"{path}: {name} has shape {shape}, and neither its last nor its second axis is 1 or 3 channels")


def _range(path: Path, name: str, rows: Iterator[np.ndarray]) -> tuple[str, tuple[float, float]]:
    low, high, seen = np.inf, -np.inf, 0
    for chunk in rows:
        flat = chunk.reshape(len(chunk), -1)
        bad = ~np.isfinite(flat).all(1)
        if bad.any():
            raise UserError(f"{path}: {name}[{seen + int(bad.argmax())}] has values that are not finite: take it out")
        low, high, seen = min(low, float(flat.min())), max(high, float(flat.max())), seen + len(chunk)
    if low < -1 or high > 1:
        raise UserError(f"{path}: {name} has floats from {low:g} to {high:g}; images are in [0, 1] or [-1, 1]")
    # x 255, or (x + 1) 127.5
    return ("floats in [-1, 1]", (1.0, 127.5)) if low < 0 else ("floats in [0, 1]", (0.0, 255.0))


def _pick(path: Path, found: dict[str, Any], names: tuple[str, ...], what: str) -> str:
    for name in names:
        if name in found:
            return name
    if len(found) == 1:
        return next(iter(found))
    several = f"several, {', '.join(sorted(found))}: call one of them {names[0]}" if found else "none"
    raise UserError(f"{path} should have one {what}; it has {several}")


def _headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of the arrays of an archive, as far as their headers can be read."""
    headers = {}
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
    except _BROKEN as error:
        raise UserError(f"{path} is no sound .npz archive: {error}") from None
    for name in names:
        with _member(path, name) as (_, shape, dtype):
            headers[name.removesuffix(".npy")] = shape, dtype
    return headers


@contextmanager
def _member(path: Path, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype]]:
    """A stream at the first number of an array in an archive, its shape and dtype."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
            shape, columns_first, dtype = read(stream)
            if dtype.hasobject or columns_first:
                raise UserError(f"{path}: {name} is of Python objects or stored column by column: save plain arrays")
            yield stream, tuple(shape), dtype
    except _BROKEN as error:
        raise UserError(f"{path}: {name} cannot be read: {' '.join(str(error).split())}") from None


def _streamed(path: Path, name: str) -> Iterator[np.ndarray]:
    with _member(path, f"{name}.npy") as (stream, shape, dtype):
        for first in range(0, shape[0], _CHUNK):
            part = (min(_CHUNK, shape[0] - first), *shape[1:])
            size = math.prod(part) * dtype.itemsize
            data = stream.read(size)
            if len(data) < size:
                raise UserError(f"{path}: {name} is cut short after {first} images")
            yield np.frombuffer(data, dtype).reshape(part)


def _whole(path: Path, name: str) -> np.ndarray:
    parts = list(_streamed(path, name))
    return np.concatenate(parts) if parts else np.empty(0, np.int64)

"""NumPy's files, read with bounds: headers, members of .npz archives, and how arrays of labels become classes."""

from __future__ import annotations

import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from ornstein.data.entry import reason_of
from ornstein.data.folder import open_zip
from ornstein.errors import UserError

__all__ = ["BROKEN", "Header", "headers_of", "read_header", "read_rows", "read_whole"]

# what zipfile, its decompressors and NumPy's parser of headers raise
BROKEN = (
    OSError,
    ValueError,
    EOFError,
    SyntaxError,
    NotImplementedError,
    RuntimeError,
    RecursionError,
    MemoryError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
_HEADER_BYTES = 2**16
_PART_BYTES = 2**25  # read at a time
_WHOLE_BYTES = 2**28  # of an array that is read at once: labels
_BOMB_BYTES, _BOMB_RATIO = 2**28, 400  # images do not compress so well; deflate's limit is 1,030


@dataclass(frozen=True)
class Header:
    """What the header of an array says: shape, dtype, and the byte at which the numbers begin."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int

    @property
    def row_bytes(self) -> int:
        """The bytes of one row along the first axis."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def read_header(stream: IO[bytes], what: str) -> Header:
    """The header at the beginning of `stream`; no more than 64 kB are read for it.

    Raises:
        UserError: `what` is of Python objects, or stored column by column. Other errors are in `BROKEN`.
    """
    head = io.BytesIO(stream.read(_HEADER_BYTES))
    version = np.lib.format.read_magic(head)
    read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = read(head)
    if dtype.hasobject:
        raise UserError(f"{what} holds Python objects, which are not read: save an array of numbers")
    if columns_first:
        raise UserError(f"{what} is stored column by column: save it with np.ascontiguousarray")
    if any(n < 0 for n in shape):
        raise ValueError(f"a negative length, {shape}")
    return Header(tuple(shape), dtype, head.tell())


def headers_of(path: Path) -> dict[str, Header]:
    """The headers of the arrays in a .npz archive.

    Raises:
        UserError: it is no sound archive; an array is shorter than its header says, or packed so densely that it is no
            data but an attack on memory.
    """
    headers = {}
    with _sound(path, "the archive"), open_zip(path) as archive:
        members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
    for info in members:
        with _member(path, info.filename) as stream:
            header = read_header(stream, f"{path}: {info.filename}")
        size = header.offset + math.prod(header.shape) * header.dtype.itemsize
        if info.file_size < size:
            raise UserError(f"{path}: {info.filename} is cut short: {info.file_size:,} of {size:,} bytes")
        if info.file_size > _BOMB_BYTES and info.file_size > _BOMB_RATIO * max(1, info.compress_size):
            raise UserError(
                f"{path}: {info.filename} grows from {info.compress_size / 1e6:,.1f} to {info.file_size / 1e6:,.0f} MB "
                "when it is unpacked, which images do not: save it with np.savez"
            )
        headers[info.filename.removesuffix(".npy")] = header
    return headers


def read_rows(path: Path, name: str, header: Header) -> Iterator[np.ndarray]:
    """The rows of an array in a .npz archive, some at a time. Raises UserError if it is damaged."""
    count = max(1, _PART_BYTES // max(1, header.row_bytes))
    with _member(path, f"{name}.npy") as stream:
        stream.read(header.offset)
        for first in range(0, header.shape[0], count):
            part = (min(count, header.shape[0] - first), *header.shape[1:])
            size = math.prod(part) * header.dtype.itemsize
            data = stream.read(size)
            if len(data) < size:
                raise UserError(f"{path}: {name} is cut short after {first} rows")
            yield np.frombuffer(data, header.dtype).reshape(part)
        stream.read(1)  # the archive compares its checksum at the end


def read_whole(path: Path, name: str, header: Header) -> np.ndarray:
    """An array of a .npz archive at once. Raises UserError if it is damaged, or above 256 MB."""
    if math.prod(header.shape) * header.dtype.itemsize > _WHOLE_BYTES:
        raise UserError(f"{path}: {name} has shape {header.shape}: too large for labels")
    parts = list(read_rows(path, name, header))
    return np.concatenate(parts) if parts else np.empty(header.shape, header.dtype)


@contextmanager
def _sound(path: Path, name: str) -> Iterator[None]:
    try:
        yield
    except BROKEN as error:
        raise UserError(f"{path}: {name} cannot be read: {reason_of(error)}") from None


@contextmanager
def _member(path: Path, name: str) -> Iterator[IO[bytes]]:
    with _sound(path, name), open_zip(path) as archive, archive.open(name) as stream:
        yield stream

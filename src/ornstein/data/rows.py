"""Rows of an array in a .npy file, read when they are asked for."""

from __future__ import annotations

import math
import os
import tokenize
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ornstein.errors import RunError, UserError


class RowFile:
    """The array (N, *) in a .npy file, of which rows are read by number.

    It is read and not memory-mapped: a mapped file that is cut short while in use ends the process without a word, a
    read one with an error that names it. The system keeps what is read often in memory in either case. A file that is
    removed can be read on.

    Raises:
        UserError: it is no .npy file of a plain array (N, *), or is cut short.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
                shape, columns_first, dtype = read(file)
                self._offset = file.tell()
            self._file = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror or error}") from None
        except (ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:  # NumPy's parser of headers
            raise UserError(f"{self.path} is no .npy file: {' '.join(str(error).split())}") from None
        if dtype.hasobject:
            raise UserError(f"{self.path} holds Python objects, which are not read: save an array of numbers")
        if not shape or min(shape) < 0:
            raise UserError(f"{self.path} has shape {shape}: save an array of one row each")
        if columns_first:
            raise UserError(f"{self.path} is stored column by column: save it with np.ascontiguousarray")
        self.shape: tuple[int, ...] = tuple(shape)
        self.dtype: np.dtype = dtype
        self._row = math.prod(shape[1:]) * dtype.itemsize
        size = os.fstat(self._file).st_size
        if size < self._offset + len(self) * self._row:
            raise UserError(
                f"{self.path} is cut short: {size:,} bytes of {self._offset + len(self) * self._row:,}; copy it again"
            )

    def __len__(self) -> int:
        return self.shape[0]

    def __del__(self) -> None:
        file = self.__dict__.pop("_file", None)
        if file is not None:
            os.close(file)

    def read(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """These rows, (len(rows), *). Raises RunError where the file is no longer what it was."""
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        flat = out.reshape(len(rows), -1).view(np.uint8) if out.size else out
        # in the order of the file, which a disk likes better
        for i in np.argsort(np.asarray(rows), kind="stable"):
            self._fill(flat[i], self._offset + int(rows[i]) * self._row)
        return out

    def _fill(self, into: np.ndarray, offset: int) -> None:
        done = 0
        while done < self._row:
            try:
                count = os.preadv(self._file, [into[done:].data], offset + done)
            except OSError as error:
                raise RunError(f"cannot read {self.path}: {error.strerror or error}; go on with --resume") from None
            if count == 0:
                raise RunError(
                    f"{self.path} was cut short while it was in use: put it back as it was and go on with --resume"
                )
            done += count

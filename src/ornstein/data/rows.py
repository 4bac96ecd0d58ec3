"""Rows of an array in a .npy file, read when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ornstein.data.entry import BadImage, open_handle, reason_of
from ornstein.data.npy import BROKEN, read_header
from ornstein.errors import RunError, UserError

__all__ = ["RowFile"]


class RowFile:
    """The array (N, *) in a .npy file, of which rows are read by number.

    It is read and not memory-mapped: if a mapped file is cut short while in use, the process ends without a word; a
    read fails with an error that names the file. Either way the system caches what is read often. A file that is
    removed can still be read.

    Raises:
        UserError: it is no .npy file of a plain array (N, *), or is cut short.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._file, size = open_handle(self.path)
            with os.fdopen(os.dup(self._file), "rb") as stream:
                self._header = read_header(stream, str(self.path))
        except BadImage as bad:
            raise UserError(f"cannot read {self.path}: {bad}") from None
        except BROKEN as error:
            raise UserError(f"{self.path} is no .npy file: {reason_of(error)}") from None
        self.shape, self.dtype = self._header.shape, self._header.dtype
        if not self.shape:
            raise UserError(f"{self.path} has shape {self.shape}: save an array of one row each")
        self._row = self._header.row_bytes
        needed = self._header.offset + len(self) * self._row
        if size < needed:
            raise UserError(f"{self.path} is cut short: {size:,} bytes of {needed:,}; copy it again")

    def __len__(self) -> int:
        return self.shape[0]

    def __del__(self) -> None:
        file = self.__dict__.pop("_file", None)
        if file is not None:
            os.close(file)

    def read(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """These rows, (len(rows), *). Raises RunError if the file is no longer what it was."""
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        flat = out.reshape(len(rows), -1).view(np.uint8) if out.size else out
        # in the order of the file, which a disk likes better
        for i in np.argsort(np.asarray(rows), kind="stable"):
            self._fill(flat[i], self._header.offset + int(rows[i]) * self._row)
        return out

    def _fill(self, into: np.ndarray, offset: int) -> None:
        done = 0
        while done < self._row:
            try:
                count = os.preadv(self._file, [into[done:].data], offset + done)
            except OSError as error:
                raise RunError(f"cannot read {self.path}: {reason_of(error)}; go on with --resume") from None
            if count == 0:
                raise RunError(
                    f"{self.path} was cut short while it was in use: put it back as it was and go on with --resume"
                )
            done += count

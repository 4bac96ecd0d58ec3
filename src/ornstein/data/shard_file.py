"""An archive open for reading at any place: a file of this machine, or one behind a URL."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Protocol

from ornstein.data.entry import BadImage, open_handle
from ornstein.data.remote import RemoteFile, RemoteShard
from ornstein.errors import UserError

__all__ = ["LocalFile", "Place", "ShardFile", "open_shard"]

Place = Path | RemoteShard
"""Where an archive lies."""


class ShardFile(Protocol):
    """An open archive of `size` bytes; threads share it."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset` on, fewer at the end. BadImage if the disk gives none."""
        ...

    def will_need(self, offset: int, count: int) -> None:
        """These bytes will be read soon."""
        ...


class LocalFile:
    """A file of this machine, closed when its last user releases it. BadImage if it cannot be opened."""

    def __init__(self, path: Path) -> None:
        self._number, self.size = open_handle(path)

    def read(self, offset: int, count: int) -> bytes:
        try:
            data = os.pread(self._number, count, offset)  # at a given place: threads share the file
            while 0 < len(data) < count:
                more = os.pread(self._number, count - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except (OSError, OverflowError) as error:
            raise BadImage(getattr(error, "strerror", None) or str(error)) from None
        return data

    def will_need(self, offset: int, count: int) -> None:
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):  # reading it will fail too, and say so
                os.posix_fadvise(self._number, offset, count, os.POSIX_FADV_WILLNEED)

    def __del__(self) -> None:
        number = self.__dict__.pop("_number", None)
        if number is not None:
            os.close(number)


def open_shard(place: Place) -> LocalFile | RemoteFile:
    """Open an archive. UserError if it cannot be opened."""
    if isinstance(place, RemoteShard):
        return RemoteFile(place)
    try:
        return LocalFile(place)
    except BadImage as bad:
        raise UserError(f"cannot read {place}: {bad}") from None

"""The log of swaps: a line of JSON for each output, with hashes of the files, never an embedding."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from ornstein.store import write_error

__all__ = ["NAME", "append", "sha256"]

NAME = "ornstein-swaps.jsonl"
"""The log's name beside an output."""
_CHUNK = 1 << 20


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; read in pieces."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def append(path: str | Path, record: dict[str, Any]) -> None:
    """Add one line to the log, in a single write. A link, pipe or device in its place is refused.

    Raises:
        RunError: it cannot be written.
    """
    path = Path(path)
    line = json.dumps(record) + "\n"  # ASCII: names of files may hold anything
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", buffering=0, opener=_regular) as file:
            file.write(line.encode())
    except OSError as error:
        raise write_error(path, error) from error


def _regular(path: str, flags: int) -> int:
    """Open a file that is neither a link nor a pipe or a device."""
    handle = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no regular file", path)
    return handle

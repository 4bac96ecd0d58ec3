"""The log of swaps: a line of JSON for each output. What went in and out by its hash, never an embedding."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ornstein.store import write_error

NAME = "ornstein-swaps.jsonl"  # beside the output, unless it is told otherwise
_CHUNK = 1 << 20


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; read in pieces."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def append(path: str | Path, record: dict[str, Any]) -> None:
    """Add one line to the log, in a single write; raises RunError where it cannot be written."""
    path = Path(path)
    line = json.dumps(record, ensure_ascii=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            file.write(line.encode())
    except OSError as error:
        raise write_error(path, error) from error

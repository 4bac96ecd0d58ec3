"""metrics.jsonl of a run: one line of JSON each few steps, appended while it trains."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ornstein.store import atomic_write, open_in_place, read_bytes, write_error

__all__ = ["METRICS", "append_metrics", "drop_metrics_after", "read_metrics"]

METRICS = "metrics.jsonl"
_LIMIT = 2**28  # bytes; some million steps


def append_metrics(out: Path, line: dict[str, Any]) -> None:
    """Add a line. Raises RunError if it cannot be written, UserError if the file is a link."""
    path = out / METRICS
    try:
        with os.fdopen(open_in_place(path, os.O_WRONLY | os.O_APPEND), "a", encoding="utf-8") as f:
            f.write(json.dumps(line) + "\n")
    except OSError as error:
        raise write_error(path, error) from error


def drop_metrics_after(out: Path, step: int) -> None:
    """Keep the lines up to `step`: what was logged after the checkpoint will be logged again."""
    if (out / METRICS).exists():
        kept = [json.dumps(line) + "\n" for line in read_metrics(out) if line["step"] <= step]
        atomic_write(out / METRICS, "".join(kept).encode())


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that hold a step number; an empty list if the file is missing.

    A line that a kill cut short is left out.

    Raises:
        UserError: the file is not a regular one, or too large.
    """
    if not (out / METRICS).exists():
        return []
    lines = []
    for text in read_bytes(out / METRICS, _LIMIT).decode("utf-8", "replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines

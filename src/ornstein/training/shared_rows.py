"""A file of rows, computed batch by batch and shared out among the processes of a launch: what a training caches."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ornstein import processes
from ornstein.store import atomic_write, make_folder, partial_name, read_json, remove_partial, write_error

__all__ = ["fill", "find_cache", "keep_cache"]

_ABOUT = "about.json"


def find_cache(file: Path, key: dict[str, str]) -> tuple[dict[str, Any], Path | None]:
    """What is said of the rows in `file`, and None, if they are those of `key`; else {}, and a path to write them to.

    Other rows that are there are of no use from then on. All processes call this.
    """
    group = processes.current()
    about = group.agreed(lambda: _begin(file, key))
    return about, None if about else group.agreed(lambda: partial_name(file))


def keep_cache(file: Path, partial: Path, about: dict[str, Any]) -> None:
    """Put finished rows in place, with what is said of them: the key, and more. All processes call this."""
    processes.current().agreed(lambda: _end(file, partial, about))


def _begin(file: Path, key: dict[str, str]) -> dict[str, Any]:
    note = file.with_name(_ABOUT)
    about = read_json(note) if note.is_file() and file.is_file() else {}
    if about and {name: about.get(name) for name in key} == key:
        return about
    try:
        make_folder(file.parent)
        remove_partial(file.parent)
        note.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(file, error) from error
    return {}


def _end(file: Path, partial: Path, about: dict[str, Any]) -> None:
    try:
        partial.replace(file)
    except OSError as error:
        raise write_error(file, error) from error
    # last: rows without it are ignored
    atomic_write(file.with_name(_ABOUT), (json.dumps(about, indent=1) + "\n").encode())


def fill(
    file: Path,
    shape: tuple[int, ...],
    batch: int,
    make: Callable[[range], Tensor],
    first: int = 0,
    new: bool = True,
    done: Callable[[int], object] = lambda rows: None,
) -> None:
    """Write rows `first`... of the .npy `file`, float32 `shape`, so many at a time.

    Batches are the same ones on any number of processes, which take turns, so that the file is the same to the last
    bit. All processes call this with the same arguments, and see the same file system.

    Args:
        make: the values of a batch of rows, on any device.
        first: rows that are there already, a whole number of batches; from 0 a new file is begun.
        new: False replaces the rows of the file that is there.
        done: called in all processes with the number of rows from 0 on that are there for good.

    Raises:
        UserError, RunError: those of `make`, in any process; the file cannot be written.
    """
    group = processes.current()
    count = shape[0]

    def open_file(mode: str) -> np.memmap:
        try:
            return np.lib.format.open_memmap(file, mode, np.float32, shape)  # pyright: ignore[reportArgumentType]
        except OSError as error:
            raise write_error(file, error) from error

    if new and not first:
        group.agreed(lambda: open_file("w+") is None)
    array = group.each(lambda: open_file("r+"))

    def write(rows: range) -> None:
        if rows:
            array[rows.start : rows.stop] = make(rows).float().cpu().numpy()
            array.flush()

    for low in range(first, count, group.world * batch):
        mine = min(low + group.rank * batch, count)
        group.each(partial(write, range(mine, min(mine + batch, count))))
        done(min(low + group.world * batch, count))

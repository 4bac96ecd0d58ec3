"""A file of rows, computed batch by batch and shared out among the processes of a launch: what a training caches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from ornstein import processes
from ornstein.store import write_error

__all__ = ["fill"]


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

"""Samples written by number: shared out among processes, and only those made that are not there yet."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ornstein.cli.command import console
from ornstein.data import save_grid
from ornstein.data.decode import to_array
from ornstein.store import atomic_write, write_error
from ornstein.training import processes

RECORD = "samples.json"  # what the samples in a folder were made with

_GRID_PIXELS = 2**24  # of the picture of all samples
_GRID_LEAST = 64


def write_images(folder: Path, record: dict[str, Any], n: int, batch: int, make: Callable[[range], Tensor]) -> None:
    """Images 0..n-1 as 00000.png, ... in `folder`, and together in grid.png; `make` makes those of a batch.

    What is there of the same record is kept. The batches are shared out among the processes of a launch, and are the
    same ones whoever makes them, so that a sample is made beside the same others, to the last bit.
    Raises RunError where `folder` cannot be written.
    """
    group = processes.current()
    batches = group.agreed(lambda: _missing(folder, record, n, batch))
    count = sum(map(len, batches))
    if count < n:
        console.print(f"{n - count} of {n} samples are in {folder} already")
    for rows in batches[group.rank :: group.world]:
        for i, image in zip(rows, make(rows), strict=True):
            save_grid(image[None], folder / _name(i))
    group.wait()
    if group.main:
        first = _read(folder / _name(0))
        side = max(64, *first.shape[2:])
        shown = min(n, max(_GRID_LEAST, _GRID_PIXELS // side**2))
        images = torch.cat([first, *(_read(folder / _name(i)) for i in range(1, shown))])
        save_grid(images, folder / "grid.png", upscale=max(1, 64 // images.shape[-1]), gap=1)
        which = "all of them" if shown == n else f"the first {shown}"
        console.print(f"{n} samples in {folder}, {which} in {folder / 'grid.png'}")
    group.end()


def batches_of(n: int, batch: int) -> int:
    """How many batches this process makes at most."""
    group = processes.current()
    return len(range(0, n, batch)[group.rank :: group.world])


def _missing(folder: Path, record: dict[str, Any], n: int, batch: int) -> list[range]:
    """The batches of which a file is missing; files of other settings are deleted."""
    kept = 0
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        old = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        kept = int(old["n"]) if old["settings"] == record else 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(kept, n):
            (folder / _name(i)).unlink(missing_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error
    # after that, so that it is true of every file it speaks of
    whole = {"n": max(kept, n), "settings": record}
    atomic_write(folder / RECORD, (json.dumps(whole, indent=1) + "\n").encode())
    all_batches = [range(low, min(low + batch, n)) for low in range(0, n, batch)]
    return [rows for rows in all_batches if not all((folder / _name(i)).is_file() for i in rows)]


def _name(i: int) -> str:
    return f"{i:05d}.png"


def _read(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(to_array(image).copy())[None]

"""Samples written by number: shared out among processes, and only those made that are not there yet."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ornstein import processes
from ornstein.data import save_grid, to_uint8
from ornstein.data.colour import CHANNEL_MODES
from ornstein.data.decode import to_array
from ornstein.errors import UserError
from ornstein.progress import say
from ornstein.seal import check_replaceable, is_sealed, seal_file
from ornstein.store import atomic_write, write_error

__all__ = ["RECORD", "batches_of", "write_images"]

RECORD = "samples.json"  # the settings of the samples in a folder
GRID = "grid.png"
_FORMAT = 2  # records of format 1 have none, and their pictures no seal

_GRID_PIXELS = 2**24  # of the picture of all samples
_GRID_LEAST = 64
_MOST_COLUMNS = 20


def write_images(
    folder: Path,
    record: dict[str, Any],
    n: int,
    batch: int,
    make: Callable[[range], Tensor],
    columns: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write images 0..n-1 as 00000.png, ... in `folder`, and together in grid.png; of other channels .npy files too.

    Images that are there already with the same record are kept. The batches are shared out among the processes of a
    launch, and are the same ones whoever makes them: a sample is made beside the same others, to the last bit. Each
    file carries its settings.

    Args:
        record: what decides the samples, in JSON types.
        make: the images (B, C, H, W) of a batch.
        columns: of the grid, such as one per class; by default near a square.
        overwrite: replace files that this command did not write.

    Raises:
        UserError: `folder` holds a file of such a name that this command did not write.
        RunError: `folder` cannot be written.
    """
    group = processes.current()
    batches = group.agreed(lambda: _missing(folder, record, n, batch, overwrite))
    count = sum(map(len, batches))
    if count < n:
        say(f"{n - count} of {n} samples are in {folder} already")
    for rows in batches[group.rank :: group.world]:
        for i, image in zip(rows, make(rows), strict=True):
            save_grid(image[None], folder / _name(i), comment=json.dumps(record | {"sample": i}))
            if len(image) not in CHANNEL_MODES:  # no picture holds them: the file shows them side by side
                _write_array(folder / f"{i:05d}.npy", image)
            seal_file(folder / _name(i))
    group.wait()
    if group.main:
        _write_grid(folder, record, n, columns)
    group.end()


def _write_array(path: Path, image: Tensor) -> None:
    """Write an image (C, H, W) as an array, uint8 (H, W, C)."""
    file = io.BytesIO()
    np.save(file, to_uint8(image).cpu().permute(1, 2, 0).contiguous().numpy())
    atomic_write(path, file.getvalue())


def _write_grid(folder: Path, record: dict[str, Any], n: int, columns: int | None) -> None:
    first = _read(folder / _name(0))
    side = max(64, *first.shape[2:])
    shown = min(n, max(_GRID_LEAST, _GRID_PIXELS // side**2))
    images = torch.cat([first, *(_read(folder / _name(i)) for i in range(1, shown))])
    columns = columns if columns is not None and 1 < columns <= min(n, _MOST_COLUMNS) else None
    comment = json.dumps(record | {"samples": shown})
    save_grid(images, folder / GRID, columns, max(1, 64 // images.shape[-1]), gap=1, comment=comment)
    seal_file(folder / GRID)
    which = "all of them" if shown == n else f"the first {shown}"
    say(f"{n} samples in {folder}, {which} in {folder / GRID}")


def batches_of(n: int, batch: int) -> int:
    """How many batches this process makes at most."""
    group = processes.current()
    return len(range(0, n, batch)[group.rank :: group.world])


def _missing(folder: Path, record: dict[str, Any], n: int, batch: int, overwrite: bool) -> list[range]:
    """The batches of which a file is missing; our files of other settings are deleted."""
    old = _old_record(folder, overwrite)
    kept = int(old["n"]) if old.get("settings") == record else 0
    paths = [folder / _name(i) for i in range(n)]
    unsealed = int(old["n"]) if old and "format" not in old else 0  # written by an earlier version
    check_replaceable(paths[unsealed:], overwrite)
    if not unsealed:
        check_replaceable([folder / GRID], overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths[kept:]:
            path.unlink(missing_ok=True)
        if overwrite:
            for path in paths[:kept]:
                if path.exists() and not unsealed and not is_sealed(path):
                    path.unlink()
    except OSError as error:
        raise write_error(folder, error) from error
    # after that, so that it is true of every file it speaks of
    whole = {"format": _FORMAT, "n": max(kept, n), "settings": record}
    atomic_write(folder / RECORD, (json.dumps(whole, indent=1) + "\n").encode())
    all_batches = [range(low, min(low + batch, n)) for low in range(0, n, batch)]
    return [rows for rows in all_batches if not all(paths[i].is_file() for i in rows)]


def _old_record(folder: Path, overwrite: bool) -> dict[str, Any]:
    """The record in the folder; {} if there is none. UserError if a file of that name is something else."""
    path = folder / RECORD
    if not path.exists():
        return {}
    with contextlib.suppress(OSError, ValueError, RecursionError):
        old = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(old, dict) and _counts(old.get("n")) and isinstance(old.get("settings"), dict):
            return old
    if not overwrite:
        raise UserError(f"{path} was not written by this command: give another --out, or --overwrite")
    return {}


def _counts(n: Any) -> bool:
    return isinstance(n, int) and n >= 0


def _name(i: int) -> str:
    return f"{i:05d}.png"


def _read(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(to_array(image).copy())[None]

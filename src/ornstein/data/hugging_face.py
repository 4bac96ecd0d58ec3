"""Data sets of Hugging Face's `datasets` as they lie on disk (`save_to_disk`)."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from ornstein.data.decode import BadImage
from ornstein.data.sources import Entry, Listing, printable, sane_size
from ornstein.errors import UserError
from ornstein.extras import require

_ONE, _SPLITS = "state.json", "dataset_dict.json"


def is_dataset(path: Path) -> bool:
    """Whether the folder is a data set on disk, or several as splits."""
    return (path / _SPLITS).is_file() or ((path / _ONE).is_file() and (path / "dataset_info.json").is_file())


@contextmanager
def open_dataset(path: Path, suffixes: Collection[str], limit_bytes: int) -> Iterator[Listing]:
    """List the images of a data set on disk, by its first column of images and its first of class labels.

    Of several splits "train" is read; the folder of another one can be given itself. Only what is stored in the set is
    read: an image that is but a path on the machine it was made on is skipped.

    Raises:
        UserError: `datasets` is not installed, the set cannot be read, or it has no column of images.
    """
    datasets = require("datasets", "datasets", f"{path}, a Hugging Face data set,")
    datasets.disable_progress_bars()
    try:
        found: Any = datasets.load_from_disk(str(path))
    except Exception as error:  # it raises those of Arrow, of JSON and its own
        raise UserError(f"{path} cannot be read as a data set: {' '.join(str(error).split())}") from None
    if isinstance(found, datasets.DatasetDict):
        if "train" not in found:
            raise UserError(f"{path} has no split 'train'; give one of its folders: {', '.join(map(str, found))}")
        found = found["train"]
    pictures = [name for name, kind in found.features.items() if isinstance(kind, datasets.Image)]
    kinds = {name: kind for name, kind in found.features.items() if isinstance(kind, datasets.ClassLabel)}
    if not pictures:
        raise UserError(f"{path} has no column of images; it has {', '.join(found.features)}")
    column, labels = pictures[0], next(iter(kinds), None)
    found = found.select_columns([column] + ([labels] if labels else [])).cast_column(
        column, datasets.Image(decode=False)
    )
    names = kinds[labels].names if labels else []
    marks: list[int | None] = list(found[labels]) if labels else []
    known = bool(names) and all(mark is not None and 0 <= mark < len(names) for mark in marks)
    width = len(str(max(len(found) - 1, 0)))
    listing = Listing()
    for i in range(len(found)):
        read = partial(read_image, found, i, column, limit_bytes)
        label = printable(str(names[marks[i] or 0])) if known else None
        listing.entries.append(Entry(f"{i:0{width}d}", 1, read, partial(_stream, read), label))
    yield listing


def read_image(table: Any, row: int, column: str, limit: int) -> bytes:
    """The bytes of an image that is stored in the set. Raises BadImage where it is not, or too large."""
    try:
        data = table[row][column]["bytes"]
    except Exception as error:  # Arrow has errors of its own for damaged files
        raise BadImage(f"cannot be read: {' '.join(str(error).split())}") from None
    if data is None:
        raise BadImage("not in the data set, which has only its path")
    sane_size(len(data), limit)
    return data


def _stream(read: partial[bytes]) -> IO[bytes]:
    return io.BytesIO(read())

"""Data sets of Hugging Face's `datasets` as they lie on disk (`save_to_disk`)."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path
from typing import IO, Any

from ornstein.data.entry import BadImage, Entry, Listing, check_size, reason_of
from ornstein.data.folder import open_file
from ornstein.data.names import tidy
from ornstein.errors import UserError
from ornstein.extras import require

__all__ = ["is_dataset", "list_dataset", "text_column"]

_STATE, _SPLITS = "state.json", "dataset_dict.json"
_STATE_BYTES = 2**24


def is_dataset(path: Path) -> bool:
    """Whether the folder is a data set on disk, or several as splits."""
    return (path / _SPLITS).is_file() or ((path / _STATE).is_file() and (path / "dataset_info.json").is_file())


def list_dataset(path: Path, limit_bytes: int) -> Listing:
    """List the images of a data set on disk, by its first column of images and its first of class labels.

    Of several splits "train" is read; to read another one give its folder. Only images stored in the set are read: one
    that is only a path on the machine where the set was made is skipped.

    Raises:
        UserError: `datasets` is not installed, the set cannot be read, or it has no column of images.
    """
    datasets, table = _opened(path)
    pictures = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
    kinds = {name: kind for name, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)}
    if not pictures:
        raise UserError(f"{path} has no column of images; it has {tidy(', '.join(table.features))}")
    column, labels = pictures[0], next(iter(kinds), None)
    table = table.select_columns([column] + ([labels] if labels else [])).cast_column(
        column, datasets.Image(decode=False)
    )
    names = kinds[labels].names if labels else []
    numbers: list[int | None] = list(table[labels]) if labels else []
    return _listing(table, column, names, numbers, limit_bytes)


def text_column(path: Path, wanted: str | None) -> tuple[str, list[Any]]:
    """The name and the values of a column of texts: the wanted one, or the first that is usual for captions.

    Raises:
        UserError: there is no such column.
    """
    datasets, table = _opened(path)
    texts = [name for name, kind in table.features.items() if _is_text(datasets, kind)]
    usual = [name for name in ("caption", "captions", "text", "prompt", "description") if name in texts]
    name = wanted if wanted is not None else next(iter([*usual, *texts]), None)
    if name is None or name not in texts:
        which, listed = "" if wanted is None else f" {wanted!r}", tidy(", ".join(texts)) or "none"
        raise UserError(f"no captions in {path}: it has no column of texts{which}; columns of texts: {listed}")
    return name, list(table.select_columns([name])[name])


def _is_text(datasets: Any, kind: Any) -> bool:
    """Whether a column holds texts, or lists of them."""
    kind = getattr(kind, "feature", kind[0] if isinstance(kind, list) else kind)
    return isinstance(kind, datasets.Value) and kind.dtype in ("string", "large_string")


def _opened(path: Path) -> tuple[Any, Any]:
    """The module `datasets`, and the set, or its split "train". Raises as `list_dataset`."""
    datasets = require("datasets", "datasets", f"{path}, a Hugging Face data set,")
    datasets.disable_progress_bars()
    folder = path
    if (path / _SPLITS).is_file():
        splits = _json(path / _SPLITS).get("splits")
        if not isinstance(splits, list) or "train" not in splits:
            known = ", ".join(tidy(str(split)) for split in splits or [])
            raise UserError(f"{path} has no split 'train'; give one of its folders: {known}")
        folder = path / "train"
    _check_files(folder)
    try:
        table: Any = datasets.load_from_disk(str(folder))
    except Exception as error:  # it raises those of Arrow, of JSON and its own
        raise UserError(f"{path} cannot be read as a data set: {reason_of(error)}") from None
    return datasets, table


def _listing(table: Any, column: str, names: list[str], numbers: list[int | None], limit_bytes: int) -> Listing:
    sizes = _sizes(table, column)
    width = len(str(max(len(sizes) - 1, 0)))
    listing = Listing()
    for i, size in enumerate(sizes):
        name = f"{i:0{width}d}"
        number = numbers[i] if numbers else None
        label = tidy(str(names[number])) if number is not None and 0 <= number < len(names) else None
        try:
            if size is None:
                raise BadImage("not in the data set, which has only its path")
            listing.entries.append(Entry(name, check_size(size, limit_bytes), partial(_open, table, i, column), label))
        except BadImage as bad:
            listing.skipped.append((name, str(bad)))
    return listing


def _sizes(table: Any, column: str) -> list[int | None]:
    """The number of bytes of each image, by Arrow's offsets: nothing is read; None for an image that is not stored."""
    import pyarrow.compute  # pyright: ignore[reportMissingImports]  (comes with datasets)

    compute: Any = pyarrow.compute

    sizes: list[int | None] = []
    view = table.with_format("arrow")
    for first in range(0, len(table), 10_000):
        images = view[first : first + 10_000][column]
        sizes += compute.binary_length(compute.struct_field(images, "bytes")).to_pylist()
    return sizes


def _open(table: Any, row: int, column: str) -> IO[bytes]:
    return io.BytesIO(table[row][column]["bytes"])


def _check_files(folder: Path) -> None:
    """Raises UserError unless the files that the set names are regular files in its folder."""
    names = ["dataset_info.json"]
    parts = _json(folder / _STATE).get("_data_files")
    for part in parts if isinstance(parts, list) else []:
        name = part.get("filename") if isinstance(part, dict) else None
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{folder / _STATE} names a file outside its folder: {tidy(str(name))}")
        names.append(name)
    for name in names:
        try:
            open_file(folder / name).close()
        except BadImage as bad:
            raise UserError(f"{folder / name} cannot be read: {bad}") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        with open_file(path) as stream:
            value = json.loads(stream.read(_STATE_BYTES))
    except (BadImage, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {reason_of(error)}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object")
    return value

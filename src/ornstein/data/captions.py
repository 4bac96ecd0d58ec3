"""The captions of pictures: files beside them, metadata of a folder, a column of a data set, or a bundled set."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ornstein.data import hugging_face
from ornstein.data.arrays import is_arrays
from ornstein.data.bundled import CAPTIONED, is_bundled
from ornstein.data.entry import BadImage, Entry
from ornstein.data.names import printable, tidy
from ornstein.data.sources import open_source
from ornstein.errors import UserError

__all__ = ["Captions", "read_captions"]

_METADATA = ("metadata.jsonl", "metadata.csv")  # of Hugging Face's ImageFolder
_COLUMNS = ("text", "caption", "captions", "prompt", "description")
_FILE = "file_name"
_BYTES, _TABLE_BYTES = 2**20, 2**30  # of a file with the captions of one picture, and of all
_LONGEST = 10_000  # characters of a caption that are read


@dataclass(frozen=True)
class Captions:
    """The captions of pictures.

    texts: those of each picture, none for one without. where: what they were read from. unmatched: captions of files
    that are no pictures of the set. bad: files and lines that could not be read.
    """

    texts: list[tuple[str, ...]]
    where: str
    unmatched: int = 0
    bad: int = 0

    @property
    def different(self) -> list[str]:
        """Each text once, without the empty one."""
        return list(dict.fromkeys(text for texts in self.texts for text in texts if text))

    @property
    def summary(self) -> str:
        """One line: how many there are, of how many pictures, and how many are missing or empty."""
        count = sum(map(len, self.texts))
        without = sum(not texts for texts in self.texts)
        empty = sum(not text for texts in self.texts for text in texts)
        line = f"{count:,} captions of {len(self.texts) - without:,} pictures from {self.where}"
        for number, what in (
            (without, "pictures without one"),
            (empty, "empty"),
            (self.unmatched, "of no picture of the set"),
            (self.bad, "unreadable"),
        ):
            line += f", {number:,} {what}" if number else ""
        return line


def read_captions(path: str | Path, names: Sequence[str], how: str = "auto") -> Captions:
    """The captions of the pictures with these names in a source of pictures (see `open_images`).

    Args:
        path: the source.
        names: of its pictures.
        how: "txt", a file NAME.txt beside NAME.png, with a caption a line; "json", NAME.json with a field "caption" or
            "text"; the name of a table in the folder such as metadata.jsonl or captions.csv, with a column "file_name";
            the name of a field or of a column; "auto" for the first of these that is there.

    Raises:
        UserError: there are none.
    """
    if is_bundled(path, CAPTIONED):
        if how != "auto":
            raise UserError(f"{path} has captions of its own: give --captions auto")
        captions = CAPTIONED[str(path)].captions
        return Captions([captions(int(name.rpartition("/")[2])) for name in names], f"the set {path}")
    folder = Path(path)
    if is_bundled(path, ("digits",)) or is_arrays(path):
        raise UserError(f"no captions in {path}: arrays and digits have none; give a folder or an archive of images")
    if folder.is_dir() and hugging_face.is_dataset(folder):
        column, values = hugging_face.text_column(folder, None if how == "auto" else how)
        given = {f"{i:0{len(str(max(len(values) - 1, 0)))}d}": _texts(value) for i, value in enumerate(values)}
        return _matched(names, given, f"column {column!r}", 0)
    looked: list[str] = []
    for where, read in _readers(path, how):
        given, bad = read()
        if given:
            found = _matched(names, given, where, bad)
            if any(found.texts):
                return found
            where += f" ({len(given):,} captions, of none of the pictures, such as {names[0]})"
        looked.append(where)
    fields = ", ".join(_COLUMNS) if how in ("auto", "txt", "json", *_METADATA) else how
    raise UserError(f"no captions in {path}: looked for {', '.join(looked)}; columns and fields: {fields}")


def _readers(path: str | Path, how: str) -> Iterator[tuple[str, Callable[[], tuple[dict[str, tuple[str, ...]], int]]]]:
    """Places where captions may be, each with a function that reads those that are there, and counts bad ones."""
    table = how.endswith((".jsonl", ".csv"))
    field = None if table or how in ("auto", "txt", "json") else how
    if table or how == "auto" or field is not None:
        for name in (how,) if table else _METADATA:
            yield name, lambda name=name: _from_tables(path, name, field)
    if how in ("auto", "txt"):
        yield ".txt files beside the pictures", lambda: _from_files(path, ".txt", lambda data: _lines(data))
    if not table and how != "txt":
        yield ".json files beside the pictures", lambda: _from_files(path, ".json", lambda data: _of_json(data, field))


def _from_files(
    path: str | Path, suffix: str, read: Callable[[str], tuple[str, ...] | None]
) -> tuple[dict[str, tuple[str, ...]], int]:
    """The captions of files with a suffix, by their names without it."""
    given: dict[str, tuple[str, ...]] = {}
    bad = 0
    for entry, text in _read(path, suffix, _BYTES):
        captions = None if text is None else read(text)
        if captions is None:
            bad += 1
        else:
            given[entry.name[: -len(suffix)]] = captions
    return given, bad


def _read(path: str | Path, suffix: str, limit: int) -> Iterator[tuple[Entry, str | None]]:
    """The files with a suffix, each with its text; None for one that cannot be read."""
    with open_source(path, {suffix}, limit, by_folder=False) as listing:
        for entry in listing.entries:
            try:
                yield entry, entry.read().decode("utf-8-sig")
            except (BadImage, ValueError):
                yield entry, None


def _from_tables(path: str | Path, name: str, field: str | None) -> tuple[dict[str, tuple[str, ...]], int]:
    """The captions of the tables of this name, by the names of their pictures without a suffix."""
    given: dict[str, tuple[str, ...]] = {}
    bad = 0
    suffix = PurePosixPath(name).suffix
    for entry, text in _read(path, suffix, _TABLE_BYTES):
        folder, slash, base = entry.name.rpartition("/")
        if base != name:
            continue
        for row in _rows(text or "", suffix):
            file = row.get(_FILE) if row else None
            value = None if row is None else _field(row, field)
            if not isinstance(file, str) or value is None:
                bad += 1
                continue
            stem = tidy(str(PurePosixPath(f"{folder}{slash}{file}").with_suffix("")))
            given[stem] = (*given.get(stem, ()), *value)
    return given, bad


def _rows(text: str, suffix: str) -> Iterator[dict[str, Any] | None]:
    """The rows of a table; None for one that is none."""
    if suffix == ".csv":
        yield from csv.DictReader(io.StringIO(text))
        return
    for line in text.splitlines():
        if line.strip():
            yield _object(line)


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _of_json(text: str, field: str | None) -> tuple[str, ...] | None:
    row = _object(text)
    return None if row is None else _field(row, field)


def _field(row: dict[str, Any], field: str | None) -> tuple[str, ...] | None:
    """The captions in a row: those of a column, or of the first that usually has them; None if it has none."""
    for name in _COLUMNS if field is None else (field,):
        if name in row:
            return _texts(row[name])
    return None


def _texts(value: Any) -> tuple[str, ...]:
    """The captions in a value: a text, or several. None is an empty one."""
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(_clean(each) if isinstance(each, str) else "" for each in values)


def _lines(text: str) -> tuple[str, ...]:
    return tuple(_clean(line) for line in text.splitlines() if line.strip()) or ("",)


def _clean(text: str) -> str:
    return printable(" ".join(text.split()))[:_LONGEST]


def _matched(names: Iterable[str], given: dict[str, tuple[str, ...]], where: str, bad: int) -> Captions:
    texts, used = [], set[str]()
    for name in names:
        stem = name if name in given else name.rpartition(".")[0]
        folder = len(name) - len(name.rsplit("/", 1)[-1])
        while stem not in given and "." in stem[folder:]:  # NAME.txt is for NAME.jpg, and for NAME.rgb.jpg
            stem = stem.rpartition(".")[0]
        texts.append(given.get(stem, ()))
        used.add(stem)
    return Captions(texts, where, len(given.keys() - used), bad)

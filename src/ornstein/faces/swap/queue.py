"""A list of swaps in a CSV or JSONL file: in each row the files, and settings of its own."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ornstein.errors import UserError
from ornstein.faces.settings import SwapCommand
from ornstein.settings import about, field_of, members, type_hints, values

__all__ = ["COLUMNS", "Row", "read_rows"]

COLUMNS = ("source", "target", "out")
"""What every row has."""
# They are of the whole list, or are named otherwise in a row.
_OTHERS = {"paths", "pairs", "device", "precision", "resume", "overwrite", "segment", "batch"}
_PATHS = ("source", "target", "out", "reference", "block_list", "log")


@dataclass(frozen=True)
class Row:
    """A row: its line in the file, and its settings; or the `fault` for which it cannot be done.

    own: the settings that are the row's own.
    """

    line: int
    asked: SwapCommand
    own: frozenset[str] = frozenset()
    fault: str | None = None


def read_rows(path: Path, asked: SwapCommand) -> list[Row]:
    """The rows of a CSV file, or of a JSONL file (.jsonl, .ndjson), on the settings of the command.

    Paths are relative to the file's folder; an empty cell is a setting that the row does not have.

    Raises:
        UserError: the file cannot be read, has no rows, or a column is missing or unknown.
    """
    known = _names()
    lines = path.suffix.lower() in (".jsonl", ".ndjson")
    rows: list[Row] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for line, cells in _objects(file) if lines else _cells(file, path, known):
                rows.append(_row(line, cells, asked, path.parent, known))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no {'JSONL' if lines else 'CSV'} file: {error}") from None
    if not rows:
        raise UserError(f"{path} has no rows")
    return rows


def _names() -> dict[str, str]:
    """The field of each name that a row may use: the field's own, or its option's."""
    out = {name: name for name in COLUMNS}
    for f in fields(SwapCommand):
        if f.name not in _OTHERS and f.name != "out":
            out |= dict.fromkeys([f.name, *(n.strip("-").replace("-", "_") for n in about(f).names)], f.name)
    return out


def _cells(file: Any, path: Path, known: dict[str, str]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    rows = csv.DictReader(file)
    columns = list(rows.fieldnames or ())
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise UserError(f"{path} has no column {missing[0]!r}: its first line must have {','.join(COLUMNS)}")
    unknown = [name for name in columns if (name or "").strip().replace("-", "_") not in known]
    if unknown:
        raise UserError(f"{path} has an unknown column {unknown[0]!r}; known: {', '.join(known)}")
    for row in rows:
        if None in row:
            yield rows.line_num, f"has {len(columns) + len(row[None])} cells for {len(columns)} columns"
            continue
        cells = {name.strip(): (cell or "").strip() for name, cell in row.items() if name}
        try:
            yield rows.line_num, {name: _typed(known, name, cell) for name, cell in cells.items() if cell}
        except UserError as error:
            yield rows.line_num, str(error)


def _typed(known: dict[str, str], name: str, cell: str) -> Any:
    """A cell's text as the type of its setting."""
    field = known[name.replace("-", "_")]
    if field in ("source", "target"):
        return cell
    kinds = members(type_hints(SwapCommand)[field])
    if list[str] in kinds or list[Path] in kinds:
        return [each.strip() for each in cell.split(";")]
    if not {int, float, bool} & set(kinds):
        return cell
    try:
        return json.loads(cell.lower())
    except ValueError:
        raise UserError(f"{name} {cell!r} is no number and neither true nor false") from None


def _objects(file: Any) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for line, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield line, f"is no JSON: {error}"
            continue
        yield line, row if isinstance(row, dict) else "is no JSON object"


def _row(line: int, cells: dict[str, Any] | str, asked: SwapCommand, folder: Path, known: dict[str, str]) -> Row:
    if isinstance(cells, str):
        return Row(line, asked, fault=cells)
    try:
        given = {}
        for name, value in cells.items():
            if name.replace("-", "_") not in known:
                raise UserError(f"unknown key {name!r}; known: {', '.join(known)}")
            if value is not None and value != "":
                given[known[name.replace("-", "_")]] = value
        if any(not isinstance(given.get(name), str) for name in COLUMNS):
            raise UserError(f"one of {', '.join(COLUMNS)} is empty")
        for name in _PATHS:
            if name in given:
                several = isinstance(given[name], list)
                placed = [str(folder / str(each)) for each in (given[name] if several else [given[name]])]
                given[name] = placed if several else placed[0]
        if isinstance(given.get("reference"), str):
            given["reference"] = [given["reference"]]
        if "face" in given and given["face"] not in about(field_of(SwapCommand, "face")).choices:
            given["face"] = str(folder / str(given["face"]))
        if "model" in given and (folder / str(given["model"])).is_dir():
            given["model"] = str(folder / str(given["model"]))
        source, target = Path(given.pop("source")), Path(given.pop("target"))
        own = values(SwapCommand, given)
        return Row(line, replace(asked, pairs=None, paths=[source, target], **own), frozenset(own))
    except UserError as error:
        return Row(line, asked, fault=str(error))

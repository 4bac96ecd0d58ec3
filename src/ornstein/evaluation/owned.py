"""Which files of an evaluation's folder are ours: only those are replaced."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ornstein.errors import UserError
from ornstein.evaluation.pieces import FILE as PIECES
from ornstein.evaluation.pieces import PICTURES
from ornstein.store import read_json

__all__ = ["JSON", "REPORT", "check_replaceable"]

JSON = "evaluation.json"
REPORT = "report.html"

_HEAD = 2**16  # bytes of a page, within which it says who wrote it
_MARKS = (b'<meta name="generator" content="Ornstein">', b'<p class="eyebrow">Ornstein report</p>')
_KEYS = {JSON: {"samples_per_seed", "quality"}, PIECES: {"key", "pieces"}}


def check_replaceable(folder: Path, overwrite: bool, pictures: Sequence[str] = ()) -> None:
    """Raise UserError if a file that an evaluation writes exists in a folder and was not written by one.

    Args:
        folder: where the evaluation writes.
        overwrite: replace such files.
        pictures: names of pictures that it writes besides; they are ours if the report is.
    """
    if overwrite or not folder.exists():
        return
    ours = _is_report(folder / REPORT)
    for name in (REPORT, JSON, PIECES, PICTURES, *pictures):
        path = folder / name
        if not (path.exists() or path.is_symlink()):
            continue
        if name in _KEYS:
            known = _has_keys(path, _KEYS[name])
        elif name == PICTURES:
            known = _has_keys(folder / PIECES, _KEYS[PIECES])
        else:
            known = ours
        if not known:
            raise UserError(f"{path} was not written by this command: choose another --out, or --overwrite it")


def _is_report(path: Path) -> bool:
    try:
        if path.is_symlink() or not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return any(mark in head for mark in _MARKS)


def _has_keys(path: Path, keys: set[str]) -> bool:
    try:
        value = read_json(path)
    except UserError:
        return False
    return isinstance(value, dict) and keys <= value.keys()

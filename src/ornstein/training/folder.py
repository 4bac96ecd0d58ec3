"""What a training may write in a directory: never over files that are not of a run."""

from __future__ import annotations

from pathlib import Path

from ornstein.errors import UserError
from ornstein.settings import read, read_file
from ornstein.store import CONFIG
from ornstein.training.settings import DISTIL, SETTINGS, DistilSettings, Settings
from ornstein.training.state import has_state

__all__ = ["check_folder"]

_WRITTEN = (
    "report.html", "samples.png", "samples.mp4", "samples.gif", "reconstructions.png", "progress", "trajectories",
    SETTINGS, DISTIL,
)  # fmt: skip


def check_folder(out: Path) -> None:
    """Raise UserError if a training would replace files in `out` that no run has written.

    A directory with a model, a trainer's state or settings is a run: whether that may go on is checked elsewhere.
    """
    if (out / CONFIG).is_file() or has_state(out) or _has_settings(out):
        return
    for name in _WRITTEN:
        if (out / name).exists() or (out / name).is_symlink():
            raise UserError(f"{out / name} is not of a run, and would be replaced: give another folder for --out")


def _has_settings(out: Path) -> bool:
    """Whether a training has stored its settings and stopped before its first checkpoint."""
    for name, cls in ((SETTINGS, Settings), (DISTIL, DistilSettings)):
        try:
            stored = read(cls, read_file(out / name), out / name)
        except UserError:
            continue
        if not isinstance(stored, DistilSettings) or stored.teacher:
            return True
    return False

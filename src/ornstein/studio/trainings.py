"""Trainings as processes of their own, watched through their run directories: they need no open page."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ornstein import checkpoint
from ornstein.errors import UserError
from ornstein.metrics import read_metrics
from ornstein.personalization.settings import SETTINGS as PERSONAL
from ornstein.store import read_json
from ornstein.studio.runs import checked_name
from ornstein.training import lock
from ornstein.training.state import has_state

__all__ = [
    "EVALUATING", "FAILED", "FINISHED", "LOG", "RUNNING", "STOPPED", "WAITING", "Progress", "Trainings", "previews",
]  # fmt: skip

LOG = "studio.log"
_UPLOAD, _PICTURES = "data", "pictures"  # the names that uploaded data get in the run folder
RUNNING, EVALUATING, FINISHED, STOPPED, FAILED, WAITING = (
    "training",
    "evaluating",
    "finished",
    "stopped",
    "failed",
    "reading",
)


@dataclass(frozen=True)
class Progress:
    """The progress of a training.

    Args:
        state: one of the states of this module.
        step: steps done.
        steps: steps in all; None if the length is a time.
        share: done, in [0, 1]; None if unknown.
        left: seconds.
        rate: images a second.
        loss: the latest training loss.
        reason: of a failure.
    """

    state: str
    step: int = 0
    steps: int | None = None
    share: float | None = None
    left: float | None = None
    rate: float | None = None
    loss: float | None = None
    reason: str = ""


class Trainings:
    """The trainings in the folder `home`, also those started by earlier studios and by the command line.

    Args:
        home: the folder.
        device: where a training computes.
    """

    def __init__(self, home: Path, device: str = "auto") -> None:
        self.home, self.device = home, device
        self._own: dict[Path, subprocess.Popen[bytes]] = {}

    def personalize(self, name: str, base: str, pictures: str, options: Sequence[str], upload: Sequence[Path]) -> Path:
        """Start `ornstein personalize BASE --images PICTURES --out HOME/NAME OPTIONS`.

        Args:
            name: of the run.
            base: a run that takes text, or the folder of a pipeline.
            pictures: a folder or an archive.
            options: further options.
            upload: pictures in place of the folder; copies are kept in the run directory.

        Raises:
            UserError: a name that is taken or cannot be one, no base or no pictures.
        """
        if not base.strip():
            raise UserError("say what to personalise: a run that takes text, or the folder of a pipeline")
        if not upload and not pictures.strip():
            raise UserError("give pictures: upload some, or name a folder of them")
        run = self._new(name)
        if upload:
            kept = run / _PICTURES
            kept.mkdir()
            for i, file in enumerate(upload):
                shutil.copyfile(file, kept / f"{i:03d}{file.suffix.lower()}")
            pictures = str(kept)
        self._begin(run, "personalize", [base.strip(), "--images", pictures.strip(), *options])
        return run

    def _new(self, name: str) -> Path:
        """A new run directory."""
        name = checked_name(name)
        run = self.home / name
        if run.exists():
            raise UserError(f"there is a run {name!r} already: give another name, or choose it below and resume it")
        run.mkdir(parents=True)
        return run

    def start(self, name: str, data: str, options: Sequence[str], upload: Path | None = None) -> Path:
        """Start `ornstein train --data DATA --out HOME/NAME OPTIONS`.

        Args:
            name: of the run.
            data: as for `ornstein train`.
            options: further options.
            upload: an archive to train on instead, of which a copy is kept in the run directory.

        Returns:
            The run directory.

        Raises:
            UserError: a name that is taken or cannot be one, or no data.
        """
        if upload is None and not data.strip():
            raise UserError("say what to train on: a folder or zip of images, `digits`, or upload a zip")
        run = self._new(name)
        if upload is not None:
            kept = run / f"{_UPLOAD}{upload.suffix.lower()}"
            shutil.copyfile(upload, kept)
            data = str(kept)
        self._begin(run, "train", ["--data", data.strip(), *options])
        return run

    def resume(self, run: Path, options: Sequence[str] = ()) -> None:
        """Resume a stopped training. Raises UserError if it is under way or has no checkpoint."""
        if self.under_way(run):
            raise UserError(f"{run.name} is under way: there is nothing to resume")
        if not has_state(run):
            raise UserError(f"{run.name} has no checkpoint to resume from: start it again under another name")
        self._begin(run, "personalize" if (run / PERSONAL).is_file() else "train", ["--resume", *options])

    def _begin(self, run: Path, command: str, arguments: list[str]) -> None:
        with (run / LOG).open("wb") as log:
            self._own[run] = subprocess.Popen(
                [*(sys.executable, "-m", "ornstein", command), *arguments, "--out", str(run), "--device", self.device],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"COLUMNS": "1000"},
                start_new_session=True,  # it continues when the studio ends
            )

    def stop(self, run: Path) -> None:
        """Let it save and end, as Ctrl-C does. Raises UserError if it is not under way."""
        own = self._own.get(run)
        number = own.pid if own is not None and own.poll() is None else lock.holder(run)
        if number is None:
            raise UserError(f"{run.name} is not under way: there is nothing to stop")
        os.kill(number, signal.SIGINT)

    def under_way(self, run: Path) -> bool:
        own = self._own.get(run)
        return (own is not None and own.poll() is None) or lock.holder(run) is not None

    def progress(self, run: Path) -> Progress:
        """The progress of a run, read from its directory."""
        lines = read_metrics(run)
        last = lines[-1] if lines else {}
        step, loss = int(last.get("step", 0)), last.get("loss")
        rate, elapsed = last.get("images_per_second"), float(last.get("elapsed", 0))
        steps, share = self._share(run, step, elapsed)
        under_way = self.under_way(run)
        left = None if share in (None, 0) or not under_way else elapsed * (1 - share) / share
        reason = "" if under_way else _reason(run)
        if under_way:
            state = WAITING if not lines else EVALUATING if share == 1 else RUNNING
        else:
            own = self._own.get(run)
            failed = reason and (own is None or own.returncode not in (0, 130))
            done = (run / "report.html").is_file() and (share in (None, 1) or (run / PERSONAL).is_file())
            state = FAILED if failed else FINISHED if done else STOPPED
        return Progress(state, step, steps, share, left, rate, loss, reason)

    def _share(self, run: Path, step: int, elapsed: float) -> tuple[int | None, float | None]:
        try:
            settings = read_json(run / (PERSONAL if (run / PERSONAL).is_file() else "train.json"))
        except UserError:
            return None, None
        minutes, steps = settings.get("minutes"), settings.get("steps")
        if minutes:
            return None, min(1.0, elapsed / (60 * minutes))
        if not steps:  # the planned number is in the model's configuration, once it is written
            stored = _training(run).get("steps")
            steps = int(stored) if stored else 20_000
        return steps, min(1.0, step / steps)


def previews(run: Path) -> list[Path]:
    """Pictures of samples during training in order, and last those of the finished run."""
    found = sorted((run / "progress").glob("step-*.png"))
    return [*found, run / "samples.png"] if (run / "samples.png").is_file() else found


def _training(run: Path) -> dict[str, Any]:
    try:
        return checkpoint.read_config(run).get("training") or {}
    except UserError:
        return {}


def _reason(run: Path) -> str:
    """The last error in the log of the training."""
    try:
        text = (run / LOG).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = [line for line in text.splitlines() if line.startswith("error: ")]
    return found[-1].removeprefix("error: ") if found else ""

"""The curve of a training in other people's tools: TensorBoard and Weights & Biases, through Accelerate."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ornstein.errors import UserError
from ornstein.extras import install

__all__ = ["TRACKERS", "Trackers", "check_trackers"]

TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb"}  # and the package each needs


def check_trackers(names: str | None) -> list[str]:
    """The trackers in a list with commas. Raises UserError for one that is not known."""
    chosen = [name.strip() for name in (names or "").split(",") if name.strip()]
    for name in chosen:
        if name not in TRACKERS:
            raise UserError(f"unknown tracker {name!r}; known: {', '.join(TRACKERS)}")
    return chosen


class Trackers:
    """Where lines of metrics.jsonl go besides; nowhere if no tracker is named.

    Both write into the run folder: `tensorboard --logdir RUN`, and wandb as its own settings say (WANDB_MODE=offline
    keeps it all there). Raises UserError where a tracker is not installed.
    """

    def __init__(self, names: str | None, out: Path, config: dict[str, Any]) -> None:
        self.trackers: list[Any] = [_open(name, out, config) for name in check_trackers(names)]

    def log(self, line: dict[str, Any]) -> None:
        """A line of metrics at its own step."""
        values = {name: value for name, value in line.items() if name != "step"}
        for tracker in self.trackers:
            tracker.log(values, step=line["step"])

    def finish(self) -> None:
        """Write out what is buffered."""
        for tracker in self.trackers:
            tracker.finish()


def _open(name: str, out: Path, config: dict[str, Any]) -> Any:
    os.environ.setdefault("WANDB_SILENT", "true")  # before it speaks
    try:
        from accelerate import PartialState, tracking

        make: dict[str, Callable[[], Any]] = {
            "tensorboard": lambda: tracking.TensorBoardTracker(run_name="tensorboard", logging_dir=out),
            "wandb": lambda: tracking.WandBTracker(run_name="ornstein", name=out.name, dir=str(out)),
        }
        PartialState()  # they ask it which process is the main one
        tracker = make[name]()
        if hasattr(tracker, "start"):
            tracker.start()
    except ImportError:
        raise UserError(f"--track {name} needs accelerate and {TRACKERS[name]}: {install(name)}") from None
    if name == "wandb":
        tracker.store_init_configuration({k: v for k, v in config.items() if isinstance(v, int | float | str | bool)})
    return tracker

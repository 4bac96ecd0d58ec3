"""Distillation of a model: its trajectories, computed once and cached on disk, and the training of a student."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ornstein import checkpoint, processes
from ornstein.data.rows import RowFile
from ornstein.denoiser import Denoiser, Distilled
from ornstein.errors import UserError
from ornstein.few_steps.distillation import follow, labels_of, leading_to, student_times
from ornstein.store import atomic_write, make_folder, read_json, refuse_links, write_error
from ornstein.training.shared_rows import fill
from ornstein.training.task import Task, on_cpu
from ornstein.wrapper import network_precision

__all__ = ["FOLDER", "Distillation", "TrajectorySet", "follow_teacher", "new_student"]

FOLDER = "trajectories"
_FILE = "trajectories.npy"
_ABOUT = "about.json"
_BATCH = 128


class TrajectorySet:
    """The training set of a student: states of trajectories at the student's time steps, read from a file.

    Args:
        file: float32 (M, N + 1, *), from the noise to the end.
        labels: int64 (M,), -1 for no class, or None.
    """

    def __init__(self, file: Path, labels: Tensor | None) -> None:
        self.labels = labels
        self._rows = RowFile(file)

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, indices: Tensor | Sequence[int], /) -> tuple[Tensor, Tensor | None]:
        """States, float32 (B, N + 1, *), and labels int64 (B,) or None."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return torch.from_numpy(self._rows.read(rows.numpy())), None if self.labels is None else self.labels[rows]


def follow_teacher(
    run: Path,
    teacher: Denoiser,
    out: Path,
    steps: int,
    count: int,
    guidance: float = 1.0,
    seed: int = 0,
    precision: torch.dtype | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> TrajectorySet:
    """`count` trajectories of the teacher in the folder `run` (see `distillation.follow`), kept in `out`/trajectories.

    Those that are there already are kept, where they are of the same teacher and settings: killed, it goes on where it
    was. The processes of a launch share them out and all call this; the file is that of one process to the last bit.
    Raises RunError where they cannot be written.
    """
    assert teacher.data is not None
    folder = out / FOLDER
    key: dict[str, Any] = {"teacher": checkpoint.fingerprint(run), "steps": steps, "count": count}
    key |= {"guidance": guidance, "seed": seed, "precision": str(precision), "batch": _BATCH}
    shape = (count, steps + 1, *teacher.data.shape)
    group = processes.current()
    done = group.agreed(lambda: _begin(folder, key, shape))

    def make(rows: range) -> Tensor:
        states = next(follow(teacher, steps, rows.stop, guidance, seed, _BATCH, rows.start))
        if not bool(states.isfinite().all()):
            raise UserError(f"{run}: its trajectories are not finite with guidance {guidance:g}: take less")
        return states

    def kept(rows: int) -> None:
        if group.main:  # after the rows that it counts
            atomic_write(folder / _ABOUT, json.dumps({"key": key, "done": rows}).encode())
        progress(rows, count)

    if done < count:
        with network_precision(teacher, precision, fixed=True):
            fill(folder / _FILE, shape, _BATCH, make, done, done=kept)
    return TrajectorySet(folder / _FILE, labels_of(teacher, torch.arange(count)))


def _begin(folder: Path, key: dict[str, Any], shape: tuple[int, ...]) -> int:
    """How many trajectories of `key` are there."""
    about = read_json(folder / _ABOUT) if (folder / _ABOUT).is_file() else {}
    done = int(about.get("done", 0)) if about.get("key") == key and (folder / _FILE).is_file() else 0
    try:
        make_folder(folder)
        refuse_links(folder / _FILE)
        if done < shape[0]:
            _check_room(folder, 4 * int(np.prod(shape, dtype=np.int64)))
        if not done:
            (folder / _ABOUT).unlink(missing_ok=True)  # what it tells of is about to go
    except OSError as error:
        raise write_error(folder / _FILE, error) from error
    return done


def _check_room(folder: Path, size: int) -> None:
    """Checked beforehand: writing a mapped page that finds no room kills the process."""
    free = shutil.disk_usage(folder).free + sum(f.stat().st_size for f in folder.iterdir())
    if free < size:
        raise UserError(
            f"the trajectories need {size / 1e9:.1f} GB in {folder}, which has {free / 1e9:.1f} GB free: take fewer "
            "--trajectories"
        )


def new_student(teacher: Denoiser, steps: int, guidance: float = 1.0) -> Denoiser:
    """A copy of the teacher, to be trained to `steps` steps."""
    student = copy.deepcopy(teacher)
    student.distilled = Distilled(student_times(teacher.process, steps), guidance)
    return student


class Distillation(Task[Denoiser]):
    """Training of a student on a `TrajectorySet`: of each trajectory one step, drawn at random, and E31 for its target.

    The error is that of the network's own output, as in the default training of a model. teacher: the hash of the model
    that was followed.
    """

    by_rows = True

    def __init__(self, student: Denoiser, teacher: str) -> None:
        super().__init__(student, [student.net])
        if student.distilled is None:
            raise ValueError("a student has its own time steps: make it with `new_student`")
        self.times = torch.tensor(student.distilled.times, dtype=torch.float64)
        self.teacher = teacher

    def with_own_model(self) -> Distillation:
        task = copy.copy(self)
        task.model, task.networks = copy.deepcopy((self.model, self.networks))
        return task

    def varying(self, labelled: bool) -> bool:
        return not labelled and "label" in self.model.conditions

    def loss(
        self, x0: Tensor, labels: Tensor | None, draw: torch.Generator, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        n, rows = self.whole(x0)
        k = torch.randint(len(self.times) - 1, (n,), generator=on_cpu(draw))[rows]
        row, at = torch.arange(len(x0), device=x0.device), k.to(x0.device, non_blocking=True)
        aim = leading_to(self.model.process, x0[row, at], self.times[k], x0[row, at + 1], self.times[k + 1])
        cond: dict[str, Any] = {} if labels is None else {"label": labels}
        return self.model.error(aim, **cond).mean(), {}

    def config(self) -> dict[str, Any]:
        return self.model.to_config() | {"teacher": self.teacher}

    def save(self, model: Denoiser, out: Path, extra: dict[str, Any]) -> None:
        checkpoint.save(model, out, extra | {"teacher": self.teacher})

"""The folder of an unfinished swap of a video: what is done already, each part complete or absent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ornstein.errors import RunError, UserError
from ornstein.faces.swap.tracks import Seen
from ornstein.store import atomic_save_tensors, atomic_write, read_json, remove_partial, write_error

__all__ = ["Work"]

_PLAN, _FOUND = "plan.json", "found.json"
_FORMAT = 3  # of the files in the folder


class Work:
    """The folder OUT.swap beside the output.

    `plan.json`: what is swapped and how. `faces-00000.json`: where the faces are in the frames of a segment, and when
    these are shown. `found.json`: that all faces were found. `segment-00000.mp4`: the swapped frames of a segment, and
    `segment-00000.safetensors`: what the next one begins from.
    """

    def __init__(self, folder: Path, length: int) -> None:
        self.folder, self.length = folder, length
        self.frames = 0
        self.end: int | None = None
        self.notes: list[str] = []
        self.cuts: list[int] = []

    @property
    def segments(self) -> int:
        return -(-self.frames // self.length)

    def begin(self, plan: dict[str, Any], resume: bool) -> None:
        """Make the folder, or go on with it.

        Raises:
            UserError: it holds an unfinished swap and `resume` is False, or a swap of something else, or other files.
            RunError: it cannot be made.
        """
        plan = json.loads(json.dumps(plan | {"format": _FORMAT}))
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise UserError(f"{self.folder} is in the way: the work of the swap is kept in a folder of that name")
        if (self.folder / _PLAN).exists():
            if not resume:
                raise UserError(f"{self.folder} holds an unfinished swap: go on with --resume, or delete it")
            if read_json(self.folder / _PLAN) != plan:
                raise UserError(
                    f"{self.folder} holds an unfinished swap of other files or settings: repeat those, or delete it"
                )
        elif self.folder.exists():
            # killed before there was a plan
            remove_partial(self.folder)
            if any(self.folder.iterdir()):
                raise UserError(f"{self.folder} is in the way: it holds files of something else")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(self.folder, error) from error
        remove_partial(self.folder)
        atomic_write(self.folder / _PLAN, json.dumps(plan).encode())

    def remove(self) -> None:
        """Delete the folder, which `begin` has made."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def segment(self, number: int) -> Path:
        return self.folder / f"segment-{number:05d}.mp4"

    def state_file(self, number: int) -> Path:
        return self.folder / f"segment-{number:05d}.safetensors"

    def faces(self, number: int) -> Path:
        return self.folder / f"faces-{number:05d}.json"

    def store_faces(self, number: int, times: list[int], seen: list[list[Any]], cuts: list[int]) -> None:
        """Store the start of each frame of a segment, in ticks, its faces as lists, and where another shot begins."""
        atomic_write(self.faces(number), json.dumps({"times": times, "seen": seen, "cuts": cuts}).encode())

    def finish_faces(self, frames: int, end: int | None, notes: list[str]) -> None:
        """Store that the faces of all frames were found, and when the last one ends, in ticks."""
        self.frames, self.end, self.notes = frames, end, notes
        self.cuts = [cut for number in range(self.segments) for cut in read_json(self.faces(number))["cuts"]]
        facts = {"frames": frames, "end": end, "notes": notes, "cuts": self.cuts}
        atomic_write(self.folder / _FOUND, json.dumps(facts).encode())

    def found(self) -> bool:
        """Whether all faces were found already; then what `finish_faces` stored is read."""
        if not (self.folder / _FOUND).exists():
            return False
        stored = read_json(self.folder / _FOUND)
        self.frames, self.end, self.notes = stored["frames"], stored["end"], stored["notes"]
        self.cuts = stored["cuts"]
        return True

    def stored_times(self, number: int) -> list[int]:
        """The start of each frame of a segment, in ticks."""
        return read_json(self.faces(number))["times"]

    def times(self) -> Iterator[int]:
        """The start of each frame, in ticks."""
        for number in range(self.segments):
            yield from self.stored_times(number)

    def seen(self) -> Iterator[list[Seen]]:
        """The faces of each frame."""
        for number in range(self.segments):
            for frame in read_json(self.faces(number))["seen"]:
                yield [Seen(who, side, tuple(points), tuple(away)) for who, side, points, away in frame]

    def store_state(self, number: int, state: dict[str, Tensor]) -> None:
        """Store what segment `number` + 1 begins from."""
        atomic_save_tensors(self.state_file(number), state, {})

    def state(self, number: int) -> dict[str, Tensor]:
        """What segment `number` + 1 begins from. Raises RunError if it is damaged."""
        path = self.state_file(number)
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise RunError(f"{path} is damaged ({error}): delete the folder {self.folder} and begin anew") from None

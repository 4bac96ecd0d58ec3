"""What samples of a run are made with: the class and the solver that were asked for, and the record of both."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from pathlib import Path
from typing import Any

from ornstein import checkpoint
from ornstein.denoiser import SampleSpec
from ornstein.errors import UserError
from ornstein.solvers import SOLVER, Tuned


def choose_solver(
    run: Path, name: str | None, steps: int, grid: str | tuple[float, ...] | None, guidance: float, whole: bool
) -> str | Tuned:
    """The solver asked for; where none was, the one tuned for so many steps if the run has it.

    It was tuned on whole samples from noise: with `whole` false, clips that go on from frames, it does not serve.
    Raises UserError where "tuned" is asked for and there is none, or it cannot be.
    """
    if name not in (None, "tuned") or (name is None and (grid is not None or not whole)):
        return name or SOLVER
    if not whole:
        raise UserError("a tuned solver makes whole samples from noise: name another --solver for --given and --frames")
    if grid is not None:
        raise UserError("a tuned solver has its own times: leave out --grid")
    for tuned in checkpoint.load_tuned(run, steps):
        if tuned.guidance == guidance:
            return tuned
    if name is None:
        return SOLVER
    known = ", ".join(f"{len(t.steps)} (guidance {t.guidance:g})" for t in checkpoint.load_tuned(run))
    raise UserError(
        f"{run} has no solver tuned for {steps} steps with guidance {guidance:g}; it has {known or 'none'}: "
        f"`ornstein tune {run} --steps {steps} --guidance {guidance:g}`"
    )


def class_number(label: str, data: SampleSpec, run: Path) -> int:
    """The number of the class with the name `label`; or `label` itself, a number from 0 on, if no name is a number.

    With classes named "3" and "7", "1" is an error and not the second of them.

    Raises:
        UserError: there is no such class, with the names of those there are.
    """
    if not data.classes:
        raise UserError(f"{run} was trained without classes: leave out --class")
    label = unicodedata.normalize("NFC", label)
    if label in data.classes:
        return data.classes.index(label)
    numbered = any(name.isdecimal() for name in data.classes)
    if not numbered and label.isdecimal() and len(label) < 10 and int(label) < len(data.classes):
        return int(label)
    known = ", ".join(data.classes[:12]) + (", ..." if len(data.classes) > 12 else "")
    numbers = "" if numbered else f", or 0 to {len(data.classes) - 1}"
    raise UserError(f"no class {label!r} in {run}: its classes are {known}{numbers}")


def record_of(run: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What decides which pictures the samples are: the model and the settings, in JSON types."""
    digest = hashlib.sha256()
    try:
        for name in (checkpoint.CONFIG, checkpoint.MODEL):
            digest.update((run / name).read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror or error}") from None
    return {"model": digest.hexdigest()} | json.loads(json.dumps(settings, default=str))

"""The class and the solver of samples of a run, by their names, and the record that identifies the samples."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from pathlib import Path
from typing import Any

from ornstein import checkpoint
from ornstein.denoiser import SampleSpec
from ornstein.errors import UserError
from ornstein.few_steps.churn import nearest_churn
from ornstein.request import CHURNED, SampleRequest
from ornstein.solvers import SOLVER, Tuned, named

__all__ = ["choose_solver", "class_number", "guidance_rule", "record_of"]


def choose_solver(
    run: Path, name: str | None, steps: int, grid: str | tuple[float, ...] | None, guidance: float, whole: bool
) -> str | Tuned:
    """The solver for samples of a run.

    Args:
        run: the run directory.
        name: of the solver; "tuned" for the one tuned for so many steps, "churned" for the one with tuned churn; None
            for the tuned one if the run has it, else for the one that was chosen for the model at the end of its
            training, else for the default solver.
        steps, grid, guidance: of the samples. A tuned solver has its own time steps, and belongs to one guidance.
        whole: whether samples are made from noise alone, which is what solvers are tuned for, and not from given
            frames.

    Raises:
        UserError: an unknown name, or "tuned" or "churned" where there is no such solver or it cannot be used.
    """
    if name == CHURNED:
        return _churned(run, steps, grid, guidance, whole)
    if name not in (None, "tuned") or (name is None and (grid is not None or not whole)):
        try:
            named(name or SOLVER)
        except ValueError as e:
            raise UserError(f"--solver: {e}") from None
        return name or SOLVER
    if not whole:
        raise UserError("a tuned solver makes whole samples from noise: give another --solver for --given and --frames")
    if grid is not None:
        raise UserError("a tuned solver has its own times: leave out --grid")
    kept = checkpoint.solver_of(run, steps, guidance)
    if name is None:
        return kept or SOLVER
    if kept is not None and kept.learned:
        return kept
    known = ", ".join(f"{len(t.steps)} (guidance {t.scales})" for t in checkpoint.load_tuned(run))
    raise UserError(
        f"{run} has no solver tuned for {steps} steps with guidance {guidance:g}; it has {known or 'none'}: "
        f"`ornstein tune {run} --steps {steps} --guidance {guidance:g}`"
    )


def _churned(run: Path, steps: int, grid: str | tuple[float, ...] | None, guidance: float, whole: bool) -> str:
    if not whole or grid is not None:
        what = "--grid" if whole else "--given and longer --frames"
        raise UserError(f"churn is tuned for whole samples on the default time schedule: leave out {what}")
    found = checkpoint.load_churn(run)
    churn = nearest_churn(found, steps, guidance)
    if churn is not None:
        return churn.solver
    known = ", ".join(f"{c.steps} (guidance {c.guidance:g})" for c in found)
    raise UserError(
        f"{run} has no churn tuned for {steps} steps with guidance {guidance:g}; it has {known or 'none'}: "
        f"`ornstein tune {run} --churn --steps {steps} --guidance {guidance:g}`, or give an amount such as sa-3m:0.5"
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


def guidance_rule(request: SampleRequest) -> dict[str, Any]:
    """Interval and rescale of guidance for a record, where they are not the defaults."""
    rule = {"guidance_interval": request.guidance_interval, "guidance_rescale": request.guidance_rescale}
    return {name: value for name, value in rule.items() if value}


def record_of(run: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What the samples depend on, in JSON types: a hash of the model, and the settings."""
    if checkpoint.is_pipeline(run):
        return {"model": checkpoint.fingerprint(run)} | json.loads(json.dumps(settings, default=str))
    digest = hashlib.sha256()
    try:
        for name in (checkpoint.CONFIG, checkpoint.MODEL):
            digest.update((run / name).read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror or error}") from None
    return {"model": digest.hexdigest()} | json.loads(json.dumps(settings, default=str))

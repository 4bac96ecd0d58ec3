"""`ornstein tune`: a solver of few steps, learned for one model."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch

from ornstein import checkpoint
from ornstein.cli.commands import Tune
from ornstein.cli.models import open_model
from ornstein.devices import choose_device, choose_precision
from ornstein.errors import UserError
from ornstein.few_steps.tuning import judged, trajectories
from ornstein.few_steps.tuning import tune as learn
from ornstein.progress import progress, say
from ornstein.solvers.tuned import Tuned

__all__ = ["tune"]

_LEAST, _MOST, _EQUATIONS = 32, 128, 2**17
_ROUNDING = 1e-6  # an untuned error of float32 rounding leaves nothing to gain


def tune(asked: Tune, given: frozenset[str]) -> None:
    """Learn a solver for each number of steps, and store those that are better than the untuned one."""
    asked = replace(asked, run=checkpoint.locate(asked.run))
    run, counts = asked.run, sorted(set(asked.steps))
    model, guidance = open_model(asked, asked.guidance)
    device = choose_device(asked.device)
    model, guidance = model.to(device), 1.0 if guidance is None else guidance
    model.precision = choose_precision(asked.precision, device)
    if model.data is None:
        raise UserError(f"{run} does not say what its samples look like; train it with `ornstein train`")
    if model.distilled is not None:
        raise UserError(f"{run} is distilled to {model.distilled}: tune its teacher")
    if guidance != 1 and not model.data.classes:
        raise UserError(f"{run} was trained without classes: --guidance has nothing to strengthen")
    checkpoint.check_tuned(run)  # before minutes of trajectories
    # Each number of a sample is an equation for the few hundred numbers to be found.
    count = asked.trajectories or max(_LEAST, min(_MOST, _EQUATIONS // math.prod(model.data.shape)))
    unseen = max(1, count // 2)
    with progress("trajectories", transient=True) as bar, torch.no_grad():
        task = bar.add_task("following", total=count + unseen, note="")

        def followed(before: int):
            return lambda done: bar.update(task, completed=before + done)

        seen = trajectories(model, count, 0, guidance, asked.batch, followed(0))
        held_out = trajectories(model, unseen, count, guidance, asked.batch, followed(count))
    learned: list[Tuned] = []
    with progress("runs", transient=True) as bar:
        task = bar.add_task("tuning", total=len(counts) * asked.iterations, note="")
        for i, n in enumerate(counts):

            def advance(done: int, error: float, i: int = i, n: int = n) -> None:
                note = f"{n} steps, {error:.0%} of the untuned error"
                bar.update(task, completed=i * asked.iterations + done, note=note)

            learned.append(judged(learn(seen, n, asked.iterations, advance, asked.radius), held_out, guidance))
    _store(run, learned)


def _store(run: Path, learned: list[Tuned]) -> None:
    """Say how good the solvers are, and store those that are better than the untuned one."""
    better = [t for t in learned if t.error < t.untuned and t.untuned > _ROUNDING]
    for t in learned:
        what = f"{len(t.steps)} steps: {t.error:.4f} from the fine solution, {t.untuned:.4f} untuned"
        say(f"{what}; {t.numbers} numbers" if t in better else f"{what}: no better, not stored")
    if better:
        checkpoint.save_tuned(run, better)
        file = checkpoint.run_folder(run) / checkpoint.TUNED
        say(f"stored in {file}; `ornstein sample {run} --steps {len(better[0].steps)}`")

"""`ornstein tune`: a solver of few steps, learned for one model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import torch
import typer

from ornstein import checkpoint
from ornstein.cli.command import console, progress
from ornstein.errors import UserError
from ornstein.few_steps.tuning import MOST_STEPS, judged, trajectories
from ornstein.few_steps.tuning import tune as learn
from ornstein.solvers.tuned import Tuned

_LEAST, _MOST, _EQUATIONS = 32, 128, 2**17
_ROUNDING = 1e-6  # an untuned error that is only float32's leaves nothing to gain


def tune(
    run: Annotated[Path, typer.Argument(help="The run folder of a trained model.")],
    steps: Annotated[str, typer.Option(help=f"Numbers of steps, 2 to {MOST_STEPS}, with commas between.")] = "5,8,10",
    guidance: Annotated[float, typer.Option(help="The scale of guidance it will be used with.")] = 1.0,
    count: Annotated[
        int | None,
        typer.Option("--trajectories", help="Trajectories to learn from. (default: 128, fewer large ones)", min=1),
    ] = None,
    iterations: Annotated[
        int, typer.Option(help="How often they are run; 0 chooses among untuned solvers and grids.", min=0)
    ] = 100,
    batch: Annotated[int, typer.Option(help="Samples through the network at once.", min=1)] = 16,
) -> None:
    """Learn times and coefficients of a solver for this model, from its own fine trajectories; no weight changes.

    Stored in the run, and from then on what `sample --steps N` uses. What is not better than the untuned solver, from
    noise that was not learned from, is not stored.

    Example: ornstein tune runs/photos --steps 5,8,10
    """
    counts = _counts(steps)
    model = checkpoint.load(run)
    if model.data is None:
        raise UserError(f"{run} does not say what its samples look like; train it with `ornstein train`")
    if model.distilled is not None:
        raise UserError(f"{run} is distilled to {model.distilled}: tune its teacher")
    if guidance != 1 and not model.data.classes:
        raise UserError(f"{run} was trained without classes: there is nothing for --guidance to lean towards")
    # Each number of a sample is an equation for some hundred numbers to be found.
    count = count or max(_LEAST, min(_MOST, _EQUATIONS // math.prod(model.data.shape)))
    unseen = max(1, count // 2)
    with progress("trajectories", transient=True) as bar, torch.no_grad():
        task = bar.add_task("following", total=count + unseen, note="")

        def followed(before: int):
            return lambda done: bar.update(task, completed=before + done)

        seen = trajectories(model, count, 0, guidance, batch, followed(0))
        held_out = trajectories(model, unseen, count, guidance, batch, followed(count))
    found: list[Tuned] = []
    with progress("runs", transient=True) as bar:
        task = bar.add_task("tuning", total=len(counts) * iterations, note="")
        for i, n in enumerate(counts):

            def advance(done: int, error: float, i: int = i, n: int = n) -> None:
                bar.update(task, completed=i * iterations + done, note=f"{n} steps, {error:.0%} of the untuned error")

            found.append(judged(learn(seen, n, iterations, advance), held_out, guidance))
    better = [t for t in found if t.error < t.untuned and t.untuned > _ROUNDING]
    for t in found:
        what = f"{len(t.steps)} steps: {t.error:.4f} from the fine solution, {t.untuned:.4f} untuned"
        console.print(f"{what}; {t.numbers} numbers" if t in better else f"{what}: no better, not stored")
    if better:
        checkpoint.save_tuned(run, better)
        console.print(f"stored in {run / checkpoint.TUNED}; `ornstein sample {run} --steps {len(better[0].steps)}`")


def _counts(text: str) -> list[int]:
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UserError(f"--steps takes numbers with commas between, such as 5,8,10; got {text!r}") from None
    for n in counts:
        if not 2 <= n <= MOST_STEPS:
            raise UserError(f"--steps: a solver is tuned for 2 to {MOST_STEPS} steps, got {n}")
    return counts

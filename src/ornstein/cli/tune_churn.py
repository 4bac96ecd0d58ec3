"""`ornstein tune --churn`: how much fresh noise a stochastic solver adds, tuned for one model."""

from __future__ import annotations

import math

from ornstein import checkpoint
from ornstein.autoencoders.perceptual import octave_statistics
from ornstein.cli.commands import Tune
from ornstein.cli.options import refuse
from ornstein.cli.tune_data import unit_images
from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.few_steps.churn import Churn, tune_churn
from ornstein.few_steps.matching import KernelDistance
from ornstein.progress import progress, say

__all__ = ["churn_of"]

_LEAST, _MOST, _NUMBERS = 128, 512, 2**20  # samples of a set, and the numbers of all of them
_FEWEST = 16


def churn_of(asked: Tune, given: frozenset[str], model: Denoiser, scales: tuple[float, ...]) -> None:
    """Tune the churn for each number of steps and each guidance scale, and store it in the run.

    Raises:
        UserError: options of solvers, a model of captions, no images, or too few samples.
    """
    refuse(Tune, given, ("iterations", "radius", "match"), "with --churn no coefficients are learned")
    if getattr(model, "takes_text", False):
        raise UserError(f"{asked.run} is made for captions: churn is tuned for models of classes, or of neither")
    if asked.trajectories is not None and asked.trajectories < _FEWEST:
        raise UserError(f"--trajectories must be at least {_FEWEST} with --churn, not {asked.trajectories}")
    real = unit_images(asked.run, model, asked.data)
    distance = KernelDistance(real.to(next(model.parameters()).device), octave_statistics)
    count = asked.trajectories or max(_LEAST, min(_MOST, _NUMBERS // math.prod(real.shape[1:])))
    found: list[Churn] = []
    cases = [(n, scale) for scale in scales for n in sorted(set(asked.steps))]
    with progress("sets", transient=True) as bar:
        task = bar.add_task("tuning", total=len(cases), note="")
        for i, (n, scale) in enumerate(cases):

            def advance(done: int, total: int, i: int = i, n: int = n) -> None:
                bar.update(task, completed=i * total + done, total=len(cases) * total, note=f"{n} steps")

            found.append(tune_churn(model, distance, n, scale, count, asked.batch, advance))
    for c in found:
        what = f"{c.steps} steps" if c.guidance == 1 else f"{c.steps} steps, guidance {c.guidance:g}"
        gain = f"{c.gain:.3g} ± {c.error:.1g} nearer to the images than none"
        say(f"{what}: churn {c.tau:g}, {gain}" if c.tau else f"{what}: no churn; the best of it is {gain}")
    checkpoint.save_churn(asked.run, found)
    file = checkpoint.run_folder(asked.run) / checkpoint.CHOSEN
    say(f"stored in {file}; `ornstein sample {asked.run} --solver churned --steps {found[0].steps}`")

"""`ornstein tune`: a solver of few steps, learned for one model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ornstein import checkpoint
from ornstein.autoencoders.perceptual import octave_statistics
from ornstein.cli.commands import Tune
from ornstein.cli.models import open_model
from ornstein.cli.tune_churn import churn_of
from ornstein.cli.tune_data import unit_images
from ornstein.cli.tune_likelihood import tune_likelihood
from ornstein.denoiser import Denoiser
from ornstein.devices import choose_device, choose_precision
from ornstein.errors import UserError
from ornstein.few_steps.following import Path as FinePath
from ornstein.few_steps.matching import FeatureDistance, Matching
from ornstein.few_steps.tuning import Trajectories, judged, starts, trajectories
from ornstein.few_steps.tuning import tune as learn
from ornstein.progress import progress, say
from ornstein.solvers.tuned import Tuned

__all__ = ["tune"]

_LEAST, _MOST, _EQUATIONS = 32, 128, 2**17
_MATCHED, _MOST_MATCHED, _NUMBERS = 128, 384, 2**15  # samples of the second stage, at least and at most
_MATCHING = 3  # its iterations: one for so many of the first stage
_ROUNDING = 1e-6  # an untuned error of float32 rounding leaves nothing to gain


def tune(asked: Tune, given: frozenset[str]) -> None:
    """Learn a solver for each number of steps, and store those that are better than the untuned one."""
    asked = replace(asked, run=checkpoint.locate(asked.run))
    if asked.likelihood is not None:
        tune_likelihood(asked, given, tuned_model(asked)[0])
        return
    run, counts = asked.run, sorted(set(asked.steps))
    model, scales = tuned_model(asked)
    if asked.churn:
        churn_of(asked, given, model, scales)
        return
    checkpoint.check_tuned(run)  # before minutes of trajectories
    real = _images(asked, model, scales)
    # Each number of a sample is an equation for the few hundred numbers to be found.
    assert model.data is not None
    count = asked.trajectories or max(_LEAST, min(_MOST, _EQUATIONS // math.prod(model.data.shape)))
    more = max(1, count // 2)
    with progress("trajectories", transient=True) as bar, torch.no_grad():
        task = bar.add_task("following", total=len(scales) * (count + more), note="")

        def followed(before: int) -> Callable[[int], None]:
            return lambda done: bar.update(task, completed=before + done)

        each: list[Trajectories] = []
        held_out: list[Trajectories] = []
        fine: list[list[FinePath]] = [[] for _ in scales]
        for i, scale in enumerate(scales):
            before = i * (count + more)
            each.append(trajectories(model, count, 0, scale, asked.batch, followed(before), fine[i]))
            held_out.append(trajectories(model, more, count, scale, asked.batch, followed(before + count)))
    seen = [part for parts in zip(*each, strict=True) for part in parts]  # the first quarter has all scales
    paths = [path for paths in zip(*fine, strict=True) for path in paths]
    unseen = [part for parts in held_out for part in parts]
    match = None if real is None else _matching(asked, model, scales, real, count)
    total = asked.iterations + (0 if match is None else match.iterations)
    learned: list[Tuned] = []
    with progress("runs", transient=True) as bar:
        task = bar.add_task("tuning", total=len(counts) * total, note="")
        for i, n in enumerate(counts):

            def advance(done: int, error: float, i: int = i, n: int = n) -> None:
                note = f"{n} steps, {error:.0%} of the untuned error" if done <= asked.iterations else f"{n} steps, set"
                bar.update(task, completed=i * total + done, note=note)

            found = learn(seen, n, asked.iterations, advance, asked.radius, match, unseen, paths)
            learned.append(_judged(found, held_out, scales))
    _store(run, learned)


def tuned_model(asked: Tune) -> tuple[Denoiser, tuple[float, ...]]:
    """The model on its device, and the scales of guidance, rising."""
    run, scales = asked.run, tuple(sorted(set(asked.guidance)))
    if len(scales) == 1:
        model, alone = open_model(asked, scales[0])
        scales = (1.0 if alone is None else alone,)
    else:
        model = open_model(asked)[0]
        if getattr(model, "guided_by_condition", False):
            raise UserError(f"{run} takes the scale of guidance as a condition: tune it for one --guidance")
    device = choose_device(asked.device)
    model = model.to(device)
    model.precision = choose_precision(asked.precision, device)
    if model.data is None:
        raise UserError(f"{run} does not say what its samples look like; train it with `ornstein train`")
    if model.distilled is not None:
        raise UserError(f"{run} is distilled to {model.distilled}: tune its teacher")
    if scales != (1.0,) and not model.data.classes:
        raise UserError(f"{run} was trained without classes: --guidance has nothing to strengthen")
    return model, scales


def _images(asked: Tune, model: Denoiser, scales: tuple[float, ...]) -> Tensor | None:
    """The images of the second stage (M, C, H, W), as the model makes them; None without one.

    Raises:
        UserError: one was asked for, and cannot be.
    """
    wanted = asked.match == "data" or asked.data is not None
    if asked.match == "none" or asked.iterations == 0 or (scales != (1.0,) and not wanted):
        if wanted:
            raise UserError("--iterations 0 learns nothing: leave out --match and --data")
        return None
    try:
        if getattr(model, "takes_text", False):
            raise UserError("the second stage of tuning is for models without text: leave out --match and --data")
        return unit_images(asked.run, model, asked.data)
    except UserError:
        if wanted:
            raise
        return None


def _matching(asked: Tune, model: Denoiser, scales: tuple[float, ...], real: Tensor, count: int) -> Matching:
    """The second stage: the trajectories' starts, and as many more as make up its samples."""
    device = next(model.parameters()).device
    # Small samples are cheap, and a distance of distributions gains by more of them.
    most = max(_MATCHED, min(_MOST_MATCHED, _NUMBERS // math.prod(real.shape[1:])))
    first = 2 * count  # past those that are followed
    rows = [range(low, min(low + asked.batch, first + most)) for low in range(first + count, first + most, asked.batch)]
    more = [starts(model, part, scale) for scale in scales for part in rows]
    distance = FeatureDistance(real.to(device), octave_statistics)
    return Matching(distance, more, max(1, asked.iterations // _MATCHING), choose_precision("auto", device))


def _judged(found: Tuned, held_out: list[Trajectories], scales: tuple[float, ...]) -> Tuned:
    """The solver with its errors on new noise; of several scales, the root mean squares, and a line for each."""
    each = [judged(found, parts, scale) for parts, scale in zip(held_out, scales, strict=True)]
    if len(each) == 1:
        return each[0]
    for one in each:
        say(f"{len(one.steps)} steps, guidance {one.guidance:g}: {one.error:.4f}, {one.untuned:.4f} untuned")
    error, untuned = (math.sqrt(sum(v**2 for v in values) / len(each)) for values in zip(
        *((one.error, one.untuned) for one in each), strict=True
    ))  # fmt: skip
    return replace(found, guidance=scales[0], until=scales[-1], error=error, untuned=untuned)


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

"""`ornstein tune --likelihood`: log p in a few evaluations, learned for one model."""

from __future__ import annotations

import math

import torch

from ornstein import checkpoint
from ornstein.cli.commands import Tune
from ornstein.cli.tune_data import training_images
from ornstein.data import to_unit
from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.evaluation.matched import choose, class_numbers
from ornstein.likelihood import bits_per_dim, fit_few
from ornstein.progress import progress, say

__all__ = ["tune_likelihood"]

_LEAST, _MOST, _EQUATIONS = 48, 96, 2**17
_KNOWN = 4096  # images whose mean and covariance are taken
_OF_SOLVERS = ("steps", "guidance", "iterations", "radius", "match", "precision")


def tune_likelihood(asked: Tune, given: frozenset[str], model: Denoiser) -> None:
    """Learn log p in `asked.likelihood` evaluations, from training images, and store it in the run."""
    run = asked.run
    for name in _OF_SOLVERS:
        if name in given:
            raise UserError(f"--{name} is of solvers: leave it out with --likelihood")
    images = training_images(run, model, asked.data)
    assert model.data is not None
    count = asked.trajectories or max(_LEAST, min(_MOST, _EQUATIONS // math.prod(model.data.shape)))
    rows, known = choose(images, count), choose(images, _KNOWN)
    classes = class_numbers(images, model.data)
    with progress("images", transient=True) as bar:
        task = bar.add_task("following", total=None, note="")
        assert asked.likelihood is not None
        device = next(model.parameters()).device
        few = fit_few(
            model,
            to_unit(images.images[rows]).to(device),
            asked.likelihood,
            data=to_unit(images.images[known]).to(device),
            dequantisation="uniform",
            batch=asked.batch,
            cond=None if classes is None else {"label": classes[rows]},
            advance=lambda done, total: bar.update(task, completed=done, total=total),
        )
    folder = checkpoint.run_folder(run)
    folder.mkdir(exist_ok=True)
    few.save(folder, checkpoint.fingerprint(run))
    off = float(bits_per_dim(torch.tensor(few.spread), (1, *model.data.shape), None))
    say(f"log p in {few.evaluations} evaluations: {off:.4f} bits/dim from the fine solution an image, held out")
    say(f"stored in {folder}; `ornstein evaluate {run} --likelihood few`")

"""What a finished run shows of itself: samples, scores, quality against steps, and the report that holds them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ornstein.autoencoders.latent import LatentSpace
from ornstein.data import ImageSet, batch_indices, save_grid, to_uint8
from ornstein.denoiser import Denoiser
from ornstein.evaluation.frechet import pixel_frechet
from ornstein.evaluation.held_out import bits_by_own_prior, bits_of_images
from ornstein.evaluation.neighbours import copy_report, knn_agreement, nearest
from ornstein.evaluation.report import Curve, Images, Pairs, Report, Score, Skipped, Trajectory, write_report
from ornstein.sampling import State, sample
from ornstein.solvers import SOLVER
from ornstein.training.state import read_metrics

STEPS = 20
_BATCH = 256
_GRID = 100  # images of the grid of samples: up to 10 a class
_PAIRS = 24
_FILM = 20  # images of the denoising film
_NEIGHBOURS = 5
_BOUNDED = 32  # held-out images for the joint bound of a latent model
_ENOUGH = 8  # held-out images, below which no score says anything

Advance = Callable[[str, int, int], object]


def draw(
    denoiser: Denoiser,
    labels: Tensor | None,
    count: int,
    solver: str | None = None,
    steps: int | None = None,
    seed: int = 0,
    callback: Callable[[State], object] | None = None,
    batch: int = _BATCH,
) -> Tensor:
    """`count` samples as uint8 (N, C, H, W) or (N, C, F, H, W), of `labels` (N,) where it has classes.

    By 20 steps of DPM-Solver++ 3M unless told otherwise; of a distilled model always by its own steps.
    """
    assert denoiser.data is not None
    few = denoiser.distilled is not None
    images = sample(
        denoiser,
        (count, *denoiser.data.shape),
        solver=None if few else solver or SOLVER,
        steps=None if few else steps or STEPS,
        seed=seed,
        cond={"label": labels},
        callback=callback,
        batch=batch,
    )
    return to_uint8(denoiser.decode(images))


def write_run_report(
    out: Path,
    denoiser: Denoiser,
    train: ImageSet,
    held_out: ImageSet,
    title: str,
    settings: Mapping[str, Any],
    judged: int = 256,
    quality_steps: Sequence[int] = (),
    advance: Advance = lambda what, done, total: None,
    quality: Sequence[Mapping[str, Any]] = (),
    shown: int = _GRID,
    steps: int = STEPS,
) -> list[Score]:
    """Write `out`/samples.png and `out`/report.html.

    Args:
        judged: samples that the scores are measured on.
        quality_steps: numbers of steps at which DDIM and the default solver are compared, below the rows of `quality`;
            not for a distilled model, which has its own.
        advance: called with (what, done, total).
        shown: images of the grid at most; with classes, up to 10 of each.
        steps: solver steps of every sample, but for those of `quality_steps`.

    Returns:
        The scores of the report; none with fewer than 8 held-out images.
    """
    assert denoiser.data is not None
    classes = len(denoiser.data.classes)
    few = denoiser.distilled
    made_by = f"{steps} steps of {SOLVER}" if few is None else f"distilled to {few}"
    quality_steps = quality_steps if few is None else ()
    total = 2 + 2 * len(quality_steps)
    filmed = min(_FILM, shown)
    frames: list[Tensor] = []
    times: list[float] = []

    def film(state: State) -> None:
        if state.first == 0:
            frames.append(to_uint8(denoiser.decode(state.x[:filmed])))
            times.append(state.t)

    advance("samples", 0, total)
    rows = min(classes, 10)
    columns = max(1, shown // 10) if classes else 8
    grid_labels = torch.arange(rows).repeat_interleave(columns) if classes else None
    pictures = draw(denoiser, grid_labels, rows * columns if classes else min(64, shown), steps=steps)
    upscale = max(1, 64 // pictures.shape[-1])
    said = json.dumps({"samples": made_by, "seed": 0})
    save_grid(pictures, out / "samples.png", columns=columns, upscale=upscale, gap=1, comment=said)
    draw(denoiser, denoiser.data.labels(filmed), filmed, steps=steps, callback=film)

    advance("scores", 1, total)
    labels = denoiser.data.labels(judged)
    samples = draw(denoiser, labels, judged, steps=steps)
    scores = _scores(samples, labels, train, held_out) if len(held_out) >= _ENOUGH else []
    if few is None and isinstance(denoiser.space, LatentSpace) and denoiser.space.stochastic:
        scores += _joint_bound(denoiser, denoiser.space, held_out)
    near = nearest(samples[:_PAIRS], train.images)

    compared: list[Mapping[str, Any]] = [*quality]
    for i, (solver, n) in enumerate((s, n) for s in ("ddim", SOLVER) for n in quality_steps):
        advance(f"{solver}, {n} steps", 2 + i, total)
        images = samples if (solver, n) == (SOLVER, steps) else draw(denoiser, labels, judged, solver, n)
        frechet = pixel_frechet(images, held_out.images)
        row: dict[str, Any] = {"solver": solver, "steps": n, frechet.name: frechet.value}
        if labels is not None:
            row["k-NN agreement"] = _agreement(images, labels, train)
        compared.append(row)
    write_report(
        out / "report.html",
        Report(
            title=title,
            lead=f"{train.drawn_from or len(train)} training images, {len(held_out)} held out; {made_by}.",
            scores=scores,
            samples=Images(pictures, grid_labels),
            real=Images(held_out.images, held_out.labels if classes else None),
            class_names=denoiser.data.classes,
            trajectory=Trajectory(torch.stack(frames), times),
            neighbours=Pairs(samples[:_PAIRS], train.images[near.index], near.distance),
            quality=compared,
            losses=loss_curve(out),
            settings={k: v for k, v in settings.items() if v is not None},
            skipped=[Skipped(name, reason) for name, reason in train.skipped],
        ),
    )
    advance("done", total, total)
    return scores


def _joint_bound(denoiser: Denoiser, space: LatentSpace, held_out: ImageSet) -> list[Score]:
    rows = batch_indices(len(held_out), min(_BOUNDED, len(held_out)), step=0, seed=0)
    assert denoiser.data is not None
    labels = None if held_out.labels is None or not denoiser.data.classes else held_out.labels[rows]
    own = bits_by_own_prior(space, held_out.images[rows])
    found = bits_of_images(denoiser, held_out.images[rows], "continuous", labels)
    return [
        Score(
            "Bits/dim",
            f"{found.mean:.3f} ± {found.error:.3f}",
            f"joint bound on -log2 p(x) per channel and pixel of {found.count} held-out images, ± standard error",
            f"{own.mean:.3f} with the autoencoder's own prior",
        )
    ]


def _agreement(samples: Tensor, labels: Tensor, train: ImageSet) -> float:
    return knn_agreement(samples, labels, train.images, train.require_labels(), k=_NEIGHBOURS)


def _scores(samples: Tensor, labels: Tensor | None, train: ImageSet, held_out: ImageSet) -> list[Score]:
    """How good, how near the data and how far from copies the samples are; each beside the same of real images."""
    n = len(samples)
    scores = []
    if labels is not None:
        scores.append(
            Score(
                "k-NN agreement",
                f"{_agreement(samples, labels, train):.1%}",
                f"share of {n} samples that a {_NEIGHBOURS}-nearest-neighbour classifier fitted on the training images "
                "takes for the class they were asked to be",
                f"{_agreement(held_out.images, held_out.require_labels(), train):.1%} of held-out images",
            )
        )
    copies = copy_report(samples, train.images, held_out.images)
    frechet = pixel_frechet(samples, held_out.images)
    seen = batch_indices(len(train), min(n, len(train)), step=0, seed=0)
    floor = pixel_frechet(train.images[seen], held_out.images)
    return [
        *scores,
        Score(
            "Distance to the nearest training image",
            copies.sample_median,
            f"median over {train.count} training images, root mean square per pixel where black to white is 2; far "
            "below the reference would mean copies",
            f"{copies.test_median:.4g} for held-out images",
        ),
        Score(
            "Suspiciously close samples",
            f"{copies.close_share:.1%}",
            "share of samples nearer to a training image than 99% of the held-out images are",
            "1.0% by definition for held-out images",
        ),
        Score("Exact copies", copies.duplicates, "samples equal to a training image", str(copies.test_duplicates)),
        Score(
            frechet.name,
            frechet.value,
            f"{n} samples against the held-out images; less is better",
            f"{floor.value:.4g} for {len(seen)} training images",
        ),
    ]


def loss_curve(out: Path) -> Curve | None:
    """The training loss by step of the run in `out`; None where nothing was logged."""
    lines = [line for line in read_metrics(out) if isinstance(line.get("loss"), float)]
    return Curve([line["step"] for line in lines], [line["loss"] for line in lines]) if lines else None

"""The report of a trained run: samples, scores, quality against steps."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ornstein.autoencoders.latent import LatentSpace
from ornstein.data import ImageSet, batch_indices, save_grid, to_uint8, to_unit
from ornstein.denoiser import Denoiser
from ornstein.evaluation.facts import run_facts, seconds_text
from ornstein.evaluation.frechet import pixel_frechet
from ornstein.evaluation.held_out import CALLS, bits_by_own_prior, bits_of_images
from ornstein.evaluation.matched import class_numbers
from ornstein.evaluation.neighbours import copy_report, knn_agreement, nearest
from ornstein.evaluation.noise_left import noise_score, noise_warning
from ornstein.evaluation.report import Curve, Images, Pairs, Report, Score, Skipped, Trajectory, write_report
from ornstein.metrics import read_metrics
from ornstein.sampling import State, sample
from ornstein.solvers import SOLVER
from ornstein.text import TextDenoiser

__all__ = ["RESERVE", "SHORT_STEPS", "STEPS", "Advance", "affordable", "draw", "loss_curve", "write_run_report"]

STEPS = 20
_BATCH = 256
_SHOWN = 10  # images a class
_UNLABELLED = 64
SHORT_STEPS = 8  # of a model that is too slow for the usual number
_PAIRS = 24
_FILM = 20  # images of the denoising film
_NEIGHBOURS = 5
_BOUNDED = 32  # held-out images for the joint bound of a latent model
_ENOUGH = 8  # samples and held-out images, below which no score says anything
_MEASURING = 0.05  # of that time, for measuring how long a sample takes
RESERVE = 0.7  # of the time that a report may take, what is planned for samples; the rest is for scores

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
    flow: Tensor | None = None,
) -> Tensor:
    """Draw samples as uint8 images (N, C, H, W) or clips (N, C, F, H, W).

    Args:
        denoiser: the model; a distilled one always takes its own steps.
        labels: classes (N,), None for a model without classes; one of captions is given its examples in turn.
        count: N.
        solver, steps: how to sample; the default solver and 20 steps if not given.
        seed, callback, batch: as in `ornstein.sample`.
        flow: the motion of each sample, for a model whose noise is carried by it.
    """
    assert denoiser.data is not None
    few = denoiser.distilled is not None
    images = sample(
        denoiser,
        (count, *denoiser.data.shape),
        solver=None if few else solver or SOLVER,
        steps=None if few else steps or STEPS,
        seed=seed,
        cond={"label": labels, "flow": flow} | (denoiser.in_turn(count) if isinstance(denoiser, TextDenoiser) else {}),
        callback=callback,
        batch=batch,
    )
    return to_uint8(denoiser.decode(images))


def affordable(
    denoiser: Denoiser,
    seconds: float,
    most: int,
    steps: int = STEPS,
    batch: int = _BATCH,
    moves: Callable[[int], Tensor | None] = lambda count: None,
) -> int:
    """How many samples can be drawn within a time.

    The time of a step is measured on a few samples, and on more if that takes little of the time: a larger batch is
    faster.

    Args:
        denoiser: the model; a distilled one takes its own steps.
        seconds: the time; infinite for no limit.
        most: the largest result.
        steps: network evaluations for a sample.
        batch: samples that go through the network at once.
        moves: the flows that so many samples follow, or None.
    """
    if math.isinf(seconds):
        return most
    assert denoiser.data is not None
    few = denoiser.distilled
    measured, steps = (1, steps) if few is None else (few.steps, few.steps)
    count, each, spent = min(batch, 8), 0.0, 0.0
    draw(
        denoiser, denoiser.data.labels(count), count, steps=1, flow=moves(count)
    )  # the first call sets up caches and threads
    while True:
        began = time.perf_counter()
        draw(denoiser, denoiser.data.labels(count), count, steps=measured, flow=moves(count))
        took = time.perf_counter() - began
        each, spent = took / count / measured, spent + took
        if count == batch or 4 * took > _MEASURING * seconds:
            return max(0, min(most, int((seconds - spent) / (each * steps))))
        count = min(batch, 4 * count)


def write_run_report(
    out: Path,
    denoiser: Denoiser,
    train: ImageSet,
    held_out: ImageSet,
    title: str,
    settings: Mapping[str, Any],
    samples: int = 256,
    quality_steps: Sequence[int] = (),
    advance: Advance = lambda what, done, total: None,
    quality: Sequence[Mapping[str, Any]] = (),
    seconds: float = math.inf,
) -> list[Score]:
    """Write `out`/samples.png and `out`/report.html.

    Args:
        out: the run directory.
        denoiser, train, held_out: the model and its data.
        title, settings: what the report is called, and the settings that it lists.
        samples: how many samples are scored, at most.
        quality_steps: numbers of steps at which DDIM and the default solver are compared; not for a distilled model,
            which has its own.
        advance: called with (what, done, total).
        quality: rows of the comparison that are known already.
        seconds: time for all of it. With a slow model the comparison is left out, then fewer samples with fewer steps
            are drawn and scored; the report says so.

    Returns:
        The scores in the report; none with fewer than 8 samples or held-out images.
    """
    assert denoiser.data is not None
    few = denoiser.distilled
    sizes = _Sizes.within(denoiser, samples, quality_steps if few is None else (), seconds)
    made_by = f"{sizes.steps} steps of {SOLVER}" if few is None else f"distilled to {few}"
    total = 2 + 2 * len(sizes.compared)

    advance("samples", 0, total)
    pictures, shown = _pictures(denoiser, sizes.shown, sizes.steps)
    upscale = max(1, 64 // pictures.shape[-1])
    columns = 8 if shown is None else int((shown == 0).sum())
    comment = json.dumps({"samples": made_by, "seed": 0})
    save_grid(pictures, out / "samples.png", columns=columns, upscale=upscale, gap=1, comment=comment)
    film = _film(denoiser, sizes.film, sizes.steps)

    advance("scores", 1, total)
    labels = denoiser.data.labels(sizes.scored)
    drawn = draw(denoiser, labels, sizes.scored, steps=sizes.steps).cpu()
    scores: list[Score] = []
    warnings: list[str | None] = [sizes.note]
    if min(len(held_out), len(drawn)) >= _ENOUGH:
        scores = _scores(drawn, labels, train, held_out)
        seen = train.images[_some(len(train), len(drawn))]
        share, noise = noise_score(denoiser, to_unit(drawn), to_unit(held_out.images), to_unit(seen))
        scores, warnings = [*scores, *noise], [noise_warning(share), *warnings]
    if sizes.bounded and isinstance(denoiser.space, LatentSpace):
        scores.append(_joint_bound(denoiser, denoiser.space, held_out))
    near = nearest(drawn[:_PAIRS], train.images)
    compared = [*quality, *_compare(denoiser, drawn, labels, train, held_out, sizes.compared, advance)]
    write_report(
        out / "report.html",
        Report(
            title=title,
            lead=f"{train.drawn_from or len(train)} training images, {len(held_out)} held out; {made_by}.",
            warnings=[warning for warning in warnings if warning],
            scores=scores,
            samples=Images(pictures, shown),
            real=Images(held_out.images, held_out.labels if shown is not None else None),
            class_names=denoiser.data.classes,
            trajectory=film,
            neighbours=Pairs(drawn[:_PAIRS], train.images[near.index], near.distance),
            quality=compared,
            losses=loss_curve(out),
            facts=run_facts(out, denoiser, train, held_out),
            settings={k: v for k, v in settings.items() if v is not None},
            skipped=[Skipped(name, reason) for name, reason in train.skipped],
        ),
    )
    advance("done", total, total)
    return scores


@dataclass(frozen=True)
class _Sizes:
    """What a report draws: images of the gallery and of the film, samples to score, and the steps of all of them.

    compared: numbers of steps that are compared. bounded: whether the joint bound of a latent model is measured. note:
    the sentence about what was left out for want of time.
    """

    shown: int
    film: int
    scored: int
    steps: int
    compared: tuple[int, ...]
    bounded: bool
    note: str | None

    @classmethod
    def within(cls, d: Denoiser, samples: int, compared: Sequence[int], seconds: float) -> _Sizes:
        """The sizes that fit into a time; costs are counted in network evaluations."""
        assert d.data is not None
        steps = STEPS if d.distilled is None else d.distilled.steps
        gallery = min(len(d.data.classes), _SHOWN) * _SHOWN or _UNLABELLED
        bounded = d.distilled is None and isinstance(d.space, LatentSpace) and d.space.stochastic
        optional = {
            "the comparison of solvers": sum(2 * samples * n for n in compared),
            "the joint bound": _BOUNDED * CALLS["continuous"] if bounded else 0,
        }
        whole = sum(optional.values()) + steps * (gallery + _FILM + samples)
        limit = steps * affordable(d, RESERVE * seconds, math.ceil(whole / steps), steps)
        dropped = []
        for what, cost in list(optional.items()):
            if cost and sum(optional.values()) + steps * (gallery + _FILM + samples) > limit:
                dropped.append(what)
                optional[what] = 0
        left, film = limit - sum(optional.values()), _FILM
        scored = min(samples, left // steps - gallery - film)
        if scored < min(samples, _PAIRS):
            steps = min(steps, SHORT_STEPS)
            gallery, film = max(4, min(gallery, left // (3 * steps))), max(1, min(film, left // (8 * steps)))
            scored = max(4, min(samples, left // (2 * steps)))
        if scored < samples:
            dropped.append(f"{samples - scored} of {samples} samples to score")
        note = None
        if dropped:
            note = (
                f"To stay within {seconds_text(seconds)} this report leaves out {' and '.join(dropped)}; "
                "`ornstein evaluate` measures more."
            )
        return cls(
            shown=gallery,
            film=film,
            scored=scored,
            steps=steps,
            compared=tuple(compared) if optional["the comparison of solvers"] else (),
            bounded=bool(optional["the joint bound"]),
            note=note,
        )


def _pictures(d: Denoiser, count: int, steps: int) -> tuple[Tensor, Tensor | None]:
    """The images of the gallery and their classes, up to ten of the first ten classes; None without classes."""
    assert d.data is not None
    classes = min(len(d.data.classes), _SHOWN)
    labels = torch.arange(classes).repeat_interleave(max(1, min(_SHOWN, count // classes))) if classes else None
    return draw(d, labels, count if labels is None else len(labels), steps=steps).cpu(), labels


def _film(d: Denoiser, count: int, steps: int) -> Trajectory:
    """The states of `count` samples on their way."""
    assert d.data is not None
    frames: list[Tensor] = []
    times: list[float] = []

    def keep(state: State) -> None:
        frames.append(to_uint8(d.decode(state.x)).cpu())
        times.append(state.t)

    draw(d, d.data.labels(count), count, steps=steps, callback=keep)
    return Trajectory(torch.stack(frames), times)


def _compare(
    d: Denoiser,
    drawn: Tensor,
    labels: Tensor | None,
    train: ImageSet,
    held_out: ImageSet,
    steps: Sequence[int],
    advance: Advance,
) -> list[Mapping[str, Any]]:
    """A row of scores for DDIM and the default solver at each number of steps."""
    rows: list[Mapping[str, Any]] = []
    for i, (solver, n) in enumerate((s, n) for s in ("ddim", SOLVER) for n in steps):
        advance(f"{solver}, {n} steps", 2 + i, 2 + 2 * len(steps))
        images = drawn if (solver, n) == (SOLVER, STEPS) else draw(d, labels, len(drawn), solver, n).cpu()
        frechet = pixel_frechet(images, held_out.images)
        row: dict[str, Any] = {"solver": solver, "steps": n, frechet.name: frechet.value}
        if labels is not None:
            row["k-NN agreement"] = _agreement(images, labels, train)
        rows.append(row)
    return rows


def _joint_bound(d: Denoiser, space: LatentSpace, held_out: ImageSet) -> Score:
    assert d.data is not None
    rows = _some(len(held_out), _BOUNDED)
    classes = class_numbers(held_out, d.data)
    own = bits_by_own_prior(space, held_out.images[rows])
    bits = bits_of_images(d, held_out.images[rows], "continuous", None if classes is None else classes[rows])
    return Score(
        "Bits/dim",
        f"{bits.mean:.3f} ± {bits.error:.3f}",
        f"joint bound on -log2 p(x) per channel and pixel of {bits.count} held-out images, ± standard error",
        f"{own.mean:.3f} with the autoencoder's own prior",
    )


def _some(count: int, most: int) -> Tensor:
    """Indices of at most `most` of `count` images, always the same ones."""
    return batch_indices(count, min(count, most), step=0, seed=0)


def _agreement(samples: Tensor, labels: Tensor, train: ImageSet) -> float:
    return knn_agreement(samples, labels, train.images, train.require_labels(), k=_NEIGHBOURS)


def _scores(samples: Tensor, labels: Tensor | None, train: ImageSet, held_out: ImageSet) -> list[Score]:
    """Scores of class, copies and distance, each beside the same score of real images."""
    n = len(samples)
    scores = []
    if labels is not None:
        scores.append(
            Score(
                "k-NN agreement",
                f"{_agreement(samples, labels, train):.1%}",
                f"share of {n} samples whose class is the one requested, as a {_NEIGHBOURS}-nearest-neighbour "
                "classifier fitted on the training images sees it",
                f"{_agreement(held_out.images, held_out.require_labels(), train):.1%} of held-out images",
            )
        )
    copies = copy_report(samples, train.images, held_out.images)
    frechet = pixel_frechet(samples, held_out.images)
    seen = _some(len(train), n)
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
    """The training loss by step of the run in `out`; None if nothing was logged."""
    lines = [line for line in read_metrics(out) if isinstance(line.get("loss"), float)]
    return Curve([line["step"] for line in lines], [line["loss"] for line in lines]) if lines else None

"""What a finished run of clips shows of itself: clips that play, how they move beside the data, and the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ornstein.data import Clips, batch_indices, save_gif, save_mp4, save_sheet, to_uint8, to_unit
from ornstein.data.video import clip_grid
from ornstein.denoiser import Denoiser
from ornstein.evaluation.motion import clip_frechet, correlation_error, flicker_score
from ornstein.evaluation.report import Clips as PlayingClips
from ornstein.evaluation.report import Report, Score, Skipped, write_report
from ornstein.evaluation.run import STEPS, Advance, draw, loss_curve

_SHOWN = 16
_JUDGED = 128
_BATCH = 16


def write_clip_report(
    out: Path,
    denoiser: Denoiser,
    train: Clips,
    held_out: Clips,
    title: str,
    settings: Mapping[str, Any],
    advance: Advance = lambda what, done, total: None,
    most: int = _JUDGED,
    steps: int = STEPS,
) -> list[Score]:
    """Write `out`/samples.mp4, .gif, .png (a contact sheet) and report.html; the scores of motion in it.

    Up to `most` samples, of `steps` solver steps, are compared with as many held-out clips.
    """
    assert denoiser.data is not None
    judged = min(most, max(_SHOWN, len(held_out)))
    advance("sampling", 0, 2)
    samples = draw(denoiser, denoiser.data.labels(judged), judged, steps=steps, batch=_BATCH)
    upscale = max(1, 64 // samples.shape[-1])
    shown = samples[:_SHOWN]
    said = json.dumps(
        {"samples": f"{steps} steps" if denoiser.distilled is None else str(denoiser.distilled), "seed": 0}
    )
    fps = held_out.rate or 8.0
    save_sheet(shown, out / "samples.png", upscale=upscale, comment=said)
    wall = clip_grid(shown, columns=4)
    save_mp4(wall, out / "samples.mp4", fps, upscale, comment=said)
    save_gif(wall, out / "samples.gif", fps, upscale, comment=said)

    advance("scores", 1, 2)
    real = read(held_out, judged)
    scores = motion_scores(to_unit(samples), real, read(train, judged)) if min(judged, len(real)) >= _SHOWN else []
    write_report(
        out / "report.html",
        Report(
            title=title,
            lead=f"{len(train)} training clips of {train.shape[1]} frames, {len(held_out)} held out.",
            scores=scores,
            clips=PlayingClips(shown, to_uint8(real[:_SHOWN])),
            losses=loss_curve(out),
            settings=settings,
            skipped=[Skipped(name, reason) for name, reason in train.skipped],
        ),
    )
    advance("done", 2, 2)
    return scores


def read(clips: Clips, count: int) -> Tensor:
    """Up to `count` clips in a fixed random order, float32 (N, C, F, H, W) in [-1, 1]."""
    return clips.batch(batch_indices(len(clips), min(count, len(clips)), step=0, seed=0))[0]


def motion_scores(samples: Tensor, real: Tensor, train: Tensor) -> list[Score]:
    """How the samples move, beside held-out clips; the reference is the same of training clips. (N, C, F, H, W)."""
    correlation, reference = correlation_error(samples, real), correlation_error(train, real)
    flicker = flicker_score(samples, real)
    frechet = clip_frechet(samples, real)
    return [
        Score(
            "Correlation error by lag",
            correlation.by_lag,
            "root mean square difference of the autocorrelation over frames from the held-out clips'",
            f"{reference.by_lag:.4g} for training clips",
        ),
        Score(
            "Correlation error by frequency",
            correlation.by_frequency,
            "the same in bands of spatial frequency",
            f"{reference.by_frequency:.4g} for training clips",
        ),
        Score(
            "Flicker",
            flicker.value,
            "E|second difference|^2 / E|first difference|^2 over frames: 3 for white noise, near 0 for smooth motion",
            f"{flicker.data:.4g} for held-out clips",
        ),
        Score(
            frechet.name,
            frechet.value,
            f"{len(samples)} samples against {len(real)} held-out clips; less is better",
            f"{clip_frechet(train, real).value:.4g} for training clips",
        ),
    ]

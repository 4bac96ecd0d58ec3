"""The report of a run of clips: clips that play, scores of their motion and of the noise left in them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ornstein.data import Clips, batch_indices, save_gif, save_mp4, save_sheet, to_uint8, to_unit
from ornstein.data.video import clip_grid
from ornstein.denoiser import Denoiser
from ornstein.evaluation.facts import run_facts
from ornstein.evaluation.motion import clip_frechet, correlation_error, flicker_score
from ornstein.evaluation.noise_left import noise_score, noise_warning
from ornstein.evaluation.report import Clips as PlayingClips
from ornstein.evaluation.report import Report, Score, Skipped, write_report
from ornstein.evaluation.run import RESERVE, SHORT_STEPS, STEPS, Advance, affordable, draw, loss_curve

__all__ = ["motion_scores", "read", "write_clip_report"]

_SHOWN = 16
_SCORED = 128
_FEWEST = 4  # clips, below which not even their motion is scored
_BATCH = 16
_FPS = 8.0  # of clips whose frame rate is not known


def write_clip_report(
    out: Path,
    denoiser: Denoiser,
    train: Clips,
    held_out: Clips,
    title: str,
    settings: Mapping[str, Any],
    advance: Advance = lambda what, done, total: None,
    samples: int = _SCORED,
    seconds: float = math.inf,
    moves: Callable[[int], Tensor | None] = lambda count: None,
) -> list[Score]:
    """Write `out`/samples.mp4, .gif, .png (a contact sheet) and report.html.

    Args:
        out: the run directory.
        denoiser, train, held_out: the model and its data.
        title, settings: what the report is called, and the settings that it lists.
        advance: called with (what, done, total).
        samples: clips to score at most, against as many held-out clips.
        seconds: time for all of it; a slow model makes fewer clips with fewer steps, at least 4.
        moves: the flows that so many samples follow, for a model whose noise is carried by motion.

    Returns:
        The scores in the report; none with fewer than 16 held-out clips.
    """
    assert denoiser.data is not None
    count, steps = max(_SHOWN, min(samples, _SCORED, len(held_out))), STEPS
    fit = affordable(denoiser, RESERVE * seconds, count, batch=_BATCH, moves=moves)
    if fit < _SHOWN:
        steps = SHORT_STEPS
        fit = min(_SHOWN, fit * STEPS // steps)
    count = max(_FEWEST, fit)
    advance("sampling", 0, 2)
    made = draw(denoiser, denoiser.data.labels(count), count, steps=steps, batch=_BATCH, flow=moves(count)).cpu()
    upscale = max(1, 64 // made.shape[-1])
    shown = made[:_SHOWN]
    comment = json.dumps({"samples": str(denoiser.distilled or f"{steps} steps"), "seed": 0})
    fps = held_out.rate or _FPS
    save_sheet(shown, out / "samples.png", upscale=upscale, comment=comment)
    wall = clip_grid(shown, columns=4)
    save_mp4(wall, out / "samples.mp4", fps, upscale, comment=comment)
    save_gif(wall, out / "samples.gif", fps, upscale, comment=comment)

    advance("scores", 1, 2)
    real = read(held_out, max(count, _SHOWN))
    scores: list[Score] = []
    warnings: list[str | None] = []
    if min(count, len(real)) >= _SHOWN:
        seen = read(train, len(real))
        share, noise = noise_score(denoiser, to_unit(made), real, seen)
        scores = noise + motion_scores(to_unit(made), real, seen)
        warnings = [noise_warning(share)]
    write_report(
        out / "report.html",
        Report(
            title=title,
            lead=f"{len(train)} training clips of {train.shape[1]} frames, {len(held_out)} held out.",
            warnings=[warning for warning in warnings if warning],
            scores=scores,
            clips=PlayingClips(shown, to_uint8(real[:_SHOWN]), fps),
            losses=loss_curve(out),
            facts=run_facts(out, denoiser, train, held_out),
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
    """Scores of the motion of samples against held-out clips; the reference is that of training clips.

    samples, real, train: (N, C, F, H, W) in [-1, 1].
    """
    correlation, reference = correlation_error(samples, real), correlation_error(train, real)
    flicker = flicker_score(samples, real)
    frechet = clip_frechet(samples, real)
    return [
        Score(
            "Correlation error by lag",
            correlation.by_lag,
            "root mean square difference of the autocorrelation over frames from that of the held-out clips",
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

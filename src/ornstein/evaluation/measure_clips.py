"""What a model of clips makes, beside held-out clips: distance, flicker, correlation over frames, motion, bits/dim."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ornstein.data import Clips, to_uint8, to_unit
from ornstein.data.flow import estimate_flow, flow_of
from ornstein.denoiser import Denoiser
from ornstein.evaluation.held_out import Bits, bits_of_images
from ornstein.evaluation.markup import Table
from ornstein.evaluation.motion import clip_frechet, correlation_error, flicker_score, motion_error
from ornstein.evaluation.plan import Plan
from ornstein.evaluation.results import Spread, without_nan
from ornstein.evaluation.run import draw
from ornstein.evaluation.summary import figure, likelihood_table
from ornstein.noise import Carried, SingularCovarianceError
from ornstein.text import TextDenoiser

__all__ = ["FIGURES", "ClipEvaluation", "ClipRow", "clip_tables", "measure_clips"]

FIGURES = {
    "frechet": "Fréchet distance",
    "flicker": "flicker / real",
    "by_lag": "correlation error",
    "by_frequency": "by frequency",
    "motion": "motion error",
}
_SHOWN = 16

Advance = Callable[[str, int, int], object]


@dataclass(frozen=True)
class ClipRow:
    """The figures of clips by one solver with one number of steps; of training clips without either."""

    solver: str
    steps: int | None
    figures: dict[str, Spread]

    def to_json(self) -> dict[str, Any]:
        scores = {k: {"mean": s.mean, "std": s.std, "values": s.values} for k, s in self.figures.items()}
        return {"solver": self.solver, "steps": self.steps, **scores}


@dataclass(frozen=True)
class ClipEvaluation:
    """The result of `measure_clips`.

    Attributes:
        plan: what was to be measured.
        reference: the number of real clips.
        rows: the figures of samples.
        floor: those of training clips in place of samples; None if they are not known.
        bits: likelihoods.
        samples, real: the first of both, uint8 (N, C, F, H, W).
        left_out: what was not measured, and why.
    """

    plan: Plan
    reference: int
    rows: tuple[ClipRow, ...]
    floor: ClipRow | None
    bits: tuple[Bits, ...]
    samples: Tensor
    real: Tensor
    left_out: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything but the pictures; null for what is not a number."""
        return without_nan(
            {
                "samples_per_seed": self.plan.count,
                "seeds": list(range(self.plan.seeds)),
                "reference_clips": self.reference,
                "likelihood": [asdict(b) for b in self.bits],
                "quality": [row.to_json() for row in self.rows],
                "training_clips": None if self.floor is None else self.floor.to_json(),
                "left_out": list(self.left_out),
            }
        )


def measure_clips(
    d: Denoiser, plan: Plan, held_out: Clips, train: Clips | None, flow_by: str | None, advance: Advance
) -> ClipEvaluation:
    """Sample by every solver, number of steps and seed, and compare with as many held-out clips.

    Args:
        d: the model; everything runs on its device. One whose noise is carried by motion is asked for the motion of the
            held-out clips in turn, and the error of the motion of its samples is a further figure.
        plan: what to measure; its images are clips.
        held_out, train: real clips; of the training set, or None.
        flow_by: how the flow of clips is found, as `train --flow-by`.
        advance: called with (what, done, total).

    Raises:
        UserError: a likelihood that the noise of the model has not.
    """
    assert d.data is not None
    carried = isinstance(d.process.noise, Carried)
    rows = torch.arange(min(plan.count, len(held_out)))
    real = held_out.batch(rows)[0]
    flow = flow_of(held_out, rows, flow_by) if carried else None
    moves = None if flow is None else flow[torch.arange(plan.count) % len(flow)]
    pairs = [(solver, steps) for solver in plan.solvers for steps in sorted(set(plan.steps))]
    total, done = len(pairs) * plan.seeds + len(plan.methods), 0
    out, first = [], None
    for solver, steps in pairs:
        each = []
        for seed in range(plan.seeds):
            advance(f"{solver}, {steps} steps, seed {seed}", done, total)
            labels = d.data.labels(plan.count)
            made = draw(d, labels, plan.count, solver, steps, seed, batch=plan.batch, flow=moves).cpu()
            each.append(_figures(to_unit(made), real, moves))
            first = made if seed == 0 else first  # those of the last pair are shown
            done += 1
        out.append(ClipRow(solver, steps, _spreads(each)))
    floor = None
    if train is not None:
        seen = torch.arange(min(len(rows), len(train)))
        moved = flow_of(train, seen, flow_by) if carried else None
        floor = ClipRow("training clips", None, _spreads([_figures(train.batch(seen)[0], real, moved)]))
    bits, left_out = [], []
    for method in plan.methods:
        advance(f"likelihood, {method}", done, total)
        done += 1
        try:
            bits.append(_bits(d, held_out, method, min(plan.images, len(held_out))))
        except (SingularCovarianceError, ValueError) as error:
            left_out.append(f"{method} ({error})")
    advance("done", total, total)
    assert first is not None
    shown = to_uint8(real[:_SHOWN])
    return ClipEvaluation(plan, len(real), tuple(out), floor, tuple(bits), first[:_SHOWN], shown, tuple(left_out))


def _figures(x: Tensor, real: Tensor, flow: Tensor | None) -> dict[str, float]:
    """Those of `FIGURES` that clips of this length have."""
    found, frames = {"frechet": clip_frechet(x, real).value}, x.shape[2]
    if frames > 2:
        found["flicker"] = flicker_score(x, real).ratio
    if frames > 1:
        correlation = correlation_error(x, real)
        found |= {"by_lag": correlation.by_lag, "by_frequency": correlation.by_frequency}
    if frames > 1 and flow is not None:
        found["motion"] = float(motion_error(estimate_flow(x), flow).mean())
    return found


def _spreads(each: Sequence[dict[str, float]]) -> dict[str, Spread]:
    return {name: Spread(tuple(figures[name] for figures in each)) for name in each[0]}


def _bits(d: Denoiser, clips: Clips, method: str, count: int) -> Bits:
    if isinstance(d.process.noise, Carried):
        raise ValueError("noise that is carried by motion has another covariance for each clip")
    if isinstance(d, TextDenoiser):
        raise ValueError("the clips have no captions")
    real, labels = clips.batch(torch.arange(count))
    if labels is not None and (d.data is None or list(clips.classes) != list(d.data.classes)):
        labels = None
    return bits_of_images(d, to_uint8(real), method, labels)


def clip_tables(result: ClipEvaluation, about: str) -> list[Table]:
    """The tables of an evaluation of clips.

    Args:
        result: the evaluation.
        about: which clips were compared with, for the headers.
    """
    plan, out = result.plan, []
    if result.bits:
        out.append(likelihood_table(result.bits, about, "clips"))
    names = [name for name in FIGURES if name in result.rows[0].figures]
    rows = [
        (row.solver, row.steps or "", *(figure(row.figures[name]) for name in names))
        for row in (*result.rows, *([result.floor] if result.floor else []))
    ]
    seeds = f"seeds 0 to {plan.seeds - 1}, mean ± standard deviation" if plan.seeds > 1 else "seed 0"
    header = (
        f"{plan.count} clips, {seeds}; against {result.reference} real ones; {about}. Less is better, and 1 the "
        "best flicker / real. Correlation error: root mean square, of the autocorrelation over frames, by lag, and in "
        "bands of spatial frequency."
    )
    if "motion" in names:
        header += " Motion error: pixels a frame, of the flow estimated in the samples against the one asked for."
    out.append(Table("Quality of clips", header, ("solver", "steps", *(FIGURES[name] for name in names)), rows))
    return out

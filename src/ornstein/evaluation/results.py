"""The results of an evaluation: figures with their spread over seeds, and all of them as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ornstein.evaluation.held_out import Bits
from ornstein.evaluation.neighbours import CopyReport
from ornstein.evaluation.plan import Plan

__all__ = ["METRICS", "Evaluation", "Row", "Spread", "without_nan"]

METRICS = ("frechet", "kernel", "precision", "recall")


@dataclass(frozen=True)
class Spread:
    """A figure for each seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return math.fsum(self.values) / len(self.values)

    @property
    def std(self) -> float:
        """The standard deviation over the seeds; NaN for one."""
        return float(torch.tensor(self.values, dtype=torch.float64).std()) if len(self.values) > 1 else math.nan


@dataclass(frozen=True)
class Row:
    """Scores of samples by one solver with one number of steps, against real images.

    kernel_error: the standard error of the kernel distance of one seed.
    """

    solver: str
    steps: int
    frechet: Spread
    kernel: Spread
    kernel_error: float
    precision: Spread
    recall: Spread


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation.

    Args:
        plan: what was to be measured.
        features: the name of the features that distances are in.
        reference: the number of real images.
        bits: likelihoods.
        rows: scores of samples.
        floor: the scores of training images in place of samples; None if they are not known.
        copies, copies_of: distances of so many samples to training images; None if these are not known.
        samples, labels: the first samples, uint8, and their classes.
        nearest, distances: the image nearest to each of the first samples, of the training set if it is known.
        left_out: what was not measured, because the time was over or the flow could not be followed.
    """

    plan: Plan
    features: str
    reference: int
    bits: tuple[Bits, ...]
    rows: tuple[Row, ...]
    floor: Row | None
    copies: CopyReport | None
    copies_of: int
    samples: Tensor
    labels: Tensor | None
    nearest: Tensor
    distances: Tensor
    left_out: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Everything but the pictures; null for what is not a number."""

        def row(r: Row) -> dict[str, Any]:
            spreads = {name: getattr(r, name) for name in METRICS}
            scores = {k: {"mean": s.mean, "std": s.std, "values": s.values} for k, s in spreads.items()}
            return {"solver": r.solver, "steps": r.steps, **scores, "kernel_error": r.kernel_error}

        return without_nan(
            {
                "samples_per_seed": self.plan.count,
                "seeds": list(range(self.plan.seeds)),
                "reference_images": self.reference,
                "features": self.features,
                "likelihood": [asdict(b) for b in self.bits],
                "quality": [row(r) for r in self.rows],
                "training_images": None if self.floor is None else row(self.floor),
                "copies": None if self.copies is None else asdict(self.copies) | {"samples": self.copies_of},
                "left_out": list(self.left_out),
            }
        )


def without_nan(value: Any) -> Any:
    """JSON values with null for what is not finite."""
    if isinstance(value, Mapping):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

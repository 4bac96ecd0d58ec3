"""A judgement as tables and as a report, each headed by what is needed to get its figures again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ornstein.data import ImageSet
from ornstein.evaluation.judge import METRICS, Judgement, Row, Spread
from ornstein.evaluation.markup import Table
from ornstein.evaluation.report import Images, Pairs, Report, Skipped, write_report

NAMES = {
    "frechet": "Fréchet distance",
    "kernel": "Kernel distance",
    "precision": "Precision",
    "recall": "Recall",
}


def tables(found: Judgement, about: str) -> list[Table]:
    """Bits/dim, quality and copies, those that were measured; `about` says which images they were held against."""
    out = []
    if found.bits:
        parts = tuple(dict.fromkeys(part for b in found.bits for part in b.parts))
        rows = [
            (b.method, _pm(b.mean, b.error), b.count, *(f"{b.parts[p]:.4f}" if p in b.parts else "" for p in parts))
            for b in found.bits
        ]
        header = (
            f"Bits per dimension of {found.bits[0].count} held-out images, ± standard error over the images; seed 0; "
            f"{about}. Less is better; each is above the model's own in expectation. "
            + " ".join(f"{b.method}: {b.meaning}." for b in found.bits)
        )
        out.append(Table("Likelihood", header, ("method", "bits/dim", "n", *parts), rows))
    rows = [_quality_row(row) for row in (*found.rows, *([found.floor] if found.floor else []))]
    columns = ("solver", "steps", *(NAMES[m] for m in METRICS))
    out.append(Table("Quality of samples", quality_header(found, about), columns, rows))
    if found.copies is not None:
        c = found.copies
        header = (
            f"{found.copies_of} samples of {_panel(found)}, seed 0, and as many held-out images at most; distance to "
            f"the nearest training image in raw pixels, root mean square where black to white is 2; {about}. "
            "Samples far nearer than held-out images are would be copies."
        )
        rows = [
            ("median distance", f"{c.sample_median:.4f}", f"{c.test_median:.4f}"),
            ("5% quantile", f"{c.sample_q05:.4f}", f"{c.test_q05:.4f}"),
            (f"nearer than 99% of held-out images ({c.threshold:.4f})", f"{c.close_share:.1%}", "1.0%"),
            ("exact copies", c.duplicates, c.test_duplicates),
        ]
        out.append(Table("Copies of training images", header, ("", "samples", "held-out images"), rows))
    return out


def quality_header(found: Judgement, about: str) -> str:
    seeds = f"seeds 0 to {found.plan.seeds - 1}" if found.plan.seeds > 1 else "seed 0"
    spread = ", mean ± standard deviation over the seeds" if found.plan.seeds > 1 else ""
    return (
        f"{found.plan.count} samples a seed, {seeds}{spread}; against {found.reference} real images; "
        f"features: {found.features}; {about}. The kernel distance of a single set: ± its standard error."
    )


def _panel(found: Judgement) -> str:
    return f"{found.plan.solvers[0]} with {max(found.plan.steps)} steps"


def _pm(mean: float, error: float) -> str:
    return f"{mean:.4f}" if math.isnan(error) else f"{mean:.4f} ± {error:.4f}"


def _figure(spread: Spread) -> str:
    return f"{spread.mean:.3g}" if math.isnan(spread.std) else f"{spread.mean:.3g} ± {spread.std:.1g}"


def _quality_row(row: Row) -> tuple[Any, ...]:
    figures = {name: _figure(getattr(row, name)) for name in METRICS}
    if len(row.kernel.values) == 1 and not math.isnan(row.kernel_error):
        figures["kernel"] += f" ± {row.kernel_error:.2g}"
    return (row.solver, row.steps or "", *figures.values())


def write_findings(
    path: Path,
    found: Judgement,
    title: str,
    about: str,
    held_out: ImageSet,
    class_names: tuple[str, ...],
    against_training: bool,
    settings: Mapping[str, Any],
) -> None:
    """Write the report of a judgement as one HTML file. Raises RunError where it cannot be written."""
    real = Images(held_out.images[:64])
    labels = found.labels
    if labels is not None and held_out.labels is not None and tuple(held_out.classes) == class_names:
        real = Images(*_by_class(held_out, labels))
    chart = [
        {"solver": r.solver, "steps": r.steps, **{NAMES[m]: getattr(r, m).mean for m in METRICS}} for r in found.rows
    ]
    write_report(
        path,
        Report(
            title=title,
            lead=about[:1].upper() + about[1:] + ".",
            tables=tables(found, about),
            samples=Images(found.samples, labels),
            real=real,
            class_names=class_names,
            neighbours=Pairs(found.samples[: len(found.nearest)], found.nearest, found.distances),
            neighbours_note=f"Samples of {_panel(found)}, seed 0."
            + ("" if against_training else " The training images are not at hand: these are the images judged by."),
            quality=chart,
            quality_note=quality_header(found, about),
            settings=settings,
            skipped=[Skipped(name, reason) for name, reason in held_out.skipped],
        ),
    )


def _by_class(images: ImageSet, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Up to 10 real images of every class that was sampled, and their labels."""
    assert images.labels is not None
    rows = [torch.nonzero(images.labels == k)[:10, 0] for k in labels.unique()]
    chosen = torch.cat(rows)
    return images.images[chosen], images.labels[chosen]

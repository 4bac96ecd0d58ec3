"""An evaluation as tables and as a report, each with what is needed to get its figures again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ornstein.data import ImageSet
from ornstein.evaluation.held_out import Bits
from ornstein.evaluation.markup import Table
from ornstein.evaluation.report import Images, Pairs, Report, Skipped, write_report
from ornstein.evaluation.results import METRICS, Evaluation, Row, Spread

__all__ = ["NAMES", "figure", "likelihood_table", "tables", "write_evaluation_report"]

NAMES = {
    "frechet": "Fréchet distance",
    "kernel": "Kernel distance",
    "precision": "Precision",
    "recall": "Recall",
}


def tables(result: Evaluation, about: str) -> list[Table]:
    """The tables of likelihood, quality and copies, those that were measured.

    Args:
        result: the evaluation.
        about: which images were compared with, for the headers.
    """
    out = []
    if result.bits:
        out.append(likelihood_table(result.bits, about))
    rows = [_quality_row(row) for row in (*result.rows, *([result.floor] if result.floor else []))]
    columns = ("solver", "steps", *(NAMES[m] for m in METRICS))
    header = (
        f"{_quality_header(result, about)} Lower distances are better, and higher precision and recall. The row "
        "`training images` is what perfect samples would score."
        if result.floor
        else _quality_header(result, about)
    )
    out.append(Table("Quality of samples", header, columns, rows))
    if result.copies is not None:
        out.append(_copies(result, about))
    return out


def likelihood_table(bits: Sequence[Bits], about: str, kind: str = "images") -> Table:
    """The table of likelihoods of held-out images or clips; about: which they are."""
    parts = tuple(dict.fromkeys(part for b in bits for part in b.parts))
    rows = [
        (b.method, _pm(b.mean, b.error), b.count, *(f"{b.parts[p]:.4f}" if p in b.parts else "" for p in parts))
        for b in bits
    ]
    header = (
        f"Bits per dimension of {bits[0].count} held-out {kind}, ± standard error over the {kind}; seed 0; "
        f"{about}. Less is better; each bounds that of the model from above in expectation. "
        + " ".join(f"{b.method}: {b.meaning}." for b in bits)
    )
    return Table("Likelihood", header, ("method", "bits/dim", "n", *parts), rows)


def _copies(result: Evaluation, about: str) -> Table:
    c = result.copies
    assert c is not None
    header = (
        f"{result.copies_of} samples of {_shown(result)}, seed 0, and as many held-out images at most; distance to "
        f"the nearest training image in raw pixels, root mean square where black to white is 2; {about}. "
        "Samples that are far nearer than held-out images would be copies."
    )
    rows = [
        ("median distance", f"{c.sample_median:.4f}", f"{c.test_median:.4f}"),
        ("5% quantile", f"{c.sample_q05:.4f}", f"{c.test_q05:.4f}"),
        (f"nearer than 99% of held-out images ({c.threshold:.4f})", f"{c.close_share:.1%}", "1.0%"),
        ("exact copies", c.duplicates, c.test_duplicates),
    ]
    return Table("Copies of training images", header, ("", "samples", "held-out images"), rows)


def _quality_header(result: Evaluation, about: str) -> str:
    seeds = f"seeds 0 to {result.plan.seeds - 1}" if result.plan.seeds > 1 else "seed 0"
    spread = ", mean ± standard deviation over the seeds" if result.plan.seeds > 1 else ""
    return (
        f"{result.plan.count} samples a seed, {seeds}{spread}; against {result.reference} real images; "
        f"features: {result.features}; {about}. The kernel distance of a single set: ± its standard error."
    )


def _shown(result: Evaluation) -> str:
    return f"{result.plan.solvers[0]} with {max(result.plan.steps)} steps"


def _pm(mean: float, error: float) -> str:
    return f"{mean:.4f}" if math.isnan(error) else f"{mean:.4f} ± {error:.4f}"


def figure(spread: Spread) -> str:
    """The mean with its spread, without exponents: "182 ± 11"."""
    if math.isnan(spread.std):
        return f"{spread.mean:.3g}"
    return f"{spread.mean:.3g} ± {f'{spread.std:.1g}' if spread.std < 9.5 else f'{spread.std:.0f}'}"


def _quality_row(row: Row) -> tuple[Any, ...]:
    figures = {name: figure(getattr(row, name)) for name in METRICS}
    if len(row.kernel.values) == 1 and not math.isnan(row.kernel_error):
        figures["kernel"] += f" ± {row.kernel_error:.2g}"
    return (row.solver, row.steps or "", *figures.values())


def write_evaluation_report(
    path: Path,
    result: Evaluation,
    title: str,
    about: str,
    held_out: ImageSet,
    class_names: tuple[str, ...],
    against_training: bool,
    facts: Mapping[str, Any],
) -> None:
    """Write the report of an evaluation as one HTML file.

    Args:
        path: the file.
        result: the evaluation.
        title, about: its heading, and which images were compared with.
        held_out, class_names: these images, and the names of the model's classes.
        against_training: whether the nearest images are training images.
        facts: model, data, machine.

    Raises:
        RunError: the file cannot be written.
    """
    real = Images(held_out.images[:64])
    labels = result.labels
    if labels is not None and held_out.labels is not None and tuple(held_out.classes) == class_names:
        real = Images(*_by_class(held_out, labels))
    chart = [
        {"solver": r.solver, "steps": r.steps, **{NAMES[m]: getattr(r, m).mean for m in METRICS}} for r in result.rows
    ]
    left_out = f"Not measured: {'; '.join(result.left_out)}." if result.left_out else ""
    write_report(
        path,
        Report(
            title=title,
            lead=about[:1].upper() + about[1:] + ".",
            warnings=[left_out] if left_out else [],
            tables=tables(result, about),
            samples=Images(result.samples, labels),
            real=real,
            class_names=class_names,
            neighbours=Pairs(result.samples[: len(result.nearest)], result.nearest, result.distances),
            neighbours_note=f"Samples of {_shown(result)}, seed 0."
            + ("" if against_training else " The training images were not found: these are held-out images."),
            quality=chart,
            quality_note=_quality_header(result, about),
            facts=facts,
            skipped=[Skipped(name, reason) for name, reason in held_out.skipped],
        ),
    )


def _by_class(images: ImageSet, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Up to 10 real images of every class that was sampled, and their labels."""
    assert images.labels is not None
    rows = [torch.nonzero(images.labels == k)[:10, 0] for k in labels.unique()]
    chosen = torch.cat(rows)
    return images.images[chosen], images.labels[chosen]

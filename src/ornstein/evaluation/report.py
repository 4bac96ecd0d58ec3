"""The report of a run: one self-contained HTML file that needs no network and no other file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from ornstein.evaluation.curves import Curve, losses, quality
from ornstein.evaluation.markup import Table, film, table_section, text
from ornstein.evaluation.panels import Panel, panel_section
from ornstein.evaluation.sections import (
    Charts,
    Clips,
    Film,
    Images,
    Pairs,
    Score,
    Skipped,
    Trajectory,
    charts_section,
    clips_section,
    denoising_section,
    facts_section,
    film_section,
    films_of,
    neighbours_section,
    samples_section,
    scores_section,
    settings_section,
    skipped_section,
)
from ornstein.store import atomic_write, write_error

__all__ = [
    "Charts",
    "Clips",
    "Curve",
    "Film",
    "Images",
    "Pairs",
    "Report",
    "Score",
    "Skipped",
    "Trajectory",
    "write_report",
]


@dataclass(frozen=True)
class Report:
    """Everything a report can show. Only the title is required: a section without data is left out.

    Args:
        title, lead: the heading and the paragraph below it.
        warnings: sentences that stand out below the lead.
        tables: before the scores.
        panels: after the scores.
        film, charts: pictures along a training, and charts; after the tables.
        scores: the table of scores.
        samples, real, class_names: samples beside real images, class by class if both have labels.
        clips: clips that play.
        trajectory: the film of images being denoised.
        neighbours, neighbours_note: samples beside their nearest training images, and how they were made.
        quality, quality_note: rows {"solver": name, "steps": number, metric: value, ...}, a chart for each metric, and
            how they were measured.
        losses: the training loss.
        facts: the run and how it came about: model, data, training, machine.
        settings: the settings of the run.
        skipped: files of the data set that were left out.
    """

    title: str
    lead: str = ""
    warnings: Sequence[str] = ()
    tables: Sequence[Table] = ()
    panels: Sequence[Panel] = ()
    film: Film | None = None
    charts: Sequence[Charts] = ()
    scores: Sequence[Score] = ()
    samples: Images | None = None
    real: Images | None = None
    class_names: Sequence[str] = ()
    clips: Clips | None = None
    trajectory: Trajectory | None = None
    neighbours: Pairs | None = None
    neighbours_note: str = ""
    quality: Sequence[Mapping[str, Any]] = ()
    quality_note: str = ""
    losses: Curve | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    skipped: Sequence[Skipped] = ()


def write_report(path: str | os.PathLike[str], report: Report) -> Path:
    """Write a report as one HTML file, whole or not at all (write, then rename).

    Every text in the report is escaped. Charts are inline SVG; the only script plays films.

    Returns:
        The path.

    Raises:
        ValueError: images that are not uint8 (N, 1 or 3, H, W), or numbers of things that do not match.
        RunError: the file cannot be written.
    """
    page = _page(report)
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(target, error) from error
    atomic_write(target, page.encode())
    return target


def _page(report: Report) -> str:
    movie = film(report.trajectory.frames, report.trajectory.times) if report.trajectory is not None else None
    clips = films_of(report.clips)
    shown = report.film
    growth = None if shown is None else film(shown.frames, labels=shown.labels)
    parts = [
        *((f"table-{i}", text(table.title), table_section(table)) for i, table in enumerate(report.tables)),
        ("film", "" if shown is None else text(shown.title), film_section(shown, growth)),
        *((f"charts-{i}", text(each.title), charts_section(each)) for i, each in enumerate(report.charts)),
        ("scores", "Scores", scores_section(report.scores)),
        *((f"panel-{i}", text(panel.title), panel_section(panel)) for i, panel in enumerate(report.panels)),
        ("samples", "Samples", samples_section(report.samples, report.real, report.class_names)),
        ("clips", "Clips", clips_section(clips)),
        ("denoising", "Denoising", denoising_section(movie)),
        ("neighbours", "Nearest training images", neighbours_section(report.neighbours, report.neighbours_note)),
        ("quality", "Quality against steps", quality(report.quality, report.quality_note)),
        ("loss", "Training loss", losses(report.losses)),
        ("run", "Run", facts_section(report.facts)),
        ("settings", "Settings", settings_section(report.settings)),
        ("skipped", "Skipped files", skipped_section(report.skipped)),
    ]
    parts = [part for part in parts if part[2]]
    links = "".join(f'<li><a href="#{key}">{name}</a></li>' for key, name, _ in parts)
    # no text in the data may close the script element; JSON reads the escape back as "<"
    data = json.dumps({"movie": movie, "film": growth, "clips": list(clips.values())}, allow_nan=False).replace(
        "<", "\\u003c"
    )
    template = Template(resources.files("ornstein.evaluation").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=text(report.title),
        lead=f'<p class="lead">{text(report.lead)}</p>' if report.lead else "",
        warnings="".join(f'<p class="warning" role="note">{text(warning)}</p>' for warning in report.warnings),
        nav=f'<nav aria-label="Sections"><ul>{links}</ul></nav>' if len(parts) > 1 else "",
        sections="\n".join(
            f'<section id="{key}" aria-labelledby="h-{key}"><h2 id="h-{key}">{name}</h2>{body}</section>'
            for key, name, body in parts
        ),
        data=data,
    )

"""The report of a run: one self-contained HTML file that needs no network and no other file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from torch import Tensor

from ornstein.errors import UserError
from ornstein.evaluation.curves import Curve, losses, quality
from ornstein.evaluation.markup import checked, film, img, note, text
from ornstein.evaluation.panels import Panel, panel_section
from ornstein.evaluation.tables import Table, table_section
from ornstein.extras import require
from ornstein.store import atomic_write, write_error

_MOST_CLASSES = 12
_MOST_PER_CLASS = 10
_MOST_UNLABELLED = 64


@dataclass(frozen=True)
class Images:
    """uint8 images (N, C, H, W), C = 1 or 3, with class labels (N,) where there are any."""

    pixels: Tensor
    labels: Tensor | None = None


@dataclass(frozen=True)
class Trajectory:
    """uint8 frames (K, n, C, H, W) of n images being denoised, first to last, and the time of each."""

    frames: Tensor
    times: Sequence[float]


@dataclass(frozen=True)
class Clips:
    """uint8 clips (N, C, F, H, W) that play at fps frames a second, beside real ones (M, C, F, H, W) where given."""

    samples: Tensor
    real: Tensor | None = None
    fps: float = 8.0


@dataclass(frozen=True)
class Pairs:
    """Samples and the training image nearest to each, uint8 (N, C, H, W); distances (N,), RMS per pixel."""

    samples: Tensor
    nearest: Tensor
    distances: Tensor | None = None


@dataclass(frozen=True)
class Score:
    """One row of the table of scores; reference is what to hold the value against: real against real, say."""

    name: str
    value: float | str
    meaning: str = ""
    reference: float | str | None = None


@dataclass(frozen=True)
class Skipped:
    """A file of the data set that was left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Report:
    """Everything a report can show. Only the title is needed: a section without data is left out.

    quality has one row a measurement, {"solver": name, "steps": number, metric: value, ...}, and each metric
    gets a chart; quality_note and neighbours_note say how they were made. tables come first, panels after the scores.
    """

    title: str
    lead: str = ""
    tables: Sequence[Table] = ()
    panels: Sequence[Panel] = ()
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
    settings: Mapping[str, Any] = field(default_factory=dict)
    skipped: Sequence[Skipped] = ()


def write_report(path: str | os.PathLike[str], report: Report) -> Path:
    """Write report as one HTML file at path, whole or not at all (write, then rename), and return the path.

    plotly.js is inlined once, and only if there is a curve to draw; every text in report is escaped.
    Raises ValueError for images that are not uint8 (N, 1 or 3, H, W) or counts that do not match, RunError if
    the file cannot be written.
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
    charts: list[dict[str, Any]] = []
    movie = film(report.trajectory.frames, report.trajectory.times) if report.trajectory is not None else None
    clips = _films(report.clips)
    parts = [
        *((f"table-{i}", text(table.title), table_section(table)) for i, table in enumerate(report.tables)),
        ("scores", "Scores", _scores(report.scores)),
        *((f"panel-{i}", text(panel.title), panel_section(panel)) for i, panel in enumerate(report.panels)),
        ("samples", "Samples", _samples(report)),
        ("clips", "Clips", _clips(clips)),
        ("denoising", "Denoising", _denoising(movie)),
        ("neighbours", "Nearest training images", _neighbours(report.neighbours, report.neighbours_note)),
        ("quality", "Quality against steps", quality(report.quality, charts, report.quality_note)),
        ("loss", "Training loss", losses(report.losses, charts)),
        ("settings", "Settings", _settings(report.settings)),
        ("skipped", "Skipped files", _skipped(report.skipped)),
    ]
    parts = [part for part in parts if part[2]]
    links = "".join(f'<li><a href="#{key}">{name}</a></li>' for key, name, _ in parts)
    plotly = f"<script>{_plotly()}</script>" if charts else ""
    # no text in the data may close the script element; JSON reads the escape back as "<"
    shown = {"movie": movie, "clips": list(clips.values()), "charts": charts}
    data = json.dumps(shown, allow_nan=False).replace("<", "\\u003c")
    template = Template(resources.files("ornstein.evaluation").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(report.title),
        lead=f'<p class="lead">{escape(report.lead)}</p>' if report.lead else "",
        nav=f'<nav aria-label="Sections"><ul>{links}</ul></nav>' if len(parts) > 1 else "",
        sections="\n".join(
            f'<section id="{key}" aria-labelledby="h-{key}"><h2 id="h-{key}">{name}</h2>{body}</section>'
            for key, name, body in parts
        ),
        data=data,
        plotly=plotly,
    )


def _plotly() -> str:
    """The 5 MB of plotly.js, read only when they are needed; without plotly, a line in the place of each curve."""
    try:
        return require("plotly.offline", "report", "the curve").get_plotlyjs()
    except UserError as error:
        line = json.dumps(f"No curve: {error}")
        return f"var Plotly = {{react: function (id) {{ document.getElementById(id).textContent = {line}; }}}};"


def _strip(pixels: np.ndarray, columns: int, what: str) -> str:
    images = "".join(img(image, what) for image in pixels)
    label = f'role="group" aria-label="{len(pixels)}: {what}"'
    return f'<div class="strip" style="--cols:{columns}" {label}>{images}</div>'


def _scores(scores: Sequence[Score]) -> str:
    if not scores:
        return ""
    reference = any(score.reference is not None for score in scores)
    rows = "".join(
        f'<tr><th scope="row">{text(score.name)}</th><td class="value">{text(score.value)}</td>'
        + (
            f'<td class="num reference">{"" if score.reference is None else text(score.reference)}</td>'
            if reference
            else ""
        )
        + f'<td class="meaning">{text(score.meaning)}</td></tr>'
        for score in scores
    )
    heads = ["Score", "Value", *(["Reference"] if reference else []), "What it means"]
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return note("What was measured on this model’s samples.") + (
        f'<div class="card"><table class="scores"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _labels(images: Images, name: str) -> np.ndarray | None:
    if images.labels is None:
        return None
    if images.labels.shape != (len(images.pixels),):
        raise ValueError(
            f"{len(images.pixels)} {name} need labels of shape ({len(images.pixels)},), "
            f"got {tuple(images.labels.shape)}"
        )
    return images.labels.detach().cpu().numpy()


def _samples(report: Report) -> str:
    if report.samples is None or len(report.samples.pixels) == 0:
        return ""
    sides = [("Samples", "sample", report.samples)]
    if report.real is not None and len(report.real.pixels):
        sides.append(("Real images", "real image", report.real))
    columns = [(checked(images.pixels, name), _labels(images, name)) for name, _, images in sides]
    per_row = _MOST_PER_CLASS if columns[0][0].shape[-1] < 48 else _MOST_PER_CLASS // 2

    def cells(label: int | None, title: str) -> str:
        both = ""
        for (name, one, _), (pixels, labels) in zip(sides, columns, strict=True):
            if label is None:
                strip = _strip(pixels[:_MOST_UNLABELLED], min(8, per_row), one)
            else:
                strip = _strip(pixels[labels == label][:_MOST_PER_CLASS], per_row, f"{one}, {title}")
            both += f'<div><span class="side-label">{name}</span>{strip}</div>'
        return both

    heads = "".join(f"<span>{name}</span>" for name, _, _ in sides)
    beside = len(sides) == 2
    kind = "class-row" + ("" if beside else " alone")
    sample_labels = columns[0][1]
    if sample_labels is None or any(labels is None for _, labels in columns):
        caption = "Images the model made, beside real ones." if beside else "Images the model made."
        rows = f'<div class="{kind} plain column-heads">{heads}</div>' if beside else ""
        rows += f'<div class="{kind} plain first">{cells(None, "")}</div>'
    else:
        classes = np.unique(sample_labels).tolist()
        caption = "Each row was asked to be one class" + (", beside real images of that class." if beside else ".")
        if len(classes) > _MOST_CLASSES:
            caption += f" The first {_MOST_CLASSES} of {len(classes)} classes are shown."
        rows = f'<div class="{kind} column-heads"><span>Class</span>{heads}</div>'
        for label in classes[:_MOST_CLASSES]:
            known = 0 <= label < len(report.class_names)
            title = text(report.class_names[label] if known else f"class {label}")
            first = " first" if label == classes[0] else ""
            rows += f'<div class="{kind}{first}"><h3>{title}</h3>{cells(label, title)}</div>'
    return note(caption) + f'<div class="card classes">{rows}</div>'


def _films(clips: Clips | None) -> dict[str, dict[str, Any]]:
    """What plays in the clips section, by its heading."""
    if clips is None:
        return {}
    if not clips.fps > 0:
        raise ValueError(f"clips play at a positive number of frames a second, not {clips.fps}")
    sides = {"Samples": clips.samples} | ({} if clips.real is None else {"Real clips": clips.real})
    films = {}
    for name, pixels in sides.items():
        if pixels.ndim != 5:
            raise ValueError(f"clips must be uint8 (N, C, F, H, W), got shape {tuple(pixels.shape)}")
        films[name] = film(pixels.permute(2, 0, 1, 3, 4), name="clips")
        # of a long clip not every frame is shown, and each stands for longer
        films[name]["pause"] = 1000 / clips.fps * pixels.shape[2] / len(films[name]["labels"])
    return films


def _clips(films: Mapping[str, Mapping[str, Any]]) -> str:
    if not films:
        return ""
    sides = ""
    for i, (name, movie) in enumerate(films.items()):
        player = _player(movie, f"clips-{i}", f"clips-{i}-", f"{movie['images']} {name.lower()}, playing", "Frame", 0)
        sides += f'<div class="side"><h3>{name}</h3>{player}</div>'
    beside = ", beside real ones" if len(films) == 2 else ""
    return note(f"Clips the model made{beside}. Play them, or drag the slider.") + f'<div class="films">{sides}</div>'


def _denoising(movie: Mapping[str, Any] | None) -> str:
    if movie is None:
        return ""
    what = f"{movie['images']} images on their way from noise to the finished sample"
    last = len(movie["labels"]) - 1
    return note("From noise to finished samples. Play it, or drag the slider.") + _player(
        movie, "movie", "", what, "Denoising frame", last
    )


def _player(movie: Mapping[str, Any], canvas: str, prefix: str, what: str, slider: str, at: int) -> str:
    last = len(movie["labels"]) - 1
    # whole-number enlargement keeps the pixels square and equal
    width = movie["width"] * max(1, 640 // movie["width"])
    return (
        f'<div class="card player"><canvas id="{canvas}" role="img" aria-label="{what}" '
        f'width="{movie["width"]}" height="{movie["height"]}" style="max-width:{width}px"></canvas>'
        '<div class="controls">'
        f'<button id="{prefix}play" type="button" disabled>Play</button>'
        f'<input id="{prefix}frame" type="range" min="0" max="{last}" value="{at}" aria-label="{slider}">'
        f'<output id="{prefix}frame-label" for="{prefix}frame" aria-live="off"></output></div></div>'
    )


def _neighbours(pairs: Pairs | None, how: str) -> str:
    if pairs is None or len(pairs.samples) == 0:
        return ""
    samples, near = checked(pairs.samples, "neighbour samples"), checked(pairs.nearest, "nearest images")
    distances = pairs.distances
    if len(near) != len(samples) or (distances is not None and distances.shape != (len(samples),)):
        raise ValueError(f"{len(samples)} samples need as many nearest images and distances, got {len(near)}")
    items = "".join(
        f'<li class="pair">{img(sample, "sample")}{img(real, "its nearest training image")}'
        + (f"<span>{float(distances[i]):.3f}</span>" if distances is not None else "")
        + "</li>"
        for i, (sample, real) in enumerate(zip(samples, near, strict=True))
    )
    caption = "Left a sample, right the training image nearest to it: alike in kind, but no copy, if all is well."
    if distances is not None:
        caption += " Below, their distance: root mean square per pixel, where black to white is 2."
    caption += f" {escape(how)}" if how else ""
    return note(caption) + f'<ul class="pairs card">{items}</ul>'


def _settings(settings: Mapping[str, Any]) -> str:
    if not settings:
        return ""
    rows = "".join(f"<div><dt>{text(key)}</dt><dd>{text(value)}</dd></div>" for key, value in settings.items())
    return note("What this run was made with.") + f'<div class="card"><dl class="settings">{rows}</dl></div>'


def _skipped(files: Sequence[Skipped]) -> str:
    if not files:
        return ""
    rows = "".join(f'<tr><th scope="row">{text(f.name)}</th><td>{text(f.reason)}</td></tr>' for f in files)
    count = "One file of the data set was" if len(files) == 1 else f"{len(files)} files of the data set were"
    return note(f"{count} left out of the training.") + (
        '<div class="card"><div class="scroll files" tabindex="0" role="region" aria-label="Skipped files">'
        '<table><thead><tr><th scope="col">File</th><th scope="col">Why</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></div>"
    )

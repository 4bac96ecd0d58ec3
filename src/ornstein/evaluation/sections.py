"""The sections of a report: what each one shows, and its HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ornstein.evaluation.markup import checked, film, img, note, text

__all__ = [
    "Charts",
    "Clips",
    "Film",
    "Images",
    "Pairs",
    "Score",
    "Skipped",
    "Trajectory",
    "charts_section",
    "clips_section",
    "denoising_section",
    "facts_section",
    "film_section",
    "films_of",
    "neighbours_section",
    "samples_section",
    "scores_section",
    "settings_section",
    "skipped_section",
]

_MOST_CLASSES = 12
_MOST_PER_CLASS = 10
_MOST_UNLABELLED = 64
_MOST_SKIPPED = 200
_IMAGE_PIXELS = 2**21  # of one section: larger images are shown in smaller number


@dataclass(frozen=True)
class Images:
    """uint8 images (N, C, H, W), C = 1 or 3, with class labels (N,) if there are any."""

    pixels: Tensor
    labels: Tensor | None = None


@dataclass(frozen=True)
class Trajectory:
    """uint8 frames (K, n, C, H, W) of n images being denoised, first to last, and the time of each."""

    frames: Tensor
    times: Sequence[float]


@dataclass(frozen=True)
class Film:
    """uint8 frames (K, n, C, H, W) of a title, each with its label: n pictures that change along a training."""

    title: str
    caption: str
    frames: Tensor
    labels: Sequence[str]


@dataclass(frozen=True)
class Charts:
    """Charts, each with its heading and the SVG of `charts.chart`."""

    title: str
    caption: str
    charts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Clips:
    """uint8 clips (N, C, F, H, W) that play at fps frames a second, beside real ones (M, C, F, H, W) if given."""

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
    """One row of the table of scores; reference is the value of real data against real data, for comparison."""

    name: str
    value: float | str
    meaning: str = ""
    reference: float | str | None = None


@dataclass(frozen=True)
class Skipped:
    """A file of the data set that was left out, and the reason."""

    name: str
    reason: str


def scores_section(scores: Sequence[Score]) -> str:
    """The table of scores; the column of references is left out if no score has one."""
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
    caption = "Measured on samples of this model."
    if reference:
        caption += " The reference is the same measurement on real data, which perfect samples would reach."
    return note(caption) + (
        f'<div class="card"><table class="scores"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def samples_section(samples: Images | None, real: Images | None, class_names: Sequence[str]) -> str:
    """Samples beside real images, a row for each class if both have labels."""
    if samples is None or len(samples.pixels) == 0:
        return ""
    sides = [("Samples", "sample", samples)]
    if real is not None and len(real.pixels):
        sides.append(("Real images", "real image", real))
    columns = [(checked(images.pixels, name), _labels(images, name)) for name, _, images in sides]
    height, width = columns[0][0].shape[-2:]
    per_row = _MOST_PER_CLASS if width < 48 else _MOST_PER_CLASS // 2
    most = max(8, min(_MOST_UNLABELLED, _IMAGE_PIXELS // (height * width)))

    def cells(label: int | None, title: str) -> str:
        both = ""
        for (name, one, _), (pixels, labels) in zip(sides, columns, strict=True):
            if label is None:
                strip = _strip(pixels[:most], min(8, per_row), one)
            else:
                strip = _strip(pixels[labels == label][:per_row], per_row, f"{one}, {title}")
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
        caption = "Each row holds samples of one class" + (", beside real images of that class." if beside else ".")
        if len(classes) > _MOST_CLASSES:
            caption += f" The first {_MOST_CLASSES} of {len(classes)} classes are shown."
        rows = f'<div class="{kind} column-heads"><span>Class</span>{heads}</div>'
        for label in classes[:_MOST_CLASSES]:
            known = 0 <= label < len(class_names)
            title = text(class_names[label] if known else f"class {label}")
            first = " first" if label == classes[0] else ""
            rows += f'<div class="{kind}{first}"><h3>{title}</h3>{cells(label, title)}</div>'
    return note(caption) + f'<div class="card classes">{rows}</div>'


def _strip(pixels: np.ndarray, columns: int, what: str) -> str:
    images = "".join(img(image, what) for image in pixels)
    label = f'role="group" aria-label="{len(pixels)}: {what}"'
    return f'<div class="strip" style="--cols:{columns}" {label}>{images}</div>'


def _labels(images: Images, name: str) -> np.ndarray | None:
    if images.labels is None:
        return None
    if images.labels.shape != (len(images.pixels),):
        raise ValueError(
            f"{len(images.pixels)} {name} need labels of shape ({len(images.pixels)},), "
            f"got {tuple(images.labels.shape)}"
        )
    return images.labels.detach().cpu().numpy()


def films_of(clips: Clips | None) -> dict[str, dict[str, Any]]:
    """The films of the clips section, by their heading, as the player needs them."""
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


def clips_section(films: Mapping[str, Mapping[str, Any]]) -> str:
    """A player for each film of `films_of`."""
    if not films:
        return ""
    sides = ""
    for i, (name, movie) in enumerate(films.items()):
        player = _player(movie, f"clips-{i}", f"clips-{i}-", f"{movie['images']} {name.lower()}, playing", "Frame", 0)
        sides += f'<div class="side"><h3>{name}</h3>{player}</div>'
    beside = ", beside real ones" if len(films) == 2 else ""
    return note(f"Clips the model made{beside}. Play them, or drag the slider.") + f'<div class="films">{sides}</div>'


def denoising_section(movie: Mapping[str, Any] | None) -> str:
    """A player for the film of images being denoised."""
    if movie is None:
        return ""
    what = f"{movie['images']} images on their way from noise to the finished sample"
    last = len(movie["labels"]) - 1
    return note("From noise to finished samples. Play it, or drag the slider.") + _player(
        movie, "movie", "", what, "Denoising frame", last
    )


def film_section(shown: Film | None, movie: Mapping[str, Any] | None) -> str:
    """A player for pictures along a training; `movie` is `markup.film` of it."""
    if shown is None or movie is None:
        return ""
    return note(text(shown.caption)) + _player(movie, "film-canvas", "film-", text(shown.title), "Frame", 0)


def charts_section(shown: Charts) -> str:
    """Charts side by side; one by itself is not stretched."""
    cards = [f"{f'<h3>{text(head)}</h3>' if head else ''}{svg}" for head, svg in shown.charts if svg]
    if len(cards) < 2:
        return note(text(shown.caption)) + "".join(f'<div class="card alone">{card}</div>' for card in cards)
    body = "".join(f'<div class="card">{card}</div>' for card in cards)
    return note(text(shown.caption)) + f'<div class="charts">{body}</div>'


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


def neighbours_section(pairs: Pairs | None, how: str) -> str:
    """Each sample beside the training image nearest to it, with their distance."""
    if pairs is None or len(pairs.samples) == 0:
        return ""
    samples, near = checked(pairs.samples, "neighbour samples"), checked(pairs.nearest, "nearest images")
    distances = pairs.distances
    if len(near) != len(samples) or (distances is not None and distances.shape != (len(samples),)):
        raise ValueError(f"{len(samples)} samples need as many nearest images and distances, got {len(near)}")
    shown = max(6, _IMAGE_PIXELS // (2 * samples.shape[-2] * samples.shape[-1]))
    items = "".join(
        f'<li class="pair">{img(sample, "sample")}{img(real, "its nearest training image")}'
        + (f"<span>{float(distances[i]):.3f}</span>" if distances is not None else "")
        + "</li>"
        for i, (sample, real) in enumerate(zip(samples[:shown], near[:shown], strict=True))
    )
    caption = "Left a sample, right the training image nearest to it. They should be similar in kind, but not copies."
    if distances is not None:
        caption += " Below them, their distance: root mean square per pixel, where black to white is 2."
    caption += f" {text(how)}" if how else ""
    return note(caption) + f'<ul class="pairs card">{items}</ul>'


def facts_section(facts: Mapping[str, Any]) -> str:
    """What the report is about: model, data, training and machine."""
    return (
        note("What was trained, on what, and where.") + f'<div class="card">{_pairs_list(facts)}</div>' if facts else ""
    )


def settings_section(settings: Mapping[str, Any]) -> str:
    """The settings of the run."""
    return note("The settings of this run.") + f'<div class="card">{_pairs_list(settings)}</div>' if settings else ""


def _pairs_list(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<div{' class=wide' if len(text(value)) > 40 else ''}><dt>{text(key)}</dt><dd>{text(value)}</dd></div>"
        for key, value in values.items()
    )
    return f'<dl class="settings">{rows}</dl>'


def skipped_section(files: Sequence[Skipped]) -> str:
    """The files that were left out, and why; the first 200 of many."""
    if not files:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{text(f.name)}</th><td>{text(f.reason)}</td></tr>' for f in files[:_MOST_SKIPPED]
    )
    count = "One file of the data set was" if len(files) == 1 else f"{len(files)} files of the data set were"
    more = f" The first {_MOST_SKIPPED} are listed." if len(files) > _MOST_SKIPPED else ""
    return note(f"{count} left out of the training.{more}") + (
        '<div class="card"><div class="scroll files" tabindex="0" role="region" aria-label="Skipped files">'
        '<table><thead><tr><th scope="col">File</th><th scope="col">Why</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></div>"
    )

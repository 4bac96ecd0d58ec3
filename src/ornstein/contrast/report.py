"""The report of a contrast: one table, charts of the trainings, and the samples over training as an animation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ornstein.contrast.problems import Problem, open_problem
from ornstein.contrast.run import Result
from ornstein.contrast.settings import Contrast
from ornstein.data import grid, save_gif
from ornstein.evaluation.charts import Axis, Line, chart, linear_ticks, log_ticks
from ornstein.evaluation.facts import machine_facts
from ornstein.evaluation.markup import Table
from ornstein.evaluation.report import Charts, Film, Report, write_report
from ornstein.settings import to_json

__all__ = ["animation", "columns", "rows", "write"]

_PANEL = 132  # pixels a side of the picture of one model's samples
_CAPTION = 16
_ACROSS = 4
_FRAMES_A_SECOND = 5


def columns(results: Sequence[Result]) -> list[str]:
    """The heads of the table, without those that no model has a value for."""
    return [head for head, _ in _cells(results, [])]


def rows(results: Sequence[Result], ends: bool = True) -> list[list[str]]:
    """A row for each model: means over its seeds and, with `ends`, the smallest and largest value where they differ."""
    models = dict.fromkeys(result.model for result in results)
    return [[text for _, text in _cells(results, [r for r in results if r.model == m], ends)] for m in models]


def _cells(results: Sequence[Result], own: Sequence[Result], ends: bool = True) -> list[tuple[str, str]]:
    """(head, text) of each column for the results of one model."""

    def spread(values: Iterable[float | None], form: str, here: bool = True) -> str:
        return _spread(values, form, ends and here)

    modes = any(r.scores["reverse_kl"] is not None for r in results)
    bits = list(dict.fromkeys(name for r in results for name in r.record["bits"]))
    cells = [("model", own[0].model if own else "")]
    if modes:
        cells.append(("modes", spread((r.scores["modes"] for r in own), "{:.0f}")))
        cells.append(("reverse KL", spread((r.scores["reverse_kl"] for r in own), "{:.3f}")))
    cells.append(("good samples", spread((r.scores["good"] for r in own), "{:.1%}")))
    cells.append(("Fréchet distance", spread((r.scores["frechet"] for r in own), "{:.3g}")))
    for name in bits:
        title = "bits/dim, " + {"exact": "exact", "bound": "bound", "ode": "flow"}[name]
        cells.append((title, spread((r.record["bits"].get(name) for r in own), "{:.3f}")))
    cells += [
        ("evaluations a sample", str(own[0].record["evaluations"]) if own else ""),
        ("ms a sample", spread((1e3 * r.record["costs"]["seconds"] for r in own), "{:.3g}", False)),
        ("steps", spread((r.record["steps"] for r in own), "{:,.0f}", False)),
        ("parameters", f"{own[0].record['parameters']:,}" if own else ""),
    ]
    if any(r.record["ended"] for r in results):
        cells.append(("ended", "; ".join(f"seed {r.seed}: {r.record['ended']}" for r in own if r.record["ended"])))
    return cells


def _spread(values: Iterable[float | None], form: str, ends: bool = True) -> str:
    """The mean, and the smallest and largest value where they look different; a dash without values."""
    known = [v for v in values if v is not None]
    if not known:
        return "–"
    middle, low, high = (form.format(v) for v in (statistics.fmean(known), min(known), max(known)))
    return f"{middle} ({low} to {high})" if ends and low != high else middle


def write(settings: Contrast, results: Sequence[Result]) -> Path:
    """Write report.html and collapse.gif into the folder of the settings; return the report's path."""
    problem = open_problem(settings.data, settings.size)
    frames = animation(results, problem)
    path = settings.out / "report.html"
    write_report(path, _report(settings, results, problem, frames))
    save_gif(frames.transpose(0, 1), settings.out / "collapse.gif", _FRAMES_A_SECOND)
    return path


def _report(settings: Contrast, results: Sequence[Result], problem: Problem, frames: Tensor) -> Report:
    seconds, n = settings.seconds, settings.num or problem.samples
    header = (
        f"Mean over {settings.seeds} seed{'s' * (settings.seeds > 1)}, smallest and largest value in brackets. Each "
        f"training had {seconds:.3g} s of processor time on one thread; scores are of {n:,} samples. {problem.note}"
    )
    if problem.probabilities is not None:
        floor = (len(problem.probabilities) - 1) / (2 * n)
        header += f" A perfect model would have a reverse KL of about {floor:.2g}."
    floors = [r.scores["floor"] for r in results if r.scores["floor"] is not None]
    if floors:
        header += f" Between halves of the real data the Fréchet distance is {floors[0]:.2g}."
    if problem.entropy is not None:
        header += f" The data have {problem.entropy:.3f} bits/dim."
    used = sum(r.record["all_seconds"] for r in results) / 60
    return Report(
        title=f"Before diffusion: {settings.data}",
        lead="GANs, an autoregressive model and a diffusion model, trained on the same data for the same time.",
        warnings=[f"{r.model}, seed {r.seed}, ended early: {r.record['ended']}" for r in results if r.record["ended"]],
        tables=[Table("Scores", header, columns(results), rows(results)), *_cost_tables(results)],
        film=Film(
            "Samples over training",
            "The first seed of each model, and the modes among the samples that are shown. Play it or drag the slider: "
            "where a model loses modes it is seen.",
            frames[:, None],
            [f"{i / (len(frames) - 1):.0%} of {seconds:.3g} s" for i in range(len(frames))],
        ),
        charts=_charts(results, problem),
        facts={"processor minutes in all": round(used, 1)} | machine_facts(),
        settings={k: v for k, v in to_json(settings).items() if v is not None},
    )


def _cost_tables(results: Sequence[Result]) -> list[Table]:
    known = [r for r in results if "uncached" in r.record["costs"] and r.seed == 0]
    if not known:
        return []
    body = [
        [r.model, r.record["evaluations"], *(f"{1e3 * r.record['costs'][k]:.3g}" for k in ("cached", "uncached"))]
        for r in known
    ]
    header = "Processor time of a sample of 16 at once: a cache keeps the keys and values of the earlier numbers."
    heads = ["model", "evaluations a sample", "ms with a cache", "ms without"]
    return [Table("The cost of autoregression", header, heads, body)]


def _charts(results: Sequence[Result], problem: Problem) -> list[Charts]:
    first = [r for r in results if r.seed == 0]
    made = []
    if problem.probabilities is not None and first:
        shown = len(first[0].frames[0])
        lines = [Line(r.model, _shares(len(r.record["modes"])), [float(v) for v in r.record["modes"]]) for r in first]
        made.append(("Modes", _chart("modes among the samples of a frame", lines, False)))
        caption = f"Modes among {shown:,} samples along the training, the first seed of each model."
        made = [Charts("Modes over training", caption, made)]
    losses, norms = [], []
    for r in first:
        curves: dict[str, Any] = r.record["curves"]
        lines = [Line(n, *_points(c)) for n, c in curves.items() if n != "critic gradient"]
        losses.append((r.model, _chart("loss", lines, False)))
        if "critic gradient" in curves:
            norms.append(Line(r.model, *_points(curves["critic gradient"])))
    if losses:
        made.append(
            Charts("Losses", "Along the training. The losses of different GANs are different quantities.", losses)
        )
    if norms:
        caption = (
            "The mean norm of the critic's gradient at the data. Penalties pull it to 1; clipping leaves it small."
        )
        made.append(Charts("Gradient of the critic", caption, [("", _chart("gradient norm", norms, True))]))
    return made


def _points(curve: Sequence[Sequence[float]]) -> tuple[list[float], list[float | None]]:
    return [100 * x for x, _ in curve], [y if math.isfinite(y) else None for _, y in curve]


def _shares(count: int) -> list[float]:
    return [100 * i / max(1, count - 1) for i in range(count)]


def _chart(title: str, lines: Sequence[Line], log: bool) -> str:
    values = [v for line in lines for v in line.y if v is not None]
    log = log and bool(values) and min(values) > 0
    ticks = log_ticks(values) if log else linear_ticks(values)
    return chart(title, lines, Axis("% of the training", [0, 25, 50, 75, 100]), Axis(title, ticks, log))


def animation(results: Sequence[Result], problem: Problem) -> Tensor:
    """The samples of all models along the training, uint8 (F, 3, H, W): a panel a model, in rows of four."""
    first = [r for r in results if r.seed == 0]
    count = max(len(r.frames) for r in first)
    panels = [_panels(r, problem, count) for r in first]
    return torch.stack([grid(torch.stack([p[i] for p in panels]), min(_ACROSS, len(first)), 6) for i in range(count)])


def _panels(result: Result, problem: Problem, count: int) -> list[Tensor]:
    """The pictures of one model, (3, H, W) each: its samples, its name and the modes among them."""
    out = []
    for i in range(count):
        k = min(i, len(result.frames) - 1)
        x = result.frames[k]
        picture = _scatter(x, problem) if problem.points else _tiles(x)
        modes = f"  {result.record['modes'][k]} modes" if problem.probabilities is not None else ""
        label = result.model + (modes if result.record["ended"] is None or i == k else "  ended")
        out.append(_captioned(picture, label))
    return out


def _scatter(x: Tensor, problem: Problem) -> np.ndarray:
    """Points as dark dots over the data in light grey, uint8 (H, W, 3)."""
    picture = np.full((_PANEL, _PANEL, 3), 255, np.uint8)
    for points, colour in ((problem.held_out, (214, 222, 240)), (x, (178, 40, 40))):
        inside = points[(points.abs() < 1).all(1)]
        at = ((inside + 1) / 2 * _PANEL).long().clamp(0, _PANEL - 1).numpy()
        picture[_PANEL - 1 - at[:, 1], at[:, 0]] = colour
    return picture


def _tiles(x: Tensor) -> np.ndarray:
    """Images in a square, enlarged to fill the panel, uint8 (H, W, 3)."""
    sheet = grid(x, gap=1).permute(1, 2, 0).numpy()
    sheet = sheet.repeat(3, 2) if sheet.shape[2] == 1 else sheet
    return np.asarray(Image.fromarray(sheet).resize((_PANEL, _PANEL), Image.Resampling.NEAREST))


def _captioned(picture: np.ndarray, label: str) -> Tensor:
    canvas = Image.new("RGB", (_PANEL, _PANEL + _CAPTION), "white")
    canvas.paste(Image.fromarray(picture), (0, 0))
    ImageDraw.Draw(canvas).text((2, _PANEL + 2), label, fill="black", font=ImageFont.load_default(10))
    return torch.from_numpy(np.asarray(canvas).copy()).permute(2, 0, 1)

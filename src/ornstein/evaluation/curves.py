"""The curves of a report: what plotly is to draw, and the same in words and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from ornstein.evaluation.markup import note, text

_MOST_POINTS = 3000


@dataclass(frozen=True)
class Curve:
    """Loss values at training steps."""

    steps: Sequence[int]
    values: Sequence[float]


def _finite(values: Sequence[float] | np.ndarray, positive: bool) -> list[float | None]:
    """Values for a plot: None, a gap, where a number cannot be drawn."""
    return [float(v) if np.isfinite(v) and (v > 0 or not positive) else None for v in values]


def _log_ticks(values: Sequence[float | None]) -> list[float]:
    """Ticks of a logarithmic axis: 1-2-5 over the values, decades where they are wide, none unless all are > 0."""
    known = [v for v in values if v is not None]
    if not known or min(known) <= 0:
        return []
    low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
    digits = (1, 2, 5) if max(known) <= 300 * min(known) else (1,)
    return [float(f"{digit}e{power}") for power in range(low, high + 1) for digit in digits]


def _chart(key: str, label: str, title: str = "") -> str:
    head = f"<h3>{title}</h3>" if title else ""
    return f'<div class="card">{head}<div id="{key}" class="chart" role="img" aria-label="{label}"></div></div>'


def _centred(values: np.ndarray, window: np.ndarray) -> np.ndarray:
    full = np.convolve(values, window)
    start = (len(window) - 1) // 2
    return full[start : start + len(values)]


def losses(curve: Curve | None, charts: list[dict[str, Any]]) -> str:
    """The section of the loss curve, each value and smoothed; its chart is added to charts."""
    if curve is None or len(curve.steps) == 0:
        return ""
    if len(curve.steps) != len(curve.values):
        raise ValueError(f"{len(curve.steps)} loss steps need as many values, got {len(curve.values)}")
    steps, values = np.asarray(curve.steps), np.asarray(curve.values, dtype=np.float64)
    # A centred mean does not lag behind a falling loss; values that are not finite weigh nothing.
    window = np.hanning((max(3, len(values) // 40) | 1) + 2)
    known = np.isfinite(values)
    weight = _centred(known.astype(np.float64), window)
    smooth = np.divide(
        _centred(np.where(known, values, 0.0), window), weight, out=np.full(len(values), np.nan), where=weight > 0
    )
    shown = np.unique(np.linspace(0, len(values) - 1, min(len(values), _MOST_POINTS)).round().astype(int))
    x = steps[shown].tolist()
    raw, mild = _finite(values[shown], positive=True), _finite(smooth[shown], positive=True)
    lines = [
        {"name": "each value", "x": x, "y": raw, "color": "raw", "width": 1, "quiet": True},
        {"name": "smoothed", "x": x, "y": mild, "color": "accent", "width": 2.25},
    ]
    axes = {"x": {"title": "training step"}, "y": {"title": "loss", "ticks": _log_ticks(raw)}}
    charts.append({"id": "chart-loss", "lines": lines, **axes})
    label = f"Loss against training step, smoothed: {text(float(smooth[0]))} at step {text(x[0])}, "
    label += f"{text(float(smooth[-1]))} at step {text(x[-1])}"
    return note("On a logarithmic scale.") + _chart("chart-loss", label)


def quality(rows: Sequence[Mapping[str, Any]], charts: list[dict[str, Any]], how: str = "") -> str:
    """The section of quality against steps, one chart a metric and one line a solver; added to charts.

    how: what it was measured on.
    """
    if not rows:
        return ""
    for row in rows:
        if "solver" not in row or not row.get("steps", 0) > 0:
            raise ValueError(f"a quality row needs a solver and a positive number of steps, got {dict(row)}")
    metrics = list(dict.fromkeys(key for row in rows for key in row if key not in ("solver", "steps")))
    solvers = list(dict.fromkeys(str(row["solver"]) for row in rows))
    ticks = sorted({row["steps"] for row in rows})
    body = ""
    for number, metric in enumerate(metrics):
        lines = []
        for solver in solvers:
            points = sorted((r["steps"], float(r[metric])) for r in rows if str(r["solver"]) == solver and metric in r)
            y = _finite([value for _, value in points], positive=False)
            # plotly reads tags in names, and lets a long one run out of the page; the table has it whole
            name = solver if len(solver) <= 24 else solver[:23] + "…"
            lines.append(
                {"name": escape(name, quote=False), "x": [step for step, _ in points], "y": y, "markers": True}
            )
        values = [value for line in lines for value in line["y"] if value is not None]
        wide = values and max(values) > 20 * min(values)
        axes = {
            "x": {"title": "solver steps", "ticks": ticks},
            "y": {"title": "", "ticks": _log_ticks(values) if wide else []},
        }
        charts.append({"id": f"chart-quality-{number}", "lines": lines, **axes})
        body += _chart(f"chart-quality-{number}", f"{text(metric)} against solver steps, a line a solver", text(metric))
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in ("solver", "steps", *metrics))
    cells = "".join(
        f'<tr><th scope="row">{text(row["solver"])}</th>'
        + "".join(f'<td class="num">{text(row.get(name, ""))}</td>' for name in ("steps", *metrics))
        + "</tr>"
        for row in rows
    )
    return note(escape(f"The same model, sampled with more or fewer steps. {how}".strip())) + (
        f'<div class="charts">{body}</div><details><summary>The numbers as a table</summary>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Quality against steps, as a table">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table></div></details>"
    )

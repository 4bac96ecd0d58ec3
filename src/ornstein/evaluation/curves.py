"""The curves of a report: training loss, and quality against steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from ornstein.evaluation.charts import Axis, Line, chart, linear_ticks, log_ticks
from ornstein.evaluation.markup import note, table, text

__all__ = ["Curve", "losses", "quality"]

_MOST_POINTS = 600  # more would fall on one pixel


@dataclass(frozen=True)
class Curve:
    """Loss values at training steps."""

    steps: Sequence[int]
    values: Sequence[float]


def losses(curve: Curve | None) -> str:
    """The section of the loss curve: each value, and a smoothed line. Empty without a curve."""
    if curve is None or len(curve.steps) == 0:
        return ""
    if len(curve.steps) != len(curve.values):
        raise ValueError(f"{len(curve.steps)} loss steps need as many values, got {len(curve.values)}")
    steps, values = np.asarray(curve.steps), np.asarray(curve.values, dtype=np.float64)
    smooth = smoothed(values)
    shown = np.unique(np.linspace(0, len(values) - 1, min(len(values), _MOST_POINTS)).round().astype(int))
    x = steps[shown].tolist()
    raw, mild = _finite(values[shown], positive=True), _finite(smooth[shown], positive=True)
    label = f"Loss against training step, smoothed: {text(float(smooth[0]))} at step {text(x[0])}, "
    label += f"{text(float(smooth[-1]))} at step {text(x[-1])}"
    drawn = chart(
        label,
        [Line("each value", x, raw, "raw"), Line("smoothed", x, mild, "accent")],
        Axis("training step", linear_ticks(x)),
        Axis("loss", log_ticks(raw), log=True),
    )
    ends = f"{text(float(smooth[0]))} at step {text(x[0])}, {text(float(smooth[-1]))} at step {text(x[-1])}"
    return note(f"Smoothed: {ends}. The axis is logarithmic.") + f'<div class="card alone">{drawn}</div>'


def quality(rows: Sequence[Mapping[str, Any]], how: str = "") -> str:
    """The section of quality against steps, one chart a metric and one line a solver. Empty without rows.

    Args:
        rows: {"solver": name, "steps": number, metric: value, ...} each.
        how: what it was measured on.

    Raises:
        ValueError: a row without a solver or a positive number of steps.
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
    for metric in metrics:
        lines = []
        for solver in solvers:
            points = sorted((r["steps"], float(r[metric])) for r in rows if str(r["solver"]) == solver and metric in r)
            y = _finite([value for _, value in points], positive=False)
            lines.append(Line(solver, [step for step, _ in points], y, markers=True))
        values = [value for line in lines for value in line.y if value is not None]
        wide = bool(values) and min(values) > 0 and max(values) > 20 * min(values)
        y_axis = Axis("", log_ticks(values) if wide else linear_ticks(values), log=wide)
        drawn = chart(
            f"{metric} against solver steps, a line a solver", lines, Axis("solver steps", ticks, True), y_axis
        )
        body += f'<div class="card"><h3>{text(metric)}</h3>{drawn}</div>'
    columns = ("solver", "steps", *metrics)
    numbers = table(columns, [[row.get(name, "") for name in columns] for row in rows])
    return note(escape(f"The same model, sampled with more or fewer steps. {how}".strip())) + (
        f'<div class="charts">{body}</div><details><summary>The numbers as a table</summary>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Quality against steps, as a table">'
        f"{numbers}</div></details>"
    )


def smoothed(values: np.ndarray) -> np.ndarray:
    """A centred mean over about 1/40 of the values, which does not lag behind a falling loss.

    Values that are not finite have no weight; where there are no others the result is NaN.
    """
    window = np.hanning((max(3, len(values) // 40) | 1) + 2)
    known = np.isfinite(values)
    weight = _centred(known.astype(np.float64), window)
    return np.divide(
        _centred(np.where(known, values, 0.0), window), weight, out=np.full(len(values), np.nan), where=weight > 0
    )


def _finite(values: Sequence[float] | np.ndarray, positive: bool) -> list[float | None]:
    """Values for a chart: None, a gap, where a number cannot be drawn."""
    return [float(v) if np.isfinite(v) and (v > 0 or not positive) else None for v in values]


def _centred(values: np.ndarray, window: np.ndarray) -> np.ndarray:
    full = np.convolve(values, window)
    start = (len(window) - 1) // 2
    return full[start : start + len(values)]

"""Figures of the studio, legible on light and dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

__all__ = ["bars", "lines", "matrix"]

_COLOURS = ("#2f6fde", "#e07b39", "#2a9d6f", "#b0489c", "#8a8f98", "#c9a227")
_GREY = "#8a8f98"
_GRID = "rgba(138,143,152,0.25)"


def _figure(x: str, y: str, height: int) -> go.Figure:
    figure = go.Figure()
    axis: dict[str, Any] = {"gridcolor": _GRID, "zerolinecolor": _GRID, "linecolor": _GREY, "automargin": True}
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 12, "t": 34, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": _GREY, "size": 12, "family": "system-ui, sans-serif"},
        legend={"orientation": "h", "y": -0.28, "yanchor": "top", "x": 0},
        colorway=_COLOURS,
        xaxis=axis | {"title": {"text": x}},
        yaxis=axis | {"title": {"text": y}},
    )
    return figure


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x: str,
    y: str,
    log: str = "",
    height: int = 280,
    markers: bool = True,
) -> go.Figure:
    """Curves by name, each its x and y; `log` names the axes, "x", "y" or "xy", that are logarithmic."""
    figure = _figure(x, y, height)
    for name, (across, up) in series.items():
        mode = "lines+markers" if len(across) == 1 or (markers and len(across) <= 200) else "lines"
        figure.add_scatter(x=list(across), y=list(up), name=name, mode=mode, line={"width": 2})
    figure.update_layout(showlegend=len(series) > 1)
    if "x" in log:
        figure.update_xaxes(type="log")
    if "y" in log:
        figure.update_yaxes(type="log")
    return figure


def matrix(values: Sequence[Sequence[float]], x: str, y: str, height: int = 320) -> go.Figure:
    """A correlation matrix as a heat map: blue -1, white 0, red 1."""
    figure = _figure(x, y, height)
    figure.add_heatmap(
        z=[list(row) for row in values],
        zmin=-1,
        zmax=1,
        colorscale="RdBu_r",
        colorbar={"thickness": 10, "len": 0.9},
        hovertemplate=f"{x} %{{x}}, {y} %{{y}}: %{{z:.3f}}<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed")
    return figure


def bars(values: Mapping[str, float], y: str, height: int = 260) -> go.Figure:
    """A bar for each name, with its value above it."""
    figure = _figure("", y, height)
    figure.add_bar(
        x=list(values),
        y=list(values.values()),
        text=[f"{value:.3f}" for value in values.values()],
        textposition="outside",
        cliponaxis=False,
        marker={"color": [_COLOURS[i % len(_COLOURS)] for i in range(len(values))]},
    )
    return figure

"""Line charts of a report as inline SVG: no script, a few kilobytes each, in the colours of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Axis", "Line", "chart", "linear_ticks", "log_ticks"]

_WIDTH, _HEIGHT = 460, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 40
_COLOURS = 8  # --s0 to --s7 of the page
_DASHES = ("", "7 4", "2 3", "8 3 2 3", "12 4", "12 3 2 3", "", "7 4")


@dataclass(frozen=True)
class Line:
    """Points (x, y) with a name; y is None where there is no value.

    colour: a CSS variable of the page without its dashes, or None for the next of the series. markers: draw each point
    and show its value under the pointer.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: str | None = None
    markers: bool = False


@dataclass(frozen=True)
class Axis:
    """An axis with its title and ticks, logarithmic or linear."""

    title: str = ""
    ticks: Sequence[float] = ()
    log: bool = False

    def place(self, value: float, low: float, high: float) -> float:
        """The share of the axis, 0 to 1, at which a value stands."""
        if self.log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return 0.5 if high == low else (value - low) / (high - low)


def chart(label: str, lines: Sequence[Line], x: Axis, y: Axis) -> str:
    """An SVG chart with its legend.

    Args:
        label: what a screen reader says; it is escaped here, like every other text.
        lines: the lines; those without a value are named in the legend alone.
        x, y: the axes. On a logarithmic axis all values must be positive.
    """
    xs = [float(v) for line in lines for v in line.x]
    ys = [float(v) for line in lines for v in line.y if v is not None]
    if not ys:
        return ""
    x_low, x_high = _range(xs, x)
    y_low, y_high = _range(ys, y)

    def across(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * x.place(value, x_low, x_high)

    def down(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * y.place(value, y_low, y_high)

    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    body = ""
    for tick in y.ticks:
        if y_low <= tick <= y_high:
            at = f"{down(tick):.1f}"
            body += f'<path class="grid" d="M{_LEFT} {at}H{right}"/><text x="{_LEFT - 7}" y="{at}" dy=".32em" '
            body += f'text-anchor="end">{tick:g}</text>'
    for tick in x.ticks:
        if x_low <= tick <= x_high:
            at = f"{across(tick):.1f}"
            body += f'<path class="grid" d="M{at} {bottom}v4"/><text x="{at}" y="{bottom + 17}" '
            body += f'text-anchor="middle">{tick:g}</text>'
    body += f'<path class="grid" d="M{_LEFT} {bottom}H{right}"/>'
    if x.title:
        body += f'<text x="{(_LEFT + right) / 2:.0f}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(x.title)}</text>'
    if y.title:
        body += f'<text transform="translate(11 {(bottom + _TOP) / 2:.0f}) rotate(-90)" text-anchor="middle">'
        body += f"{escape(y.title)}</text>"
    legend = ""
    for i, line in enumerate(lines):
        points = [(across(a), down(b), b) if b is not None else None for a, b in zip(line.x, line.y, strict=True)]
        tint = f"stroke:var(--{line.colour or f's{i % _COLOURS}'})"
        dash = f' stroke-dasharray="{_DASHES[i % _COLOURS]}"' if line.markers and _DASHES[i % _COLOURS] else ""
        body += f'<path class="line" style="{tint}"{dash} d="{_path(points)}"/>'
        if line.markers:
            name = escape(line.name)
            body += "".join(
                f'<circle cx="{p[0]:.1f}" cy="{p[1]:.1f}" r="3.5" style="{tint}"><title>{name}: {p[2]:.4g}</title>'
                "</circle>"
                for p in points
                if p is not None
            )
        swatch = f'<svg width="24" height="8" aria-hidden="true"><path class="line" style="{tint}"{dash} d="M0 4H24"/>'
        legend += f"<li>{swatch}</svg>{escape(line.name)}</li>"
    return (
        f'<ul class="legend">{legend}</ul><svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">{body}</svg>'
    )


def _range(values: Sequence[float], axis: Axis) -> tuple[float, float]:
    """The ends of an axis: of the values, with a margin where they would stand on the frame."""
    low, high = min(values), max(values)
    if axis.log:
        edge = (high / low) ** 0.05 if high > low else 2.0
        return low / edge, high * edge
    edge = 0.05 * (high - low) or 0.5 * abs(high) or 1.0
    return low - edge, high + edge


def _path(points: Sequence[tuple[float, float, float] | None]) -> str:
    """Path data through the points, broken where one is missing."""
    out, pen = "", "M"
    for point in points:
        if point is None:
            pen = "M"
        else:
            out += f"{pen}{point[0]:.1f} {point[1]:.1f}"
            pen = "L"
    return out


def log_ticks(values: Sequence[float | None]) -> list[float]:
    """Ticks of a logarithmic axis: decades over a wide range, else 1-2-5, or all digits over a narrow one.

    There are none unless all values are positive.
    """
    known = [v for v in values if v is not None]
    if not known or min(known) <= 0:
        return []
    low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
    ratio = max(known) / min(known)
    digits = range(1, 10) if ratio <= 6 else (1, 2, 5) if ratio <= 300 else (1,)
    return [float(f"{digit}e{power}") for power in range(low, high + 1) for digit in digits]


def linear_ticks(values: Sequence[float | None], count: int = 5) -> list[float]:
    """About `count` round numbers over the values."""
    known = [v for v in values if v is not None]
    if not known:
        return []
    low, high = min(known), max(known)
    if high == low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * digit for digit in (1, 2, 5, 10) if power * digit >= rough * 0.999)
    return [float(f"{k * step:.12g}") for k in range(math.floor(low / step), math.ceil(high / step) + 1)]

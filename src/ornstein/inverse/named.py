"""Operators by a text, as the command line has them: "blur:1.5+area:2"."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ornstein.inverse.jpeg import JPEG
from ornstein.inverse.operators import Blur, Grey, Mask, Operator, downsampling, radon, sensing

__all__ = ["NAMES", "damaged", "named_operator", "reach_of", "step_of"]

Shape = tuple[int, ...]


def _gaussian(std: float) -> Tensor:
    """A Gaussian kernel, cut off at three standard deviations."""
    at = torch.arange(-_radius(std), _radius(std) + 1, dtype=torch.float64)
    line = torch.exp(-(at**2) / (2 * std**2))
    kernel = line[:, None] * line
    return kernel / kernel.sum()


def _radius(std: float) -> int:
    return max(1, math.ceil(3 * std))


def _whole(value: float) -> int:
    if value != int(value) or value < 1:
        raise ValueError(f"it takes a whole number from 1 on, not {value:g}")
    return int(value)


def _blur(value: float, shape: Shape) -> Operator:
    if value <= 0:
        raise ValueError(f"it takes a positive standard deviation, not {value:g}")
    return Blur(_gaussian(value), shape, "replicate")


def _box(value: float, shape: Shape) -> Operator:
    side = _whole(value)
    return Blur(torch.full((side, side), 1 / side**2), shape, "replicate")


def _motion(value: float, shape: Shape) -> Operator:
    length = _whole(value)
    return Blur(torch.full((1, length), 1 / length), shape, "replicate")


def _share(value: float, shape: Shape) -> Operator:
    if not 0 < value <= 1:
        raise ValueError(f"it takes a share of the numbers in (0, 1], not {value:g}")
    return sensing(max(1, round(value * math.prod(shape))), shape)


NAMES: dict[str, tuple[float | None, Callable[[float, Shape], Operator]]] = {
    "noise": (0.0, lambda value, shape: Mask(torch.ones(1), shape)),
    "blur": (None, _blur),
    "box": (None, _box),
    "motion": (None, _motion),
    "area": (None, lambda value, shape: downsampling(_whole(value), shape, "area")),
    "bicubic": (None, lambda value, shape: downsampling(_whole(value), shape, "bicubic")),
    "grey": (0.0, lambda value, shape: Grey(shape)),
    "jpeg": (None, lambda value, shape: JPEG(_whole(value), shape)),
    "radon": (None, lambda value, shape: radon(_whole(value), shape)),
    "sensing": (None, _share),
}
"""Each operator's number where it has a default, and how it is made of the number and the shape of a sample."""

_WHOLE = ("radon", "sensing")  # they see a picture as a whole, and give no picture


def _parts(text: str) -> list[tuple[str, float]]:
    parts = []
    for part in text.split("+"):
        name, _, number = part.strip().partition(":")
        if name not in NAMES:
            raise ValueError(f"unknown operator {name!r}; known: {', '.join(NAMES)}")
        default = NAMES[name][0]
        try:
            value = float(number) if number else default
        except ValueError:
            value = math.nan
        if value is None or not math.isfinite(value) or (number and default is not None):
            what = "takes no number" if default is not None else "takes a number, as in " + name + ":2"
            raise ValueError(f"operator {name}: it {what}, got {part.strip()!r}")
        parts.append((name, value))
    return parts


def named_operator(text: str, shape: Sequence[int]) -> Operator:
    """The operators of `text` one after another, on samples of `shape`.

    Args:
        text: names of `NAMES` with their numbers, joined by +, in the order in which they act.
        shape: of a sample, (C, H, W).

    Raises:
        ValueError: an unknown name, a wrong number, or an operator that does not fit the shape.
    """
    made: Operator | None = None
    for name, value in _parts(text):
        try:
            new = NAMES[name][1](value, tuple(shape) if made is None else made.measured)
            made = new if made is None else new @ made
        except ValueError as error:
            raise ValueError(f"operator {name} does not fit: {error}") from None
    assert made is not None
    return made


def damaged(text: str, x: Tensor) -> Tensor:
    """What the operators make of pictures x (B, C, H, W), as a picture where it is one: that in a JPEG's file.

    Raises:
        ValueError: as `named_operator`.
    """
    for name, value in _parts(text):
        A = named_operator(name if NAMES[name][0] is not None else f"{name}:{value:g}", x.shape[1:])
        x = A.picture(A.forward(x)) if isinstance(A, JPEG) else A.forward(x)
    return x


def step_of(text: str) -> tuple[int, int]:
    """How many times smaller pictures become by the operators, and the step that tiles of the whole must keep.

    Raises:
        ValueError: as `named_operator`.
    """
    factor, step = 1, 1
    for name, value in _parts(text):
        if name in ("area", "bicubic"):
            factor *= _whole(value)
        step = math.lcm(step, factor * (8 if name == "jpeg" else 1))
    return factor, step


def reach_of(text: str) -> int | None:
    """How many pixels of the result, from an edge inwards, depend on what lies beyond; None: every one does."""
    reach = 0.0
    for name, value in _parts(text):
        if name in _WHOLE:
            return None
        width = {"blur": _radius(value), "box": value // 2, "motion": value // 2}
        smaller = value if name in ("area", "bicubic") else 1
        # Pillow's bicubic filter is four pixels of the smaller picture wide
        reach = math.ceil((reach + width.get(name, 0)) / smaller) + (2 if name == "bicubic" else 0)
        if name == "jpeg":  # what touches a block touches all of its coefficients
            reach = 8 * math.ceil(reach / 8)
    return int(reach)

"""What every solver is given: the noise of its steps by number, and its times two by two."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Protocol

from torch import Tensor


class Noise(Protocol):
    """White noise z ~ N(0, I) of the state's shape for step `step`; `draw` tells several draws of one step apart."""

    def __call__(self, step: int, draw: int = 0) -> Tensor: ...


def pairs(times: Tensor, down: bool = False) -> Iterator[tuple[float, float]]:
    """(from, to) of each step. Raises ValueError where `down` is asked for and the times run up, away from the data."""
    values = times.tolist()
    if down and values[0] < values[-1]:
        raise ValueError("this solver runs down in t, towards the data; only ddim with eta = 0 runs up")
    return pairwise(values)

"""What every solver is given: the noise of its steps by number, its times two by two, and a count of what it asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.process import Prediction
from ornstein.schedules import Times
from ornstein.wrapper import Wrapper


class Noise(Protocol):
    """White noise z ~ N(0, I) of the state's shape for step `step`; `draw` tells several draws of one step apart."""

    def __call__(self, step: int, draw: int = 0) -> Tensor: ...


def pairs(times: Tensor, down: bool = False) -> Iterator[tuple[float, float]]:
    """(from, to) of each step. Raises ValueError where `down` is asked for and the times run up, away from the data."""
    values = times.tolist()
    if down and values[0] < values[-1]:
        raise ValueError("this solver runs down in t, towards the data; only ddim with eta = 0 runs up")
    return pairwise(values)


@dataclass
class Counted(Wrapper):
    """A denoiser that counts: `calls`, each of them a whole batch, and `evaluations`, the rows of all of them."""

    denoiser: Denoises
    calls: int = field(default=0, init=False)
    evaluations: int = field(default=0, init=False)

    def __call__(self, x_t: Tensor, t: Times, /, **cond: Any) -> Prediction:
        self.calls += 1
        self.evaluations += len(x_t)
        return self.denoiser(x_t, t, **cond)

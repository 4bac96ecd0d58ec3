"""What every solver takes: the noise of its steps by number, its times in pairs, and a count of evaluations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.process import Prediction, Process
from ornstein.schedules import Times
from ornstein.wrapper import Wrapper

__all__ = ["Counted", "Knot", "Noise", "knots", "pairs"]


class Noise(Protocol):
    """White noise z ~ N(0, I) of the state's shape for step `step`; `draw` numbers the draws of one step."""

    def __call__(self, step: int, draw: int = 0) -> Tensor: ...


def pairs(times: Tensor, down: bool = False) -> Iterator[tuple[float, float]]:
    """(from, to) of each step.

    Raises:
        ValueError: `down` is set and the times run up, away from the data.
    """
    values = times.tolist()
    if down and values[0] < values[-1]:
        raise ValueError("this solver runs down in t, towards the data; only ddim with eta = 0 runs up")
    return pairwise(values)


@dataclass(frozen=True)
class Knot:
    """A time of the solver with a, s and the log-SNR there, as Python numbers: no step has to wait for them."""

    t: float
    a: float
    s: float
    log_snr: float


def knots(p: Process, times: Tensor, down: bool = False) -> Iterator[tuple[Knot, Knot]]:
    """As `pairs`, with the coefficients of all times computed at once, in float64 on the CPU."""
    pairs(times, down)  # the check
    t = times.detach().cpu().double()
    a, s, log_snr = (f(t).tolist() for f in (p.schedule.alpha, p.schedule.sigma, p.schedule.log_snr))
    every = [Knot(*numbers) for numbers in zip(t.tolist(), a, s, log_snr, strict=True)]
    return pairwise(every)


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

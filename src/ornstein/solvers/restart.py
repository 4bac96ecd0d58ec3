"""Restart sampling (Xu et al. 2023, arXiv:2306.14878): the ODE, with a part of it repeated from fresh noise.

A step of the ODE keeps every error that was made before it; noise contracts errors, but makes larger ones of its own.
So the ODE is followed down to a low level, carried back up to a high one by the forward kernel (E3), which is exact,
and followed down again: what is left of an earlier error is its share a_t/a_s of a signal in more noise.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.solvers.multistep import level, multistep
from ornstein.solvers.stepping import Noise, pairs

__all__ = ["restart"]


def restart(
    d: Denoises,
    x: Tensor,
    times: Tensor,
    noise: Noise,
    low: float = 0.1,
    high: float = 1.0,
    repeats: int = 1,
    order: int = 3,
) -> Iterator[Tensor]:
    """`multistep` in the straight flow; the steps between the levels `high` and `low` are made 1 + `repeats` times.

    It takes as many evaluations more as steps are repeated. The levels are met by the nearest times inside them: with
    steps so few that none is, it is `multistep` alone.

    Args:
        d, x, times, noise: as for every solver.
        low, high: levels s/a, 0 < low < high.
        repeats: how often the part is repeated, 0 or more.
        order: of `multistep`.

    Raises:
        ValueError: the levels do not rise, or repeats < 0.
    """
    if not 0 < low < high or repeats < 0:
        raise ValueError(f"a restart goes from a level low > 0 up to high > low, got {low}, {high}, {repeats} times")
    pairs(times, down=True)  # the check
    at = times.tolist()
    inside = [k for k, t in enumerate(at) if low <= level(d.process, t) <= high]
    first, last = (inside[0], inside[-1]) if len(inside) > 1 else (0, 0)
    for k, state in enumerate(multistep(d, x, times[: last + 1], noise, order, "flow"), start=1) if last else ():
        x = state
        if k < last:
            yield x
    if last:
        for draw in range(repeats):
            x = d.process.transition(x, at[last], at[first]).sample(noise(last, draw))
            *_, x = multistep(d, x, times[first : last + 1], noise, order, "flow")
        yield x
    yield from multistep(d, x, times[last:], noise, order, "flow")

"""Two evaluations of a step side by side, in one batch of twice the size.

On a device with idle units a call of twice the batch takes as long as one. A step asks the network at two places inside
it, the nodes of Gauss's rule in u = s/(a + s); both states are predicted by the polynomial through the values so far,
so that neither waits for the other (parallel points as in EPD-Solver, Zhu et al. 2025, arXiv:2507.14797, without its
evaluation at the start of the step). The step itself is the integral of the polynomial through the two and the newest
value before them. As the polynomial that vanishes at Gauss's two nodes is orthogonal to every straight line, this has
order 4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.noise import Carried
from ornstein.solvers.multistep import Value, advance, interpolated, level
from ornstein.solvers.stepping import Noise, pairs
from ornstein.wrapper import Conditioned, rows_of

__all__ = ["side_by_side"]

_PLACES = (0.5 - math.sqrt(3) / 6, 0.5 + math.sqrt(3) / 6)
_KNOWN = 3  # values that a polynomial goes through


def side_by_side(d: Denoises, x: Tensor, times: Tensor, noise: Noise) -> Iterator[Tensor]:
    """One call of twice the batch a step, and one of the batch before the first: order 4 in the straight flow.

    Raises:
        ValueError: the noise of the model follows flows, one a sample.
    """
    p = d.process
    if isinstance(p.noise, Carried):
        raise ValueError("the noise of this model has one flow a sample, and this solver two rows: take flow-3m")
    twice = torch.arange(len(x)).repeat(2)
    both = replace(d, cond=rows_of(d.cond, twice)) if isinstance(d, Conditioned) else d
    known: list[Value] = []
    for t, s in pairs(times, down=True):
        if not known:
            known = [Value(level(p, t), interpolated(d(x, t), "flow"))]
        start, end = (1 - 1 / (1 + level(p, each)) for each in (t, s))
        shares = [start + place * (end - start) for place in _PLACES]
        at = torch.tensor([2 * math.log((1 - u) / u) for u in shares], dtype=torch.float64)
        inside = p.schedule.time(at)
        states = [advance(p, x, t, float(r), known) for r in inside]
        found = both(torch.cat(states), torch.cat([_all(x, float(r)) for r in inside]))
        new = zip(inside.tolist(), interpolated(found, "flow").split(len(x)), strict=True)
        known = [*reversed([Value(level(p, r), m) for r, m in new]), *known][:_KNOWN]
        x = advance(p, x, t, s, known)
        yield x


def _all(x: Tensor, t: float) -> Tensor:
    """A time for every sample, made on its device: a copy would wait. Accelerators may have no float64."""
    return torch.full((len(x),), t, dtype=torch.float64 if x.device.type == "cpu" else torch.float32, device=x.device)

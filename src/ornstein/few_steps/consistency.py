"""Consistency distillation: a student that agrees with itself along the teacher's flow (E31, consistency).

In the coordinates y = x/(a + s), u = s/(a + s) of a rectified flow a DDIM step is a straight line,

    y_s = y_t + (u_s - u_t) W,   W = eps - x0,

so that the student's W at (x_t, t) is to be the mean velocity of the flow between t and the end s of its step. The mean
over [s, t] is made of those over its parts:

    (u_t - u_s) W_{t,s} = (u_t - u_r) W_{t,r} + (u_r - u_s) W_{r,s},   s <= r < t.

The first part is a step of the teacher, the second the student's own prediction at the state x_r where that step ends,
without a gradient. The boundary condition is built in: where r = s the target is the teacher's step alone, and the DDIM
step of any network from t to t moves nothing. With one step this is a consistency model (Song et al. 2023,
arXiv:2303.01469), with several a multistep one (Heek et al. 2024, arXiv:2403.06807); as r goes to t the rule becomes
the identity of `mean_flow` and of continuous-time consistency (Lu & Song 2024, arXiv:2410.11081).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ornstein.denoiser import Denoiser, Denoises
from ornstein.few_steps.matching import KernelDistance
from ornstein.guidance import ClassifierFree
from ornstein.process import Process, expand
from ornstein.solvers import ddim, grids
from ornstein.wrapper import Conditioned

__all__ = ["Consistency", "joined", "mean_velocity"]

_NODES = 8  # parts of [0, 1] in all that a student's steps are made of, at least
_WEIGHT = 0.2
_ROBUST = 0.03  # errors above it count by their size, below it by their square


def position(p: Process, t: Tensor) -> Tensor:
    """u = s/(a + s), 0 at the data and 1 at pure noise, for times (B,)."""
    a, s = p.schedule.alpha(t), p.schedule.sigma(t)
    return s / (a + s)


def scaled(p: Process, x: Tensor, t: Tensor) -> Tensor:
    """y = x/(a + s)."""
    return x / expand(p.schedule.alpha(t) + p.schedule.sigma(t), x)


def mean_velocity(p: Process, x_t: Tensor, t: Tensor, x_s: Tensor, s: Tensor) -> Tensor:
    """The W whose straight line goes from x_t at t to x_s at s, (B, *)."""
    return (scaled(p, x_s, s) - scaled(p, x_t, t)) / expand(position(p, s) - position(p, t), x_t)


def joined(p: Process, t: Tensor, r: Tensor, s: Tensor, first: Tensor, rest: Tensor) -> Tensor:
    """The mean velocity over [s, t] of those over [r, t] and [s, r] (E31, consistency); the second is unused if r = s.

    Args:
        t, r, s: times (B,), s <= r < t.
        first, rest: W over [r, t] and over [s, r], (B, *).
    """
    u_t, u_r, u_s = (position(p, each) for each in (t, r, s))
    share = expand((u_r - u_s) / (u_t - u_s), first)
    return torch.where(share > 0, torch.lerp(first, rest, share), first)


class Consistency:
    """The objective f(student, x0, t, z, **cond) -> (B,) of consistency distillation.

    The time t in (0, 1] chooses one of the nodes that divide the student's steps; x_t is made of data and noise. The
    teacher's step is the midpoint rule in (y, u), two evaluations, which never asks the network at t = 0.

    Args:
        teacher: the model that is distilled. It is left as it is.
        steps: the student's.
        guidance: scale of classifier-free guidance of the teacher, which the student will have built in.
        precision: in which the teacher's network computes; None for its own.
        nodes: at least so many in all.
        match: a distance of samples (B, *) as a set from the data, added to the loss: it makes up for the blur of a
            student that cannot follow the teacher exactly, and for what the teacher itself gets wrong.
        weight: of the distance.
    """

    def __init__(
        self,
        teacher: Denoiser,
        steps: int,
        guidance: float = 1.0,
        precision: torch.dtype | None = None,
        nodes: int = _NODES,
        match: KernelDistance | None = None,
        weight: float = _WEIGHT,
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.teacher.precision = precision
        self.guided: Denoises = teacher if guidance == 1 else ClassifierFree(teacher, guidance)
        self.often = -(-nodes // steps)
        self.times = grids.make(grids.GRID, teacher.process.schedule, (1.0, 0.0), steps * self.often)
        self.own = self.times[:: self.often]
        self.match, self.weight = match, weight
        self.about: dict[str, Any] = {}  # is stored in the student's config

    def __call__(self, model: Denoiser, x0: Tensor, t: Tensor, z: Tensor, **cond: Any) -> Tensor:
        norm = cond.pop("norm", None)
        p = model.process
        x_t, t, w = self.target(model, x0, t, z, cond)
        x0_t = scaled(p, x_t, t) - expand(position(p, t), x_t) * w
        aim = p.convert(x_t, t, x0=x0_t)
        losses = model.error(aim, norm=robust if norm is None else norm, **cond)
        if self.match is None:
            return losses
        start = p.prior(tuple(z.shape), dtype=z.dtype, device=z.device).sample(z)
        *_, end = ddim(Conditioned(model, cond), start, self.own, _no_noise)
        return losses + self.weight * self.match(end)

    @torch.no_grad()
    def target(
        self, model: Denoiser, x0: Tensor, t: Tensor, z: Tensor, cond: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x_t (B, *) at a time t (B,) of the objective's own, which the given one chooses, and the W to be learned."""
        p, count = model.process, len(self.times) - 1
        k = count - (t.double().cpu() * count).ceil().long().clamp(1, count)
        t, r, s = self.times[k], self.times[k + 1], self.times[(k // self.often + 1) * self.often]
        x_t = p.add_noise(x0, t, z)
        x_r, first = self._step(p, x_t, t, r, cond)
        asked = torch.where(r > s, r, t)  # where r = s the answer is not used, and s may be 0
        rest = model(torch.where(expand((r > s).double(), x_t) > 0, x_r, x_t), asked, **cond)
        return x_t, t, joined(p, t, r, s, first, rest.eps - rest.x0)

    def _step(self, p: Process, x_t: Tensor, t: Tensor, r: Tensor, cond: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """x_r, and the mean velocity that leads there."""
        u_t, u_r = position(p, t), position(p, r)
        y = scaled(p, x_t, t)
        m = p.schedule.time(2 * (torch.logit((u_t + u_r) / 2)).neg())
        here = self.guided(x_t, t, **cond)
        y_m = y + expand((u_r - u_t) / 2, x_t) * (here.eps - here.x0)
        middle = self.guided(y_m * expand(p.schedule.alpha(m) + p.schedule.sigma(m), x_t), m, **cond)
        w = middle.eps - middle.x0
        y_r = y + expand(u_r - u_t, x_t) * w
        return y_r * expand(p.schedule.alpha(r) + p.schedule.sigma(r), x_t), w


def _no_noise(step: int, draw: int = 0) -> Tensor:
    raise AssertionError("this solver is deterministic")


def robust(error: Tensor, t: Tensor) -> Tensor:
    """sqrt(mean square + c^2) - c of each sample, (B,): the pseudo-Huber loss (Song & Dhariwal 2023)."""
    return (error.flatten(1).square().mean(1) + _ROBUST**2).sqrt() - _ROBUST

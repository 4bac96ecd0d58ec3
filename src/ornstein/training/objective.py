"""Training objectives by name, and the times that each is meant for."""

from __future__ import annotations

import torch
from torch import Tensor

from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.objectives import OBJECTIVES, Objective, log_normal, low_discrepancy, step_times
from ornstein.schedules import Schedule

__all__ = ["STEPS", "check_objective", "loss_of", "times_of"]

STEPS = 1000
"""Steps of the chain whose bound the objectives "vlb-x0", "vlb-eps" and "hybrid" are terms of."""


def check_objective(name: str | None, denoiser: Denoiser) -> None:
    """Raises UserError if the model cannot be trained with the objective."""
    learned = getattr(denoiser.net, "config", {}).get("learned_variance", False)
    if name == "hybrid" and not learned:
        raise UserError(
            "objective hybrid trains a variance, and this network learns none: make it with learned_variance"
        )
    if name == "vlb-eps" and denoiser.process.schedule.zero_terminal_snr:
        raise UserError(
            "objective vlb-eps is infinite at a zero terminal SNR: take vlb-x0, which is the same elsewhere"
        )


def loss_of(name: str | None) -> Objective:
    """The objective of that name, f(d, x0, t, z, **cond) -> (B,); None for the error of the network's own output."""
    return Denoiser.loss if name is None else OBJECTIVES[name]


def times_of(name: str | None, n: int, schedule: Schedule, draw: torch.Generator) -> Tensor:
    """n times (n,), float32, for the objective of that name; uniform times are stratified.

    Uniform in (0, 1], but for: k/1000, k >= 2, the terms of the bound of 1000 steps ("vlb-x0", "vlb-eps"); k/1000,
    k >= 1 ("hybrid"); log(s/a) normal ("edm").
    """
    if name in ("vlb-x0", "vlb-eps"):
        t = step_times(n, STEPS, draw)
    elif name == "edm":
        t = log_normal(n, schedule, draw)
    else:
        t = low_discrepancy(n, draw)
        if name == "hybrid":
            t = torch.ceil(STEPS * t) / STEPS
    return t.float()

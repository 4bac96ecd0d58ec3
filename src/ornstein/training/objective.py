"""Training objectives by name, and the times that each is meant for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.objectives import (
    OBJECTIVES,
    Objective,
    RunningLoss,
    log_normal,
    logit_normal,
    low_discrepancy,
    step_times,
)
from ornstein.schedules import Discrete, Schedule
from ornstein.training.config import TIME_SAMPLINGS

__all__ = ["STEPS", "TimeSampling", "check_objective", "loss_of", "times_of"]

STEPS = 1000
"""Steps of the chain whose bound the objectives "vlb-x0", "vlb-eps" and "hybrid" are terms of."""

# Their terms belong to the steps of a chain.
_OF_A_CHAIN = ("vlb-x0", "vlb-eps", "hybrid")
# For uniform times they are unbiased estimates of a bound; with the weights of "importance" too.
_BOUNDS = ("continuous", "sigmoid")

_NUMBERS = {"logit-normal": (0.0, 1.0), "log-normal": (-1.2, 1.2)}
_BIN = "bin "  # figures of the loss in each bin of the times


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


class TimeSampling:
    """How the times of a training are drawn, by the text of --time-sampling.

    "uniform" in (0, 1], stratified over the batch; "steps", each time independently uniform among the steps n/T of the
    schedule's chain, 1000 for a schedule that is none (Ho et al. 2020, algorithm 1); "logit-normal:MEAN,STD" in t
    (Esser et al. 2024); "log-normal:MEAN,STD" in s/a (Karras et al. 2022); "importance", in proportion to the root mean
    square of the loss so far, with weights that keep its mean (`RunningLoss`). None: `times_of` the objective.

    Args:
        text: of --time-sampling.
        objective: name of the objective, or None.
        schedule: of the process.

    Raises:
        UserError: the text is none of these, or does not go with the objective.
    """

    def __init__(self, text: str | None, objective: str | None, schedule: Schedule) -> None:
        self.objective, self.schedule = objective, schedule
        self.name, self.numbers = (None, ()) if text is None else _parsed(text)
        self.running = RunningLoss() if self.name == "importance" else None
        if self.name is not None and objective in _OF_A_CHAIN:
            raise UserError(
                f"objective {objective} has times of its own, the steps of its chain: leave out --time-sampling"
            )
        if objective in _BOUNDS and self.name not in (None, "uniform", "importance"):
            raise UserError(
                f"objective {objective} is a bound for uniform times: take --time-sampling uniform or importance, "
                f"not {text}"
            )

    def draw(self, n: int, draw: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """n times (n,), float32, and the weights of their losses (n,), None where all are 1."""
        if self.running is not None:
            t, weight = self.running.sample(n, draw)
            return t.float(), weight.float()
        if self.name is None:
            t = times_of(self.objective, n, self.schedule, draw)
        elif self.name == "uniform":
            t = low_discrepancy(n, draw)
        elif self.name == "steps":
            steps = len(self.schedule.steps) if isinstance(self.schedule, Discrete) else STEPS
            t = torch.randint(1, steps + 1, (n,), generator=draw, dtype=torch.float64) / steps
        elif self.name == "logit-normal":
            t = logit_normal(n, draw, *self.numbers)
        else:
            t = log_normal(n, self.schedule, draw, *self.numbers)
        return t.float(), None

    def figures(self, t: Tensor, loss: Tensor) -> dict[str, Tensor]:
        """What `learn` needs of the losses (B,) at the times (B,): their sums of squares and numbers by bin.

        Sums over parts of a batch are those of the whole batch. Nothing is read from the device.
        """
        if self.running is None:
            return {}
        bins = self.running.bins
        place = (t.double() * bins).long().clamp(max=bins - 1).to(loss.device, non_blocking=True)
        square = loss.detach().to(torch.float32).square()
        sums, counts = (square.new_zeros(bins).index_add_(0, place, each) for each in (square, torch.ones_like(square)))
        return {f"{_BIN}{k} square": sums[k] for k in range(bins)} | {
            f"{_BIN}{k} count": counts[k] for k in range(bins)
        }

    def learn(self, figures: Mapping[str, float], pieces: int) -> dict[str, float]:
        """Learn from the figures of a step, means over so many pieces of the batch; returns the figures to log."""
        if self.running is not None:
            for k in range(self.running.bins):
                count = round(figures[f"{_BIN}{k} count"] * pieces)
                if count:
                    self.running.add(k, figures[f"{_BIN}{k} square"] * pieces / count, count)
        return {name: value for name, value in figures.items() if not name.startswith(_BIN)}

    def to_state(self) -> dict[str, Any] | None:
        """What was learned, in JSON types; None if there is nothing to learn."""
        running = self.running
        return None if running is None else {"square": running.square.tolist(), "count": running.count.tolist()}

    def load_state(self, state: Mapping[str, Any] | None) -> None:
        """Go on from what `to_state` gave."""
        if self.running is not None and state is not None:
            self.running.square = torch.tensor(state["square"], dtype=torch.float64)
            self.running.count = torch.tensor(state["count"], dtype=torch.int64)


def _parsed(text: str) -> tuple[str, tuple[float, ...]]:
    """The name and the numbers of a time sampling."""
    name, colon, rest = text.partition(":")
    if name not in TIME_SAMPLINGS:
        raise UserError(f"--time-sampling {text!r} is unknown; known: {', '.join(TIME_SAMPLINGS)}")
    if not colon:
        return name, _NUMBERS.get(name, ())
    try:
        mean, std = map(float, rest.split(","))
    except ValueError:
        mean = std = math.nan
    if name not in _NUMBERS or not (math.isfinite(mean) and 0 < std < math.inf):
        example = "logit-normal:0,1 or log-normal:-1.2,1.2"
        raise UserError(
            f"--time-sampling {text!r}: a mean and a positive standard deviation follow the name, as in {example}; "
            "no other name takes numbers"
        )
    return name, (mean, std)

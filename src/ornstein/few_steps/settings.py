"""The settings of `ornstein tune`. It imports no torch: the options of the command come from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ornstein.errors import UserError
from ornstein.settings import check, setting

__all__ = ["MOST_STEPS", "TuneSettings"]

MOST_STEPS = 24  # past these a tuned solver would have 200 numbers and more, and little left to gain


@dataclass(frozen=True)
class TuneSettings:
    """How solvers of few steps are learned for a model."""

    steps: tuple[int, ...] = setting(
        (5, 8, 10), f"Numbers of steps, each with a solver of its own; 2 to {MOST_STEPS}, or any with --churn."
    )
    guidance: tuple[float, ...] = setting(
        (1.0,), "Scale of guidance that the solver will be used with, or several: it serves all between.", minimum=0
    )
    trajectories: int | None = setting(
        None, "Trajectories to learn from.", by_data="128, with --churn 512, fewer large ones", minimum=1
    )
    iterations: int = setting(
        100, "Runs of the optimiser; 0 chooses among untuned solvers and time schedules.", minimum=0
    )
    radius: float = setting(
        0.0,
        "Soft targets: how far a trajectory's start may move while the solver learns, in units of the noise.",
        minimum=0,
        maximum=1,
    )
    match: Literal["data", "none"] | None = setting(
        None,
        "Second stage: bring the samples as a set near the training images, or those of --data.",
        by_data="data, where the run's images are there and guidance is 1",
    )
    data: str | None = setting(
        None,
        "Images for the second stage, or to tune the churn by, as for `train`.",
        names=("-d", "--data"),
        by_data="those of the run",
    )
    likelihood: int | None = setting(
        None, "Learn the likelihood in so many evaluations, for `evaluate --likelihood few`, and no solver.", minimum=2
    )
    churn: bool = setting(
        False, "Tune the fresh noise of a stochastic solver, for `sample --solver churned`, and no other solver."
    )
    batch: int = setting(16, "Samples through the network at once.", names=("-b", "--batch"), minimum=1)

    def __post_init__(self) -> None:
        check(self)
        for n in self.steps:
            if n < 2 or (n > MOST_STEPS and not self.churn):
                rule = "be at least 2" if self.churn else f"lie between 2 and {MOST_STEPS}"
                raise UserError(f"--steps must {rule}, not {n}")
        if self.churn and self.likelihood is not None:
            raise UserError("--churn and --likelihood learn different things: give one of them")
        if self.match == "none" and self.data is not None:
            raise UserError("--match none has no second stage: leave out --data")

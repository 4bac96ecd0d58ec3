"""The default solver of one model: kind, order and time schedule, chosen from the model's own trajectories.

What is best for a model depends on its data, its schedule, the number of steps and the guidance. A few trajectories are
followed finely, and every candidate of `tuning.best_start` is run from the same noise; no number is fitted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from ornstein.denoiser import Denoiser
from ornstein.few_steps.tuning import Start, best_start, judged, trajectories, untuned_solver
from ornstein.schedules import Schedule
from ornstein.solvers.coefficients import Form
from ornstein.solvers.tuned import Tuned

__all__ = ["COUNTS", "SCALES", "Choice", "choose", "nearest"]

COUNTS = (5, 10, 20)
"""Numbers of steps that a solver is chosen for; another number takes the choice of the nearest."""

SCALES = (1.0, 4.0)
"""Scales of guidance that it is chosen for; the second for models with classes alone."""

_FEWEST, _MOST, _NUMBERS = 4, 8, 2**14  # trajectories, and the numbers of all of them together
_FAR = 1.5  # a choice serves up to so many times its steps
_STREAM = 1 << 24  # the number of the first trajectory: none that `ornstein tune` learns from


@dataclass(frozen=True)
class Choice:
    """A solver chosen for so many steps and a guidance scale.

    error, untuned: its root mean square distance to the fine solution, and that of the default solver.
    """

    steps: int
    guidance: float
    start: Start
    error: float
    untuned: float

    def solver(self, schedule: Schedule, steps: int) -> Tuned:
        """The solver of this choice in `steps` steps."""
        found = untuned_solver(schedule, steps, self.start)
        return replace(found, guidance=self.guidance, error=self.error, untuned=self.untuned, learned=False)

    def to_config(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Choice:
        """What `to_config` described. Raises ValueError if the dict does not describe one."""
        try:
            start = Start(**config["start"])
            steps, numbers = config["steps"], [float(config[k]) for k in ("guidance", "error", "untuned")]
            right = (
                (type(steps) is int and steps >= 2)
                and (start.form in get_args(Form) and start.order in (1, 2, 3, 4))
                and (0 <= start.slope < math.inf and 0 <= start.floor < 1)
                and all(map(math.isfinite, numbers))
                and numbers[2] > 0
            )
        except (KeyError, TypeError, ValueError) as e:
            raise ValueError(f"no chosen solver: {e!r} is missing or wrong") from e
        if not right:
            raise ValueError(f"no chosen solver: {config}")
        return cls(steps, numbers[0], start, *numbers[1:])


def choose(
    model: Denoiser,
    counts: Sequence[int] = COUNTS,
    scales: Sequence[float] | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> list[Choice]:
    """The best untuned solver of each number of steps and guidance scale. The same model gives the same choices.

    Args:
        model: with a sample spec; in evaluation mode.
        counts: numbers of steps.
        scales: of guidance; None is `SCALES` for a model with classes, else 1.
        progress: called with the choices made and their number.

    Raises:
        ValueError: the model has no sample spec.
    """
    if model.data is None:
        raise ValueError("the model has no sample spec (data), so the shape of its samples is unknown")
    if scales is None:
        scales = SCALES if model.data.classes else SCALES[:1]
    count = max(_FEWEST, min(_MOST, _NUMBERS // math.prod(model.data.shape)))
    out: list[Choice] = []
    for scale in scales:
        parts = trajectories(model, count, _STREAM, scale, count)
        for steps in counts:
            start = best_start(parts, steps)
            found = judged(untuned_solver(model.process.schedule, steps, start), parts, scale)
            out.append(Choice(steps, scale, start, found.error, found.untuned))
            progress(len(out), len(counts) * len(scales))
    return out


def nearest(choices: Sequence[Choice], steps: int, guidance: float) -> Choice | None:
    """The choice for these steps and this guidance; None where all were made for far fewer steps, or steps < 2.

    First the nearest guidance scale, then the nearest number of steps, both by their ratio.
    """

    def far(choice: Choice) -> tuple[float, float]:
        return abs(math.log(max(choice.guidance, 0.1) / max(guidance, 0.1))), abs(math.log(choice.steps / steps))

    if steps < 2 or not choices or steps > _FAR * max(c.steps for c in choices):
        return None
    return min(choices, key=far)

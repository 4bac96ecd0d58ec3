"""A solver with times and coefficients of its own, learned for one model (see `ornstein.few_steps.tuning`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, get_args

import torch
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.process import Prediction
from ornstein.solvers.coefficients import Form, Level
from ornstein.solvers.multistep import combine, interpolated
from ornstein.solvers.stepping import Noise, pairs

__all__ = ["PAST", "Step", "Tuned"]


@dataclass(frozen=True)
class Step:
    """x_s = (1 + scale_0) a_s x0_t + (1 + scale_1) s_s eps_t + a_s sum_j past_j (m_j - m_t), newest past first."""

    scale: tuple[Level, Level]
    past: tuple[Level, ...]

    def apply(self, base: Prediction, here: Tensor, s: float | Tensor, before: Sequence[Tensor]) -> Tensor:
        """The state at s from the prediction at t, its m, and those (B, *) of the steps before it, newest first."""
        return combine(base, s, here, list(zip(self.past, before, strict=False)), scale=self.scale)


@dataclass(frozen=True)
class Tuned:
    """A solver of len(steps) evaluations on its own times, from 1 to 0. It is called as any solver.

    Attributes:
        times: from 1 to 0.
        steps: the learned coefficients of each step.
        guidance: the guidance scale that it was tuned with, or the least of several.
        until: the largest of several scales: it serves all from `guidance` on. None for one scale.
        error, untuned: root mean square distances to the fine solution, of this solver and of the untuned one, from
            held-out noise.
        form: the quantity m that it interpolates: x0, or the straight flow eps - x0.
        learned: whether its numbers were fitted, and not only chosen (`few_steps.choice`).
    """

    times: tuple[float, ...]
    steps: tuple[Step, ...]
    guidance: float = 1.0
    error: float = 0.0
    untuned: float = 0.0
    form: Form = "flow"
    learned: bool = True
    until: float | None = None

    @property
    def numbers(self) -> int:
        """How many numbers were learned."""
        return len(self.times) - 2 + sum(2 + len(step.past) for step in self.steps)

    def serves(self, guidance: float) -> bool:
        """Whether it was tuned for this guidance scale."""
        return self.guidance <= guidance <= (self.guidance if self.until is None else self.until)

    @property
    def scales(self) -> str:
        """The guidance scales that it serves, in words."""
        return f"{self.guidance:g}" if self.until is None else f"{self.guidance:g} to {self.until:g}"

    def __call__(self, d: Denoises, x: Tensor, times: Tensor, noise: Noise) -> Iterator[Tensor]:
        """Raises ValueError for times that are not its own."""
        if len(times) != len(self.times) or not torch.allclose(times.double().cpu(), torch.tensor(self.times).double()):
            raise ValueError(f"this solver was tuned for {len(self.steps)} steps at its own times: give no other grid")
        before: list[Tensor] = []
        for (t, s), step in zip(pairs(times, down=True), self.steps, strict=True):
            now = d(x, t)
            here = interpolated(now, self.form)
            x = step.apply(now, here, s, before)
            before.insert(0, here)
            del before[PAST:]
            yield x

    def __repr__(self) -> str:
        return f"Tuned({len(self.steps)} steps, form {self.form}, guidance {self.scales}, error {self.error:.3g})"

    def to_config(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return {
            "times": list(self.times),
            "steps": [{"scale": list(step.scale), "past": list(step.past)} for step in self.steps],
            "guidance": self.guidance,
            "error": self.error,
            "untuned": self.untuned,
            "form": self.form,
            **({} if self.until is None else {"until": self.until}),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Tuned:
        """The solver that `to_config` described.

        Raises:
            ValueError: the config is not a solver.
        """
        try:
            times = tuple(float(t) for t in config["times"])
            steps = tuple(
                Step((float(s["scale"][0]), float(s["scale"][1])), tuple(float(w) for w in s["past"]))
                for s in config["steps"]
            )
            guidance, error, untuned = (float(config[k]) for k in ("guidance", "error", "untuned"))
            form = config.get("form", "x0")  # configs without a form are older, and of x0
            until = None if config.get("until") is None else float(config["until"])
        except (KeyError, IndexError, TypeError) as e:
            raise ValueError(f"no tuned solver: {e!r} is missing or wrong") from e
        fall = all(a > b for a, b in pairwise(times))
        if len(times) != len(steps) + 1 or not fall or not steps or (times[0], times[-1]) != (1.0, 0.0):
            raise ValueError("no tuned solver: its times do not fall from 1 to 0, one for each step and the end")
        if form not in get_args(Form):
            raise ValueError(f"no tuned solver: its form {form!r} is none of {', '.join(get_args(Form))}")
        return cls(times, steps, guidance, error, untuned, form, until=until)


PAST = 6
"""How many earlier predictions a step may use."""

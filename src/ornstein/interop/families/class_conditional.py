"""DiT: a transformer on latents, conditioned on a class. Source: Peebles & Xie 2023, arXiv:2212.09748."""

from __future__ import annotations

from typing import Any

from torch import nn

from ornstein.errors import UserError
from ornstein.interop.diffusers import DiffusersNet
from ornstein.interop.families.family import Family
from ornstein.interop.schedulers import Reading
from ornstein.schedules import Discrete

__all__ = ["ClassConditional"]


class ClassConditional(Family):
    """Takes `label` (B,), -1 for none."""

    part = "transformer"
    conditions = ("label",)
    encoders = ()

    def network(self, pipe: Any, reading: Reading) -> nn.Module:
        schedule = reading.schedule
        if not isinstance(schedule, Discrete):
            raise UserError(f"a DiT is read with a chain of betas, not {type(schedule).__name__}")
        return DiffusersNet(pipe.transformer, schedule.steps)

    def classes(self, pipe: Any) -> tuple[str, ...]:
        """The names in model_index.json, made different from each other; numbers if it has none."""
        count = pipe.transformer.config.num_embeds_ada_norm
        names = {int(v): k for k, v in reversed((getattr(pipe, "labels", None) or {}).items())}
        return tuple(names.get(i, str(i)) for i in range(count))

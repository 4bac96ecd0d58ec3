"""A pipeline of diffusers as a denoiser: its network, schedule, conditions and decoder."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ornstein.denoiser import Denoiser, SampleSpec
from ornstein.errors import UserError
from ornstein.interop.families import Family
from ornstein.interop.timesteps import schedule_of, times_of
from ornstein.process import Process

__all__ = ["Pipeline"]


class Pipeline(Denoiser):
    """The denoiser of a diffusers pipeline. `encode` makes conditions of prompts, `decode` images of samples.

    A call without text is that of the empty prompt, which is what these models were trained to take for no prompt.

    Args:
        pipe: the pipeline of diffusers; it shares all of its networks with this denoiser.
        family: its kind.
        path: the folder or hub id that it was read from.

    Raises:
        UserError: its scheduler cannot be expressed.
    """

    def __init__(self, pipe: Any, family: Family, path: str | Path) -> None:
        schedule, kind = schedule_of(pipe.scheduler, family.timing(pipe, 1).get("mu"))
        data = SampleSpec(family.latent_shape(pipe), family.classes(pipe))
        super().__init__(family.network(pipe, schedule), Process(schedule), kind, data=data, space=family.space(pipe))
        self.family = family
        self.path = path
        self._pipe = pipe
        rest = {n: m for n, m in pipe.components.items() if isinstance(m, nn.Module) and n != family.part}
        self.parts = nn.ModuleDict(rest)  # they move to a device with the network
        self._empty: dict[str, Tensor] = {}

    @property
    def conditions(self) -> tuple[str, ...]:
        return self.family.conditions

    def encode(
        self, prompts: str | Sequence[str], negative: str | Sequence[str] | None = None
    ) -> dict[str, Any]:
        """The conditions of prompts, for `sample(cond=...)`: one row a prompt.

        Args:
            prompts: one text or several. A prompt that is too long is cut, with a warning.
            negative: the prompt of the other side of guidance, one for all or one each. By default there is none, which
                most models take as the empty one.

        Raises:
            UserError: a model without text, or a pipeline without its text encoder.
            ValueError: no prompts, or another number of negative ones.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        others = [negative] * len(texts) if isinstance(negative, str) else list(negative or [])
        if not texts or (negative is not None and len(others) != len(texts)):
            raise ValueError(f"{len(texts)} prompts and {len(others)} negative prompts: give one of each a sample")
        self.family.check_encoders(self._pipe, [*texts, *others])
        cond: dict[str, Any] = self._encoded(texts)
        if others:
            cond["negative"] = self._encoded(others)
        elif not self.guided_by_condition:
            cond["negative"] = self._nothing(len(texts))
        return cond

    @property
    def guided_by_condition(self) -> bool:
        """Whether the network takes the guidance scale as its condition `guidance_scale` (B,)."""
        return self.family.guided_by_condition(self._pipe)

    def times(self, steps: int) -> list[float]:
        """The times at which the pipeline's own scheduler calls the network in `steps` steps, and its end."""
        scheduler = copy.deepcopy(self._pipe.scheduler)
        return times_of(scheduler, steps, self.process.schedule, **self.family.timing(self._pipe, steps))

    def _output(self, x_t: Tensor, t: Any, cond: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        cond = {name: value for name, value in cond.items() if name != "negative" and value is not None}
        if self.family.encoders and "text" not in cond:
            cond = self._nothing(len(x_t)) | cond
        return super()._output(x_t, t, cond)

    def _nothing(self, count: int) -> dict[str, Tensor]:
        """The conditions of samples without a prompt."""
        if not self._empty:
            self.family.check_encoders(self._pipe, [])
            with torch.no_grad():
                self._empty = self.family.encode_nothing(self._pipe, next(self.net.parameters()).device)
        return {name: value.expand(count, *value.shape[1:]) for name, value in self._empty.items()}

    def _encoded(self, texts: list[str]) -> dict[str, Tensor]:
        """The conditions of texts, each different one encoded once."""
        different = list(dict.fromkeys(texts))
        device = next(self.net.parameters()).device
        with torch.no_grad():
            cond = self.family.encode(self._pipe, different, device)
        rows = torch.tensor([different.index(text) for text in texts], device=device)
        return {name: value.index_select(0, rows) for name, value in cond.items()}

    def save(self, path: str | Path, extra: dict[str, Any] | None = None) -> None:
        """Not possible: a pipeline is more than a network. Raises UserError."""
        raise UserError(f"{path}: a pipeline is not stored as a run; `ornstein export` writes it as a folder again")

    def __repr__(self) -> str:
        return super().__repr__().replace("Denoiser(Network", f"Pipeline({type(self._pipe).__name__}", 1)

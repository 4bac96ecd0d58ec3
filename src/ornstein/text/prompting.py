"""What all models that take prompts share: conditions of prompts for both sides of guidance, and prompts as classes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.text.gate import NAMED, Gate

__all__ = ["Prompting", "check_ungated"]


class Prompting(Denoiser):
    """A denoiser with prompts. A subclass says what the conditions of texts are (`_encoded`, `_nothing`)."""

    gate: Gate | None = None
    """What acts on prompts with a certain word alone: of a personalised model with `--prior gated`."""

    _rows: dict[str, Tensor] | None = None  # conditions of each prompt and, last, of none

    @property
    def takes_text(self) -> bool:
        """Whether the model has text encoders."""
        return True

    @property
    def guided_by_condition(self) -> bool:
        """Whether the network takes the guidance scale as its condition `guidance_scale` (B,)."""
        return False

    def encode(
        self, prompts: str | Sequence[str], negative: str | Sequence[str] | None = None, **shared: Any
    ) -> dict[str, Any]:
        """The conditions of prompts, for `sample(cond=...)`: one row a prompt.

        Args:
            prompts: one text or several. A prompt that is too long is cut, with a warning.
            negative: the prompt of the other side of guidance, one for all or one each. By default there is none.
            **shared: other conditions of the model, for both sides of guidance: tensors (B, ...), or a number for all.

        Raises:
            UserError: the text encoder is missing.
            ValueError: no prompts, another number of negative ones, or a condition that the model does not take.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        others = [negative] * len(texts) if isinstance(negative, str) else list(negative or [])
        if not texts or (negative is not None and len(others) != len(texts)):
            raise ValueError(f"{len(texts)} prompts and {len(others)} negative prompts: give one of each a sample")
        with torch.no_grad():
            cond: dict[str, Any] = self._of_texts(texts)
            if others:
                cond["negative"] = self._of_texts(others)
        nothing = None if others else self._nothing(len(texts))
        if nothing is not None and not self.guided_by_condition:
            cond["negative"] = nothing | self._marked([""] * len(texts))
        for name, value in shared.items():
            self._check_shared(name)
            number = isinstance(value, int | float)
            for side in (cond, cond.get("negative", {})):
                side[name] = torch.full((len(texts),), float(value)) if number else value
        return cond

    def prompted(
        self, prompts: Sequence[str], negative: str | None = None, guidance_scale: float | None = None
    ) -> Self:
        """The same model with prompts for classes: `label` k is prompt k, and -1, or none, the negative one.

        It shares all weights. With it, everything that works on a model of classes works on prompts.

        Raises as `encode`.
        """
        assert self.data is not None
        scale = {} if guidance_scale is None else {"guidance_scale": guidance_scale}
        cond = self.encode(prompts, negative, **scale)
        other = cond.pop("negative", None) or self._nothing(1) or self._no_text(cond)
        other = self._marked([""]) | other
        if guidance_scale is not None:
            other = other | {"guidance_scale": cond["guidance_scale"]}
        made = copy.copy(self)
        made._rows = {name: torch.cat(_as_long(value, other[name][:1].to(value))) for name, value in cond.items()}
        made.data = replace(self.data, classes=tuple(prompts))
        return made

    def _of_label(self, cond: dict[str, Any], count: int, device: torch.device) -> dict[str, Any]:
        """The conditions of a call with `label` replaced by the rows of the prompts it names."""
        if self._rows is None:
            return cond
        label = cond.get("label")
        label = torch.full((count,), -1) if label is None else torch.as_tensor(label)
        rest = {name: value for name, value in cond.items() if name != "label"}
        return rest | {name: value.to(device)[label.to(device)] for name, value in self._rows.items()}

    def _of_texts(self, texts: list[str]) -> dict[str, Tensor]:
        """The conditions of texts, each different one encoded once."""
        different = list(dict.fromkeys(texts))
        cond = self._encoded(different)
        rows = torch.tensor([different.index(text) for text in texts])
        return {n: value.index_select(0, rows.to(value.device)) for n, value in cond.items()} | self._marked(texts)

    def _marked(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """What a gate is opened by, one row a text; nothing without a gate."""
        return {} if self.gate is None else {NAMED: self.gate.named(texts)}

    def _output(self, x_t: Tensor, t: Any, cond: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        if self.gate is None:
            return super()._output(x_t, t, cond)
        return self.gate.computed(super()._output, x_t, t, cond)

    def save(self, path: str | Path, extra: dict[str, Any] | None = None) -> None:
        """As `Denoiser.save`. Raises UserError for a model with a gate."""
        check_ungated(self)
        super().save(path, extra)

    def _encoded(self, texts: list[str]) -> dict[str, Tensor]:
        """The conditions of texts, one row each."""
        raise NotImplementedError

    def _nothing(self, count: int) -> dict[str, Tensor] | None:
        """The conditions of samples without a prompt; None for a model that then has no condition."""
        return None

    def _no_text(self, cond: dict[str, Tensor]) -> dict[str, Tensor]:
        """Conditions like these that mean no text: all masked."""
        return {name: torch.zeros_like(value[:1]) for name, value in cond.items()}

    def _check_shared(self, name: str) -> None:
        raise ValueError(f"this model takes no condition {name!r}; besides prompts it takes none")


def check_ungated(d: Denoiser) -> None:
    """Raise UserError for a model with a gate, which one network cannot express."""
    gate = d.gate if isinstance(d, Prompting) else None
    if gate is not None:
        raise UserError(
            f"what this model has learned is behind a gate, the word {gate.word}, which one network cannot hold: give "
            "its base, or write its LoRA into that with `ornstein lora merge`, without the gate"
        )


def _as_long(one: Tensor, other: Tensor) -> list[Tensor]:
    """Two tensors (B, L, ...) with zeros at the end of the shorter one."""
    if one.ndim < 2 or one.shape[1] == other.shape[1]:
        return [one, other]
    longest = max(one.shape[1], other.shape[1])
    return [torch.cat([x, x.new_zeros(len(x), longest - x.shape[1], *x.shape[2:])], 1) for x in (one, other)]

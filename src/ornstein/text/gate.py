"""A gate: what a model has learned of one person or thing acts on prompts that name it, and on no others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ornstein.nets.switch import Switch
from ornstein.text.words import word_pattern
from ornstein.wrapper import rows_of

__all__ = ["NAMED", "Gate"]

NAMED = "named"
"""The condition (B,) bool of a model with a gate: whether the prompt of a sample names what was learned."""

_Output = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Gate:
    """The word that opens it, and what is behind it.

    A sample whose prompt does not hold the word, or that has no prompt, such as the other side of guidance, is that of
    the base, bit for bit.
    """

    word: str
    switch: Switch

    def named(self, texts: Iterable[str]) -> Tensor:
        """Whether each text holds the word, as a word of its own; (B,) bool."""
        pattern = word_pattern(self.word)
        return torch.tensor([pattern.search(text) is not None for text in texts])

    def computed(self, output: Callable[..., _Output], x_t: Tensor, t: Any, cond: dict[str, Any]) -> _Output:
        """`output(x_t, t, cond)` of every sample, with what was learned switched off where `NAMED` is not true."""
        cond = dict(cond)
        named = cond.pop(NAMED, None)
        if named is None or not bool(named.any()):
            with self.switch.off():
                return output(x_t, t, cond)
        if bool(named.all()):
            return output(x_t, t, cond)
        found: list[_Output] = []
        for kind, mode in ((named, nullcontext()), (~named, self.switch.off())):
            rows = kind.to(x_t.device).nonzero()[:, 0]
            times = t[rows.to(t.device)] if isinstance(t, Tensor) and t.ndim else t
            with mode:
                found.append(output(x_t[rows], times, rows_of(cond, rows)))
        place = torch.cat([named.nonzero()[:, 0], (~named).nonzero()[:, 0]]).argsort().to(x_t.device)
        outputs = torch.cat([each for each, _ in found])[place]
        mixes = [mix for _, mix in found if mix is not None]
        return outputs, torch.cat(mixes)[place] if mixes else None

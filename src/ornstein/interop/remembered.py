"""What a network makes of its text alone is the same in all steps of a trajectory: computed once, and kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Text", "remember_text"]

# Modules that take the text alone, besides the keys and values of cross-attention.
_PROJECTIONS = ("caption_projection",)


class _Remembers:
    """A module that gives its last output again while input and weights are the same."""

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        plain = super().forward  # pyright: ignore[reportAttributeAccessIssue]
        if more or torch.is_grad_enabled() or torch.compiler.is_compiling() or x.is_inference() or x.is_meta:
            return plain(x, *more)
        tensors = (x, *self.parameters())  # pyright: ignore[reportAttributeAccessIssue]
        if any(t.is_inference() for t in tensors):
            return plain(x)
        key = (x.shape, x.stride(), x.dtype, torch.is_autocast_enabled(x.device.type))
        key += tuple((t.data_ptr(), t._version) for t in tensors)
        key += tuple(getattr(m, "strength", None) for m in self.modules())  # pyright: ignore[reportAttributeAccessIssue]
        kept = self.__dict__.get("_kept")
        if kept is None or kept[0] != key:
            # holding the input keeps its memory from being given to another tensor
            kept = self.__dict__["_kept"] = (key, x, plain(x))
        return kept[2]


def remember_text(model: nn.Module) -> None:
    """Make the parts of a model that see the text alone remember it. Weights and their names stay."""
    for name, module in model.named_modules():
        if getattr(module, "is_cross_attention", False):
            parts = [getattr(module, part, None) for part in ("to_k", "to_v")]
        else:
            parts = [module] if name in _PROJECTIONS else []
        for part in parts:
            if isinstance(part, nn.Module) and not isinstance(part, _Remembers):
                kind = type(part)
                part.__class__ = type(kind.__name__, (_Remembers, kind), {})


class Text:
    """The text of the call before, in place of an equal one: then it is the same memory."""

    def __init__(self) -> None:
        self._last: Tensor | None = None

    def __call__(self, text: Tensor) -> Tensor:
        last = self._last
        if last is None or not _equal(last, text):
            last = self._last = text
        return last


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal; False on an accelerator, for which the comparison would wait."""
    if a is b:
        return True
    on_cpu = a.device.type == b.device.type == "cpu"
    return on_cpu and a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)

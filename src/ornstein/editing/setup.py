"""A model with the settings of its edits: what all edits share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ornstein.denoiser import Denoiser
from ornstein.editing.windows import Window
from ornstein.errors import UserError
from ornstein.sampling import State

__all__ = ["Setup", "channels", "counted", "pixels", "window_starts"]

_SAMPLER = ("solver", "steps", "seed", "batch", "precision")


@dataclass
class Setup:
    """A model with the settings of its edits. Values are in [-1, 1]; answers are (n, *) of the size of the picture.

    Args:
        model: of pictures (C, H, W), in pixels or latents, or of clips (C, F, H, W).
        n: answers for each picture.
        fit: how a picture of another size is edited: "crop", a window about the mask; "resize", the whole of it;
            "tile", overlapping tiles; "native", the network at that size; "auto", what suits the edit: of a mask, the
            whole up to 8 times the model's size, since a part of a picture may look like none of the training.
        cond: conditions, one row.
        guidance: scale of classifier-free guidance.
        options: of `SampleRequest`, and of `ornstein.edit.restore`: method, particles, iterations.
        callback: called with the `State` after each step.
        notes: what was done to the picture that is not obvious, for people.
        number: of the next sample; it decides its noise together with the seed.
    """

    model: Denoiser
    n: int = 1
    fit: str = "auto"
    cond: dict[str, Any] = field(default_factory=dict)
    guidance: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    callback: Callable[[State], object] | None = None
    notes: list[str] = field(default_factory=list)
    number: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one picture or clip that the model makes."""
        shape = self.model.shape
        assert shape is not None
        return shape

    @property
    def clips(self) -> bool:
        return len(self.shape) == 4

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def sized(self, extent: Sequence[int]) -> Denoiser:
        """The model, at another size if that is asked for."""
        if self.fit != "native" or tuple(extent) == self.shape[-2:]:
            return self.model
        if self.clips:
            raise UserError("clips have the size of the training: leave out --fit native")
        self.note(f"the model was trained at {pixels(self.shape)}, not at {pixels(extent)}: it may not hold together")
        if hasattr(self.model, "sized") and self.model.space is not None:
            model: Any = self.model
            return model.sized(*extent)
        if self.model.space is not None:
            raise UserError("the latents of this model belong to one size of pictures: leave out --fit native")
        made = copy.copy(self.model)
        assert self.model.data is not None
        made.data = replace(self.model.data, shape=(self.shape[0], *extent))
        return made

    def check(self, x: Tensor) -> None:
        if x.shape[0] != self.shape[0]:
            raise UserError(
                f"the input has {channels(x.shape[0])}, the model makes {channels(self.shape[0])}: convert it first"
            )
        self.check_kind(x)

    def check_kind(self, x: Tensor) -> None:
        kinds = {3: "a picture", 4: "a clip"}
        if x.ndim != len(self.shape):
            known = kinds.get(x.ndim, f"an array of {x.ndim} axes")
            raise UserError(f"the input is {known}, the model makes {kinds[len(self.shape)][2:]}s")

    def sampler(self) -> dict[str, Any]:
        return {name: self.options[name] for name in _SAMPLER if self.options.get(name) is not None}

    def all_options(self) -> dict[str, Any]:
        return {k: v for k, v in self.options.items() if v is not None} | {
            "guidance": self.guidance,
            "callback": self.callback,
        }

    def repeated(self, count: int) -> dict[str, Any]:
        """The conditions of `count` pictures."""
        return {name: value.expand(count, *value.shape[1:]) for name, value in self.cond.items()}


def window_starts(length: int, total: int) -> list[int]:
    """Where windows of `length` frames begin in a clip of `total`, at least as many."""
    return sorted({*range(0, total - length, max(1, length // 2)), total - length})


def pixels(size: Any) -> str:
    """Width and height of a shape or a window, as people write them."""
    height, width = (size.height, size.width) if isinstance(size, Window) else tuple(size)[-2:]
    return f"{width}x{height}"


def channels(n: int) -> str:
    return f"{n} channel{'s' * (n > 1)}"


def counted(shape: Sequence[int]) -> str:
    return f"{channels(shape[0])} of {pixels(shape)}"

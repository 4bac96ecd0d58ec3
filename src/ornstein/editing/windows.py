"""Where on a picture a model of another size works: windows, tiles, and the way there and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Canvas", "Window", "about", "blended", "resized", "tiles"]

_CONTEXT = 2  # how many times wider than what is made a window is


@dataclass(frozen=True)
class Window:
    """The rows and columns of a picture from (top, left) on."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, x: Tensor) -> Tensor:
        """The window of x (*, H, W), a view."""
        return x[..., self.top : self.top + self.height, self.left : self.left + self.width]


def about(hidden: Tensor, size: Sequence[int]) -> Window:
    """The window about what is hidden, (*, H, W) bool, for a model of `size` (h, w).

    It has the model's own scale if that leaves as much around the hole as the hole is wide, and is larger if not.
    """
    extent = hidden.shape[-2:]
    flat = hidden.reshape(-1, *extent).any(0)
    ranges = []
    for axis in (0, 1):
        at = flat.any(1 - axis).nonzero()
        ranges.append((int(at.min()), int(at.max()) + 1))
    scale = max(1.0, *(_CONTEXT * (high - low) / side for (low, high), side in zip(ranges, size, strict=True)))
    starts, lengths = [], []
    for (low, high), side, total in zip(ranges, size, extent, strict=True):
        length = min(total, round(scale * side))
        starts.append(min(max(0, (low + high - length) // 2), total - length))
        lengths.append(length)
    return Window(starts[0], starts[1], lengths[0], lengths[1])


def resized(x: Tensor, height: int, width: int) -> Tensor:
    """x (*, H, W) at another size, by the antialiased bicubic filter, in [-1, 1]."""
    if tuple(x.shape[-2:]) == (height, width):
        return x
    flat = x.reshape(-1, 1, *x.shape[-2:])
    out = F.interpolate(flat, size=(height, width), mode="bicubic", antialias=True).clamp(-1, 1)
    return out.reshape(*x.shape[:-2], height, width)


@dataclass(frozen=True)
class Canvas:
    """A window brought to a model's size (h, w) without changing its proportions; what it leaves empty is unknown."""

    window: Window
    size: tuple[int, int]

    @property
    def scale(self) -> float:
        """How many times larger the window is on the canvas."""
        return min(self.size[0] / self.window.height, self.size[1] / self.window.width)

    @property
    def place(self) -> Window:
        """Where the window lies on the canvas."""
        height = max(1, min(self.size[0], round(self.scale * self.window.height)))
        width = max(1, min(self.size[1], round(self.scale * self.window.width)))
        return Window((self.size[0] - height) // 2, (self.size[1] - width) // 2, height, width)

    def picture(self, x: Tensor) -> Tensor:
        """The window of x (*, H, W) on the canvas, zeros around it."""
        out = x.new_zeros(*x.shape[:-2], *self.size)
        self.place.cut(out).copy_(resized(self.window.cut(x), self.place.height, self.place.width))
        return out

    def hidden(self, mask: Tensor) -> Tensor:
        """A bool mask (*, H, W) on the canvas: true where a pixel of it covers one that is hidden, and around."""
        cut = self.window.cut(mask)
        small = F.interpolate(
            cut.reshape(-1, 1, *cut.shape[-2:]).float(), size=(self.place.height, self.place.width), mode="area"
        )
        out = mask.new_ones(*mask.shape[:-2], *self.size)
        self.place.cut(out).copy_(small.reshape(*cut.shape[:-2], self.place.height, self.place.width) > 0)
        return out

    def back(self, made: Tensor) -> Tensor:
        """What was made on the canvas, (*, h, w), at the window's size."""
        return resized(self.place.cut(made), self.window.height, self.window.width)


def tiles(extent: Sequence[int], size: Sequence[int], step: int = 1) -> list[Window]:
    """Overlapping windows of `size` over a picture; they begin at multiples of `step`, but for the last ones.

    Neighbours share a quarter or more. A side that is shorter than the window's is covered whole.
    """
    starts = []
    for total, side in zip(extent, size, strict=True):
        if total <= side:
            starts.append([0])
            continue
        stride = max(step, (side - side // 4) // step * step)
        last = -(-(total - side) // step) * step  # may reach beyond a picture that step does not divide
        starts.append(list(dict.fromkeys([*range(0, last, stride), min(last, total - side) if step == 1 else last])))
    high, wide = (min(a, b) for a, b in zip(extent, size, strict=True))
    return [Window(top, left, high, wide) for top in starts[0] for left in starts[1]]


def blended(parts: Sequence[tuple[Window, Tensor]], extent: Sequence[int]) -> Tensor:
    """One picture (*, H, W) of its tiles (*, h, w), whose weights rise linearly from their rims."""
    like = parts[0][1]
    total, weight = like.new_zeros(*like.shape[:-2], *extent), like.new_zeros(*extent)
    for window, part in parts:
        down, across = (_ramp(n, like) for n in (window.height, window.width))
        share = down[:, None] * across
        window.cut(total).add_(part * share)
        window.cut(weight).add_(share)
    return total / weight


def _ramp(n: int, like: Tensor) -> Tensor:
    rising = torch.arange(1, n + 1, dtype=like.dtype, device=like.device)
    return torch.minimum(rising, rising.flip(0))

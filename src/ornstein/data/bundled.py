"""The captioned sets that are drawn by this package: pictures by number, and the captions of each."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from ornstein.data import shapes
from ornstein.data.framing import Framing
from ornstein.data.images import ImageSet
from ornstein.errors import UserError

__all__ = ["CAPTIONED", "Captioned", "is_bundled", "open_captioned"]

_SIDES = (32, 64)
_COUNT = 20_000


@dataclass(frozen=True)
class Captioned:
    """A bundled set: its pictures of a size, uint8 (B, 3, size, size), by their numbers; and the captions of each."""

    pictures: Callable[[Sequence[int], int], Tensor]
    captions: Callable[[int], tuple[str, ...]]
    sides: tuple[int, ...] = _SIDES
    count: int = _COUNT


@lru_cache(2**15)  # asked for by the pictures, and by the captions of both parts of the set
def _scene(i: int) -> shapes.Scene:
    return shapes.scenes(1, first=i)[0]


def _shapes(rows: Sequence[int], size: int) -> Tensor:
    return shapes.render([_scene(i) for i in rows], size)


def _faces() -> Any:
    # by name: the face world stands above this package
    return importlib.import_module("ornstein.faces.world.captioned")


CAPTIONED = {
    "shapes": Captioned(_shapes, lambda i: _scene(i).captions),
    "captioned-faces": Captioned(
        lambda rows, size: _faces().faces(rows, size), lambda i: _faces().captions(i), count=8_000
    ),
}
"""Sets that `--data` takes by name, with captions for `--captions auto`."""


def is_bundled(path: str | Path, names: Container[str]) -> bool:
    """Whether `path` is one of these names; a folder of that name is given as "./shapes"."""
    return str(path) in names and (isinstance(path, str) or not path.exists())


def open_captioned(name: str, frame: Framing, channels: int | None) -> ImageSet:
    """The pictures of a bundled captioned set. Raises UserError for a size or channels that it does not have."""
    bundled = CAPTIONED[name]
    height, width = frame.size or (bundled.sides[0],) * 2
    if height != width or height not in bundled.sides:
        sides = " or ".join(map(str, bundled.sides))
        raise UserError(f"{name} has pictures of {sides} pixels a side: --size {height}x{width} is none of them")
    if channels not in (None, 3):
        raise UserError(f"{name} has pictures in colour: leave out --channels {channels}")
    images = bundled.pictures(range(bundled.count), height)
    return ImageSet(
        source=name,
        images=images,
        names=[f"{name}/{i:05d}" for i in range(len(images))],
        file_sizes=[images[0].numel()] * len(images),
    )

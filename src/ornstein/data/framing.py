"""How a picture is brought to a size: which part of it is cut out, and where."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ornstein.errors import UserError
from ornstein.settings import extent_of

__all__ = ["Crop", "Framing", "Size", "framing"]

Crop = Literal["centre", "random", "none"]


@dataclass(frozen=True)
class Framing:
    """The part of a picture that is used, resized to `size`.

    Attributes:
        size: (height, width); None keeps the pixels: those of the centre square, or with crop "none" all.
        crop: "centre" or "random", the largest part with the aspect ratio of `size`; "none", the whole picture, whose
            aspect ratio changes with its size.
        at: where that part lies, from (0, 0), left or top, to (1, 1); "random" is a draw of it for each use.
    """

    size: tuple[int, int] | None = None
    crop: Crop = "centre"
    at: tuple[float, float] = (0.5, 0.5)

    def shape(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) of the result, of a picture of that size."""
        if self.size is not None:
            return self.size
        side = min(width, height)
        return (height, width) if self.crop == "none" else (side, side)

    def box(self, width: float, height: float) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the part that is used."""
        if self.crop == "none":
            return 0.0, 0.0, width, height
        h, w = self.size or (1, 1)
        # the longer side is cut; of a square exactly to the shorter one
        wide, high = (height * w / h, height) if width * h > height * w else (width, width * h / w)
        left, top = (width - wide) * self.at[0], (height - high) * self.at[1]
        return left, top, left + wide, top + high

    def enlargement(self, width: int, height: int) -> float:
        """How many times a picture of that size is enlarged, along the side where it is most."""
        left, top, right, bottom = self.box(width, height)
        h, w = self.shape(width, height)
        return max(w / (right - left), h / (bottom - top))

    def turned(self) -> Framing:
        """The same of a picture that is stored on its side."""
        size = None if self.size is None else (self.size[1], self.size[0])
        return replace(self, size=size, at=(self.at[1], self.at[0]))


Size = int | tuple[int, int] | Framing | None
"""A side in pixels, (height, width), or more than that."""


def framing(size: Size, crop: Crop | None = None) -> Framing:
    """The framing of a size.

    Raises:
        UserError: the size is too small.
    """
    whole = size if isinstance(size, Framing) else Framing(None if size is None else extent_of(size))
    if crop is not None and crop not in ("centre", "random", "none"):
        raise UserError(f"crop {crop!r} is unknown; known: centre, random, none")
    return whole if crop is None else replace(whole, crop=crop)

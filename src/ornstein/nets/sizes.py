"""Heights and widths: of a setting, and of images that a network pads."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

__all__ = ["padded", "reference", "sides"]


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """(H, W) of a size: the side of a square, or both.

    Raises:
        ValueError: neither one number nor two.
    """
    if isinstance(size, int):
        return size, size
    if len(size) != 2 or not all(isinstance(side, int) for side in size):
        raise ValueError(f"a size is a number of pixels or (H, W), got {size!r}")
    return size[0], size[1]


def reference(size: int | Sequence[int]) -> int:
    """The side of the square that a network for (H, W) is laid out for: of about its area, a multiple of 8."""
    height, width = sides(size)
    if height == width or min(height, width) < 1:
        return min(height, width)
    return max(8, 8 * round(math.sqrt(height * width) / 8))


def padded(x: Tensor, multiple: int) -> Tensor:
    """Images (B, C, H, W) with height and width rounded up to a multiple: their last row and column are repeated.

    Repeated pixels have the mean and the noise level of real ones; zeros would be an edge that no image has.
    """
    height, width = x.shape[-2:]
    more = (-height % multiple, -width % multiple)
    return F.pad(x, (0, more[1], 0, more[0]), mode="replicate") if any(more) else x

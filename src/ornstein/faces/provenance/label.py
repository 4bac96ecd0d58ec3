"""The visible label of a synthetic picture: a small badge in a corner."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

__all__ = ["badge", "labelled"]

_WORDS = ("SYNTHETIC FACE", "SYNTHETIC", "AI")  # the longest that fits
_HEIGHT, _SMALLEST = 0.035, 9  # of the letters: a share of the picture's shorter side, and pixels
_WIDEST = 0.6  # of the picture's width
_BACK, _INK = (20, 20, 24), (255, 255, 255)


def labelled(image: Tensor, taken: Tensor | None = None) -> tuple[Tensor, tuple[int, int, int, int]]:
    """The picture uint8 (3, H, W) with the badge, and the badge's place as left, top, right, bottom.

    taken: (N, 2), points (x, y) that should not be hidden. The badge is in the corner that hides the fewest of them; of
    equal ones in the lower right, lower left, upper right, upper left, in this order.
    """
    height, width = image.shape[1:]
    mark = badge(width, height)
    rows, columns = mark.shape[1:]
    rim = max(1, rows // 4)
    left, right = min(rim, width - columns), max(width - columns - rim, 0)
    top, bottom = min(rim, height - rows), max(height - rows - rim, 0)
    corners = [(right, bottom), (left, bottom), (right, top), (left, top)]
    x, y = min(corners, key=lambda c: _hidden(c, columns, rows, taken))
    out = image.clone()
    out[:, y : y + rows, x : x + columns] = mark
    return out, (x, y, x + columns, y + rows)


@lru_cache(maxsize=8)
def badge(width: int, height: int) -> Tensor:
    """The badge for a picture of that size, uint8 (3, h, w)."""
    letters = max(_SMALLEST, round(_HEIGHT * min(width, height)))
    font = ImageFont.load_default(letters)
    pad = max(2, letters // 3)
    boxes = {words: font.getbbox(words) for words in _WORDS}
    fitting = [words for words, (left, _, right, _) in boxes.items() if right - left + 2 * pad <= _WIDEST * width]
    words = fitting[0] if fitting else _WORDS[-1]
    left, top, right, bottom = boxes[words]
    size = round(right - left) + 2 * pad, round(bottom - top) + 2 * pad
    mark = Image.new("RGB", size, _BACK)
    ImageDraw.Draw(mark).text((pad - left, pad - top), words, fill=_INK, font=font)
    pixels = torch.from_numpy(np.asarray(mark).copy()).permute(2, 0, 1)
    return pixels[:, :height, :width].contiguous()


def _hidden(corner: tuple[int, int], columns: int, rows: int, taken: Tensor | None) -> int:
    if taken is None:
        return 0
    (x, y), (left, top) = taken.unbind(1), corner
    return int(((x >= left) & (x < left + columns) & (y >= top) & (y < top + rows)).sum())

"""What a page is made of: escaped text, and images inlined one at a time or as the frames of a film."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_MOST_FRAMES = 64
_MOST_TILES = 64
_SPRITE_PIXELS = 2**24  # browsers refuse much larger images, and a page should stay easy to send


def text(value: Any) -> str:
    """A value as a reader wants it, escaped."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if value is None or isinstance(value, bool):
        value = {None: "none", True: "yes", False: "no"}[value]
    elif isinstance(value, float):
        value = f"{value:.4g}"
    return escape(str(value))


def note(sentence: str) -> str:
    """The sentence under a heading; markup is kept."""
    return f'<p class="note">{sentence}</p>'


def checked(images: Tensor, name: str) -> np.ndarray:
    """images as an array; raises ValueError unless they are uint8 (N, C, H, W) with 1 or 3 channels."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"{name} must be uint8 (N, 1 or 3, H, W), got {images.dtype} of shape {tuple(images.shape)}")
    return images.detach().cpu().numpy()


def png_uri(pixels: np.ndarray) -> str:
    """A data URI of pixels (C, H, W): 1 channel grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha."""
    planes = pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
    buffer = io.BytesIO()
    Image.fromarray(planes).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def img(pixels: np.ndarray, alt: str) -> str:
    """An img element of pixels (C, H, W); alt must be escaped already."""
    _, height, width = pixels.shape
    return f'<img src="{png_uri(pixels)}" width="{width}" height="{height}" alt="{alt}">'


def tiled(images: np.ndarray, columns: int, gap: int) -> np.ndarray:
    """images (n, C, H, W) in that many columns as one picture (C + 1, H', W'), see-through between tiles."""
    count, channels, height, width = images.shape
    rows = math.ceil(count / columns)
    sheet = np.zeros((channels + 1, rows * (height + gap) - gap, columns * (width + gap) - gap), np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[:channels, top : top + height, left : left + width] = image
        sheet[channels, top : top + height, left : left + width] = 255
    return sheet


def film(frames: Tensor, times: Sequence[float] | None = None, name: str = "trajectory frames") -> dict[str, Any]:
    """What the player needs of frames (K, n, C, H, W), at times (K,) where given: a sprite sheet, its layout, labels.

    At most 64 frames (evenly chosen, the last one kept) of at most 64 images are shown, fewer images where
    they are large.
    Raises ValueError for frames that are not uint8 images, or a count of times that differs.
    """
    if frames.ndim != 5 or 0 in frames.shape:
        raise ValueError(f"{name} must be a non-empty (K, n, C, H, W), got shape {tuple(frames.shape)}")
    if times is not None and len(times) != len(frames):
        raise ValueError(f"{len(frames)} {name} need as many times, got {len(times)}")
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), _MOST_FRAMES)).round().astype(int))
    height, width = frames.shape[-2:]
    tiles = max(1, min(frames.shape[1], _MOST_TILES, _SPRITE_PIXELS // (len(chosen) * height * width)))
    # wider than high, as a page is, and without a gap in the last row where the count allows
    wish = math.sqrt(2 * tiles)
    full = [n for n in range(math.ceil(wish / 2), math.floor(wish * 2) + 1) if tiles % n == 0]
    across = min(full, key=lambda n: abs(math.log(n / wish)), default=math.ceil(wish))
    gap = max(1, width // 16)
    columns = math.ceil(math.sqrt(len(chosen) / 2))
    sheets = [tiled(checked(frames[k, :tiles], name), across, gap) for k in chosen]
    sprite = np.stack(sheets)
    return {
        "sprite": png_uri(tiled(sprite, columns, 0)[:-1]),
        "columns": columns,
        "width": sprite.shape[-1],
        "height": sprite.shape[-2],
        "images": tiles,
        "labels": [
            f"frame {i + 1} of {len(chosen)}, t = {times[k]:.3f}" if times else f"frame {k + 1} of {len(frames)}"
            for i, k in enumerate(chosen)
        ],
    }

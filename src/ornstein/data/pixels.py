"""Conversion between pixels (uint8) and model values (float in [-1, 1]), and grids of images as PNG files."""

import io
import math
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torch.nn import functional as F

from ornstein.data.colour import CHANNEL_MODES
from ornstein.errors import RunError
from ornstein.store import atomic_write, make_folder

__all__ = ["grid", "save_grid", "to_uint8", "to_unit", "visible"]


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 pixels to float32 in [-1, 1]: x = pixel / 127.5 - 1, any shape. Raises ValueError on other dtypes."""
    if pixels.dtype != torch.uint8:
        raise ValueError(f"expected uint8 pixels, not {pixels.dtype}")
    return pixels.to(torch.float32) / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Floats in [-1, 1] to uint8 pixels, clamped and rounded to the nearest; the inverse of `to_unit`.

    Raises:
        ValueError: x is not floating point.
        RunError: it holds a NaN.
    """
    if not x.is_floating_point():
        raise ValueError(f"expected floating-point images in [-1, 1], not {x.dtype}")
    x = x.detach().to(torch.float32)
    if x.isnan().any():
        raise RunError("the images contain NaN: try more steps, another solver or an earlier checkpoint")
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def visible(pixels: Tensor) -> Tensor:
    """uint8 images (B, C, H, W) as pictures without transparency, (B, 1 or 3, H, W').

    With 2 or 4 channels the last one is alpha, and they are laid over white; more channels lie side by side in grey,
    W' = C W.
    """
    b, c, h, w = pixels.shape
    if c in (1, 3):
        return pixels
    if c in (2, 4):
        alpha = pixels[:, -1:].float() / 255
        return (pixels[:, :-1] * alpha + 255 * (1 - alpha)).round().to(torch.uint8)
    return pixels.transpose(1, 2).reshape(b, 1, h, c * w)


def grid(images: Tensor, columns: int | None = None, gap: int = 0) -> Tensor:
    """Images (B, C, H, W), floats in [-1, 1] or uint8, in rows of `columns`: uint8 (C, rows H, columns W).

    By default the grid is as near to a square as B allows. Empty places in the last row are white, and so are `gap`
    pixels between images. Raises ValueError if the images are not (B, C, H, W), B is 0, columns < 1 or gap < 0.
    """
    if images.ndim != 4 or images.shape[0] == 0:
        raise ValueError(f"expected at least one image as (B, C, H, W), not {tuple(images.shape)}")
    pixels = (images if images.dtype == torch.uint8 else to_uint8(images)).cpu()
    b, c, h, w = pixels.shape
    columns = math.ceil(math.sqrt(b)) if columns is None else columns
    if columns < 1:
        raise ValueError(f"columns must be at least 1, not {columns}")
    if gap < 0:
        raise ValueError(f"gap must not be negative, not {gap}")
    if gap:
        h, w = h + gap, w + gap
        pixels = F.pad(pixels, (0, gap, 0, gap), value=255)
    rows = math.ceil(b / columns)
    white = torch.full((rows * columns - b, c, h, w), 255, dtype=torch.uint8)
    cells = torch.cat([pixels, white]).view(rows, columns, c, h, w)
    sheet = cells.permute(2, 0, 3, 1, 4).reshape(c, rows * h, columns * w)
    return sheet[:, : rows * h - gap, : columns * w - gap]


def save_grid(
    images: Tensor,
    path: str | Path,
    columns: int | None = None,
    upscale: int = 1,
    gap: int = 0,
    comment: str | None = None,
) -> None:
    """Write `grid(images, columns, gap)` as a PNG, every pixel repeated `upscale` times in both directions.

    The file is complete or absent.

    Args:
        images: (B, C, H, W) with C = 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGBA); other channels are written as
            greys side by side (`visible`).
        comment: text that is written into the file under "Comment".

    Raises:
        ValueError: wrong arguments.
        RunError: the file cannot be written.
    """
    if images.ndim == 4 and images.shape[1] not in CHANNEL_MODES:
        images = visible(images if images.dtype == torch.uint8 else to_uint8(images))
    pixels = grid(images, columns, gap)
    if upscale < 1:
        raise ValueError(f"upscale must be at least 1, not {upscale}")
    pixels = pixels.repeat_interleave(upscale, 1).repeat_interleave(upscale, 2)
    array = pixels[0] if pixels.shape[0] == 1 else pixels.permute(1, 2, 0)
    text = PngInfo()
    if comment is not None:
        text.add_itxt("Comment", comment)
    file = io.BytesIO()
    Image.fromarray(array.contiguous().numpy()).save(file, format="PNG", pnginfo=text)
    path = Path(path)
    make_folder(path.parent)
    atomic_write(path, file.getvalue())

"""Parts of an HTML page: escaped text, tables, and images inlined one at a time or as the frames of a film."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ornstein.data.pixels import visible
from ornstein.progress import plain as one_line

__all__ = ["Table", "checked", "film", "image_uri", "img", "note", "plain", "table", "table_section", "text", "tiled"]

_MOST_FRAMES = 64
_MOST_TILES = 64
_SPRITE_PIXELS = 2**21  # of all frames of a film: it decodes at once in any browser, and the page stays small
# Pixels up to which an image, and a sprite sheet, is lossless; above it the loss is one that the eye does not see.
_EXACT_IMAGE = 2**13
_EXACT_SPRITE = 2**17
_QUALITY = 88


@dataclass(frozen=True)
class Table:
    """Rows under columns; header says what the figures are of, and of how many samples and seeds."""

    title: str
    header: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


def plain(value: Any) -> str:
    """A value as one line of text without control characters.

    For every place that shows a file name, a class name or another text of the user.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if value is None or isinstance(value, bool):
        value = {None: "none", True: "yes", False: "no"}[value]
    elif isinstance(value, float):
        value = f"{value:.4g}"
    elif isinstance(value, list | tuple):
        value = ", ".join(plain(each) for each in value)
    return one_line(str(value))


def text(value: Any) -> str:
    """A value as HTML text or attribute: `plain`, escaped."""
    return escape(plain(value))


def note(sentence: str) -> str:
    """The sentence under a heading; markup is kept."""
    return f'<p class="note">{sentence}</p>'


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table element; the first cell of a row is its head. Every text is escaped."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{text(row[0])}</th>'
        + "".join(f'<td class="num">{text(value)}</td>' for value in row[1:])
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def table_section(shown: Table) -> str:
    """The section of a table in a report, its header above it."""
    return note(text(shown.header)) + (
        f'<div class="card"><div class="scroll" tabindex="0" role="region" aria-label="{text(shown.title)}">'
        f"{table(shown.columns, shown.rows)}</div></div>"
    )


def checked(images: Tensor, name: str) -> np.ndarray:
    """Images as an array of 1 or 3 channels (`visible`). Raises ValueError unless they are uint8 (N, C, H, W)."""
    if images.dtype != torch.uint8 or images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(f"{name} must be uint8 (N, C, H, W), got {images.dtype} of shape {tuple(images.shape)}")
    return visible(images.detach().cpu()).numpy()


def image_uri(pixels: np.ndarray, exact: int = _EXACT_IMAGE) -> str:
    """A data URI of pixels (C, H, W): 1 channel grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.

    PNG up to `exact` pixels, WebP above.
    """
    planes = pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
    kind = "PNG" if planes.shape[0] * planes.shape[1] <= exact else "WebP"
    buffer = io.BytesIO()
    picture = Image.fromarray(planes)
    if kind == "WebP":
        picture = picture.convert("RGBA" if len(pixels) in (2, 4) else "RGB")
        picture.save(buffer, kind, quality=_QUALITY)
    else:
        picture.save(buffer, kind, optimize=True)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def img(pixels: np.ndarray, alt: str) -> str:
    """An img element of pixels (C, H, W); alt must be escaped already."""
    _, height, width = pixels.shape
    return f'<img src="{image_uri(pixels)}" width="{width}" height="{height}" alt="{alt}">'


def tiled(images: np.ndarray, columns: int, gap: int) -> np.ndarray:
    """Images (n, C, H, W) in that many columns as one picture (C + 1, H', W'), transparent between tiles."""
    count, channels, height, width = images.shape
    rows = math.ceil(count / columns)
    sheet = np.zeros((channels + 1, rows * (height + gap) - gap, columns * (width + gap) - gap), np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[:channels, top : top + height, left : left + width] = image
        sheet[channels, top : top + height, left : left + width] = 255
    return sheet


def film(
    frames: Tensor,
    times: Sequence[float] | None = None,
    name: str = "trajectory frames",
    labels: Sequence[str] | None = None,
) -> dict[str, Any]:
    """What the player needs of frames (K, n, C, H, W): a sprite sheet, its layout, and a label for each frame.

    At most 64 frames (evenly chosen, the last one kept) of at most 64 images are shown, fewer images if they are large.

    Args:
        frames: uint8 images.
        times: the time of each frame, for its label.
        name: what to call the frames in an error.
        labels: of each frame, in place of one by its time.

    Raises:
        ValueError: frames that are not uint8 images, or another number of times.
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
        "sprite": image_uri(tiled(sprite, columns, 0)[:-1], _EXACT_SPRITE),
        "columns": columns,
        "width": sprite.shape[-1],
        "height": sprite.shape[-2],
        "images": tiles,
        "labels": [labels[k] for k in chosen]
        if labels is not None
        else [
            f"frame {i + 1} of {len(chosen)}, t = {times[k]:.3f}" if times else f"frame {k + 1} of {len(frames)}"
            for i, k in enumerate(chosen)
        ],
    }

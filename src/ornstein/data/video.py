"""Clips as files: mp4, gif, and a contact sheet of their frames."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ornstein.data.pixels import grid, save_grid, to_uint8
from ornstein.data.video_write import MAX_RATE, Encoder
from ornstein.errors import RunError
from ornstein.extras import deferred
from ornstein.store import atomic_write, make_folder

if TYPE_CHECKING:
    import av.error
else:
    av = deferred("av", "video", "a video")

__all__ = ["clip_grid", "save_gif", "save_mp4", "save_sheet"]


def clip_grid(clips: Tensor, columns: int | None = None) -> Tensor:
    """Clips (B, C, F, H, W), floats in [-1, 1] or uint8, side by side as one: uint8 (C, F, rows H, columns W).

    Raises:
        ValueError: the clips are not (B, C, F, H, W), one of these is 0, or columns < 1.
    """
    if clips.ndim != 5 or clips.shape[2] == 0:
        raise ValueError(f"expected clips as (B, C, F, H, W), not {tuple(clips.shape)}")
    return torch.stack([grid(frame, columns) for frame in clips.unbind(2)], 1)


def save_sheet(
    clips: Tensor, path: str | Path, most_frames: int = 16, upscale: int = 1, comment: str | None = None
) -> None:
    """Write a contact sheet as a PNG: a row for each clip (B, C, F, H, W), its frames from left to right.

    A grey line stands right of and below each frame. Of longer clips `most_frames` frames are shown, evenly spaced,
    first and last among them. The file is complete or absent.

    Raises:
        ValueError: wrong arguments.
        RunError: the file cannot be written.
    """
    if clips.ndim != 5 or clips.shape[2] == 0 or most_frames < 1:
        raise ValueError(f"expected clips as (B, C, F, H, W) and most_frames >= 1, not {tuple(clips.shape)}")
    shown = min(clips.shape[2], most_frames)
    chosen = torch.linspace(0, clips.shape[2] - 1, shown).round().long()
    frames = clips[:, :, chosen.to(clips.device)].transpose(1, 2).flatten(0, 1)
    pixels = frames if frames.dtype == torch.uint8 else to_uint8(frames)
    save_grid(F.pad(pixels, (0, 1, 0, 1), value=128), path, columns=shown, upscale=upscale, comment=comment)


def save_mp4(
    clip: Tensor,
    path: str | Path,
    fps: float = 8,
    upscale: int = 1,
    comment: str | None = None,
    *,
    rate: float | Fraction | None = None,
) -> None:
    """Write a clip as an mp4 (H.264, yuv420p; mpeg4 if there is no H.264), complete or not at all.

    Every pixel is repeated `upscale` times in both directions; a side that is still odd gets its last row or column
    twice, for the format takes even sizes only. Pixels change a little in the coding.

    Args:
        clip: (C, F, H, W) with 1 or 3 channels, floats in [-1, 1] or uint8.
        path: where to write it; its folder is made.
        fps: frames a second, at most 1,000.
        upscale: the side of a pixel in the file.
        comment: text to be stored in the file, for example the settings it was sampled with, as JSON.
        rate: frames a second, for example `ClipSet.rate`; it takes the place of `fps` unless None.

    Raises:
        ValueError: wrong arguments.
        RunError: the file cannot be written.
    """
    frames = _frames(clip, fps if rate is None else float(rate), upscale)
    exact = Fraction(fps if rate is None else rate).limit_denominator(1001)
    buffer = io.BytesIO()
    try:
        encoder = Encoder(buffer, frames.shape[3], frames.shape[2], exact, comment=comment)
        for frame in frames:
            encoder.write(frame)
        encoder.close()
    except av.error.FFmpegError as error:
        raise RunError(f"cannot encode {path}: {error.strerror or error}") from error
    _write(Path(path), buffer)


def save_gif(clip: Tensor, path: str | Path, fps: float = 8, upscale: int = 1, comment: str | None = None) -> None:
    """Write a clip (C, F, H, W), floats in [-1, 1] or uint8, as a GIF that repeats, complete or not at all.

    Greys are kept exactly. A GIF times its frames in hundredths of a second, two at the least. `comment` is stored in
    the file.

    Raises:
        ValueError: wrong arguments.
        RunError: the file cannot be written.
    """
    arrays = _frames(clip, fps, upscale).permute(0, 2, 3, 1).numpy()
    pictures = [Image.fromarray(array[..., 0] if clip.shape[0] == 1 else array) for array in arrays]
    buffer = io.BytesIO()
    duration = max(20, 10 * round(100 / fps))
    said = {} if comment is None else {"comment": comment.encode()}
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=duration, loop=0, **said)
    _write(Path(path), buffer)


def _frames(clip: Tensor, fps: float, upscale: int) -> Tensor:
    """uint8 (F, 3, H, W)."""
    if clip.ndim != 4 or clip.shape[0] not in (1, 3) or 0 in clip.shape:
        raise ValueError(f"expected a clip (C, F, H, W) with 1 or 3 channels, not {tuple(clip.shape)}")
    if not fps > 0 or upscale < 1:
        raise ValueError(f"fps must be positive and upscale at least 1, not {fps} and {upscale}")
    if fps > MAX_RATE:
        raise ValueError(f"fps must be at most {MAX_RATE}, not {fps}")
    pixels = (clip if clip.dtype == torch.uint8 else to_uint8(clip)).cpu().expand(3, -1, -1, -1)
    return pixels.repeat_interleave(upscale, 2).repeat_interleave(upscale, 3).transpose(0, 1).contiguous()


def _write(path: Path, buffer: io.BytesIO) -> None:
    make_folder(path.parent)
    atomic_write(path, buffer.getvalue())

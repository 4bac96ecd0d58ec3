"""Clips as files: mp4, gif, and a contact sheet of their frames."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ornstein.data.pixels import grid, save_grid, to_uint8
from ornstein.errors import RunError
from ornstein.extras import deferred
from ornstein.store import atomic_write, write_error

if TYPE_CHECKING:
    import av
    import av.error
else:
    av = deferred("av", "video", "a video")


def clip_grid(clips: Tensor, columns: int | None = None) -> Tensor:
    """Clips (B, C, F, H, W), floats in [-1, 1] or uint8, side by side as one: uint8 (C, F, rows H, columns W).

    Raises ValueError where the clips are not (B, C, F, H, W), one of these is 0 or columns < 1.
    """
    if clips.ndim != 5 or clips.shape[2] == 0:
        raise ValueError(f"expected clips as (B, C, F, H, W), not {tuple(clips.shape)}")
    return torch.stack([grid(frame, columns) for frame in clips.unbind(2)], 1)


def save_sheet(clips: Tensor, path: str | Path, most_frames: int = 16, upscale: int = 1) -> None:
    """Write a contact sheet as a PNG: a row for each clip (B, C, F, H, W), its frames from left to right.

    A grey line stands right of and below each frame. Of longer clips `most_frames` frames are shown, evenly spaced,
    first and last among them. The file is complete or absent. Raises ValueError on wrong arguments, RunError where the
    file cannot be written.
    """
    if clips.ndim != 5 or clips.shape[2] == 0 or most_frames < 1:
        raise ValueError(f"expected clips as (B, C, F, H, W) and most_frames >= 1, not {tuple(clips.shape)}")
    shown = min(clips.shape[2], most_frames)
    chosen = torch.linspace(0, clips.shape[2] - 1, shown).round().long()
    frames = clips[:, :, chosen.to(clips.device)].transpose(1, 2).flatten(0, 1)
    pixels = frames if frames.dtype == torch.uint8 else to_uint8(frames)
    save_grid(F.pad(pixels, (0, 1, 0, 1), value=128), path, columns=shown, upscale=upscale)


def save_mp4(clip: Tensor, path: str | Path, fps: float = 8, upscale: int = 1, comment: str | None = None) -> None:
    """Write a clip (C, F, H, W), floats in [-1, 1] or uint8, as an mp4 (H.264, yuv420p; mpeg4 where there is no H.264).

    Every pixel is repeated `upscale` times in both directions; a side that is still odd gets its last row or column
    twice, for the format takes even sizes only. Pixels change a little in the coding. `comment` is written into the
    file. It is complete or absent. Raises ValueError on wrong arguments, RunError where the file cannot be written.
    """
    frames = _frames(clip, fps, upscale)
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    h264 = "libx264" in av.codecs_available
    buffer = io.BytesIO()
    try:
        with av.open(buffer, "w", format="mp4") as container:
            if comment is not None:
                container.metadata["comment"] = comment
            options: dict[str, object] = {"crf": "16"} if h264 else {"qscale": "2"}
            stream = container.add_stream("libx264" if h264 else "mpeg4", Fraction(fps).limit_denominator(1001))
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt, stream.options = "yuv420p", options
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    except av.error.FFmpegError as error:
        raise RunError(f"cannot encode {path}: {error.strerror or error}") from error
    _write(Path(path), buffer)


def save_gif(clip: Tensor, path: str | Path, fps: float = 8, upscale: int = 1) -> None:
    """Write a clip (C, F, H, W), floats in [-1, 1] or uint8, as a GIF that repeats; greys are kept exactly.

    A GIF times its frames in hundredths of a second, two at the least. The file is complete or absent.
    Raises ValueError on wrong arguments, RunError where the file cannot be written.
    """
    frames = _frames(clip, fps, upscale)
    pictures = [Image.fromarray(frame[..., 0] if clip.shape[0] == 1 else frame) for frame in frames]
    buffer = io.BytesIO()
    duration = max(20, 10 * round(100 / fps))
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=duration, loop=0)
    _write(Path(path), buffer)


def _frames(clip: Tensor, fps: float, upscale: int) -> np.ndarray:
    """uint8 (F, H, W, 3)."""
    if clip.ndim != 4 or clip.shape[0] not in (1, 3) or 0 in clip.shape:
        raise ValueError(f"expected a clip (C, F, H, W) with 1 or 3 channels, not {tuple(clip.shape)}")
    if not fps > 0 or upscale < 1:
        raise ValueError(f"fps must be positive and upscale at least 1, not {fps} and {upscale}")
    pixels = (clip if clip.dtype == torch.uint8 else to_uint8(clip)).cpu().expand(3, -1, -1, -1)
    pixels = pixels.repeat_interleave(upscale, 2).repeat_interleave(upscale, 3)
    return pixels.permute(1, 2, 3, 0).contiguous().numpy()


def _write(path: Path, buffer: io.BytesIO) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    atomic_write(path, buffer.getvalue())

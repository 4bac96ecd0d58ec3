"""Pictures, masks and clips of edits as files: read with every pixel as it is; answers, written with their spread."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ornstein import edit
from ornstein.data import grid, save_grid, save_mp4, to_uint8, to_unit
from ornstein.data.colour import CHANNEL_MODES, flatten
from ornstein.data.decode import (
    LIMIT_PIXELS,
    BadImage,
    check_pixels,
    opened,
    orientation_of,
    strict_pillow,
    to_array,
    upright,
)
from ornstein.data.entry import IMAGE_SUFFIXES, MAX_FILE_BYTES, VIDEO_SUFFIXES
from ornstein.data.framing import Framing
from ornstein.data.kinds import open_regular
from ornstein.data.video_read import Video, open_video, read_video
from ornstein.errors import UserError
from ornstein.inverse import Grey
from ornstein.seal import check_replaceable, seal_file
from ornstein.store import atomic_write, json_bytes, make_folder, read_json

__all__ = [
    "RECORD", "Output", "frame_rate", "luma", "pictures_in", "read_array", "read_clip", "read_mask", "read_picture",
    "write_answers",
]  # fmt: skip

RECORD = "edit.json"
_ARRAY = ".npy"
_MOST_VALUES = 2**29  # of an array or a clip that is read whole
_RATE = 8.0  # frames a second of clips that do not say
_SHOWN = 256  # pixels a side up to which small pictures are enlarged in the sheet


def pictures_in(path: Path) -> list[Path]:
    """The picture `path`, or the pictures and arrays in the folder, by name.

    Raises:
        UserError: there is none.
    """
    if not path.is_dir():
        return [path]
    kinds = IMAGE_SUFFIXES | {_ARRAY}
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in kinds and not p.name.startswith("."))
    if not found:
        raise UserError(f"{path} has no pictures")
    return found


def read_array(path: Path) -> np.ndarray:
    """An array of numbers in a .npy file. Raises UserError if it is none, or larger than a clip may be."""
    try:
        with open_regular(path) as file:
            array = np.load(BytesIO(file.read(8 * _MOST_VALUES)), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path} is no array of numbers: {error}") from None
    if array.dtype.kind not in "biuf":
        raise UserError(f"{path} is no array of numbers: it has {array.dtype}")
    return array


def read_picture(path: Path, channels: int | None, notes: list[str] | None = None) -> Tensor:
    """A picture as values (C, H, W) in [-1, 1], every pixel as it is in the file.

    Args:
        channels: of the result. Grey becomes colour where a model wants that; colour does not become grey. None: those
            of an array, and of a picture 1 or 3.
        notes: gets what was done to it.

    Raises:
        UserError: it cannot be read, or has other channels.
    """
    if path.suffix.lower() == _ARRAY:
        array = read_array(path)
        if array.dtype == np.uint8:
            array = array[..., None] if array.ndim == 2 else array
            x = to_unit(torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 0))))
        else:
            x = torch.from_numpy(array.astype(np.float32))
            x = x[None] if x.ndim == 2 else x
        if channels is not None and (x.ndim < 3 or x.shape[0] != channels):
            raise UserError(f"{path} has the shape {tuple(array.shape)}, the model takes {channels} channels first")
        return x
    try:
        with open_regular(path) as file, strict_pillow():
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise BadImage(f"more than the limit of {MAX_FILE_BYTES // 2**20} MB")
        with strict_pillow(), opened(data) as img:
            check_pixels(*img.size, LIMIT_PIXELS)
            img.load()
            grey = img.mode[:1] in ("1", "L", "I", "F")
            wanted = channels or (1 if grey else 3)
            if wanted not in CHANNEL_MODES:
                raise UserError(f"the model makes {wanted} channels, which no picture has: give an array .npy")
            if not grey and wanted in (1, 2):
                raise UserError(f"{path} has 3 channels, the model makes {wanted}: convert it to grey first")
            if grey and wanted in (3, 4) and notes is not None:
                notes.append(f"{path.name} is grey: its three channels are equal")
            if wanted in (1, 3) and img.has_transparency_data and notes is not None:
                notes.append(f"{path.name} has transparency, which was laid over white")
            picture = upright(flatten(img, wanted), orientation_of(img))
    except BadImage as bad:
        raise UserError(f"{path} cannot be used: {bad}") from None
    return to_unit(torch.from_numpy(to_array(picture).copy()))


def read_grey(path: Path) -> Tensor:
    """The luma of a picture, values (1, H, W). Raises UserError as `read_picture`."""
    return luma(read_picture(path, None), path)


def luma(x: Tensor, path: Path) -> Tensor:
    """The luma (1, *) of a picture or clip x (1 or 3, *) that was read from `path`."""
    if x.shape[0] not in (1, 3):
        raise UserError(f"{path} has {x.shape[0]} channels: a grey picture has 1")
    return x if x.shape[0] == 1 else Grey(tuple(x.shape)).linear(x[None])[0]


def read_clip(path: Path, channels: int | None) -> tuple[Tensor, float]:
    """A clip as values (C, F, H, W), and its frame rate: a video, an animation, a folder of frames or an array.

    Without `channels` it has those of its file.

    Raises:
        UserError: it cannot be read, or is larger than the memory that clips may take.
    """
    if path.suffix.lower() == _ARRAY:
        x = read_picture(path, channels)
        if x.ndim != 4:
            raise UserError(f"{path} has the shape {tuple(x.shape)}: a clip is (C, F, H, W)")
        return x, _RATE
    if path.is_dir():
        frames = [read_picture(file, channels) for file in pictures_in(path)]
        if len({tuple(frame.shape) for frame in frames}) > 1:
            raise UserError(f"{path}: the frames of a clip have one size")
        return torch.stack(frames, 1), _RATE
    if path.suffix.lower() not in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
        raise UserError(f"{path} is no video, animation, folder of frames or array .npy")
    frames, about, values = [], list[Video](), 0
    try:
        with open_regular(path) as file:
            for frame in read_video(file, Framing(None, "none"), channels or 3, opened=about):
                values += frame.size
                if values > _MOST_VALUES:
                    raise UserError(f"{path} has more than {_MOST_VALUES:,} values: give a shorter part of it")
                frames.append(torch.from_numpy(frame.copy()))
    except BadImage as bad:
        raise UserError(f"{path} cannot be used as a clip: {bad}") from None
    return to_unit(torch.stack(frames, 1)), float(about[0].rate)


def frame_rate(path: Path) -> float:
    """The frame rate of a clip that `read_clip` has read."""
    if path.is_dir() or path.suffix.lower() == _ARRAY:
        return _RATE
    with open_regular(path) as file, open_video(file, LIMIT_PIXELS) as video:
        return float(video.rate)


def read_mask(path: Path, frames: int | None = None) -> Tensor:
    """A mask (H, W), or of a clip of so many frames (F, H, W): true where it is white, where values are to be made.

    Raises:
        UserError: it cannot be read, or is a track of another number of frames.
    """
    if path.suffix.lower() == _ARRAY:
        array = read_array(path)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UserError(f"{path} has values that are not finite: a mask holds 0 and 1")
        mask = torch.from_numpy(array.astype(np.float32)) > (
            127 if array.dtype == np.uint8 and array.max() > 1 else 0.5
        )
        mask = mask[0] if mask.ndim > 2 and len(mask) == 1 else mask
    elif frames is not None and (path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES):
        mask = _track(path)
    else:
        mask = read_grey(path)[0] > 0
    if frames is None:
        if mask.ndim != 2:
            raise UserError(f"{path} has the shape {tuple(mask.shape)}: the mask of a picture is (H, W)")
        return mask
    if mask.ndim == 2:
        return mask.expand(frames, *mask.shape)
    if len(mask) != frames:
        raise UserError(f"the mask has {len(mask)} frames, the clip {frames}: make them equal")
    return mask


def _track(path: Path) -> Tensor:
    if not path.is_dir():
        return read_clip(path, 1)[0][0] > 0
    masks = [read_grey(file)[0] > 0 for file in pictures_in(path)]
    if len({tuple(mask.shape) for mask in masks}) > 1:
        raise UserError(f"{path}: the masks of a clip have one size")
    return torch.stack(masks)


@dataclass(frozen=True)
class Output:
    """Where answers go: a folder, or one .png file.

    Args:
        path: of --out.
        stems: the name of each input, without its ending.
        n: answers for each.
        of_path: the answers are a path, whose pictures are no draws of one thing.

    Raises:
        UserError: a file for more than one answer, or files that are there and that we did not write.
    """

    path: Path
    stems: Sequence[str]
    n: int
    clips: bool = False
    overwrite: bool = False
    of_path: bool = False

    def __post_init__(self) -> None:
        if self.single and (self.n > 1 or len(self.stems) > 1 or self.clips):
            raise UserError(f"--out {self.path} is one file: give a folder for several answers, or for a clip")
        if self.path.is_file() and not self.single:
            raise UserError(f"--out {self.path} is a file, not a folder")
        if len(set(self.stems)) < len(self.stems):
            raise UserError("two of the pictures have the same name but for its ending: rename one")
        named = [self.answer(stem, i) for stem in self.stems for i in range(self.n)]
        named += [self.sheet(stem) for stem in self.stems] + [self.spread(stem) for stem in self.stems]
        check_replaceable(named[:1] if self.single else named, self.overwrite)
        record = self.path / RECORD
        if not self.single and record.exists() and not self.overwrite:
            ours: dict[str, Any] = {}
            with suppress(UserError):
                ours = read_json(record)
            if "edit" not in ours:
                raise UserError(f"{record} was not written by this command: give another --out, or --overwrite")

    @property
    def single(self) -> bool:
        return self.path.suffix.lower() == ".png"

    def answer(self, stem: str, i: int) -> Path:
        """The file of answer i."""
        return self.path if self.single else self.path / f"{stem}-{i:03d}.{'mp4' if self.clips else 'png'}"

    def spread(self, stem: str) -> Path:
        """The file of the uncertainty."""
        return self.path / f"{stem}-uncertainty.png"

    def sheet(self, stem: str) -> Path:
        """The file that shows input, answers and uncertainty side by side."""
        return self.path / f"{stem}-all.png"


def write_answers(
    out: Output, stem: str, shown: Tensor | None, answers: Tensor, record: dict[str, Any], fps: float = 8.0
) -> dict[str, Any]:
    """Write the answers for one input, and with two or more draws of them how uncertain each pixel is.

    Args:
        stem: the name of the input.
        shown: the input, (C, H, W) or (C, F, H, W), for the sheet of all; None for one that is no picture.
        answers: (n, C, H, W) or (n, C, F, H, W) in [-1, 1].
        record: what they depend on, in JSON types; each file has it as a comment.

    Returns:
        The names of the files, and the mean and the largest uncertainty, in values that span 2.
    """
    about: dict[str, Any] = {"files": []}
    make_folder(out.path.parent if out.single else out.path)
    for i, answer in enumerate(answers):
        path, comment = out.answer(stem, i), json.dumps(record | {"answer": i})
        if out.clips:
            save_mp4(answer, path, fps, max(1, 64 // answer.shape[-1]), comment)
            for k, frame in enumerate(answer.unbind(1)):  # an mp4 changes pixels, these do not
                _write_exact(path.with_suffix("") / f"{k:05d}.png", frame, comment)
        else:
            _write_exact(path, answer, comment)
        seal_file(path)
        about["files"].append(path.name)
    if len(answers) > 1 and not out.of_path:
        spread = edit.spread(answers, len(answers))[0]
        about |= {"uncertainty": float(spread.mean()), "largest_uncertainty": float(spread.max())}
        frames = spread.transpose(0, 1) if out.clips else spread[None]
        scaled = (255 * frames / frames.max().clamp(min=1e-6)).round().to(torch.uint8)
        text = json.dumps(record | {"white": about["largest_uncertainty"]})
        save_grid(scaled, out.spread(stem), comment=text)
        seal_file(out.spread(stem))
        if not out.clips:
            _write_sheet(out.sheet(stem), shown, answers, scaled, text)
    elif out.of_path:
        _write_sheet(out.sheet(stem), None, answers, None, json.dumps(record))
    return about


def _write_exact(path: Path, picture: Tensor, comment: str) -> None:
    save_grid(picture[None], path, comment=comment)
    if len(picture) not in CHANNEL_MODES:  # no picture holds them: the file shows them side by side
        file = io.BytesIO()
        np.save(file, picture.cpu().numpy())
        atomic_write(path.with_suffix(_ARRAY), file.getvalue())


def _write_sheet(path: Path, shown: Tensor | None, answers: Tensor, spread: Tensor | None, comment: str) -> None:
    """Input, answers and uncertainty side by side."""
    cells = [to_uint8(answers)]
    if spread is not None:
        cells.append(spread.expand(1, answers.shape[1], *spread.shape[-2:]))
    if shown is not None and shown.shape == answers.shape[1:]:
        cells.insert(0, to_uint8(shown[None]))
    each = torch.cat([cell.cpu() for cell in cells])
    columns = len(each) if len(each) <= 10 else None
    upscale = max(1, _SHOWN // 4 // max(each.shape[-2:]))
    sheet = grid(each, columns, 1)
    save_grid(sheet[None], path, upscale=upscale, comment=comment)
    seal_file(path)


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write what was done into the folder of the answers."""
    atomic_write(folder / RECORD, json_bytes(record))

"""A photograph's bytes to its whole upright picture."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ornstein.data.colour import flatten
from ornstein.data.decode import (
    LIMIT_PIXELS,
    MIN_SIDE,
    BadImage,
    check_pixels,
    opened,
    orientation_of,
    strict_pillow,
    to_array,
    upright,
)
from ornstein.errors import UserError


def decode_photo(data: bytes, limit_pixels: int = LIMIT_PIXELS, managed: bool = True) -> Tensor:
    """The whole picture in a file's bytes: uint8 (3, H, W), upright.

    EXIF rotation is applied, the first frame of an animation is taken, colours are converted to sRGB by their profile
    (with `managed` false they stay as they are stored), transparency is laid over white, 16 bits are scaled to 8, grey
    becomes RGB.

    Raises:
        BadImage: with the reason, for anything but a sound image of at most `limit_pixels` pixels.
    """
    with strict_pillow(), opened(data) as img:
        check_pixels(*img.size, limit_pixels)
        if min(img.size) < MIN_SIDE:
            raise BadImage(f"too small: {img.width}x{img.height} pixels")
        img.load()
        picture = upright(flatten(img, 3, managed), orientation_of(img))
    return torch.from_numpy(to_array(picture).copy())


def read_photo(path: str | Path, limit_pixels: int = LIMIT_PIXELS) -> Tensor:
    """The whole upright picture in the file `path`, uint8 (3, H, W); UserError, with the reason, where it is none."""
    try:
        return decode_photo(Path(path).read_bytes(), limit_pixels)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except BadImage as bad:
        raise UserError(f"{path} cannot be used: {bad}") from None

"""A photograph's bytes to its whole upright picture."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ornstein.data.decode import (
    _UPRIGHT,
    LIMIT_PIXELS,
    MIN_SIDE,
    BadImage,
    _flatten,  # the same rules for 16 bits, transparency and EXIF as the training data's
    _formats,
    _orientation,
    strict_pillow,
    to_array,
)
from ornstein.errors import UserError


def decode_photo(data: bytes, limit_pixels: int = LIMIT_PIXELS) -> Tensor:
    """The whole picture in a file's bytes: uint8 (3, H, W), upright.

    EXIF rotation is applied, the first frame of an animation is taken, transparency laid over white, 16 bits scaled to
    8, grey made RGB. Raises BadImage, with the reason, for all that is not a sound image of at most `limit_pixels`
    pixels.
    """
    try:
        with strict_pillow(), Image.open(BytesIO(data), formats=_formats()) as img:
            width, height = img.size
            if width * height > limit_pixels:
                raise BadImage(f"{width}x{height} pixels: more than the limit of {limit_pixels:,}")
            if min(width, height) < MIN_SIDE:
                raise BadImage(f"too small: {width}x{height} pixels")
            img.load()
            orientation = _orientation(img)
            picture = _flatten(img, 3)
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage("not an image, or its header is damaged") from None
    except Image.DecompressionBombError:
        raise BadImage(f"more pixels than Pillow opens ({2 * (Image.MAX_IMAGE_PIXELS or 0):,})") from None
    except Exception as error:  # decoders raise nearly everything on damaged input
        raise BadImage(f"damaged: {error or type(error).__name__}".replace("\n", " ")) from None
    if orientation in _UPRIGHT:
        picture = picture.transpose(_UPRIGHT[orientation])
    return torch.from_numpy(to_array(picture).copy())


def read_photo(path: str | Path, limit_pixels: int = LIMIT_PIXELS) -> Tensor:
    """The whole upright picture in the file `path`, uint8 (3, H, W); UserError, with the reason, where it is none."""
    try:
        return decode_photo(Path(path).read_bytes(), limit_pixels)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except BadImage as bad:
        raise UserError(f"{path} cannot be used: {bad}") from None

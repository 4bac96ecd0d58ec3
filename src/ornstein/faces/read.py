"""Photographs read whole and upright."""

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
from ornstein.data.kinds import HEIC, is_animation, kind_of, open_regular
from ornstein.data.sources import MAX_FILE_BYTES
from ornstein.errors import UserError

__all__ = ["decode_photo", "photo_bytes", "read_photo", "refuse_animation"]


def decode_photo(data: bytes, limit_pixels: int = LIMIT_PIXELS) -> Tensor:
    """Decode a photo: uint8 (3, H, W), upright.

    EXIF rotation is applied; of an animation the first picture is taken, and of a phone's file of several pictures
    (MPO) the photo; transparency is laid over white, 16 bits are scaled to 8, grey becomes RGB.

    Raises:
        BadImage: with the reason, if it is no sound image of at most `limit_pixels` pixels.
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
        raise BadImage(_unreadable(data)) from None
    except Image.DecompressionBombError:
        raise BadImage(f"more pixels than Pillow opens ({2 * (Image.MAX_IMAGE_PIXELS or 0):,})") from None
    except Exception as error:  # decoders raise nearly everything on damaged input
        raise BadImage(f"damaged: {error or type(error).__name__}".replace("\n", " ")) from None
    if orientation in _UPRIGHT:
        picture = picture.transpose(_UPRIGHT[orientation])
    return torch.from_numpy(to_array(picture).copy())


def read_photo(path: str | Path, limit_pixels: int = LIMIT_PIXELS) -> Tensor:
    """Read the photo `path`: uint8 (3, H, W), upright; see `decode_photo`.

    Raises:
        UserError: with the reason, if it cannot be read or is no photo.
    """
    try:
        return decode_photo(photo_bytes(path), limit_pixels)
    except BadImage as bad:
        raise UserError(f"{path} cannot be used: {bad}") from None


def photo_bytes(path: str | Path) -> bytes:
    """The bytes of the regular file `path`.

    Raises:
        UserError: it cannot be read, is empty, no regular file, or larger than any photo.
    """
    with open_regular(path) as file:
        try:
            data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    if len(data) > MAX_FILE_BYTES:
        raise UserError(f"{path} cannot be used: more than the limit of {MAX_FILE_BYTES // 2**20} MB")
    return data


def refuse_animation(data: bytes, path: str | Path) -> None:
    """Raises UserError if the picture is animated: a GIF, WebP, PNG or AVIF with several pictures.

    (A phone's JPEG with a second picture, or a TIFF with several pages, is a photo.)
    """
    if is_animation(BytesIO(data)):
        kind = kind_of(data[:400])
        form = "file" if kind is None else kind.mime.partition("/")[2].upper()
        raise UserError(f"{path} is an animation, {form} with several pictures: save it as an mp4 first")


def _unreadable(data: bytes) -> str:
    """Why Pillow does not open it: what it is instead."""
    kind = kind_of(data[:400])
    if kind is HEIC:
        return "it is a HEIC picture, which needs pillow-heif: pip install pillow-heif, or save it as JPEG"
    if kind is not None:
        video = "; to swap faces in it, give it as the target, and an .mp4 to write" if kind.video else ""
        return f"it is {kind.name}, and no picture that can be read{video}"
    return "not an image, or its header is damaged"

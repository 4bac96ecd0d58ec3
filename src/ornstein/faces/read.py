"""Photographs read whole and upright."""

from __future__ import annotations

from io import BytesIO
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
from ornstein.data.entry import MAX_FILE_BYTES
from ornstein.data.kinds import KIND_BYTES, is_animation, kind_of, open_regular
from ornstein.errors import UserError

__all__ = ["decode_photo", "photo_bytes", "read_photo", "refuse_animation"]


def decode_photo(data: bytes, limit_pixels: int = LIMIT_PIXELS, managed: bool = True) -> Tensor:
    """The whole picture in a file's bytes: uint8 (3, H, W), upright.

    EXIF rotation is applied, the first frame of an animation is taken, colours are converted to sRGB by their profile
    (with `managed` false they stay as they are stored), transparency is laid over white, 16 bits are scaled to 8, grey
    becomes RGB.

    Raises:
        BadImage: with the reason, for anything but a sound image of at most `limit_pixels` pixels.
    """
    kind = kind_of(data[:KIND_BYTES])
    if kind is not None and kind.video:
        raise BadImage(f"it is {kind.name}: to swap faces in it, give it as the target, and an .mp4 to write")
    with strict_pillow(), opened(data) as img:
        check_pixels(*img.size, limit_pixels)
        if min(img.size) < MIN_SIDE:
            raise BadImage(f"too small: {img.width}x{img.height} pixels")
        img.load()
        picture = upright(flatten(img, 3, managed), orientation_of(img))
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
        kind = kind_of(data[:KIND_BYTES])
        form = "file" if kind is None else kind.mime.partition("/")[2].upper()
        raise UserError(f"{path} is an animation, {form} with several pictures: save it as an mp4 first")

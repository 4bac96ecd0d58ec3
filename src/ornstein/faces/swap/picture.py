"""The target photograph, with its stored colours and transparency, and the file that it becomes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ornstein.data.decode import LIMIT_PIXELS, BadImage, opened, orientation_of, strict_pillow, to_array, upright
from ornstein.errors import RunError, UserError
from ornstein.faces.read import decode_photo, photo_bytes, refuse_animation

__all__ = ["SUFFIXES", "Picture", "encode", "read_picture"]

_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT, _INCH = 282, 283, 296, 2  # of EXIF
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_FORMAT = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_OPTIONS: dict[str, dict[str, object]] = {
    "PNG": {"compress_level": 4},  # 2 % larger than level 6, in half the time
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True, "exact": True},
}


@dataclass(frozen=True, eq=False)
class Picture:
    """A photograph, upright.

    pixels: uint8 (3, H, W), the stored colours, also where they are transparent. shown: uint8 (3, H, W), laid over
    white, for the detector. alpha: uint8 (1, H, W), if it has one. grey: it was stored without colour. profile: its ICC
    profile. dpi: its pixels an inch, across and along.
    """

    pixels: Tensor
    shown: Tensor
    alpha: Tensor | None = None
    grey: bool = False
    profile: bytes | None = None
    dpi: tuple[float, float] | None = None

    def painted(self, pixels: Tensor, alpha: Tensor | None) -> Picture:
        """This picture with other colours uint8 (3, H, W) and transparency, and the same metadata."""
        return replace(self, pixels=pixels, alpha=alpha)


def read_picture(path: str | Path, limit_pixels: int = LIMIT_PIXELS) -> Picture:
    """The photograph in the file `path`. Sixteen bits become eight; inks (CMYK) become sRGB.

    Raises:
        UserError: with the reason, if it is none, has more than `limit_pixels` pixels, or is an animation.
    """
    path = Path(path)
    try:
        data = photo_bytes(path)
        refuse_animation(data, path)
        with strict_pillow(), opened(data) as img:
            # colours keep their own profile; that of inks does not belong to the RGB that is written
            shown = decode_photo(data, limit_pixels, managed=img.mode == "CMYK")
            orientation = orientation_of(img)
            profile, grey = img.info.get("icc_profile"), img.mode in ("1", "L", "LA", "I", "I;16", "I;16B")
            pixels, alpha, dpi = shown, None, _dpi(img)
            if img.has_transparency_data:
                rgba = to_array(upright(img.convert("RGBA"), orientation))
                pixels, alpha = torch.from_numpy(rgba[:3].copy()), torch.from_numpy(rgba[3:].copy())
    except BadImage as bad:
        raise UserError(f"{path} cannot be used: {bad}") from None
    keep = profile if isinstance(profile, bytes) and profile[16:20] == (b"GRAY" if grey else b"RGB ") else None
    return Picture(pixels, shown, alpha, grey, keep, dpi)


def encode(picture: Picture, suffix: str, quality: int | None = None) -> bytes:
    """The picture as a file of that kind: PNG and WebP to the last bit, JPEG at `quality`, by default 95.

    Raises:
        UserError: JPEG would lose the transparency.
        RunError: the format cannot hold so many pixels.
    """
    form = _FORMAT[suffix]
    channels = [picture.pixels[:1] if picture.grey else picture.pixels]
    if picture.alpha is not None:
        if form == "JPEG":
            raise UserError("JPEG keeps no transparency and the target has some: write a .png or a .webp")
        channels.append(picture.alpha)
    array = np.ascontiguousarray(torch.cat(channels).permute(1, 2, 0).numpy())
    out = BytesIO()
    image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    try:
        options = _OPTIONS[form] | ({"quality": quality} if quality is not None and form == "JPEG" else {})
        image.save(out, form, icc_profile=picture.profile, **options, **_resolution(picture, form))
    except (OSError, ValueError) as error:
        height, width = array.shape[:2]
        raise RunError(f"cannot write {width}x{height} pixels as {form}: {error}; a .png takes any size") from None
    return out.getvalue()


def _dpi(img: Image.Image) -> tuple[float, float] | None:
    stated = img.info.get("dpi")
    try:
        x, y = (float(each) for each in stated)  # pyright: ignore[reportOptionalIterable]
    except (TypeError, ValueError):
        return None
    return (x, y) if 1 <= x < 65535 and 1 <= y < 65535 else None


def _resolution(picture: Picture, form: str) -> dict[str, object]:
    """The options that keep the resolution. WebP has no field of its own for it: it goes into EXIF data."""
    if picture.dpi is None:
        return {}
    if form != "WEBP":
        return {"dpi": picture.dpi}
    exif = Image.Exif()
    exif[_X_RESOLUTION], exif[_Y_RESOLUTION], exif[_RESOLUTION_UNIT] = *picture.dpi, _INCH
    return {"exif": exif}

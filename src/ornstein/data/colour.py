"""Pictures of any mode and colour profile to 8-bit grey or sRGB."""

from __future__ import annotations

import io
import struct
from functools import lru_cache

import numpy as np
from PIL import ExifTags, Image, ImageCms

from ornstein.data.entry import BadImage

__all__ = ["CHANNEL_MODES", "flatten"]

CHANNEL_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_WITH_ALPHA = {2: "L", 4: "RGB"}  # the mode without it
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
_PROFILE_BYTES = 2**24
# Colorants of Adobe RGB (1998) relative to D50, as its ICC profile states them, and its gamma, 563/256.
_ADOBE_COLORANTS = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
_ADOBE_GAMMA = 563 / 256


def flatten(img: Image.Image, channels: int, managed: bool = True) -> Image.Image:
    """Any picture as "L" (1 channel), "LA" (2), "RGB" (3) or "RGBA" (4).

    16 bits are scaled to 8, by 1/257. Colours are converted to sRGB by the picture's ICC profile, with littlecms and
    the perceptual intent; pictures without a profile are sRGB, but those that their camera marks as Adobe RGB (EXIF
    interoperability R03). Transparency is laid over white; with 2 or 4 channels it is kept, and pixels of alpha 0
    become black, since a network should not have to learn colours that nobody sees. With `managed` false the colours
    stay as they are stored. Raises BadImage for 32-bit samples.
    """
    profile = _profile(img) if managed else None
    alpha: Image.Image | None = None
    if img.mode.startswith("I;16") or (img.mode == "I" and img.format in ("PNG", "PPM", "JPEG2000")):
        img, alpha = _from_16_bits(img)
    elif img.mode in ("I", "F"):
        raise BadImage("32-bit samples have no agreed white level: save it with 8 or 16 bits")
    elif img.has_transparency_data:
        clear = img.info.get("transparency")
        if isinstance(clear, tuple) and max(clear) > 255:  # a colour of 16 bits, of pixels that Pillow reads with 8
            img.info["transparency"] = tuple(level >> 8 for level in clear)
        both = img.convert("LA" if img.mode in ("L", "LA", "La") else "RGBA")
        alpha, img = both.getchannel("A"), both.convert("L" if both.mode == "LA" else "RGB")
    img = _to_srgb(img, profile)
    if channels in _WITH_ALPHA:
        return _with_alpha(img.convert(_WITH_ALPHA[channels]), alpha)
    if alpha is not None:
        img = Image.composite(img, Image.new(img.mode, img.size, "white"), alpha)
    return img.convert(CHANNEL_MODES[channels])


def _with_alpha(img: Image.Image, alpha: Image.Image | None) -> Image.Image:
    alpha = Image.new("L", img.size, 255) if alpha is None else alpha
    seen = alpha.point([0] + [255] * 255)
    img = Image.composite(img, Image.new(img.mode, img.size), seen)
    img.putalpha(alpha)
    return img


def _from_16_bits(img: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """16-bit grey in 8 bits, and its transparency if one level is declared transparent."""
    tags = getattr(img, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    levels = np.asarray(img)
    grey = levels.astype(np.float32) * (255 / (2**bits - 1))
    if tags.get(_PHOTOMETRIC) == 0:  # TIFF's WhiteIsZero, which Pillow inverts only at 8 bits
        grey = 255 - grey
    clear = img.info.get("transparency")
    alpha = None
    if isinstance(clear, int):
        alpha = Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8))
    return Image.fromarray(np.rint(grey).clip(0, 255).astype(np.uint8)), alpha


def _profile(img: Image.Image) -> bytes | None:
    profile = img.info.get("icc_profile")
    if isinstance(profile, bytes) and 128 <= len(profile) <= _PROFILE_BYTES:
        return profile
    return _adobe_rgb() if img.mode == "RGB" and _marked_adobe_rgb(img) else None


def _marked_adobe_rgb(img: Image.Image) -> bool:
    """Whether the camera says Adobe RGB and gives no profile, as the DCF standard has it."""
    try:
        exif = img.getexif()
        return bool(exif) and exif.get_ifd(ExifTags.IFD.Interop).get(ExifTags.Interop.InteropIndex) == "R03"
    except Exception:  # damaged EXIF says nothing about the pixels
        return False


def _to_srgb(img: Image.Image, profile: bytes | None) -> Image.Image:
    """A picture without transparency as "L" or "RGB"."""
    if img.mode == "1":
        img = img.convert("L")
    elif img.mode not in ("L", "RGB", "CMYK", "LAB"):
        img = img.convert("RGB")
    if profile is not None and img.mode == "L":
        return img.point(_grey_curve(profile))
    transform = None if profile is None else _transform(profile, img.mode)
    if transform is None and img.mode == "LAB":
        transform = _lab()
    if transform is not None:
        converted = ImageCms.applyTransform(img, transform)
        assert converted is not None  # it is only when the picture is changed in place
        return converted
    return img if img.mode == "L" else img.convert("RGB")


@lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From colours of `mode` with this profile to sRGB; None if the profile is damaged, of another mode, or sRGB."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        if mode == "RGB":
            levels = np.linspace(0, 255, 9).round().astype(np.uint8)
            cube = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(27, 27, 3)
            changed = np.asarray(ImageCms.applyTransform(Image.fromarray(cube), transform))
            if np.abs(changed.astype(int) - cube).max() <= 1:
                return None
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return transform


@lru_cache(maxsize=64)
def _grey_curve(profile: bytes) -> list[int]:
    """The level in sRGB of each of 256 levels of grey with this profile; themselves if it is none of grey."""
    try:
        source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        exact = ImageCms.Flags.NOOPTIMIZE
        transform = ImageCms.buildTransform(source, target, "L", "RGB", flags=exact)
        levels = ImageCms.applyTransform(Image.fromarray(np.arange(256, dtype=np.uint8)[None]), transform)
        return np.asarray(levels)[0, :, 0].tolist()
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return list(range(256))


@lru_cache(maxsize=1)
def _lab() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")


@lru_cache(maxsize=1)
def _adobe_rgb() -> bytes:
    """An ICC profile (version 2) of Adobe RGB (1998)."""

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    def xyz(values: tuple[float, float, float]) -> bytes:
        return b"XYZ \0\0\0\0" + fixed(*values)

    curve = b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(_ADOBE_GAMMA * 256), 0)
    text = b"desc\0\0\0\0" + struct.pack(">I", 4) + b"RGB\0" + bytes(79)
    tags = [(b"desc", text + bytes(-len(text) % 4)), (b"wtpt", xyz((0.9642, 1.0, 0.8249)))]
    tags += [(name, xyz(values)) for name, values in zip((b"rXYZ", b"gXYZ", b"bXYZ"), _ADOBE_COLORANTS, strict=True)]
    tags += [(name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")]
    at = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags:
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    head = struct.pack(">I4sI4s4s4s", at + len(body), b"\0\0\0\0", 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    head = head.ljust(36, b"\0") + b"acsp"
    head = head.ljust(68, b"\0") + fixed(0.9642, 1.0, 0.8249)
    return head.ljust(128, b"\0") + table + body

"""The pictures of an animated GIF, WebP, PNG or AVIF, and how long each is shown."""

import os
from collections.abc import Iterator
from typing import IO

import numpy as np
from PIL import Image

from ornstein.data.decode import LIMIT_PIXELS, BadImage, strict_pillow
from ornstein.data.kinds import GIF, PNG, WEBP, kind_of

__all__ = ["read_animation"]

_FORMATS = ("GIF", "WEBP", "PNG", "AVIF")
_SHORTEST, _USUAL = 11, 100  # ms: browsers show a picture with a shorter time than the first for the second
_MOST_BLOCKS = 10**7  # of a GIF or PNG: 2 GB in blocks of the usual size


def read_animation(file: IO[bytes], limit_pixels: int = LIMIT_PIXELS) -> Iterator[tuple[np.ndarray, int]]:
    """Each picture, uint8 (H, W, 3), with its duration in milliseconds; transparency is laid over white.

    A still picture is an animation of one. Bytes after the end of a GIF or PNG are ignored.

    Raises:
        BadImage: with the reason, if it is no such file, damaged or cut short: possibly after many pictures.
    """
    try:
        _check_whole(file)
        with strict_pillow(), Image.open(file, formats=_FORMATS) as img:
            if img.width * img.height > limit_pixels:
                raise BadImage(f"{img.width}x{img.height} pixels: more than the limit of {limit_pixels:,}")
            # The first picture of some PNGs is for programs that know no animations, and no part of it.
            first = int(bool(img.info.get("default_image")))
            for number in range(first, getattr(img, "n_frames", 1)):
                img.seek(number)
                rgba = img.convert("RGBA")
                flat = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
                duration = round(img.info.get("duration") or 0)
                yield np.asarray(flat), duration if duration >= _SHORTEST else _USUAL
    except BadImage:
        raise
    except Image.DecompressionBombError:
        raise BadImage(f"more pixels than the limit of {limit_pixels:,}") from None
    except Exception as error:  # decoders raise nearly everything on damaged input
        raise BadImage(f"damaged animation: {error or type(error).__name__}".replace("\n", " ")) from None


def _check_whole(file: IO[bytes]) -> None:
    """Raises BadImage if the file ends before its last block: Pillow would give the pictures before without a word."""
    file.seek(0)
    head = file.read(16)
    kind = kind_of(head)
    if kind is GIF:
        whole = _gif_ends(file)
    elif kind is PNG:
        whole = _png_ends(file)
    elif kind is WEBP:
        whole = file.seek(0, os.SEEK_END) >= int.from_bytes(head[4:8], "little") + 8
    else:
        whole = True
    file.seek(0)
    if not whole:
        raise BadImage("cut short: its end mark is missing")


def _gif_ends(file: IO[bytes]) -> bool:
    """Whether a GIF's blocks lead to its trailer."""
    file.seek(10)
    flags = file.read(3)
    file.seek(_colours(flags[:1]), os.SEEK_CUR)
    mark = b""
    for _ in range(_MOST_BLOCKS):
        if mark:  # within a picture or an extension, whose sub-blocks end with an empty one
            size = file.read(1)
            if not size:
                return False
            file.seek(size[0], os.SEEK_CUR)
            mark = mark if size[0] else b""
            continue
        mark = file.read(1)
        if mark == b";":
            return True
        if mark == b",":
            flags = file.read(9)[8:]
            file.seek(_colours(flags) + 1, os.SEEK_CUR)  # its palette and the size of its codes
        elif mark == b"!":
            file.seek(1, os.SEEK_CUR)
        elif mark == b"\0":  # some writers pad with zeros
            mark = b""
        else:
            return False
    return False


def _colours(flags: bytes) -> int:
    """The bytes of the palette that these flags announce."""
    return 3 << ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0


def _png_ends(file: IO[bytes]) -> bool:
    file.seek(8)
    for _ in range(_MOST_BLOCKS):
        head = file.read(8)
        if len(head) < 8:
            return False
        if head[4:] == b"IEND":
            return True
        file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    return False

"""One file's bytes to one square uint8 image, or the reason why not."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

LIMIT_PIXELS = 89_478_485  # a quarter of a gigabyte as RGB: above every camera, below every bomb
MIN_SIDE = 2
MAX_ENLARGEMENT = 8
# A list of our own, so that a file named .jpg cannot reach the readers that start other programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _ORIENTATION = 258, 262, 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(Exception):
    """The file gives no image that can be used; the message is the reason shown to the user."""


def decode(
    data: bytes, size: int | None, channels: int, limit_pixels: int = LIMIT_PIXELS
) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode one file: uint8 (C, size, size) and the (width, height) in pixels of the upright original.

    The centre square is cut out and resized with Lanczos' filter; size=None keeps its pixels. EXIF rotation
    is applied; of an animation the first frame is taken; transparency is laid over white; 16-bit greys are
    scaled by 1/257; channels=1 gives the luma (ITU-R BT.601), channels=3 RGB. Colour profiles are not used.
    Raises BadImage, with the reason, for all that is not a sound image of at most `limit_pixels` pixels. (One
    kind of damage passes: a JPEG cut short and then closed with an end marker, which the decoder fills up.)
    """
    try:
        with Image.open(BytesIO(data), formats=_formats()) as img:
            width, height = img.size
            if width * height > limit_pixels:
                raise BadImage(f"{width}x{height} pixels: more than the limit of {limit_pixels:,}")
            check_side(min(width, height), size)
            extent = None
            if size is not None:
                # JPEG can decode at 1/2, 1/4 or 1/8. Twice the final size is left for Lanczos to work on.
                drafted = img.draft(None, (2 * size, 2 * size))  # pyright: ignore[reportArgumentType]
                extent = drafted and (drafted[1][2], drafted[1][3])
            img.load()
            orientation = _orientation(img)
            square = fit(_flatten(img, channels), size, extent)
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage("not an image, or its header is damaged") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise BadImage(f"more pixels than Pillow opens ({limit:,})") from None
    except Exception as error:  # decoders raise nearly everything on damaged input
        raise BadImage(f"damaged: {error or type(error).__name__}".replace("\n", " ")) from None
    if orientation in _UPRIGHT:
        square = square.transpose(_UPRIGHT[orientation])
        if orientation >= 5:
            width, height = height, width
    return to_array(square), (width, height)


def fit(img: Image.Image, size: int | None, extent: tuple[float, float] | None = None) -> Image.Image:
    """The centre square of an "L" or "RGB" picture, resized to `size` pixels a side.

    `extent` is the width and height of what the picture shows, where its last column and row are only partly
    filled: JPEG's reduced decoding rounds up, and the excess would shift and stretch the result.
    """
    width, height = extent or img.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    if size is None or size == side:
        left, top, side = int(left), int(top), int(side)
        return img.crop((left, top, left + side, top + side))
    box = (left, top, left + side, top + side)
    # First a box reduction to 3 times the size, then the filter: much faster on large images.
    return img.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


def to_array(img: Image.Image) -> np.ndarray:
    """The pixels of an "L" or "RGB" picture: uint8 (C, H, W)."""
    array = np.asarray(img)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


@contextmanager
def strict_pillow() -> Iterator[None]:
    """Hold Pillow's process-wide switches while decoding: damaged files fail, and no warnings are printed."""
    truncated = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # True would hand out half-grey images without a word
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `limit_pixels` decides
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = truncated


def check_side(side: int, size: int | None) -> None:
    """Raises BadImage where an image of that shorter side cannot be used, or not at that size."""
    if side < MIN_SIDE:
        raise BadImage(f"too small: {side} pixel a side")
    if size is not None and side * MAX_ENLARGEMENT < size:
        raise BadImage(f"too small: {side} pixels a side, size {size} enlarges it more than {MAX_ENLARGEMENT} times")


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _orientation(img: Image.Image) -> int:
    try:
        return int(img.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF says nothing about the pixels
        return 1


def _flatten(img: Image.Image, channels: int) -> Image.Image:
    """Any mode to "L" or "RGB": 16 bits scaled to 8, transparency over white, palettes and CMYK resolved."""
    sixteen = img.mode.startswith("I;16") or (img.mode == "I" and img.format in ("PNG", "PPM"))
    if sixteen:
        tags = getattr(img, "tag_v2", {})
        bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
        grey = np.asarray(img).astype(np.float32) * (255 / (2**bits - 1))
        if tags.get(_PHOTOMETRIC) == 0:  # TIFF's WhiteIsZero, which Pillow inverts only at 8 bits
            grey = 255 - grey
        img = Image.fromarray(np.rint(grey).clip(0, 255).astype(np.uint8))
    elif img.mode in ("I", "F"):
        raise BadImage("32-bit samples have no agreed white level: save it with 8 or 16 bits")
    elif img.has_transparency_data:
        rgba = img.convert("RGBA")
        img = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return img.convert("L" if channels == 1 else "RGB")

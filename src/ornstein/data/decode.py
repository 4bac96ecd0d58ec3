"""The bytes of one file to one uint8 image, or the reason why it cannot be used."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from ornstein.data.colour import CHANNEL_MODES, flatten
from ornstein.data.entry import MAX_FILE_BYTES, BadImage, Entry, reason_of
from ornstein.data.framing import Framing, Size, framing
from ornstein.data.kinds import KIND_BYTES, kind_of
from ornstein.errors import UserError
from ornstein.settings import extent_text

__all__ = [
    "LIMIT_PIXELS",
    "MAX_ENLARGEMENT",
    "MIN_SIDE",
    "BadImage",
    "check_form",
    "check_picture",
    "check_pixels",
    "check_side",
    "decode",
    "decode_entry",
    "fit",
    "formats",
    "opened",
    "orientation_of",
    "stored_size",
    "strict_pillow",
    "to_array",
    "upright",
]

LIMIT_PIXELS = 89_478_485  # a quarter of a gigabyte as RGB: above every camera, below every bomb
MIN_SIDE = 2
MAX_ENLARGEMENT = 8
# An explicit list, so that a file named .jpg cannot reach the readers that start other programs (EPS). TGA is last:
# it has no signature.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "HEIF", "JXL", "TGA")
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
# Of a file larger than this the header is judged before the rest is read.
_HEAD_BYTES = 2**20
_FREE_BYTES, _BYTES_A_PIXEL = 64 * 2**20, 16  # what a file may need, at most, for its pixels
_LARGE_PIXELS = 2**24
_one_large = threading.Lock()  # threads decode one large picture at a time: each takes up to half a gigabyte
# Formats that another package reads, by their media types: the reader's name in Pillow, and the package.
_READERS = {"image/heic": ("HEIF", "pillow-heif"), "image/jxl": ("JXL", "pillow-jxl-plugin")}


def decode(
    data: bytes, size: Size, channels: int, limit_pixels: int = LIMIT_PIXELS
) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode one file: uint8 (C, H, W) and the (width, height) in pixels of the upright original.

    The part that `size` frames, by default the centre, is cut out and resized with Lanczos' filter; size=None keeps
    the pixels of the centre square. EXIF rotation is applied; of an animation the first frame is taken; colour profiles
    are converted to sRGB; transparency is laid over white, but for 2 and 4 channels, which keep it; 16-bit greys are
    scaled by 1/257 (see `colour.flatten`). channels=1 gives the luma (ITU-R BT.601), 3 RGB, 2 and 4 these with alpha.

    Raises:
        BadImage: with the reason, for anything but a sound image of at most `limit_pixels` pixels. (One kind of damage
            passes: a JPEG cut short and then closed with an end marker, which the decoder fills up.)
    """
    with opened(data) as img:
        width, height = img.size
        check_pixels(width, height, limit_pixels)
        frame = framing(size)
        check_side(width, height, size)
        with _one_large if width * height > _LARGE_PIXELS else nullcontext():
            extent = None
            if frame.size is not None and img.format in ("JPEG", "MPO"):
                # It can decode at 1/2, 1/4 or 1/8. Twice the final size is left for Lanczos to work on.
                h, w = _as_stored(frame, img).size or frame.size
                drafted = img.draft(None, (2 * w, 2 * h))  # pyright: ignore[reportArgumentType]
                extent = drafted and (drafted[1][2], drafted[1][3])
            img.load()
            frame, orientation = _as_stored(frame, img), orientation_of(img)
            part = fit(flatten(img, channels), frame, extent)
    sideways = orientation in _SIDEWAYS
    if sideways:
        width, height = height, width
    return to_array(upright(part, orientation)), (width, height)


def _as_stored(frame: Framing, img: Image.Image) -> Framing:
    """The framing of a picture before it is turned upright."""
    return frame.turned() if orientation_of(img) in _SIDEWAYS else frame


def decode_entry(
    entry: Entry, size: Size, channels: int, limit_pixels: int = LIMIT_PIXELS
) -> tuple[np.ndarray, tuple[int, int], bytes]:
    """As `decode` for a file of a source, and its bytes. The header of a large file is judged before the rest is read.

    Raises:
        BadImage: as `decode`, and for a file with many more bytes than its pixels can need.
    """
    if entry.size > _HEAD_BYTES:
        _check_header(entry, limit_pixels)
    data = entry.read()
    return *decode(data, size, channels, limit_pixels), data


def stored_size(entry: Entry) -> tuple[int, int]:
    """(width, height) of the upright picture in a file, by its header. Raises BadImage if it cannot be read."""
    try:
        return _upright_size(entry.read(0, _HEAD_BYTES))
    except BadImage:
        if entry.size <= _HEAD_BYTES:
            raise
        return _upright_size(entry.read())  # a TIFF's header may lie at its end


def _upright_size(data: bytes) -> tuple[int, int]:
    with opened(data) as img:
        width, height = img.size
        sideways = img.format != "PNG" and orientation_of(img) in _SIDEWAYS  # to look for a PNG's decodes it
    return (height, width) if sideways else (width, height)


def _check_header(entry: Entry, limit_pixels: int) -> None:
    head = entry.read(0, _HEAD_BYTES)
    allowed = _FREE_BYTES
    try:
        if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):  # a TIFF's header may lie at its end
            with entry.open() as stream, Image.open(stream, formats=["TIFF"]) as img:
                width, height = img.size
        else:
            with Image.open(BytesIO(head), formats=formats()) as img:
                width, height = img.size
    except UnidentifiedImageError:
        if kind_of(head[:KIND_BYTES]) is None:
            raise BadImage(_unreadable(head)) from None
    except Image.DecompressionBombError:
        raise _too_many_pixels() from None
    except Exception:  # the header goes on behind the part that was read, or is damaged: `decode` tells
        pass
    else:
        check_pixels(width, height, limit_pixels)
        allowed += _BYTES_A_PIXEL * width * height
    if entry.size > min(allowed, MAX_FILE_BYTES):
        raise BadImage(f"{entry.size / 2**20:,.0f} MB: more than an image of its size can need, or not an image")


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """The picture in a file's bytes, open; what its decoder raises inside becomes BadImage, with the reason."""
    try:
        with Image.open(BytesIO(data), formats=formats()) as img:
            yield img
    except (BadImage, UserError):
        raise
    except UnidentifiedImageError:
        raise BadImage(_unreadable(data)) from None
    except Image.DecompressionBombError:
        raise _too_many_pixels() from None
    except Exception as error:  # decoders raise nearly everything on damaged input
        raise BadImage(f"damaged: {reason_of(error)}") from None


def upright(img: Image.Image, orientation: int) -> Image.Image:
    """The picture turned or mirrored as EXIF's `orientation` states (1 to 8; Exif 2.3, section 4.6.4)."""
    return img.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else img


def fit(img: Image.Image, size: Size, extent: tuple[float, float] | None = None) -> Image.Image:
    """The part of a picture that `size` frames, by default the centre, resized.

    `extent` is the width and height of what the picture shows, if its last column and row are only partly filled:
    JPEG's reduced decoding rounds up, and the excess would shift and stretch the result.
    """
    width, height = extent or img.size
    frame = framing(size)
    left, top, right, bottom = frame.box(width, height)
    h, w = frame.shape(*img.size)
    if (right - left, bottom - top) == (w, h):
        left, top = int(left), int(top)
        return img.crop((left, top, left + w, top + h))
    # First a box reduction to 3 times the size, then the filter: much faster on large images.
    return img.resize((w, h), Image.Resampling.LANCZOS, box=(left, top, right, bottom), reducing_gap=3.0)


def to_array(img: Image.Image) -> np.ndarray:
    """The pixels of a picture of a mode of `CHANNEL_MODES`: uint8 (C, H, W)."""
    array = np.asarray(img)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


@contextmanager
def strict_pillow() -> Iterator[None]:
    """Set Pillow's process-wide switches for decoding: damaged files fail, and no warnings are printed."""
    truncated = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # True would return half-grey images without a word
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `limit_pixels` decides
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = truncated


def check_pixels(width: int, height: int, limit: int) -> None:
    """Raises BadImage for a picture of more than `limit` pixels."""
    if width * height > limit:
        raise BadImage(f"{width}x{height} pixels: more than the limit of {limit:,}")


def check_side(width: int, height: int, size: Size) -> None:
    """Raises BadImage if an image of that size cannot be used, or not at the size that is asked for, however turned."""
    side, frame = min(width, height), framing(size)
    if side < MIN_SIDE:
        raise BadImage(f"too small: {side} pixel a side")
    if frame.size is None:
        return
    if min(frame.enlargement(width, height), frame.enlargement(height, width)) > MAX_ENLARGEMENT:
        wanted = extent_text(frame.size)
        small = f"{side} pixels a side" if frame.size[0] == frame.size[1] else f"{width}x{height} pixels"
        raise BadImage(f"too small: {small}, size {wanted} enlarges it more than {MAX_ENLARGEMENT} times")


def check_form(size: Size, channels: int | None) -> None:
    """Raises UserError for a size below 2 pixels a side, or fewer channels than 1."""
    framing(size)
    if channels is not None and channels < 1:
        raise UserError(f"channels must be at least 1, not {channels}")


def check_picture(channels: int) -> None:
    """Raises UserError for channels that pictures in files cannot be read with."""
    if channels not in CHANNEL_MODES:
        raise UserError(
            f"pictures are read with channels 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGBA), not {channels}: give "
            "an array, .npy or .npz"
        )


@lru_cache(maxsize=1)
def formats() -> tuple[str, ...]:
    """The formats that are read: those of Pillow, HEIC if pillow-heif is installed, JPEG XL if pillow-jxl is."""
    Image.init()
    with suppress(ImportError):
        import pillow_heif  # pyright: ignore[reportMissingImports]  (optional)

        pillow_heif.register_heif_opener()
    with suppress(ImportError):
        import pillow_jxl  # noqa: F401  # pyright: ignore[reportMissingImports]  (optional; registers itself)
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def orientation_of(img: Image.Image) -> int:
    """The orientation by EXIF, 1 if there is none."""
    try:
        return int(img.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF says nothing about the pixels
        return 1


def _too_many_pixels() -> BadImage:
    return BadImage(f"more pixels than Pillow opens ({2 * (Image.MAX_IMAGE_PIXELS or 0):,})")


def _unreadable(data: bytes) -> str:
    """Why Pillow does not open a file, by its first bytes."""
    kind = kind_of(data[:KIND_BYTES])
    if kind is None or kind.mime == "image/jpeg":
        return "not an image, or its header is damaged"
    name, package = _READERS.get(kind.mime, ("", ""))
    if name and name not in formats():
        return f"it is {kind.name}, which needs {package}: pip install {package}, or save it as JPEG"
    if kind.mime.startswith("image/"):
        return f"it is {kind.name} that cannot be read: damaged, or of a form that Pillow does not know"
    return f"it is {kind.name}, and no picture that can be read"

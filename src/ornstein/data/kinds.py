"""What kind of file something is, by its first bytes: names and suffixes can be wrong."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ornstein.errors import UserError

__all__ = ["KIND_BYTES", "Kind", "is_animation", "kind_of", "kind_of_file", "open_descriptor", "open_regular"]

KIND_BYTES = 400  # bytes: two packets of an MPEG transport stream
_MAX_CHUNKS = 4096  # of a PNG before its pixels


@dataclass(frozen=True)
class Kind:
    """A kind of file. name: for messages, with its article. mime: its media type. video: read by libav as a film."""

    name: str
    mime: str
    video: bool = False


JPEG, PNG, WEBP = (
    Kind("a JPEG picture", "image/jpeg"),
    Kind("a PNG picture", "image/png"),
    Kind("a WebP picture", "image/webp"),
)
GIF, AVIF, HEIC = (
    Kind("a GIF", "image/gif"),
    Kind("an AVIF picture", "image/avif"),
    Kind("a HEIC picture", "image/heic"),
)
_MP4, _MOV = Kind("an MP4 video", "video/mp4", True), Kind("a QuickTime video", "video/quicktime", True)

_MAGIC: tuple[tuple[int, bytes, Kind], ...] = (  # (offset, bytes, kind)
    (0, b"\xff\xd8\xff", JPEG),
    (0, b"\x89PNG\r\n\x1a\n", PNG),
    (0, b"GIF8", GIF),
    (8, b"WEBP", WEBP),
    (8, b"AVI ", Kind("an AVI video", "video/x-msvideo", True)),
    (0, b"BM", Kind("a BMP picture", "image/bmp")),
    (0, b"II*\0", Kind("a TIFF picture", "image/tiff")),
    (0, b"MM\0*", Kind("a TIFF picture", "image/tiff")),
    (0, b"\xff\x0a", Kind("a JPEG XL picture", "image/jxl")),
    (4, b"JXL \r\n\x87\n", Kind("a JPEG XL picture", "image/jxl")),
    (4, b"jP  \r\n\x87\n", Kind("a JPEG 2000 picture", "image/jp2")),
    (0, b"\xff\x4f\xff\x51", Kind("a JPEG 2000 picture", "image/jp2")),
    (0, b"\x00\x00\x01\xba", Kind("an MPEG programme stream", "video/mpeg", True)),
    (0, b"\x00\x00\x01\xb3", Kind("an MPEG video stream", "video/mpeg", True)),
    (0, b"FLV\x01", Kind("a Flash video", "video/x-flv", True)),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", Kind("a Windows Media file", "video/x-ms-wmv", True)),
    (0, b"OggS", Kind("an Ogg file", "video/ogg", True)),
    (0, b"%PDF", Kind("a PDF document", "application/pdf")),
    (0, b"PK\x03\x04", Kind("a zip archive", "application/zip")),
    (0, b"RIFF", Kind("a RIFF file without pictures", "application/octet-stream")),
    (0, b"ID3", Kind("an MP3 sound file", "audio/mpeg")),
)
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"), HEIC),
    **dict.fromkeys((b"avif", b"avis"), AVIF),
    b"qt  ": _MOV,
    **dict.fromkeys((b"3gp4", b"3gp5", b"3gp6", b"3ge6", b"3gg6"), Kind("a 3GP video", "video/3gpp", True)),
    **dict.fromkeys((b"3g2a", b"3g2b", b"3g2c"), Kind("a 3GP2 video", "video/3gpp2", True)),
    b"crx ": Kind("a Canon raw picture", "image/x-canon-cr3"),
    b"M4A ": Kind("an MPEG-4 sound file", "audio/mp4"),
}
_ATOMS = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")  # how QuickTime files without a brand begin


def kind_of(head: bytes) -> Kind | None:
    """The kind of a file that begins with these bytes (400 are enough); None if it is none of those known here."""
    if head[4:8] == b"ftyp":
        kind = _BRANDS.get(head[8:12], _MP4)
        # "mif1" stands for any picture of the family: the compatible brands tell them apart
        return AVIF if kind is HEIC and b"avif" in head[16:64] else kind
    if head[4:8] in _ATOMS:
        return _MOV
    if head[:4] == b"\x1a\x45\xdf\xa3":
        webm = b"webm" in head[:64]
        return Kind("a WebM video", "video/webm", True) if webm else Kind("a Matroska video", "video/x-matroska", True)
    for start, step in ((0, 188), (4, 192)):
        if len(head) > start + step and head[start] == head[start + step] == 0x47:
            return Kind("an MPEG transport stream", "video/mp2t", True)
    return next((kind for at, magic, kind in _MAGIC if head[at : at + len(magic)] == magic), None)


def is_animation(file: IO[bytes]) -> bool:
    """Whether a GIF, WebP, PNG or AVIF holds several pictures, by its headers; the position goes back to the start.

    A phone's JPEG with a second, smaller picture in it (MPO) is a photo.
    """
    try:
        file.seek(0)
        head = file.read(KIND_BYTES)
        kind = kind_of(head)
        if kind is WEBP:
            return head[12:16] == b"VP8X" and bool(head[20] & 2)
        if kind is AVIF:
            return head[8:12] == b"avis"
        if kind is PNG:
            file.seek(8)
            return _has_frames(file)
        if kind is GIF:
            from PIL import Image

            file.seek(0)
            with Image.open(file, formats=("GIF",)) as img:
                return bool(getattr(img, "is_animated", False))
        return False
    except Exception:  # decoders raise nearly everything on damaged input; the reader says what is wrong
        return False
    finally:
        file.seek(0)


def _has_frames(file: IO[bytes]) -> bool:
    """Whether a PNG's chunks have an acTL with more than one frame before the pixels."""
    for _ in range(_MAX_CHUNKS):
        head = file.read(8)
        if len(head) < 8 or head[4:] in (b"IDAT", b"IEND"):
            return False
        if head[4:] == b"acTL":
            return int.from_bytes(file.read(4), "big") > 1
        file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    return False


def open_descriptor(path: str | Path) -> tuple[int, os.stat_result]:
    """Open `path` for reading without waiting for a pipe's writer: its descriptor and status. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    return handle, os.fstat(handle)


def open_regular(path: str | Path) -> IO[bytes]:
    """Open a regular file for reading; a link to one is followed.

    Raises:
        UserError: there is no such file, it cannot be read, or it is a folder, a device or a pipe, whose reading may
            never end; or it is empty.
    """
    try:
        handle, status = open_descriptor(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
        os.close(handle)
        if stat.S_ISDIR(status.st_mode):
            raise UserError(f"{path} is a folder: give a file")
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is not a regular file but a pipe or a device: give a file")
        raise UserError(f"{path} is an empty file")
    return os.fdopen(handle, "rb")


def kind_of_file(path: str | Path) -> Kind | None:
    """The kind of the file `path` by its content.

    Raises:
        UserError: as `open_regular`.
    """
    with open_regular(path) as file:
        return kind_of(file.read(KIND_BYTES))

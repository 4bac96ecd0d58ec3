"""Colour profiles: what is decoded against the colours by the defining equations, in float64."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from ornstein.data.decode import decode

D50, D65 = np.array([0.9642, 1.0, 0.8249]), np.array([0.3127 / 0.3290, 1.0, (1 - 0.3127 - 0.3290) / 0.3290])
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
DISPLAY_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
ADOBE_RGB = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def to_xyz(primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
    """From linear RGB with these primaries and white D65 to XYZ."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    return columns * np.linalg.solve(columns, D65)


ADAPT = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / (BRADFORD @ D65)) @ BRADFORD  # D65 to D50


def srgb_decoded(v: np.ndarray) -> np.ndarray:
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def srgb_encoded(linear: np.ndarray) -> np.ndarray:
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def profile(space: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr", pcs: bytes = b"XYZ ") -> bytes:
    """The bytes of an ICC profile, version 2.1 (ICC.1:2001-04)."""
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(79), b"wtpt": xyz(D50)} | tags
    at = 132 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s12s4s", at + len(body), bytes(4), 0x02100000, kind, space, pcs, bytes(12), b"acsp")
    return (head.ljust(68, b"\0") + xyz(D50)[8:]).ljust(128, b"\0") + table + body


def xyz(values: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(float(v) * 65536)) for v in values)


def curve(values: np.ndarray) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">I", len(values)) + values.round().astype(">u2").tobytes()


LEVELS = np.linspace(0, 1, 1024)


def matrix_profile(primaries: tuple[tuple[float, float], ...], decoded: np.ndarray) -> bytes:
    columns = (ADAPT @ to_xyz(primaries)).T
    tags = {name: xyz(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)}
    return profile(b"RGB ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve(65535 * decoded)))


P3 = matrix_profile(DISPLAY_P3, srgb_decoded(LEVELS))
ADOBE = matrix_profile(ADOBE_RGB, LEVELS ** (563 / 256))


def expected(primaries: tuple[tuple[float, float], ...], decoded: np.ndarray) -> np.ndarray:
    """sRGB, 0..255 and not rounded, of linear colours (..., 3) with other primaries."""
    linear = decoded @ (np.linalg.inv(to_xyz(SRGB)) @ to_xyz(primaries)).T
    return srgb_encoded(linear)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


COLOURS = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("space", ["P3", "Adobe RGB"])
def test_pictures_of_wide_gamut_are_converted_to_srgb(kind: str, space: str) -> None:
    values = COLOURS / 255
    if space == "P3":
        icc, want = P3, expected(DISPLAY_P3, srgb_decoded(values))
    else:
        icc, want = ADOBE, expected(ADOBE_RGB, values ** (563 / 256))
    options: dict[str, object] = {"lossless": True} if kind == "WEBP" else {}
    image, _ = decode(encoded(Image.fromarray(COLOURS), kind, icc_profile=icc, **options), None, 3)
    difference = np.abs(image.transpose(1, 2, 0) - want)
    assert difference.max() < 1.6 and difference.mean() < 0.5
    plain, _ = decode(encoded(Image.fromarray(COLOURS), kind, **options), None, 3)
    assert np.abs(plain.transpose(1, 2, 0) - want).max() > 30  # what reading them as sRGB was wrong by
    grey, _ = decode(encoded(Image.fromarray(COLOURS), kind, icc_profile=icc, **options), None, 1)
    assert np.abs(grey[0] - want @ [0.299, 0.587, 0.114]).max() < 2.5


def test_a_jpeg_with_a_profile_at_a_smaller_size() -> None:
    picture = Image.new("RGB", (400, 300), (200, 40, 90))
    want = expected(DISPLAY_P3, srgb_decoded(np.array([200, 40, 90]) / 255))
    image, _ = decode(encoded(picture, "JPEG", quality=95, icc_profile=P3), 16, 3)
    assert np.abs(image - want[:, None, None]).max() < 4
    assert np.abs(np.array([200, 40, 90]) - want).max() > 15


def test_a_camera_that_says_adobe_rgb_without_a_profile_is_believed() -> None:
    exif = b"Exif\0\0MM\0*" + struct.pack(">I", 8)  # three directories of one entry each
    exif += struct.pack(">HHHIII", 1, 0x8769, 4, 1, 26, 0) + struct.pack(">HHHIII", 1, 0xA005, 4, 1, 44, 0)
    exif += struct.pack(">HHHI4sI", 1, 1, 2, 4, b"R03\0", 0)
    data = encoded(Image.fromarray(COLOURS), "PNG", exif=exif)
    with Image.open(io.BytesIO(data)) as img:
        assert img.getexif().get_ifd(0xA005)[1] == "R03"
    want = expected(ADOBE_RGB, (COLOURS / 255) ** (563 / 256))
    image, _ = decode(data, None, 3)
    assert np.abs(image.transpose(1, 2, 0) - want).max() < 2


def test_a_profile_of_srgb_changes_nothing() -> None:
    for icc in (
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        matrix_profile(SRGB, srgb_decoded(LEVELS)),
    ):
        image, _ = decode(encoded(Image.fromarray(COLOURS), "PNG", icc_profile=icc), None, 3)
        np.testing.assert_array_equal(image.transpose(1, 2, 0), COLOURS)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grey_profile(channels: int) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    icc = profile(b"GRAY", {b"kTRC": curve(65535 * LEVELS**1.5)})
    image, _ = decode(encoded(Image.fromarray(levels), "PNG", icc_profile=icc), None, channels)
    want = srgb_encoded((levels / 255) ** 1.5)
    assert np.abs(image - want).max() < 1.6 and np.abs(levels - want).max() > 20
    sixteen = encoded(Image.fromarray(levels.astype(np.uint16) * 257), "PNG", icc_profile=icc)
    assert np.abs(decode(sixteen, None, channels)[0] - want).max() < 1.6


CYAN = (55.0, -35.0, -48.0)  # CIE Lab of full cyan ink in the profile below


def ink_profile() -> bytes:
    """CMYK with white paper and a cyan of its own, all else black."""
    lab = np.zeros((16, 3))
    lab[0], lab[8] = (100, 0, 0), CYAN  # cyan is the slowest of the four
    grid = np.stack([lab[:, 0] * 255 / 100, lab[:, 1] + 128, lab[:, 2] + 128], -1).round().astype(np.uint8)
    linear = np.arange(256, dtype=np.uint8).tobytes()
    identity = b"".join(struct.pack(">i", 65536 * (i % 4 == 0)) for i in range(9))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + 4 * linear + grid.tobytes() + 3 * linear
    return profile(b"CMYK", {b"A2B0": table}, b"prtr", b"Lab ")


def of_lab(lab: tuple[float, float, float]) -> np.ndarray:
    fy = (lab[0] + 16) / 116
    f = np.array([fy + lab[1] / 500, fy, fy - lab[2] / 200])
    white_d50 = D50 * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    return srgb_encoded(np.linalg.inv(ADAPT @ to_xyz(SRGB)) @ white_d50)


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_inks_are_converted_by_their_profile(kind: str) -> None:
    for inks, lab in (((0, 0, 0, 0), (100.0, 0.0, 0.0)), ((255, 0, 0, 0), CYAN), ((0, 0, 0, 255), (0.0, 0.0, 0.0))):
        data = encoded(
            Image.new("CMYK", (16, 16), inks),
            kind,
            icc_profile=ink_profile(),
            **({"quality": 98} if kind == "JPEG" else {}),
        )
        image, _ = decode(data, None, 3)
        assert np.abs(image[:, 8, 8] - of_lab(lab)).max() < 4, (inks, image[:, 8, 8], of_lab(lab))


def test_a_picture_in_lab() -> None:
    image, _ = decode(encoded(Image.new("LAB", (8, 8), (140, 150, 100)), "TIFF"), None, 3)
    want = of_lab((140 * 100 / 255, 150 - 128, 100 - 128))
    assert np.abs(image[:, 4, 4] - want).max() < 3


def test_transparency_is_laid_over_white_after_the_conversion() -> None:
    picture = Image.new("RGBA", (8, 8), (200, 40, 90, 128))
    colour = expected(DISPLAY_P3, srgb_decoded(np.array([200, 40, 90]) / 255))
    image, _ = decode(encoded(picture, "PNG", icc_profile=P3), None, 3)
    assert np.abs(image[:, 4, 4] - (colour * 128 + 255 * 127) / 255).max() < 1.6


@pytest.mark.parametrize("icc", [b"junk" * 100, P3[:200], b"", P3.replace(b"RGB ", b"CMYK", 1), bytes(4000)])
def test_a_damaged_or_foreign_profile_does_not_cost_the_picture(icc: bytes) -> None:
    image, _ = decode(encoded(Image.fromarray(COLOURS), "PNG", icc_profile=icc), None, 3)
    np.testing.assert_array_equal(image.transpose(1, 2, 0), COLOURS)


def test_a_grey_level_declared_transparent_at_16_bits_is_white() -> None:
    levels = np.full((8, 8), 1000, np.uint16)
    levels[:4] = 257 * 40
    data = bytearray(encoded(Image.fromarray(levels), "PNG"))
    at = data.index(b"IDAT") - 4
    body = b"tRNS" + struct.pack(">H", 1000)
    data[at:at] = struct.pack(">I", 2) + body + struct.pack(">I", zlib.crc32(body))
    image, _ = decode(bytes(data), None, 3)
    assert (image[:, 4:] == 255).all() and (image[:, :4] == 40).all()


def test_a_colour_declared_transparent_at_16_bits_is_white() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    levels = np.full((8, 8, 3), 257 * 40, ">u2")
    levels[4:] = 1000, 2000, 3000
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in levels))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
    clear = chunk(b"tRNS", struct.pack(">HHH", 1000, 2000, 3000))
    image, _ = decode(b"\x89PNG\r\n\x1a\n" + head + clear + chunk(b"IDAT", rows) + chunk(b"IEND", b""), None, 3)
    assert (image[:, 4:] == 255).all() and (image[:, :4] == 40).all()


@pytest.mark.parametrize(
    ("kind", "options"), [("TGA", {}), ("TGA", {"compression": "tga_rle"}), ("JPEG2000", {"irreversible": False})]
)
def test_formats_without_loss(kind: str, options: dict[str, object]) -> None:
    image, _ = decode(encoded(Image.fromarray(COLOURS), kind, **options), None, 3)
    np.testing.assert_array_equal(image.transpose(1, 2, 0), COLOURS)


def test_heic() -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    y, x = np.mgrid[:64, :64] * 4
    smooth = np.stack([x, y, 255 - x], -1).astype(np.uint8)
    image, _ = decode(encoded(Image.fromarray(smooth), "HEIF", quality=95), None, 3)
    assert np.abs(image.transpose(1, 2, 0).astype(int) - smooth).mean() < 2

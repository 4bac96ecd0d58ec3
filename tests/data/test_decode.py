import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageFile, features

from ornstein.data.decode import BadImage, decode, strict_pillow


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def scene(width: int = 96, height: int = 64) -> np.ndarray:
    """A smooth RGB picture without any symmetry, (H, W, 3)."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    return np.rint(255 * np.stack([x, y, np.sin(3 * x + y) ** 2], axis=-1)).astype(np.uint8)


def centre(pixels: np.ndarray) -> np.ndarray:
    h, w = pixels.shape[:2]
    side = min(h, w)
    return pixels[(h - side) // 2 :][:side, (w - side) // 2 :][:, :side].transpose(2, 0, 1)


def reason(data: bytes, size: int | None = 16, **options: int) -> str:
    with pytest.raises(BadImage) as caught:
        decode(data, size, 3, **options)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


LOSSLESS = ["PNG", "BMP", "TIFF", "PPM", "WEBP"]


@pytest.mark.parametrize("kind", LOSSLESS)
def test_native_size_is_the_centre_square_untouched(kind: str) -> None:
    data = encoded(Image.fromarray(scene()), kind, **({"lossless": True} if kind == "WEBP" else {}))
    image, original = decode(data, None, 3)
    assert original == (96, 64)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, centre(scene()))


@pytest.mark.parametrize("size", [16, 33, 64, 128])
def test_resizing_keeps_a_linear_ramp_and_the_centre(size: int) -> None:
    # A pixel of the smaller picture covers `scale` pixels; a ramp's value at its centre is known exactly.
    scale = 64 / size
    at = (np.arange(size) + 0.5) * scale - 0.5
    inner = (at > 3 * scale) & (at < 63 - 3 * scale)  # the filter's support stays inside
    x = np.tile(np.arange(96) * 2.0, (64, 1))
    ramps = np.stack([x, x, x], axis=-1).astype(np.uint8)
    image, _ = decode(encoded(Image.fromarray(ramps), "PNG"), size, 3)
    np.testing.assert_allclose(image[0][:, inner], np.tile((at[inner] + 16) * 2, (size, 1)), atol=0.6)


def test_of_what_is_cut_off_only_the_filters_reach_shows() -> None:
    pixels = np.full((32, 96, 3), 255, dtype=np.uint8)
    pixels[:, 32:64] = 40
    image, _ = decode(encoded(Image.fromarray(pixels), "PNG"), 16, 3)
    assert (image[:, :, 3:-3] == 40).all()  # Lanczos-3 reaches three pixels far


@pytest.mark.parametrize("shape", [(600, 400), (601, 399), (393, 607), (1201, 801)])
def test_jpegs_reduced_decoding_looks_like_the_full_one(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    picture = noise.resize(shape, Image.Resampling.BICUBIC)
    data = encoded(picture, "JPEG", quality=95)
    fast, original = decode(data, 32, 3)
    slow, _ = decode(encoded(Image.open(BytesIO(data)), "PNG"), 32, 3)
    assert original == shape
    difference = np.abs(fast.astype(int) - slow)
    assert difference.mean() < 2 and difference.max() < 16


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(kind: str, orientation: int) -> None:
    # Each code names where the stored first row and first column lie in the upright picture (Exif 2.3, 4.6.4).
    store = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 98, "subsampling": 0} if kind == "JPEG" else {}
    stored = Image.fromarray(np.ascontiguousarray(store(scene())))
    image, original = decode(encoded(stored, kind, exif=exif, **options), None, 3)
    assert original == (96, 64)
    np.testing.assert_allclose(image.astype(int), centre(scene()), atol=6)


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xff\xff\xff",  # the directory lies outside
        struct.pack("<IHHHI4sI", 8, 1, 0x0112, 2, 4, b"up\0\0", 0),  # the orientation is a text
    ],
)
def test_damaged_exif_does_not_cost_the_image(body: bytes) -> None:
    data = encoded(Image.fromarray(scene()), "JPEG", exif=b"Exif\0\0II*\0" + body)
    with strict_pillow():
        assert decode(data, 16, 3)[0].shape == (3, 16, 16)


LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (10, 200, 90)])
def test_one_channel_is_the_luma(colour: tuple[int, int, int]) -> None:
    image, _ = decode(encoded(Image.new("RGB", (8, 8), colour), "PNG"), None, 1)
    assert image.shape == (1, 8, 8)
    assert abs(image[0, 0, 0] - LUMA @ colour) <= 1


def test_grey_becomes_rgb() -> None:
    image, _ = decode(encoded(Image.new("L", (8, 8), 77), "PNG"), None, 3)
    assert image.shape == (3, 8, 8) and (image == 77).all()


@pytest.mark.parametrize("alpha", [0, 128, 255])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_over_white(mode: str, alpha: int) -> None:
    if mode == "P":
        picture = Image.new("P", (8, 8), 1)
        picture.putpalette([0, 0, 0, 60, 60, 60])
        data = encoded(picture, "PNG", transparency=bytes([255, alpha]))
    else:
        data = encoded(Image.new(mode, (8, 8), (60, alpha) if mode == "LA" else (60, 60, 60, alpha)), "PNG")
    image, _ = decode(data, None, 3)
    np.testing.assert_allclose(image, 60 * alpha / 255 + 255 * (1 - alpha / 255), atol=1)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_colour_declared_transparent_is_white(mode: str) -> None:
    colour = (9, 8, 7) if mode == "RGB" else 9
    image, _ = decode(encoded(Image.new(mode, (8, 8), colour), "PNG", transparency=colour), None, 3)
    assert (image == 255).all()


def test_palette_cmyk_and_one_bit() -> None:
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert decode(encoded(palette, "PNG"), None, 3)[0][:, 0, 0].tolist() == [10, 20, 30]
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for data in (encoded(ink, "TIFF"), encoded(ink, "JPEG", quality=98)):
        np.testing.assert_allclose(decode(data, None, 3)[0][:, 4, 4].astype(int), [255, 0, 0], atol=3)
    bits = Image.fromarray(np.eye(8, dtype=np.uint8) * 255).convert("1")
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(decode(encoded(bits, kind), None, 1)[0][0], np.eye(8) * 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    levels = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    levels[7, 7] = 65535
    image, _ = decode(encoded(Image.fromarray(levels), kind), None, 1)
    np.testing.assert_array_equal(image[0], np.rint(levels / 257))


def test_sixteen_bit_rgb() -> None:
    # Pillow cannot write it, so the file is put together here: one row after the other, filter 0.
    levels = np.linspace(0, 65535, 8 * 8 * 3).astype(">u2").reshape(8, 8, 3)
    rows = b"".join(b"\0" + row.tobytes() for row in levels)
    data = png(8, 8, bits=16, colour=2, rows=rows)
    np.testing.assert_allclose(decode(data, None, 3)[0], levels.transpose(2, 0, 1) / 257, atol=1.0)


def test_sixteen_bit_tiff_with_white_as_zero() -> None:
    levels = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    data = encoded(Image.fromarray(levels), "TIFF")
    ((at),) = [i for i in range(len(data) - 12) if data[i : i + 8] == struct.pack("<HHI", 262, 3, 1)]
    assert data[at + 8] == 1
    inverted = data[: at + 8] + b"\0" + data[at + 9 :]
    np.testing.assert_allclose(decode(inverted, None, 1)[0][0], 255 - levels / 257, atol=0.51)


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with Image.open(BytesIO(data)) as animation:
        assert getattr(animation, "n_frames", 1) == 3
    np.testing.assert_allclose(decode(data, None, 3)[0][:, 8, 8].astype(int), [255, 0, 0], atol=6)


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.6, 0.98])
@pytest.mark.parametrize("size", [None, 8])  # 8: with JPEG's reduced decoding
@pytest.mark.parametrize("kind", ["JPEG", "progressive", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files_are_refused(kind: str, size: int | None, keep: float) -> None:
    progressive = kind == "progressive"
    data = encoded(Image.fromarray(scene()), "JPEG", progressive=True) if progressive else None
    data = data or encoded(Image.fromarray(scene()), kind)
    sound, _ = decode(data, size, 3)
    try:
        image, _ = decode(data[: int(len(data) * keep)], size, 3)
    except BadImage:
        return
    # Only PNG's last checksums may be missing: then not a pixel is.
    assert kind == "PNG" and keep == 0.98
    np.testing.assert_array_equal(image, sound)


def test_truncated_jpeg_is_refused_whatever_the_process_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encoded(Image.fromarray(scene()), "JPEG")[:-300]
    with strict_pillow():
        assert "truncated" in reason(data)
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_flipped_bit_in_a_png_is_found() -> None:
    data = bytearray(encoded(Image.fromarray(scene()), "PNG"))
    data[len(data) // 2] ^= 1
    assert reason(bytes(data)).startswith("damaged")


@pytest.mark.parametrize(
    "data", [b"not a picture\n", b"\0" * 100, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_other_content(data: bytes) -> None:
    assert "not an image" in reason(data)


def png(width: int, height: int, bits: int = 8, colour: int = 2, rows: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [9_999, 12_000, 100_000, 2**31 - 1])
def test_bombs_are_refused_from_the_header(side: int) -> None:
    with strict_pillow():
        why = reason(png(side, side))  # were it decoded, the missing rows would be the reason
    assert "pixels: more than the limit" in why or "more pixels than Pillow opens" in why


def test_the_limit_counts_pixels() -> None:
    data = encoded(Image.fromarray(scene()), "PNG")
    assert decode(data, 16, 3, limit_pixels=96 * 64)
    assert reason(data, limit_pixels=96 * 64 - 1) == "96x64 pixels: more than the limit of 6,143"


def test_too_small_to_use() -> None:
    assert reason(encoded(Image.new("RGB", (1, 1)), "PNG")) == "too small: 1 pixel a side"
    assert reason(encoded(Image.new("RGB", (500, 1)), "PNG"), None) == "too small: 1 pixel a side"
    data = encoded(Image.new("RGB", (4, 9)), "PNG")
    assert decode(data, 32, 3)[0].shape == (3, 32, 32)
    assert "more than 8 times" in reason(data, 33)


def test_samples_without_a_white_level() -> None:
    assert "32-bit" in reason(encoded(Image.new("F", (8, 8), 0.5), "TIFF"))
    assert "32-bit" in reason(encoded(Image.new("I", (8, 8), 70_000), "TIFF"))


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow is built without AVIF")
def test_avif() -> None:
    image, _ = decode(encoded(Image.fromarray(scene()), "AVIF", quality=95), None, 3)
    assert np.abs(image.astype(int) - centre(scene())).mean() < 3

"""Whole pictures from bytes: the same rules as for training images, without the square."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein.data.decode import BadImage
from ornstein.errors import UserError
from ornstein.faces.read import decode_photo, read_photo


def png(img: Image.Image, **options: object) -> bytes:
    data = BytesIO()
    img.save(data, "PNG", **options)
    return data.getvalue()


def test_the_whole_picture_upright() -> None:
    pixels = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    assert torch.equal(decode_photo(png(Image.fromarray(pixels))), torch.from_numpy(pixels).permute(2, 0, 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by a quarter
    turned = decode_photo(png(Image.fromarray(pixels), exif=exif))
    assert torch.equal(turned, torch.from_numpy(pixels).permute(2, 0, 1).rot90(-1, (1, 2)))


def test_sixteen_bits_grey_transparency_and_animation() -> None:
    sixteen = Image.fromarray(np.array([[0, 257 * 7], [257 * 200, 65535]], dtype=np.uint16))
    assert decode_photo(png(sixteen)).tolist() == [[[0, 7], [200, 255]]] * 3
    clear = Image.new("RGBA", (3, 3), (10, 20, 30, 0))
    assert (decode_photo(png(clear)) == 255).all()
    frames = [Image.new("L", (4, 4), value) for value in (9, 90)]
    data = BytesIO()
    frames[0].save(data, "GIF", save_all=True, append_images=frames[1:])
    assert (decode_photo(data.getvalue()) == 9).all()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"no picture", "not an image"),
        (png(Image.effect_noise((60, 60), 50))[:500], "damaged|truncated"),
        (png(Image.new("L", (50, 1))), "too small: 50x1"),
        (png(Image.new("L", (50, 41))), "50x41 pixels: more than the limit of 2,000"),
    ],
)
def test_what_is_no_sound_picture(data: bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(BadImage, match=reason):
        decode_photo(data, limit_pixels=2000 if "limit" in reason else 10**6)
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"bad\.png cannot be used: .*({reason})"):
        read_photo(path, limit_pixels=2000 if "limit" in reason else 10**6)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none\.png"):
        read_photo(tmp_path / "none.png")

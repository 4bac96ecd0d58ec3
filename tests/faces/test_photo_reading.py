"""Whole pictures from bytes: the same rules as for training images, without the square."""

import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein.data.decode import BadImage
from ornstein.errors import UserError
from ornstein.faces.read import decode_photo, read_photo
from ornstein.faces.swap.film import is_video
from ornstein.faces.swap.picture import encode, read_picture


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


def test_a_phone_s_photo_with_a_second_picture_is_a_photo(tmp_path: Path) -> None:
    """MPO: a JPEG with a smaller picture behind it, as phones write; it was refused as an animation."""
    photo = Image.new("RGB", (80, 60), (200, 40, 40))
    photo.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (40, 30))])
    with Image.open(tmp_path / "a.jpg") as img:
        assert img.format == "MPO" and getattr(img, "n_frames", 1) == 2
    for pixels in (read_photo(tmp_path / "a.jpg"), read_picture(tmp_path / "a.jpg").pixels):
        assert pixels.shape == (3, 60, 80) and int(pixels[0].float().mean()) in range(197, 203)
    assert not is_video(tmp_path / "a.jpg")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_no_photo(tmp_path: Path, kind: str) -> None:
    pictures = [Image.new("RGB", (40, 30), (90 * i, 0, 0)) for i in range(3)]
    pictures[0].save(tmp_path / "a", kind, save_all=True, append_images=pictures[1:])
    with pytest.raises(UserError, match=rf"is an animation, {kind} with several pictures"):
        read_picture(tmp_path / "a")
    pictures[0].save(tmp_path / "one", kind)
    assert read_picture(tmp_path / "one").pixels.shape == (3, 30, 40)


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a Windows Media file: to swap faces in it, give it as the target"),
        (b"\x00\x00\x01\xba", "an MPEG programme stream: to swap"),
        ((b"G" + bytes(187)) * 3, "an MPEG transport stream: to swap"),
        (b"FLV\x01", "a Flash video"),
        (b"\0\0\0\x18ftypisom", "an MP4 video"),
        (b"%PDF-1.7", "a PDF document"),
        (b"PK\x03\x04", "a zip archive"),
    ],
)
def test_messages_say_what_a_file_is(tmp_path: Path, head: bytes, told: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(head + bytes(300))
    with pytest.raises(UserError, match=rf"a\.jpg cannot be used: .*{told}"):
        read_photo(path)


def test_an_empty_file_a_folder_and_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, told in (("empty", "empty file"), ("folder", "a folder"), ("pipe", "not a regular file")):
        for read in (read_photo, read_picture, is_video):
            with pytest.raises(UserError, match=rf"{name}\.jpg is .*{told}"):
                read(tmp_path / f"{name}.jpg")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("source", ["PNG", "JPEG", "TIFF"])
def test_the_resolution_is_kept(tmp_path: Path, source: str, suffix: str) -> None:
    Image.new("RGB", (40, 30), (200, 40, 40)).save(tmp_path / "a", source, dpi=(300, 150))
    picture = read_picture(tmp_path / "a")
    (tmp_path / f"b{suffix}").write_bytes(encode(picture.painted(picture.pixels, None), suffix))
    with Image.open(tmp_path / f"b{suffix}") as img:
        dpi = img.info.get("dpi") or (img.getexif()[282], img.getexif()[283])
    assert [float(each) for each in dpi] == pytest.approx([300, 150], abs=0.05)

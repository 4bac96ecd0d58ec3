"""Sizes, crops and buckets: what of a picture is used, and which pictures make a batch."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein.data import ImageSet, open_buckets, open_images, open_streamed
from ornstein.data.buckets import bucket_sizes
from ornstein.data.decode import fit
from ornstein.data.framing import Framing
from ornstein.errors import UserError
from ornstein.settings import extent_of, extent_text
from ornstein.training.loader import Loader
from ornstein.training.settings import Settings
from ornstein.training.task import Part
from running import ornstein, refused

SHAPES = ((64, 64), (96, 64), (64, 96), (128, 60))  # (width, height)


def ramp(width: int, height: int) -> Image.Image:
    """Red rises from left to right, green from top to bottom."""
    x = np.broadcast_to(np.linspace(0, 255, width)[None], (height, width))
    y = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], -1).round().astype(np.uint8))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """48 pictures of four aspect ratios, 20, 12, 8 and 8 of them, and a damaged one."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for i in range(48):
        shape = SHAPES[0 if i < 20 else 1 if i < 32 else 2 if i < 40 else 3]
        ramp(*shape).save(folder / f"{i:02d}.png")
    (folder / "zz.png").write_bytes(b"nothing")
    return folder


def test_a_size_is_a_side_or_width_x_height():
    assert [extent_of(size) for size in (64, "64", "96x64", "96X64", "96×64", "96,64", (64, 96))] == [
        (64, 64), (64, 64), *[(64, 96)] * 5,
    ]  # fmt: skip
    assert extent_text((64, 96)) == "96x64" and extent_text((64, 64)) == "64"
    assert Settings(data="digits", size="64x64").size == 64
    assert Settings(data="digits", size="96,64").size == "96x64"
    for wrong in ("96by64", "x", "64x", "1x64", "64x64x64", "-3", "1e3", "999999", ""):
        with pytest.raises(UserError, match=r"size"):
            extent_of(wrong)


def test_the_centre_a_corner_or_the_whole_of_a_picture():
    picture = ramp(96, 64)
    for frame, low, high in (
        (Framing((32, 32)), 1 / 6, 5 / 6),
        (Framing((32, 32), at=(0.0, 0.5)), 0, 2 / 3),
        (Framing((32, 32), at=(1.0, 0.5)), 1 / 3, 1),
        (Framing((32, 32), "none"), 0, 1),
        (Framing((32, 48)), 0, 1),
    ):
        pixels = np.asarray(fit(picture, frame)).astype(float) / 255
        assert pixels.shape[:2] == frame.size
        assert pixels[:, 0, 0].mean() == pytest.approx(low, abs=0.03)
        assert pixels[:, -1, 0].mean() == pytest.approx(high, abs=0.03)
        assert pixels[0, :, 1].mean() == pytest.approx(0, abs=0.03) and pixels[-1, :, 1].mean() > 0.97


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_rectangles_of_pictures_that_are_stored_on_their_side(tmp_path: Path, orientation: int, kind: str):
    upright = ramp(600, 400)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that EXIF's orientation undoes
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "set").mkdir()
    for i in range(2):
        stored.save(tmp_path / "set" / f"{i}.{kind}", exif=exif, quality=95)
    pixels = open_images(tmp_path / "set", (32, 48)).images[0].float() / 255
    assert pixels.shape == (3, 32, 48)
    torch.testing.assert_close(pixels[0].mean(0), torch.linspace(0, 1, 48), rtol=0, atol=0.04)
    torch.testing.assert_close(pixels[1].mean(1), torch.linspace(0, 1, 32), rtol=0, atol=0.04)


@pytest.mark.parametrize("side", [8, 16, 28, 32, 64, 100, 256, 512])
def test_buckets_have_about_the_area_of_the_square(side: int):
    sizes = bucket_sizes(side)
    assert len(set(sizes)) == len(sizes) and {(w, h) for h, w in sizes} == set(sizes)
    assert all(0.75 < h * w / side**2 < 1.25 for h, w in sizes)
    assert min(h / w for h, w in sizes) < 0.4 and max(h / w for h, w in sizes) > 2.5
    assert side % 8 or (side, side) in sizes


def test_each_picture_goes_to_the_nearest_bucket(mixed: Path):
    images = open_buckets(mixed, 32)
    assert len(images) == 48 and [name for name, _ in images.skipped] == ["zz.png"]
    assert images.shape == (3, 32, 32) and images.sizes[0] == (32, 32)
    for bucket in images.buckets:
        _, h, w = bucket.shape
        for name in bucket.names:
            width, height = Image.open(mixed / name).size
            apart = abs(math.log(width / height * h / w))
            assert apart <= min(abs(math.log(width / height * b.shape[1] / b.shape[2])) for b in images.buckets) + 1e-9
    assert "buckets: " in images.summary and "32 " in images.summary and "skipped: 1" in images.summary
    assert images.fingerprint == open_images(mixed, 32).fingerprint


def test_batches_are_of_one_bucket_and_use_every_picture_equally_often(mixed: Path):
    images = open_buckets(mixed, 32)
    used, of_bucket = Counter[int](), Counter[tuple[int, ...]]()
    steps, batch = 3 * 1024, 8
    for step in range(steps):
        rows = images.order(batch, step, seed=3)
        used.update(rows.tolist())
        if step < 64:
            of_bucket[images.batch(rows)[0].shape] += 1
    assert len(of_bucket) == len(images.buckets)
    mean = steps * batch / len(images)
    assert max(abs(used[i] - mean) for i in range(len(images))) < 0.02 * mean + 2
    # a function of the step alone
    assert torch.equal(images.order(batch, 2500, 3), open_buckets(mixed, 32).order(batch, 2500, 3))
    assert not torch.equal(images.order(batch, 0, 3), images.order(batch, 0, 4))
    with pytest.raises(ValueError, match="of one bucket"):
        images.batch([0, len(images) - 1])


def test_processes_share_a_batch_of_buckets(mixed: Path):
    images = open_buckets(mixed, 32)
    whole = Loader(images, 8, 0, [Part(0, 8, 8)], ahead=0)
    halves = [Loader(images, 8, 0, [Part(4 * rank, 4, 8)], ahead=0) for rank in range(2)]
    for step in (0, 7, 1500):
        together = torch.cat([half.batches(step)[0][0] for half in halves])
        assert torch.equal(whole.batches(step)[0][0], together)


def test_a_share_of_every_bucket_is_held_out(mixed: Path):
    images = open_buckets(mixed, 32)
    train, held_out = images.split(0.25, seed=0)
    assert isinstance(held_out, ImageSet) and held_out.shape == train.shape == images.shape
    assert [len(bucket) for bucket in train.buckets] == [len(b) - round(len(b) / 4) for b in images.buckets]
    assert not set(held_out.names) & set(train.names)


def test_buckets_with_few_pictures_are_given_up(tmp_path: Path):
    for i in range(40):
        ramp(*((200, 40) if i == 7 else (64, 64) if i % 2 else (96, 64))).save(tmp_path / f"{i}.png")
    images = open_buckets(tmp_path, 32)
    assert [len(bucket) for bucket in images.buckets] == [20, 20] or len(images.buckets) == 2
    wide = max(images.buckets, key=lambda b: b.shape[2])
    assert "7.png" in wide.names


def test_one_picture_has_no_buckets(tmp_path: Path):
    ramp(64, 40).save(tmp_path / "one.png")
    with pytest.raises(UserError, match="has one image, which is one size: --aspect buckets needs several"):
        open_buckets(tmp_path, 32)
    with pytest.raises(UserError, match="holds images of one size: leave out --aspect buckets"):
        open_buckets("digits", 8)


def test_random_crops_follow_from_seed_step_and_row(tmp_path: Path):
    for i in range(6):
        ramp(120, 60).save(tmp_path / f"{i}.png")
    images = open_streamed(tmp_path, 30, crop="random")
    assert images is not None
    whole = Loader(images, 4, 5, [Part(0, 4, 4)], ahead=0)
    first = whole.batches(2)[0][0]
    assert torch.equal(first, Loader(images, 4, 5, [Part(0, 4, 4)], ahead=0).batches(2)[0][0])
    halves = [Loader(images, 4, 5, [Part(2 * r, 2, 4)], ahead=0).batches(2)[0][0] for r in range(2)]
    assert torch.equal(first, torch.cat(halves))
    left = torch.stack([whole.batches(step)[0][0][:, 0, :, 0].mean(1) for step in range(40)]).flatten()
    place = (left + 1) / 2 / (1 - 30 / 60)  # 0 to 1: where the left edge of the crop lies
    assert float(place.min()) < 0.1 and float(place.max()) > 0.9
    assert float(place.mean()) == pytest.approx(0.5, abs=0.1)
    held_out = images.split(0.5, 0)[1].images.float() / 255
    assert float(held_out[:, 0, :, 0].mean()) == pytest.approx(0.25, abs=0.03)  # the centre


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--size", "96by64"], "WIDTHxHEIGHT, 96x64"),
        (["--size", "1x64"], "at least 2 pixels"),
        (["--size", "96x64", "--model", "vae"], "autoencoders are square"),
        (["--size", "96x64", "--aspect", "buckets"], "the side of the square"),
        (["--aspect", "buckets"], "needs --size"),
        (["--size", 32, "--aspect", "buckets", "--frames", 4], "leave out --frames"),
        (["--size", 32, "--aspect", "buckets", "--stream"], "leave out --stream"),
        (["--size", 32, "--aspect", "buckets", "--crop", "random"], "nothing to cut"),
        (["--size", 32, "--aspect", "buckets", "--latent", "x"], "diffusion on pixels"),
        (["--size", 32, "--crop", "random", "--frames", 4], "--crop random does nothing with --frames"),
        (["--size", 32, "--crop", "random", "--no-stream"], "leave out --no-stream"),
        (["--size", 32, "--crop", "middle"], "middle"),
        (["--channels", 0], "--channels"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, options: list, words: str):
    refused(ornstein("train", "--data", tmp_path, "--out", tmp_path / "run", *options), words)
    assert not (tmp_path / "run").exists()


def test_alpha_is_kept_with_two_and_four_channels(tmp_path: Path):
    rgba = np.zeros((2, 8, 8, 4), np.uint8)
    rgba[..., :3], rgba[:, :4, :, 3] = (200, 100, 50), 255
    for i, pixels in enumerate(rgba):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    kept = open_images(tmp_path, 8, 4).images[0]
    assert kept[:, 0, 0].tolist() == [200, 100, 50, 255] and kept[:, 7, 7].tolist() == [0, 0, 0, 0]
    grey = open_images(tmp_path, 4, 2).images[0]
    assert grey.shape == (2, 4, 4) and grey[1, 0, 0] == 255 and abs(int(grey[0, 0, 0]) - 124) < 4
    assert open_images(tmp_path, 8, 3).images[0][:, 7, 7].tolist() == [255, 255, 255]


@pytest.mark.parametrize("channels", [2, 4, 5, 7])
def test_arrays_of_any_channels_are_kept_as_they_are(tmp_path: Path, channels: int):
    values = np.random.default_rng(0).integers(0, 256, (3, 16, 24, channels), np.uint8)
    np.save(tmp_path / "x.npy", values)
    images = open_images(tmp_path / "x.npy", (16, 24))
    assert np.array_equal(images.images.numpy(), values.transpose(0, 3, 1, 2))
    half = open_images(tmp_path / "x.npy", (8, 12)).images
    for c in range(channels):  # one channel does not weigh another, as alpha would
        alone = np.asarray(Image.fromarray(values[0, ..., c]).resize((12, 8), Image.Resampling.LANCZOS, reducing_gap=3))
        assert np.array_equal(half[0, c].numpy(), alone)
    if channels > 4:
        with pytest.raises(UserError, match="cannot become 3"):
            open_images(tmp_path / "x.npy", channels=3)

"""Images in NumPy files."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ornstein.data import open_images, to_unit
from ornstein.errors import UserError


def pixels(n: int = 300, c: int = 3, side: int = 6) -> np.ndarray:
    return np.random.default_rng(n + c).integers(0, 256, (n, side, side, c), dtype=np.uint8)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("c", [1, 3])
def test_bytes_in_either_layout_are_the_pixels(tmp_path: Path, layout: str, c: int) -> None:
    x = pixels(c=c)
    np.save(tmp_path / "x.npy", x if layout == "NHWC" else x.transpose(0, 3, 1, 2).copy())
    images = open_images(tmp_path / "x.npy")
    assert images.shape == (c, 6, 6) and len(images) == 300 and images.labels is None
    assert torch.equal(images.images, torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    assert "uint8" in images.source


def test_greys_without_an_axis_of_channels_and_a_size(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.full((5, 9, 6), 77, np.uint8))  # 9 high, 6 wide
    images = open_images(tmp_path / "x.npy", size=4)
    assert images.shape == (1, 4, 4) and bool((images.images == 77).all())
    assert open_images(tmp_path / "x.npy", channels=3).shape == (3, 6, 6)
    with pytest.raises(UserError, match="too small: 6 pixels a side, size 64"):
        open_images(tmp_path / "x.npy", size=64)


@pytest.mark.parametrize(("low", "about"), [(0.0, "floats in [0, 1]"), (-1.0, "floats in [-1, 1]")])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_of_both_ranges_come_out_as_they_went_in(tmp_path: Path, low: float, about: str, dtype: type) -> None:
    x = np.linspace(low, 1, 300 * 4, dtype=dtype).reshape(300, 2, 2, 1)
    np.save(tmp_path / "x.npy", x)
    images = open_images(tmp_path / "x.npy")
    assert about in images.source
    back = to_unit(images.images)[:, 0].numpy()
    expected = x[..., 0].astype(np.float64) * (2 if low == 0 else 1) - (1 if low == 0 else 0)
    assert np.abs(back - expected).max() <= 1 / 255 + 2e-3 * (dtype == np.float16)


def test_an_archive_with_labels(tmp_path: Path) -> None:
    x, y = pixels(20), np.arange(20) % 3 + 5
    for name in ("plain", "packed"):
        save = np.savez if name == "plain" else np.savez_compressed
        save(tmp_path / f"{name}.npz", x=x, y=y[:, None], other=np.zeros(3))
        images = open_images(tmp_path / f"{name}.npz")
        assert images.classes == ["5", "6", "7"]
        assert images.labels is not None and images.labels.tolist() == (y - 5).tolist()
        assert torch.equal(images.images, torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    def refused(name: str, array: object, *words: str) -> None:
        path = tmp_path / name
        if path.suffix == ".npz":
            np.savez(path, **array)  # pyright: ignore[reportCallIssue]
        else:
            np.save(path, array, allow_pickle=True)  # pyright: ignore[reportArgumentType]
        with pytest.raises(UserError) as error:
            open_images(path)
        for word in (name, *words):
            assert word in str(error.value), str(error.value)
        assert "\n" not in str(error.value)

    x = np.zeros((300, 4, 4, 3), np.float32)
    x[270, 1, 1, 1] = np.nan
    refused("nan.npy", x, "nan.npy[270]", "not finite")
    x[270, 1, 1, 1] = 200
    refused("far.npy", x, "from 0 to 200", "[0, 1]")
    refused("int.npy", x.astype(np.int32), "int32")
    refused("flat.npy", np.zeros((3, 4), np.uint8), "(3, 4)")
    refused("odd.npy", np.zeros((3, 5, 7, 6), np.uint8), "(3, 5, 7, 6)", "--channels")
    refused("objects.npy", np.array([{"a": 1}], dtype=object), "Python objects")
    refused("fortran.npy", np.asfortranarray(np.zeros((5, 4, 4, 3), np.uint8)), "column by column")
    refused("two.npz", {"a": pixels(2), "b": pixels(2)}, "several, a, b", "images")
    refused("none.npz", {"a": np.zeros(3)}, "none")
    (tmp_path / "junk.npy").write_bytes(b"\x93NUMPY nothing of the kind")
    (tmp_path / "junk.npz").write_bytes(b"PK nothing of the kind")
    for name in ("junk.npy", "junk.npz"):
        with pytest.raises(UserError, match=name):
            open_images(tmp_path / name)


def test_a_damaged_archive_is_one_line(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", x=pixels(40), y=np.arange(40))
    whole = (tmp_path / "x.npz").read_bytes()
    for place in range(30, 400, 37):  # in the name, the header and the packed numbers
        (tmp_path / "x.npz").write_bytes(whole[:place] + bytes([whole[place] ^ 0x18]) + whole[place + 1 :])
        with pytest.raises(UserError, match=r"x.npz"):
            open_images(tmp_path / "x.npz")


def test_a_header_that_promises_more_than_there_is_takes_no_memory(tmp_path: Path) -> None:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 32, 32, 3)})
    (tmp_path / "bomb.npy").write_bytes(head.getvalue() + b"\0" * 5000)
    with pytest.raises(UserError, match="cut short"):
        open_images(tmp_path / "bomb.npy")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", head.getvalue() + b"\0" * 5000)
    from ornstein.errors import RunError

    with pytest.raises((UserError, RunError), match=r"cut short|free"):
        open_images(tmp_path / "bomb.npz")


def saved(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    return path


UNIT = np.random.default_rng(0).random((40, 4, 4, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("low", "high", "reading"),
    [
        (-5e-18, 1.0, "floats in [0, 1], clipped"),
        (0.0, 1.0000001, "floats in [0, 1], clipped"),
        (-0.015, 1.015, "floats in [0, 1], clipped"),
        (0.0001, 0.9, "floats in [0, 1]"),
    ],
)
def test_rounding_and_overshoot_do_not_change_how_floats_are_read(
    tmp_path: Path, low: float, high: float, reading: str
) -> None:
    x = UNIT.astype(np.float64).clip(0.001, 0.9)
    x[0, 0, 0, 0], x[-1, -1, -1, -1] = low, high
    np.save(tmp_path / "x.npy", x)
    images = open_images(tmp_path / "x.npy")
    assert images.notes == [reading] and reading in images.source and reading in images.summary
    np.testing.assert_array_equal(images.images.numpy(), np.rint(255 * x.clip(0, 1)).transpose(0, 3, 1, 2))


def test_floats_on_both_sides_of_zero_are_in_minus_one_to_one(tmp_path: Path) -> None:
    x = (2.02 * UNIT - 1.01).astype(np.float64)
    x[0, 0, 0, 0], x[0, 0, 0, 1] = -1.01, 1.01
    np.save(tmp_path / "x.npy", x)
    images = open_images(tmp_path / "x.npy")
    assert images.notes == ["floats in [-1, 1], clipped"]
    np.testing.assert_array_equal(
        images.images.numpy(), np.rint((x.astype(np.float32) + 1) * 127.5).clip(0, 255).transpose(0, 3, 1, 2)
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((-0.2, 1.0), "negative: clip them"),  # neither the one range nor the other
        ((0.0, 1.5), "from 0 to 1.5"),
        ((0.0, 255.0), r"from 0 to 255.*save them as uint8"),
        ((-3.0, 3.0), "from -3 to 3"),
    ],
)
def test_floats_whose_range_is_unclear_are_refused(tmp_path: Path, values: tuple[float, float], words: str) -> None:
    x = UNIT.clip(0.1, 0.9)
    x[0, 0, 0, 0], x[0, 0, 0, 1] = values
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(UserError, match=words):
        open_images(tmp_path / "x.npy")


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_])
def test_zeros_and_ones_are_black_and_white(tmp_path: Path, dtype: type) -> None:
    x = (UNIT[..., 0] > 0.5).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    images = open_images(tmp_path / "x.npy")
    np.testing.assert_array_equal(images.images[:, 0].numpy(), 255 * x.astype(int))
    assert "black and white" in images.summary
    x = x.astype(np.uint8)
    x[20, 1, 1] = 2  # now it is nearly black pictures
    np.save(tmp_path / "x.npy", x)
    assert int(open_images(tmp_path / "x.npy").images.max()) == 2


@pytest.mark.parametrize("shape", [(48, 64, 3), (64, 64, 1), (64, 48, 4)])
def test_one_picture_is_not_taken_for_many(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "x.npy", np.full(shape, 9, np.uint8))
    with pytest.raises(UserError, match=r"one picture \(H, W, C\)"):
        open_images(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (np.arange(6) % 3 + 5.0, ["5", "6", "7"], [0, 1, 2, 0, 1, 2]),
        (np.eye(3, dtype=np.float32)[[2, 0, 1, 1, 0, 2]], ["0", "1", "2"], [2, 0, 1, 1, 0, 2]),
        (np.eye(2, dtype=bool)[[0, 1, 1, 0, 1, 1]], ["0", "1"], [0, 1, 1, 0, 1, 1]),
        (np.array([True, False] * 3), ["0", "1"], [1, 0] * 3),
        (np.array(["dog", "cat", "dog", "emu", "cat", "cat"]), ["cat", "dog", "emu"], [1, 0, 1, 2, 0, 0]),
        (np.array([b"b", b"a"] * 3), ["a", "b"], [1, 0] * 3),
        (np.array([[3], [1], [2]] * 2, np.int8), ["1", "2", "3"], [2, 0, 1] * 2),
    ],
)
@pytest.mark.parametrize("name", ["labels", "Y", "targets"])
def test_labels_of_any_form_are_read(
    tmp_path: Path, labels: np.ndarray, classes: list[str], numbers: list[int], name: str
) -> None:
    images = open_images(saved(tmp_path / "x.npz", images=pixels(6), **{name: labels}))
    assert images.classes == classes and images.require_labels().tolist() == numbers


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.arange(5), r"6 images and labels of shape \(5,\)"),
        (np.zeros((6, 3)), "not one-hot"),
        (np.ones((6, 2), int), "not one-hot"),
        (np.arange(6) + 0.5, "no whole numbers"),
        (np.array([0, np.nan] * 3), "no whole numbers"),
        (np.zeros((6, 2, 2, 2)), "shape"),
        (np.zeros(6, complex), "complex"),
    ],
)
def test_labels_that_cannot_be_meant_are_refused_and_not_dropped(
    tmp_path: Path, labels: np.ndarray, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        open_images(saved(tmp_path / "x.npz", images=pixels(6), labels=labels))


def test_other_arrays_of_an_archive_are_counted(tmp_path: Path) -> None:
    images = open_images(saved(tmp_path / "x.npz", images=pixels(6), mean=np.zeros(3), extra=np.zeros((2, 2))))
    assert images.labels is None and "ignored: " in images.summary and "mean (3,)" in images.summary

import os
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein.data import images as images_module
from ornstein.data import open_images
from ornstein.data.entry import Entry
from ornstein.errors import RunError, UserError


def folder(root: Path, sizes: list[tuple[int, int]], classes: int = 2) -> Path:
    """Image i is grey of value i, in class i mod `classes`."""
    for i, size in enumerate(sizes):
        path = root / f"class{i % classes}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (i, i, i)).save(path)
    return root


def test_batches_are_in_minus_one_to_one_with_labels(tmp_path: Path) -> None:
    data = open_images(folder(tmp_path, [(8, 8)] * 6))
    assert data.images.dtype == torch.uint8 and data.images.shape == (6, 3, 8, 8) and len(data) == 6
    x, labels = data.batch([5, 0, 0])
    assert x.dtype == torch.float32 and x.shape == (3, 3, 8, 8)
    assert labels is not None and labels.dtype == torch.int64
    assert labels.tolist() == [1, 0, 0]
    assert torch.equal(x[0], torch.full((3, 8, 8), 5 / 127.5 - 1))
    assert torch.equal(data.batch(torch.tensor([5, 0, 0]))[0], x)


def test_native_size_must_be_common(tmp_path: Path) -> None:
    assert open_images(folder(tmp_path / "same", [(12, 8)] * 3)).images.shape == (3, 3, 8, 8)
    mixed = folder(tmp_path / "mixed", [(12, 8), (12, 8), (9, 8)])
    with pytest.raises(UserError, match=r"not all one size \(.*0\.png is 12x8, .*1\.png is 9x8\).*--size"):
        (mixed / "class0" / "2.png").rename(mixed / "class1" / "1.png")
        open_images(mixed)
    assert open_images(mixed, size=8).images.shape == (2, 3, 8, 8)


def test_a_bad_first_image_does_not_set_the_size(tmp_path: Path) -> None:
    folder(tmp_path, [(8, 8)] * 3)
    Image.new("RGB", (40, 40)).save(tmp_path / "class0" / "-.png")
    whole = (tmp_path / "class0" / "-.png").read_bytes()
    (tmp_path / "class0" / "-.png").write_bytes(whole[:-30])
    data = open_images(tmp_path)
    assert data.images.shape == (3, 3, 8, 8) and len(data.skipped) == 1


def test_order_skipping_and_progress_do_not_depend_on_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path, [(8, 8)] * 120, classes=1)
    bad = [0, 16, 17, 63, 119]
    for i in bad:
        (tmp_path / "class0" / f"{i}.png").write_bytes(b"bad")
    decode = images_module.decode_entry

    def uneven(entry: Entry, *rest: object) -> object:
        time.sleep(entry.size % 3 * 1e-3 * np.random.default_rng().random())
        return decode(entry, *rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(images_module, "decode_entry", uneven)
    for workers in (1, 8):
        monkeypatch.setattr(os, "cpu_count", lambda n=workers: n)
        calls: list[tuple[int, int]] = []
        data = open_images(tmp_path, 8, progress=lambda *counts, calls=calls: calls.append(counts))
        assert data.images[:, 0, 0, 0].tolist() == [i for i in range(120) if i not in bad]
        assert data.names == [f"class0/{i}.png" for i in range(120) if i not in bad]
        assert [name for name, _ in data.skipped] == [f"class0/{i}.png" for i in bad]
        assert calls[-1] == (120, 120) and calls == sorted(calls)


def test_a_class_without_a_usable_image_is_no_class(tmp_path: Path) -> None:
    folder(tmp_path, [(8, 8)] * 4)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"bad")
    data = open_images(tmp_path)
    assert data.classes == ["class0", "class1"] and data.require_labels().tolist() == [0, 0, 1, 1]


def test_split_is_a_partition_fixed_by_the_seed(tmp_path: Path) -> None:
    data = open_images(folder(tmp_path, [(8, 8)] * 40))
    train, held_out = data.split(0.25, seed=1)
    assert (len(train), len(held_out)) == (30, 10)
    assert sorted(train.names + held_out.names) == sorted(data.names)
    for part in (train, held_out):
        value = part.images[:, 0, 0, 0]
        assert part.names == [f"class{v % 2}/{v}.png" for v in value.tolist()]
        assert torch.equal(part.require_labels(), value.long() % 2)
        assert part.classes == data.classes
    assert data.split(0.25, seed=1)[1].names == held_out.names
    assert data.split(0.25, seed=2)[1].names != held_out.names
    assert len({data.fingerprint, train.fingerprint, held_out.fingerprint}) == 3
    assert [len(part) for part in data.split(0.001, seed=0)] == [39, 1]
    with pytest.raises(ValueError, match="between 0 and 1"):
        data.split(1.0, seed=0)
    with pytest.raises(UserError, match="at least 2"):
        open_images(folder(tmp_path / "one", [(8, 8)])).split(0.5, seed=0)


def test_fingerprint_tells_other_data(tmp_path: Path) -> None:
    first = open_images(folder(tmp_path, [(8, 8)] * 4)).fingerprint
    assert len(first) == 16 and int(first, 16) >= 0
    assert open_images(tmp_path, 4).fingerprint == first
    Image.new("RGB", (9, 9)).save(tmp_path / "class0" / "0.png", compress_level=0)
    second = open_images(tmp_path, 4).fingerprint
    (tmp_path / "class0" / "0.png").rename(tmp_path / "class0" / "7.png")
    third = open_images(tmp_path, 4).fingerprint
    assert len({first, second, third}) == 3


def test_large_sets_live_in_a_file_that_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, scratch = folder(tmp_path / "source", [(8, 8)] * 20), tmp_path / "scratch"
    scratch.mkdir()
    in_memory = open_images(source)
    monkeypatch.setattr(images_module, "MEMORY_BUDGET", 1000)
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    mapped: list[np.memmap] = []
    memmap = np.memmap
    monkeypatch.setattr(np, "memmap", lambda *a, **k: mapped.append(memmap(*a, **k)) or mapped[-1])
    data = open_images(source)
    assert len(mapped) == 1 and list(scratch.iterdir()) == []
    assert torch.equal(data.images, in_memory.images)
    train, _ = data.split(0.1, seed=0)
    assert len(mapped) == 2
    assert torch.equal(train.images, in_memory.split(0.1, seed=0)[0].images)

    class Full:
        free = 10

    monkeypatch.setattr("shutil.disk_usage", lambda _: Full)
    with pytest.raises(RunError, match=r"GB free: choose a smaller --size or set TMPDIR"):
        open_images(source)


def test_bombs_are_counted_against_the_callers_limit(tmp_path: Path) -> None:
    data = open_images(folder(tmp_path, [(8, 8), (8, 8), (50, 50)]), 8, limit_pixels=100)
    assert data.skipped == [("class0/2.png", "50x50 pixels: more than the limit of 100")]


def test_wrong_arguments(tmp_path: Path) -> None:
    folder(tmp_path, [(8, 8)])
    for size in (1, 0, -3):
        with pytest.raises(UserError, match=f"--size must be at least 2 pixels, not {size}"):
            open_images(tmp_path, size)
    with pytest.raises(UserError, match=r"channels 1 \(grey\), 2 \(grey and alpha\), 3 \(RGB\) or 4 \(RGBA\), not 5"):
        open_images(tmp_path, channels=5)
    with pytest.raises(UserError, match=r"skipped \(class0/0\.png: too small.*more than 8 times"):
        open_images(tmp_path, 128)


def test_digits() -> None:
    from sklearn.datasets import load_digits

    scans, targets = load_digits(return_X_y=True)
    data = open_images("digits")
    assert data.images.shape == (1797, 1, 8, 8) and data.classes == [str(i) for i in range(10)]
    np.testing.assert_array_equal(data.require_labels().numpy(), targets)
    np.testing.assert_allclose(data.images.numpy().reshape(1797, 64) * (16 / 255), scans, atol=0.04)
    assert data.fingerprint == open_images("digits", 16).fingerprint
    assert open_images("digits", 16, channels=3).images.shape == (1797, 3, 16, 16)
    with pytest.raises(UserError, match="at most 64, not 65"):
        open_images("digits", 65)


def test_a_folder_called_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "digits", [(8, 8)] * 3)
    monkeypatch.chdir(tmp_path)
    assert len(open_images("digits")) == 1797
    assert len(open_images("./digits")) == len(open_images(Path("digits"))) == 3


def test_importing_does_not_import_sklearn() -> None:
    code = "import sys, ornstein.data; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_jpeg_folder_at_a_smaller_size(tmp_path: Path) -> None:
    for i in range(3):
        Image.new("RGB", (200, 120), (40 * i, 90, 200)).save(tmp_path / f"{i}.jpg", quality=95)
    whole = BytesIO()
    Image.effect_noise((200, 120), 60).convert("RGB").save(whole, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    data = open_images(tmp_path, 16)
    expected = torch.tensor([[40 * i, 90, 200] for i in range(3)])
    assert (data.images.float().mean((2, 3)) - expected).abs().max() < 3
    ((name, reason),) = data.skipped
    assert name == "cut.jpg" and "truncated" in reason


@pytest.mark.skipif("ORNSTEIN_DATA" not in os.environ, reason="ORNSTEIN_DATA does not point to the archives")
@pytest.mark.parametrize(
    ("name", "size", "count", "classes"),
    [("cifar10-train.zip", None, 50_000, 10), ("lfw-train.zip", 64, 11_614, 5_153)],
)
def test_real_archives(name: str, size: int | None, count: int, classes: int) -> None:
    start = time.monotonic()
    data = open_images(Path(os.environ["ORNSTEIN_DATA"]) / name, size)
    assert time.monotonic() - start < 60
    assert (len(data), len(data.classes), data.skipped) == (count, classes, [])
    assert data.images.shape[1:] == ((3, 32, 32) if size is None else (3, size, size))

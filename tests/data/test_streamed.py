"""Sets that are decoded as they are read."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein.data import images as images_module
from ornstein.data import open_images, open_streamed
from ornstein.data.streamed import StreamedSet
from ornstein.errors import RunError, UserError


def png(value: int, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def shards(root: Path, *sizes: int, classes: int = 3, damaged: tuple[int, ...] = ()) -> Path:
    """Image i is grey of value i, of class i mod `classes`."""
    root.mkdir(exist_ok=True)
    i = 0
    for shard, size in enumerate(sizes):
        files = {}
        for _ in range(size):
            files[f"{i:04d}.png"] = b"no image" if i in damaged else png(i)
            files[f"{i:04d}.cls"] = f"class{i % classes}".encode()
            i += 1
        tar(root / f"s-{shard}.tar", files)
    return root


def streamed(path: Path, size: int | None = None, **options: int) -> StreamedSet:
    found = open_streamed(path, size, **options)
    assert found is not None
    return found


def values(x: torch.Tensor) -> list[int]:
    return ((x[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def test_the_same_images_and_labels_as_in_memory(tmp_path: Path) -> None:
    path = shards(tmp_path / "set", 20, 7, 30)
    whole, found = open_images(path), streamed(path)
    assert len(found) == 57 and found.shape == whole.shape and found.classes == whole.classes
    assert torch.equal(found.require_labels(), whole.require_labels())
    indices = torch.tensor([56, 0, 20, 20, 27])
    for got, want in zip(found.batch(indices), whole.batch(indices), strict=True):
        assert got is not None and want is not None and torch.equal(got, want)
    assert streamed(path, 4).shape == (3, 4, 4) and streamed(path, 4, channels=1).batch([3])[0].shape == (1, 1, 4, 4)
    assert found.fingerprint == streamed(path).fingerprint
    assert found.fingerprint != streamed(shards(tmp_path / "other", 20, 8, 29)).fingerprint


def test_folders_and_zips_are_streamed_too(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i in range(12):
            (tmp_path / "folder" / f"{i % 2}").mkdir(exist_ok=True)
            (tmp_path / "folder" / f"{i % 2}" / f"{i}.png").write_bytes(png(i))
            archive.write(tmp_path / "folder" / f"{i % 2}" / f"{i}.png", f"{i % 2}/{i}.png")
    for path in (tmp_path / "folder", tmp_path / "a.zip"):
        found, whole = streamed(path), open_images(path)
        assert torch.equal(found.batch(range(12))[0], whole.batch(range(12))[0])
        assert found.classes == ["0", "1"] and torch.equal(found.require_labels(), whole.require_labels())
        assert found.fingerprint == whole.fingerprint


def test_only_what_would_not_fit_is_streamed(tmp_path: Path) -> None:
    path = shards(tmp_path / "set", 10)
    assert open_streamed(path, above=10 * 192) is None and open_streamed(path, 8, above=10 * 192) is None
    assert open_streamed(path, above=10 * 192 - 1) is not None
    assert open_streamed("digits") is None
    np.save(tmp_path / "a.npy", np.zeros((4, 8, 8), np.uint8))
    assert open_streamed(tmp_path / "a.npy") is None


def test_a_split_is_a_partition_fixed_by_the_seed_with_one_part_in_memory(tmp_path: Path) -> None:
    found = streamed(shards(tmp_path / "set", 20, 20, 20))
    train, held_out = found.split(0.25, seed=1)
    assert (len(train), len(held_out)) == (45, 15)
    own = values(train.batch(range(45))[0])
    assert own == sorted(own) and sorted(own + held_out.images[:, 0, 0, 0].tolist()) == list(range(60))
    assert train.require_labels().tolist() == [v % 3 for v in own]
    assert held_out.require_labels().tolist() == [v % 3 for v in held_out.images[:, 0, 0, 0].tolist()]
    assert held_out.classes == train.classes
    again, _ = streamed(tmp_path / "set").split(0.25, seed=1)
    assert again.fingerprint == train.fingerprint != found.fingerprint
    assert values(again.batch(range(45))[0]) == own
    assert found.split(0.25, seed=2)[1].names != held_out.names
    # the smaller share is a part of the larger one
    assert set(found.split(0.1, seed=1)[1].names) < set(held_out.names)
    with pytest.raises(ValueError, match="between 0 and 1"):
        found.split(0.0, seed=0)


def test_no_more_is_held_out_or_drawn_than_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "MEMORY_BUDGET", 4 * 5 * 192 + 100)
    train, held_out = streamed(shards(tmp_path / "set", 40)).split(0.5, seed=0)
    assert (len(train), len(held_out)) == (35, 5)
    drawn = train.drawn()
    assert len(drawn) == 5 and drawn.count == "5 of 35" and drawn.names == train.drawn().names
    assert not set(drawn.names) & set(held_out.names)


def test_damaged_images_are_replaced_by_the_next_and_named(tmp_path: Path) -> None:
    found = streamed(shards(tmp_path / "set", 10, 10, damaged=(5, 6, 19)))
    assert found.skipped == []  # nobody has looked
    x, labels = found.batch([4, 5, 6, 19])
    assert values(x) == [4, 7, 7, 0]
    assert labels is not None and labels.tolist() == [4 % 3, 7 % 3, 7 % 3, 0]
    assert [name for name, _ in found.skipped] == ["s-0/0005.png", "s-0/0006.png", "s-1/0019.png"]
    assert all("not an image" in why for _, why in found.skipped)
    # the same whatever was read before
    assert values(streamed(tmp_path / "set").batch([19, 6])[0]) == [0, 7]
    train, _ = found.split(0.1, seed=0)
    drawn = train.drawn()
    assert {name for name, _ in drawn.skipped} == {"s-0/0005.png", "s-0/0006.png", "s-1/0019.png"}
    assert len(drawn) == len(train) - sum(int(i) in (5, 6, 19) for i in train.rows)


def test_a_source_that_goes_away_is_an_error_and_not_a_damaged_image(tmp_path: Path) -> None:
    path = shards(tmp_path / "set", 10, 10)
    found = streamed(path)
    (path / "s-0.tar").unlink()
    assert values(found.batch([3])[0]) == [3]  # it is open
    other = path / "s-1.tar"
    whole = other.read_bytes()
    other.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match=r"s-1.tar: the archive is cut short; put it back .* --resume"):
        found.batch([19])
    assert found.skipped == []
    other.write_bytes(whole)
    assert values(found.batch([19])[0]) == [19]
    folder = tmp_path / "folder"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.png").write_bytes(png(i))
    from_folder = streamed(folder)
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(RunError, match=r"4 images of .*folder in a row cannot be used \(1.png: No such file"):
        from_folder.batch([1])


def test_more_archives_than_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ornstein.data.tar_index._OPEN", 3)
    found = streamed(shards(tmp_path / "set", *[2] * 30))
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert values(found.batch(range(60))[0]) == list(range(60))
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 3


def test_classes_are_folders_where_no_file_tells_them_and_never_the_archives(tmp_path: Path) -> None:
    for shard in range(2):
        tar(tmp_path / f"{shard}.tar", {f"set/{'ab'[i % 2]}/{shard}{i}.png": png(i) for i in range(4)})
    in_order_of_archive, in_order_of_name = streamed(tmp_path), open_images(tmp_path)
    assert in_order_of_archive.classes == in_order_of_name.classes == ["a", "b"]
    assert in_order_of_archive.require_labels().tolist() == [0, 1] * 4
    assert in_order_of_name.require_labels().tolist() == [0, 0, 1, 1] * 2
    for shard in range(2):
        tar(tmp_path / f"{shard}.tar", {f"{shard}{i}.png": png(i) for i in range(4)})
    for found in (streamed(tmp_path), open_images(tmp_path)):
        assert found.classes == []
        with pytest.raises(UserError, match="has no class labels"):
            found.require_labels()


def test_wrong_arguments_and_sources(tmp_path: Path) -> None:
    path = shards(tmp_path / "set", 4)
    with pytest.raises(UserError, match="--size must be at least 2"):
        open_streamed(path, 1)
    with pytest.raises(UserError, match="channels 1"):
        open_streamed(path, 8, channels=5)
    with pytest.raises(UserError, match="no such folder"):
        open_streamed(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no usable image"):
        open_streamed(shards(tmp_path / "bad", 3, damaged=(0, 1, 2)))
    with pytest.raises(UserError, match="no usable image"):
        open_streamed(tar(tmp_path / "texts.tar", {"a.txt": b"words"}))
    tar(tmp_path / "mixed.tar", {"a.png": png(0), "b.png": png(1, side=9)})
    with pytest.raises(UserError, match=r"not all one size \(a.png is 8x8, b.png is 9x9\): choose one with --size"):
        open_streamed(tmp_path / "mixed.tar")

"""Tar archives as WebDataset makes them."""

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein.data import open_images
from ornstein.errors import UserError


def png(seed: int, side: int = 6) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def tar(path: Path, files: dict[str, bytes], *others: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for member in others:
            archive.addfile(member)
    return path


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_samples_with_their_classes(tmp_path: Path) -> None:
    files = {}
    for i in range(30):
        files |= {f"{i:04d}.png": png(i), f"{i:04d}.cls": str(7 * (i % 3)).encode(), f"{i:04d}.txt": b"a caption"}
    images = open_images(tar(tmp_path / "a.tar", files))
    assert len(images) == 30 and images.classes == ["0", "7", "14"]
    assert images.labels is not None and images.labels.tolist() == [i % 3 for i in range(30)]
    assert torch.equal(images.images[11], torch.tensor(np.array(Image.open(io.BytesIO(png(11))))).movedim(2, 0))
    del files["0012.cls"]
    without = open_images(tar(tmp_path / "b.tar", files))
    assert len(without) == 29 and without.skipped == [("0012.png", "no class is given for it")]
    for i in range(13, 20):
        del files[f"{i:04d}.cls"]
    assert open_images(tar(tmp_path / "c.tar", files)).labels is None  # many have none


def test_a_folder_of_shards_is_one_set_in_order(tmp_path: Path) -> None:
    for shard in (0, 1, 2, 10):
        tar(tmp_path / f"train-{shard}.tar", {f"{i}.png": png(100 * shard + i) for i in range(4)})
    images = open_images(tmp_path)
    assert images.names == [f"train-{shard}/{i}.png" for shard in (0, 1, 2, 10) for i in range(4)]
    assert torch.equal(images.images[-1], open_images(tmp_path / "train-10.tar").images[-1])


def test_folders_name_classes_where_no_file_does(tmp_path: Path) -> None:
    images = open_images(tar(tmp_path / "a.tar", {f"set/{k}/{i}.png": png(i) for k in "ab" for i in range(3)}))
    assert images.classes == ["a", "b"]


def test_what_leads_out_or_is_no_file_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(99))
    path = tar(
        tmp_path / "a.tar",
        {"good.png": png(0), "../up.png": png(1), "/etc/abs.png": png(2), "empty.png": b"", ".hidden.png": png(3)},
        link("soft.png", str(tmp_path / "secret.png")),
        link("hard.png", "good.png", tarfile.LNKTYPE),
        link("pipe.png", "", tarfile.FIFOTYPE),
        link("device.png", "", tarfile.CHRTYPE),
    )
    images = open_images(path)
    assert images.names == ["good.png"]
    why = dict(images.skipped)
    assert why["../up.png"] == "its path leads out of the archive"
    assert why["empty.png"] == "empty file"
    for name in ("soft.png", "hard.png", "pipe.png", "device.png"):
        assert why[name] == "not a regular file"
    assert len(why) == 7
    assert not (tmp_path.parent / "up.png").exists()


def test_a_size_that_is_not_there(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {f"{i}.png": png(i, 40) for i in range(3)})
    whole = path.read_bytes()
    path.write_bytes(whole[: 512 + 512 * (-(-len(png(0, 40)) // 512)) + 512 + 1000])
    images = open_images(path)  # the second is cut
    assert images.names == ["0.png"]
    assert any("cut short" in why or "damaged" in why for _, why in images.skipped)
    bomb = tarfile.TarInfo("bomb.png")
    bomb.size = 2**40
    path.write_bytes(bomb.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024)
    with pytest.raises(UserError, match=r"no usable image|no sound tar"):
        open_images(path)


def test_archives_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "junk.tar").write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(UserError, match=r"junk.tar is no sound tar archive"):
        open_images(tmp_path / "junk.tar")
    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(gzip.compress(tar(tmp_path / "a.tar", {"0.png": png(0)}).read_bytes()))
    with pytest.raises(UserError, match=r"a.tar.gz is compressed: unpack it to .tar first"):
        open_images(packed)
    with pytest.raises(UserError, match="no usable image"):
        open_images(tar(tmp_path / "texts.tar", {"a.txt": b"words"}))

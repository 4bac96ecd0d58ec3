"""The identity of data: the same contents have one fingerprint wherever they lie, a replaced picture has another."""

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ornstein.data import identity, open_clips, open_images, open_streamed, same_data
from ornstein.errors import UserError


def bmp(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(buffer, "BMP")  # every picture has the same size in bytes
    return buffer.getvalue()


FILES = {f"{'ab'[i % 2]}/{i}.bmp": bmp(i) for i in range(24)}


def folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def packed(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tarred(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


KINDS: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {
    "folder": folder,
    "set.zip": packed,
    "set.tar": tarred,
}


def fingerprints(path: Path) -> tuple[str, str]:
    streamed = open_streamed(path)
    assert streamed is not None
    return open_images(path).fingerprint, streamed.fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_replaced_by_one_of_equal_name_and_size_is_noticed(tmp_path: Path, kind: str) -> None:
    first = fingerprints(KINDS[kind](_at(tmp_path, 1, kind), FILES))
    again = fingerprints(KINDS[kind](_at(tmp_path, 2, kind), FILES))
    other = FILES | {"b/7.bmp": bmp(200)}
    changed = KINDS[kind](_at(tmp_path, 3, kind), other)
    assert first == again
    assert not set(fingerprints(changed)) & set(first)
    assert open_images(changed).names_fingerprint == open_images(tmp_path / "1" / kind).names_fingerprint


def _at(root: Path, number: int, kind: str) -> Path:
    (root / f"{number}").mkdir()
    return root / f"{number}" / kind


def test_the_same_files_are_the_same_data_wherever_they_lie(tmp_path: Path) -> None:
    # as archives keep their order, which is that of names here
    files = dict(sorted(FILES.items(), key=lambda item: (item[0][0], int(item[0][2:-4]))))
    prints = {print_ for name, make in KINDS.items() for print_ in fingerprints(make(tmp_path / name, files))}
    assert len(prints) == 1
    moved = {name.replace("a/", "c/"): data for name, data in files.items()}
    assert not set(fingerprints(folder(tmp_path / "moved", moved))) & prints  # other classes


def test_labels_are_part_of_the_identity(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)
    prints = set()
    for i, labels in enumerate((np.arange(8) % 2, np.arange(8) % 3, None)):
        np.savez(tmp_path / f"{i}.npz", x=x, **({} if labels is None else {"y": labels}))
        prints.add(open_images(tmp_path / f"{i}.npz").fingerprint)
    assert len(prints) == 3
    files = {
        name: data for i in range(4) for name, data in ((f"{i}.bmp", bmp(i)), (f"{i}.cls", b"ab"[i % 2 : i % 2 + 1]))
    }
    first = fingerprints(tarred(tmp_path / "a.tar", files))
    files["0.cls"], files["1.cls"] = b"b", b"a"
    assert not set(first) & set(fingerprints(tarred(tmp_path / "b.tar", files)))


def test_a_replaced_array_is_noticed_and_its_scale_is_not(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    first = open_images(tmp_path / "x.npy")
    x[3, 2, 1, 0] ^= 1
    np.save(tmp_path / "x.npy", x)
    second = open_images(tmp_path / "x.npy")
    assert first.fingerprint != second.fingerprint and first.names_fingerprint == second.names_fingerprint
    assert open_images(tmp_path / "x.npy", 2, 1).fingerprint == second.fingerprint


def test_a_replaced_frame_and_a_replaced_video_are_noticed(tmp_path: Path) -> None:
    root = folder(tmp_path, {f"v{i}/{j}.bmp": bmp(20 * i + j) for i in range(3) for j in range(4)})
    first = open_clips(root, 2)
    (root / "v1" / "2.bmp").write_bytes(bmp(99))
    second = open_clips(root, 2)
    assert first.fingerprint != second.fingerprint and first.names_fingerprint == second.names_fingerprint


def test_of_a_large_set_blocks_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path, FILES)
    whole = fingerprints(root)
    monkeypatch.setattr(identity, "_ALL_BYTES", 100)
    monkeypatch.setattr(identity, "_SAMPLED_FILES", 7)
    monkeypatch.setattr(identity, "_BLOCK", 40)
    sampled = fingerprints(root)
    assert sampled[0] == whole[0] and sampled[1] != whole[1]  # in memory all bytes were read anyway
    streamed = open_streamed(root)
    assert streamed is not None
    sums = identity.checksums(len(FILES), streamed.files.entry, streamed.files.sizes())
    assert sum(value != 0 for value in sums) == 7 and sums[0] and sums[-1]
    (root / "a" / "0.bmp").write_bytes(bmp(77))  # all pictures replaced would be seen in any of them
    assert fingerprints(root)[1] != sampled[1]
    (root / "b" / "3.bmp").write_bytes(FILES["b/3.bmp"] + b"x")
    assert len({fingerprints(root)[1], sampled[1], whole[1]}) == 3


def test_runs_of_the_first_version_are_recognised_by_names_and_sizes(tmp_path: Path) -> None:
    data = open_images(folder(tmp_path, FILES))
    assert same_data(data, None) and same_data(data, data.fingerprint)
    # SHA-256 of "NAME\\0SIZE\\n" for each file, as version 0.1 stored it
    assert data.names_fingerprint == "4225f01bec395626" and same_data(data, "4225f01bec395626")
    assert not same_data(data, "0" * 16)


RUN = '{"data": "x", "held_out": 0.1, "checkpoint_every": 500}'


def test_a_run_inside_its_own_data_is_no_part_of_them(tmp_path: Path) -> None:
    root = folder(tmp_path, FILES)
    before = open_images(root)
    run = {"train.json": RUN.encode(), "progress/step-000100.png": bmp(1), "samples/00000.png": bmp(2)}
    folder(root / "runs" / "first", run)
    inside = open_images(root)
    assert inside.fingerprint == before.fingerprint and inside.classes == ["a", "b"]
    assert inside.ignored == {"run directory": 1} and "1 run directory" in inside.summary
    folder(root, run)  # the data folder itself as the run's
    assert open_images(root).fingerprint == before.fingerprint
    assert open_images(root / "runs" / "first" / "samples").names == ["00000.png"]  # asked for by name


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"images": [], "annotations": []}', "[" * 100_000, "\0"])
def test_a_train_json_of_another_kind_is_no_run(tmp_path: Path, text: str) -> None:
    root = folder(tmp_path, FILES)
    (root / "a" / "train.json").write_text(text)
    assert len(open_images(root)) == len(FILES)


def test_a_pipe_called_train_json_is_not_waited_for(tmp_path: Path) -> None:
    root = folder(tmp_path, FILES)
    os.mkfifo(root / "a" / "train.json")
    assert len(open_images(root)) == len(FILES)


def test_a_source_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        open_images(tmp_path / "gone")

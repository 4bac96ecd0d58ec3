"""Captions from every kind of source; what is missing, empty or damaged is counted; an error says where it looked."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from ornstein.data import open_images
from ornstein.data.captions import Captions, read_captions
from ornstein.errors import UserError


def png(colour: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(out, "PNG")
    return out.getvalue()


def write(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def captions_of(path: Path, how: str = "auto") -> Captions:
    return read_captions(path, open_images(path, 8).names, how)


def test_text_files_beside_the_pictures(tmp_path: Path) -> None:
    texts = {"a": "a red square\n\na  square \n", "b/c": "two", "e": " \n", "lost": "nobody", "bad": b"\xff"}
    write(tmp_path, {f"{name}.txt": text for name, text in texts.items()})
    write(tmp_path, {f"{name}.png": png() for name in ("a", "b/c", "d", "e", "bad")})
    found = captions_of(tmp_path)
    read = dict(zip(open_images(tmp_path, 8).names, found.texts, strict=True))
    assert read == {
        "a.png": ("a red square", "a square"), "b/c.png": ("two",), "d.png": (), "e.png": ("",), "bad.png": (),
    }  # fmt: skip
    assert (found.unmatched, found.bad) == (1, 1)
    assert found.summary == (
        "4 captions of 3 pictures from .txt files beside the pictures, 2 pictures without one, 1 empty, "
        "1 of no picture of the set, 1 unreadable"
    )


def test_metadata_of_an_image_folder(tmp_path: Path) -> None:
    rows = [{"file_name": "a.png", "text": "one"}, {"file_name": "sub/b.png", "text": "two"}, {"text": "nowhere"}]
    lines = "\n".join(map(json.dumps, rows)) + "\nno json\n"
    write(tmp_path, {"a.png": png(), "sub/b.png": png(), "metadata.jsonl": lines})
    found = captions_of(tmp_path)
    assert found.texts == [("one",), ("two",)] and found.bad == 2
    assert captions_of(tmp_path, "metadata.jsonl").texts == found.texts
    with pytest.raises(UserError, match=r"metadata\.csv"):
        captions_of(tmp_path, "metadata.csv")


def test_a_column_of_a_table(tmp_path: Path) -> None:
    table = "file_name,text,german\na.png,red,rot\nb.png,blue,blau\n"
    write(
        tmp_path, {"a.png": png(), "b.png": png(), "metadata.csv": table, "other.csv": table.replace("red", "scarlet")}
    )
    assert captions_of(tmp_path).texts == [("red",), ("blue",)]
    assert captions_of(tmp_path, "german").texts == [("rot",), ("blau",)]
    assert captions_of(tmp_path, "other.csv").texts == [("scarlet",), ("blue",)]


def test_tar_shards_and_zips(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    for i in range(2):
        with tarfile.open(shards / f"{i}.tar", "w") as tar:
            fields = {
                "png": png(),
                "txt": f"plain {i}".encode(),
                "json": json.dumps({"caption": [f"one {i}", "two"]}).encode(),
            }
            for suffix, data in fields.items():
                info = tarfile.TarInfo(f"x.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    assert captions_of(shards).texts == [("plain 0",), ("plain 1",)]
    assert captions_of(shards, "json").texts == [("one 0", "two"), ("one 1", "two")]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("set/1.png", png())
        archive.writestr("set/1.txt", "zipped")
    assert captions_of(tmp_path / "a.zip").texts == [("zipped",)]


def test_a_column_of_a_hugging_face_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"image": [{"bytes": png(), "path": None}] * 3, "caption": ["a", "b", None], "more": [["x", "y"], [], ["z"]]}
    features = datasets.Features(
        image=datasets.Image(), caption=datasets.Value("string"), more=datasets.Sequence(datasets.Value("string"))
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "set"))
    assert captions_of(tmp_path / "set").texts == [("a",), ("b",), ("",)]
    assert captions_of(tmp_path / "set", "more").texts == [("x", "y"), (), ("z",)]
    with pytest.raises(UserError, match="no column of texts 'title'; columns of texts: caption, more"):
        captions_of(tmp_path / "set", "title")


def test_no_captions_says_where_it_looked(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": png()})
    with pytest.raises(UserError, match=r"metadata.jsonl, metadata.csv, \.txt .*, \.json .*: text, caption"):
        captions_of(tmp_path)
    write(tmp_path, {"other.txt": "of no picture"})
    with pytest.raises(UserError, match=r"1 captions, of none of the pictures, such as a\.png"):
        captions_of(tmp_path)
    with pytest.raises(UserError, match="no captions in digits"):
        read_captions("digits", ["digits/0000"])

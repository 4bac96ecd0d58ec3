"""Data sets that Hugging Face's `datasets` saved on disk."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein.data import open_images
from ornstein.errors import UserError

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8))


def made(n: int = 12):
    features = datasets.Features(
        {"id": datasets.Value("int64"), "img": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])}
    )
    rows = {"id": list(range(n)), "img": [picture(i) for i in range(n)], "kind": [i % 2 for i in range(n)]}
    return datasets.Dataset.from_dict(rows, features=features)


def test_images_and_classes_of_a_set_and_of_its_train_split(tmp_path: Path) -> None:
    made().save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": made(), "test": made(4)}).save_to_disk(tmp_path / "splits")
    for path, count in ((tmp_path / "one", 12), (tmp_path / "splits", 12), (tmp_path / "splits" / "test", 4)):
        images = open_images(path)
        assert len(images) == count and images.classes == ["cat", "dog"]
        assert images.labels is not None and images.labels.tolist() == [i % 2 for i in range(count)]
        assert torch.equal(images.images[3], torch.from_numpy(np.asarray(picture(3)).copy()).movedim(2, 0))


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(tmp_path / "texts")
    with pytest.raises(UserError, match=r"no column of images; it has text"):
        open_images(tmp_path / "texts")
    datasets.DatasetDict({"dev": made(2), "test": made(2)}).save_to_disk(tmp_path / "splits")
    with pytest.raises(UserError, match=r"no split 'train'.*dev, test"):
        open_images(tmp_path / "splits")
    made(2).save_to_disk(tmp_path / "damaged")
    state = json.loads((tmp_path / "damaged" / "state.json").read_text())
    file = tmp_path / "damaged" / state["_data_files"][0]["filename"]
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged") as error:
        open_images(tmp_path / "damaged")
    assert "\n" not in str(error.value)


def test_an_image_that_is_only_a_path_is_not_followed(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "outside.png")
    made(2).save_to_disk(tmp_path / "set")
    (file,) = (tmp_path / "set").glob("*.arrow")
    with pyarrow.OSFile(str(file)) as source:
        table = pyarrow.ipc.open_stream(source).read_all()
    rows = table["img"].to_pylist()
    rows[0] = {"bytes": None, "path": str(tmp_path / "outside.png")}
    table = table.set_column(1, table.schema.field("img"), pyarrow.array(rows, table.schema.field("img").type))
    with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    images = open_images(tmp_path / "set")
    assert images.names == ["1"] and images.skipped == [("0", "not in the data set, which has only its path")]


def test_files_outside_the_folder_and_pipes_are_refused(tmp_path: Path) -> None:
    made(2).save_to_disk(tmp_path / "set")
    state = json.loads((tmp_path / "set" / "state.json").read_text())
    name = state["_data_files"][0]["filename"]
    state["_data_files"][0]["filename"] = f"../set/{name}"
    (tmp_path / "set" / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match="names a file outside its folder"):
        open_images(tmp_path / "set")
    state["_data_files"][0]["filename"] = name
    (tmp_path / "set" / "state.json").write_text(json.dumps(state))
    (tmp_path / "set" / name).unlink()
    os.mkfifo(tmp_path / "set" / name)
    with pytest.raises(UserError, match="not a regular file"):
        open_images(tmp_path / "set")


def test_a_replaced_image_and_a_replaced_label_change_the_fingerprint(tmp_path: Path) -> None:
    made().save_to_disk(tmp_path / "a")
    first = open_images(tmp_path / "a").fingerprint
    made().save_to_disk(tmp_path / "b")
    assert open_images(tmp_path / "b").fingerprint == first
    changed = made().map(lambda row: {"kind": 1 - row["kind"]} if row["id"] == 3 else row)
    changed.save_to_disk(tmp_path / "c")
    assert open_images(tmp_path / "c").fingerprint != first

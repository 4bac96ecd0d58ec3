"""Data sets that Hugging Face's `datasets` saved on disk."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein.data import open_images
from ornstein.data.decode import BadImage
from ornstein.data.hugging_face import read_image
from ornstein.errors import UserError

datasets = pytest.importorskip("datasets")


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


def test_a_path_instead_of_an_image_is_not_followed(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "outside.png")
    with pytest.raises(BadImage, match="only its path"):
        read_image([{"img": {"bytes": None, "path": str(tmp_path / "outside.png")}}], 0, "img", 10**6)
    with pytest.raises(BadImage, match="more than the limit"):
        read_image([{"img": {"bytes": b"x" * (2**20 + 1), "path": None}}], 0, "img", 2**20)

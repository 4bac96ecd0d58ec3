"""Which part of its data a run trains on, and that a resumed run has the same."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from ornstein.data import ImageSet, open_images
from ornstein.errors import UserError
from ornstein.training.recipe import open_data
from ornstein.training.settings import Settings


def folder(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (i, i, i)).save(root / name / f"{i}.bmp")
    return root


def parts(settings: Settings) -> tuple[ImageSet, ImageSet]:
    split = open_data(settings)
    assert isinstance(split.train, ImageSet) and isinstance(split.held_out, ImageSet)
    return split.train, split.held_out


def test_every_class_that_is_learned_has_an_image_to_train_on(tmp_path: Path) -> None:
    root = folder(tmp_path, {"cat": 19, "dog": 19, "emu": 1})
    plain = 0
    for seed in range(30):
        settings = Settings(data=str(root), size=8, seed=seed, held_out=0.3)
        train, held_out = parts(settings)
        assert set(train.require_labels().tolist()) == {0, 1, 2} and len(held_out) == 12
        again = parts(replace(settings, fingerprint=open_data(settings).fingerprint))[1]
        assert again.names == held_out.names
        plain += "emu/0.bmp" in parts(replace(settings, conditional=False))[1].names
    assert plain > 0  # without classes it may be held out


def test_a_run_of_version_0_1_keeps_its_fingerprint_and_its_split(tmp_path: Path) -> None:
    root = folder(tmp_path, {"cat": 19, "dog": 19, "emu": 1})
    opened = open_images(root, 8)
    for seed in range(8):
        settings = Settings(data=str(root), size=8, seed=seed, held_out=0.3, fingerprint=opened.names_fingerprint)
        split = open_data(settings)
        assert split.fingerprint == opened.names_fingerprint
        assert isinstance(split.held_out, ImageSet)
        assert split.held_out.names == opened.split(0.3, seed)[1].names


def test_a_replaced_image_of_the_same_size_is_noticed(tmp_path: Path) -> None:
    root = folder(tmp_path, {"cat": 9, "dog": 9})
    settings = Settings(data=str(root), size=8)
    stored = open_data(settings).fingerprint
    Image.new("RGB", (8, 8), (99, 0, 0)).save(root / "dog" / "3.bmp")
    with pytest.raises(UserError, match="has changed since this run began"):
        open_data(replace(settings, fingerprint=stored))

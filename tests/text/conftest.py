"""A folder of captioned pictures, and a model trained on it for a few steps."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import ornstein as orn
from text.captioned import COLOURS, SETTINGS


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captioned")
    for i in range(24):
        name, colour = list(COLOURS.items())[i % 3]
        Image.new("RGB", (8, 8), tuple(max(0, c - i) for c in colour)).save(folder / f"{i:02d}.png")
        text = "" if i == 5 else f"a {name} picture\nall {name}, number {i}\n"
        (folder / f"{i:02d}.txt").write_text(text)
    return folder


@pytest.fixture(scope="session")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "own"
    orn.train(pictures, out, **SETTINGS)
    return out

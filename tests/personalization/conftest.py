"""A tiny pipeline and a few pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("peft")

PROMPT = "a photo of sks dog"


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    from interop import tiny

    return tiny.build("sd1", tmp_path_factory.mktemp("base") / "sd1")


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Six pictures of other sizes than the base's."""
    folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(draw.integers(0, 255, (70, 64, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder

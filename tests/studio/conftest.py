"""A studio of three small models, served once: digits, clips, and a face swap that is not trained."""

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ornstein as orn
from ornstein.denoiser import SampleSpec
from ornstein.faces.provenance.card import ModelCard, write_card
from ornstein.nets import UNet, VideoUNet

LIMIT = 2 * 2**20  # bytes of one upload here


def _stand_ins() -> ModuleType:
    """Those of the tests of faces: people are squares of one colour, and a small model that is not trained."""
    path = Path(__file__).parents[1] / "faces" / "conftest.py"
    spec = importlib.util.spec_from_file_location("stand_ins_of_faces", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FACES = _stand_ins()


def people(path: Path, width: int = 240, **named: tuple[int, int, int]) -> Path:
    """A picture with a square of `side` pixels at (left, top) for each name=(left, top, side)."""
    picture = np.full((160, width, 3), 128, dtype=np.uint8)
    for name, (left, top, side) in named.items():
        picture[top : top + side, left : left + side] = FACES.PEOPLE[name]
    Image.fromarray(picture).save(path)
    return path


@dataclass(frozen=True)
class Served:
    """A studio that is up: its address, its runs, where it keeps what is sent, and a folder of pictures to send."""

    url: str
    home: Path
    cache: Path
    pictures: Path


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs: `digits`, `films`, `faces`."""
    pytest.importorskip("gradio", reason="the extra `studio` is not installed")
    home = tmp_path_factory.mktemp("home")
    torch.manual_seed(0)
    process = orn.Process(orn.schedules.Cosine())
    small: dict[str, Any] = {"width": 16, "multipliers": (1, 2), "depths": (1, 1), "attention": ()}
    image = UNet(1, 8, 10, **small)
    torch.nn.init.normal_(image.head[2].weight, std=0.1)
    digits = tuple(str(i) for i in range(10))
    orn.Denoiser(image, process, "v", data=SampleSpec((1, 8, 8), digits)).save(home / "digits")
    (home / "digits" / "train.json").write_text(json.dumps({"data": "digits", "held_out": 0.02}))
    clip = VideoUNet(1, 16, 4, **small)
    torch.nn.init.normal_(clip.image.head[2].weight, std=0.1)
    noisy = orn.Process(orn.schedules.Cosine(), noise=orn.noise.AR1(4, 0.8))
    orn.Denoiser(clip, noisy, "v", data=SampleSpec((1, 4, 16, 16))).save(home / "films")
    (home / "films" / "train.json").write_text(json.dumps({"data": "drifting-textures", "frames": 4, "size": 16}))
    swap = FACES.untrained()
    swap.denoiser.save(home / "faces")
    swap.recogniser.save(home / "faces" / "identity")
    write_card(home / "faces", ModelCard("for tests", "squares: not for photographs"))
    return home


@pytest.fixture(scope="session")
def served(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The studio over those models; uploads are limited to 2 MB."""
    from ornstein.studio.launch import serving

    pictures = tmp_path_factory.mktemp("pictures")
    people(pictures / "source.png", green=(60, 40, 60))
    people(pictures / "two.png", red=(20, 40, 50), blue=(150, 50, 60))
    people(pictures / "nobody.png")
    Image.linear_gradient("L").resize((40, 30)).save(pictures / "grey.png")
    before = torch.get_num_threads()
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("keys")))  # swaps are signed with a key of the tests
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_OFFLINE", "GRADIO_SSR_MODE"):
        patch.delenv(name, raising=False)
    with serving(models, detector=FACES.Squares(), recogniser=FACES.Colours(), max_file_size=LIMIT) as url:
        cache = Path(os.environ["GRADIO_TEMP_DIR"])
        yield Served(url, models, cache, pictures)
    assert not cache.exists()
    patch.undo()
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def browser_path() -> str:
    """Chromium; the test is skipped where there is none."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine to show the page in")
    return path

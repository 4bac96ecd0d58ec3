"""Every command that computes takes --device and --precision, and one function decides what they mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from ornstein import Data, Denoiser, Process
from ornstein.cli import app
from ornstein.nets import UNet
from ornstein.schedules import Cosine
from running import ornstein, refused

# They read, move or combine files: nothing to place on a device.
NOT_COMPUTING = {
    "ema", "export", "import", "push", "info", "ls", "env", "lora info", "lora convert", "lora merge", "lora scale",
    "faces verify", "faces protect", "faces card",
}  # fmt: skip
# They compute on the CPU, and their help says so: budgets are processor time, networks small, or dlib does the work.
ON_THE_CPU = {"contrast", "faces prepare", "faces finish"}
COMMANDS: Mapping[str, Any] = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]


def _names(commands: Mapping[str, Any], before: str = "") -> Iterator[str]:
    for name, command in commands.items():
        if hasattr(command, "commands"):
            yield from _names(command.commands, f"{before}{name} ")
        else:
            yield before + name


def _help(name: str) -> str:
    shown = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "400", "TERM": "dumb"})
    assert shown.exit_code == 0, shown.output
    return shown.output


@pytest.mark.parametrize("name", list(_names(COMMANDS)))
def test_a_command_that_computes_takes_device_and_precision(name: str) -> None:
    shown = _help(name)
    computes = name not in NOT_COMPUTING | ON_THE_CPU
    assert ("--device" in shown) == computes
    assert ("--precision" in shown) == computes
    if name in ON_THE_CPU:
        assert "CPU" in shown


CUDA = [
    "demo --out OUT",
    "train --data digits --out OUT --steps 1",
    "plan --data digits --minutes 1",
    "sample RUN --out OUT",
    "personalize RUN --images PICTURES --prompt dog --out OUT",
    "tune RUN --steps 2",
    "distil RUN --out OUT --to 2",
    "compress RUN --out OUT --macs 0.5",
    "bench RUN --steps 2",
    "evaluate RUN --data digits",
    "fit-noise moving-digits --frames 4 --size 16 --out OUT/noise.json",
    "studio --home OUT",
    "swap PICTURE PICTURE -o OUT/swap.png --model RUN --i-have-consent CONSENT",
    "faces demo --out OUT",
    "faces train PICTURES --minutes 1 --out OUT",
    "faces evaluate RUN --data PICTURES",
    "faces adapt RUN --source PICTURES --out OUT",
    "faces costs RUN",
    "faces benchmark PICTURES --run RUN",
    "edit inpaint RUN PICTURE --mask PICTURE --out OUT",
    "edit restore RUN PICTURE --operator blur:1 --out OUT",
    "edit upscale RUN PICTURE --out OUT",
    "edit colourise RUN PICTURE --out OUT",
    "edit sdedit RUN PICTURE --out OUT",
    "edit interpolate RUN PICTURE PICTURE --out OUT",
]


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An untrained run and a picture."""
    root = tmp_path_factory.mktemp("things")
    net = UNet(1, 8, width=8, multipliers=(1,), depths=(1,), attention=())
    Denoiser(net, Process(Cosine()), "v", data=Data((1, 8, 8))).save(root / "run")
    (root / "pictures").mkdir()
    picture = root / "pictures" / "0.png"
    Image.new("L", (8, 8), 90).save(picture)
    return {"RUN": root / "run", "PICTURES": picture.parent, "PICTURE": picture}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize("line", CUDA, ids=lambda line: line.split(" --")[0].lower())
def test_cuda_without_one_says_what_there_is(line: str, things: dict[str, Path], tmp_path: Path) -> None:
    words: list[object] = [things.get(word, word.replace("OUT", str(tmp_path / "out"))) for word in line.split()]
    words = ["Ann Lee, a test" if word == "CONSENT" else word for word in words]
    refused(ornstein(*words, "--device", "cuda", width=400), "no CUDA device is usable here", "use cpu")


def test_every_command_that_computes_is_tried_without_cuda() -> None:
    tried = {name for name in _names(COMMANDS) if any(f"{line} ".startswith(f"{name} ") for line in CUDA)}
    assert tried == set(_names(COMMANDS)) - NOT_COMPUTING - ON_THE_CPU

"""Every command that computes takes --device and --precision, and one function decides what they mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from ornstein.cli import app

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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize(
    "arguments",
    [
        ["demo", "--out", "OUT"],
        ["fit-noise", "moving-digits", "--frames", "4", "--size", "16", "--out", "OUT/noise.json"],
        ["studio", "--home", "OUT"],
        ["train", "--data", "digits", "--out", "OUT", "--steps", "1"],
    ],
    ids=lambda a: a[0],
)
def test_cuda_without_one_says_what_there_is(arguments: list[str], tmp_path: Path) -> None:
    words = [a.replace("OUT", str(tmp_path / "out")) for a in arguments]
    shown = CliRunner().invoke(app, [*words, "--device", "cuda"], env={"COLUMNS": "400"})
    text = str(shown.exception) + shown.output
    assert shown.exit_code != 0
    assert "no CUDA device is usable here" in text and "use cpu" in text

"""A command that runs out of memory says what to halve, in one line."""

from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from ornstein import Data, Denoiser, Process
from ornstein.cli import app
from ornstein.cli.command import run
from ornstein.nets import UNet
from ornstein.schedules import Cosine


def test_out_of_memory(capsys: pytest.CaptureFixture[str]) -> None:
    def command(**_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    with pytest.raises(typer.Exit) as ended:
        run(command)(batch=8, precision="auto")
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err.split("error: ")[1].strip() == (
        "out of memory: halve --batch, or take --precision bf16, or take --device cpu"
    )


def test_other_errors_are_not_hidden() -> None:
    def command() -> None:
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="a fault of ours"):
        run(command)()


@pytest.mark.parametrize(
    ("command", "advice"),
    [
        ("train --data digits --out OUT --steps 2 --net xs --batch 32 --no-report", "--accumulate 2"),
        ("sample RUN -n 4 --steps 2 --out OUT", "halve --batch"),
        ("evaluate RUN --data digits -n 16 --steps 2 --out OUT", "halve --batch"),
        ("bench RUN --steps 2", "halve --batch"),
        ("tune RUN --steps 2 --trajectories 4", "halve --batch"),
        ("distil RUN --out OUT --to 2 --trajectories 4", "halve --batch"),
    ],
)
def test_a_network_that_does_not_fit(
    command: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = UNet(1, 8, width=8, multipliers=(1,), depths=(1,), attention=())
    Denoiser(net, Process(Cosine()), "v", data=Data((1, 8, 8))).save(tmp_path / "run")

    def full(self: UNet, *_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has more\nand a hint")

    monkeypatch.setattr(UNet, "forward", full)
    words = command.replace("OUT", str(tmp_path / "out")).replace("RUN", str(tmp_path / "run"))
    result = CliRunner().invoke(app, words.split(), env={"COLUMNS": "400"})
    assert result.exit_code == 1, result.output
    text = " ".join(result.output.split())
    assert "out of memory" in text and advice in text and "Traceback" not in text

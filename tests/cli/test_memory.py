"""A command that runs out of memory says what to halve, in one line."""

import pytest
import torch
import typer

from ornstein.cli.command import run


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

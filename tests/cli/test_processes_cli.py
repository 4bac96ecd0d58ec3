"""`torchrun -m ornstein ...` as a user types it, and what a command that was cut off goes on with."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ornstein.cli import app
from running import torchrun

pytest.importorskip("accelerate")


def ornstein(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits trained for a few steps by two processes."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    done = torchrun(
        "train", "--data", "digits", "--net", "xs", "--steps", 4, "--batch", 4, "--sample-every", 2, "--out", out
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("2 processes") == 1 and done.stdout.count("done: ") == 1  # one of them speaks
    return out


@pytest.mark.slow
def test_two_processes_write_one_run(run: Path, tmp_path: Path) -> None:
    assert (run / "report.html").is_file() and (run / "progress" / "step-000004.png").is_file()
    assert json.loads((run / "config.json").read_text())["training"]["step"] == 4
    whole = shutil.copytree(run, tmp_path / "whole")
    ornstein("train", "--out", whole, "--resume", "--steps", 6)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 6]


@pytest.mark.slow
def test_samples_are_the_same_on_two_processes_and_only_made_where_missing(run: Path, tmp_path: Path) -> None:
    options = ("-n", 7, "--steps", 2, "--batch", 2, "--seed", 3)
    done = torchrun("sample", run, *options, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    ornstein("sample", run, *options, "--out", tmp_path / "one")
    two, one = files(tmp_path / "two"), files(tmp_path / "one")
    assert two == one and len(one) == 9
    for name in ("00003.png", "00006.png"):
        (tmp_path / "one" / name).unlink()
    before = (tmp_path / "one" / "00000.png").stat().st_mtime_ns
    assert "4 of 7 samples are in" in ornstein("sample", run, *options, "--out", tmp_path / "one")
    assert files(tmp_path / "one") == one
    assert (tmp_path / "one" / "00000.png").stat().st_mtime_ns == before
    # other settings: none of the old ones is taken for one of these, of fewer or of more
    ornstein("sample", run, "-n", 2, "--steps", 2, "--batch", 2, "--seed", 4, "--out", tmp_path / "one")
    assert files(tmp_path / "one")["00000.png"] != one["00000.png"]
    ornstein("sample", run, "-n", 7, "--steps", 2, "--batch", 2, "--seed", 4, "--out", tmp_path / "one")
    ornstein("sample", run, "-n", 7, "--steps", 2, "--batch", 2, "--seed", 4, "--out", tmp_path / "fresh")
    assert files(tmp_path / "one") == files(tmp_path / "fresh")


@pytest.mark.slow
def test_two_processes_judge_as_one(run: Path, tmp_path: Path) -> None:
    options = ("-n", 70, "--solvers", "ddim", "--steps", 2, "--features", "pixels", "--seeds", 1, "--batch", 16)
    options += ("--likelihood", "none")
    done = torchrun("evaluate", run, *options, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    ornstein("evaluate", run, *options, "--out", tmp_path / "one")
    two, one = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("two", "one"))
    assert two == one


@pytest.mark.slow
def test_an_error_is_told_in_a_line_by_each_process(tmp_path: Path) -> None:
    done = torchrun("train", "--data", tmp_path / "nowhere", "--out", tmp_path / "run")
    assert done.returncode != 0
    told = sorted(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert [line.split(": ")[1] for line in told] == ["process 0 of 2", "process 1 of 2"]
    assert all("nowhere" in line for line in told)
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_the_curve(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    out = tmp_path / "run"
    ornstein(
        "train", "--data", "digits", "--net", "xs", "--steps", 2, "--batch", 4, "--sample-every", 0,
        "--accumulate", 2, "--track", "tensorboard", "--out", out,
    )  # fmt: skip
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    (loss,) = events.Scalars("loss")
    line = json.loads((out / "metrics.jsonl").read_text())
    assert loss.step == line["step"] == 2
    assert loss.value == pytest.approx(line["loss"], rel=1e-6)
    result = CliRunner().invoke(app, ["train", "--data", "digits", "--track", "paper", "--out", str(tmp_path / "x")])
    assert result.exit_code == 2 and "unknown tracker 'paper'" in result.output
    assert torch.distributed.is_initialized() is False

"""The commands on a GPU, from the command line: whole, with data, labels and files of the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pretend import PretendedGPU
from safetensors.torch import load_file
from typer.testing import CliRunner

from ornstein.cli import app
from ornstein.data import open_clips
from ornstein.noise import ClipStatistics

SMALL = ("--batch", "8", "--no-report", "--sample-every", "0", "--precision", "float32")


def ornstein(*words: object) -> str:
    result = CliRunner().invoke(app, [str(w) for w in words], env={"COLUMNS": "300"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("net", ["unet:xs", "dit:xs"])
def test_a_model_of_images(gpu: PretendedGPU, tmp_path: Path, net: str) -> None:
    run, there = tmp_path / "run", ("--device", "cuda")
    ornstein("train", "--data", "digits", "--out", run, "--steps", 2, "--net", net, *SMALL, *there)
    weights = load_file(run / "model.safetensors")
    assert all(bool(w.isfinite().all()) for w in weights.values())
    for device in ("cuda", "cpu"):
        shown = ("sample", run, "-n", 2, "--steps", 2, "--precision", "float32", "--out", tmp_path / device)
        ornstein(*shown, "--device", device)
    pictures = [(tmp_path / device / "grid.png").read_bytes() for device in ("cuda", "cpu")]
    assert pictures[0] == pictures[1]


@pytest.mark.slow
def test_few_steps_of_a_model(gpu: PretendedGPU, tmp_path: Path) -> None:
    run, there = tmp_path / "run", ("--device", "cuda")
    ornstein("train", "--data", "digits", "--out", run, "--steps", 2, "--net", "unet:xs", *SMALL, *there)
    tuned = ("tune", run, "--steps", "2", "--trajectories", 2, "--iterations", 1)
    assert "from the fine solution" in ornstein(*tuned, "--precision", "bf16", *there)
    student = ("distil", run, "--out", tmp_path / "student", "--to", 2, "--trajectories", 4, "--steps", 2)
    ornstein(*student, "--batch", 8, "--no-report", "--precision", "float32", *there)
    assert (tmp_path / "student" / "model.safetensors").is_file()
    scores = ("evaluate", run, "-n", 8, "--images", 2, "--steps", 2, "--seeds", 1, "--out", tmp_path / "scores")
    ornstein(*scores, *there)


def test_clips_and_their_noise(gpu: PretendedGPU, tmp_path: Path) -> None:
    clips = ("--frames", 4, "--size", 16)
    fits = []
    for device in ("cuda", "cpu"):
        file = tmp_path / f"{device}.json"
        ornstein("fit-noise", "bouncing-balls", *clips, "--clips", 40, "--out", file, "--device", device)
        fits.append(json.loads(file.read_text()))
    for here, there in zip(*(fit["first_row"] for fit in fits), strict=True):
        assert there == pytest.approx(here, abs=1e-9)
    run, there = tmp_path / "run", ("--device", "cuda")
    noise = ("--noise", tmp_path / "cuda.json", "--net", "unet:xs")
    ornstein(
        "train",
        "--data",
        "bouncing-balls",
        *clips,
        "--out",
        run,
        "--given-frames",
        "--steps",
        2,
        *noise,
        *SMALL,
        *there,
    )
    ornstein("sample", run, "-n", 1, "--steps", 2, "--frames", 6, "--out", tmp_path / "clips", *there)
    assert (tmp_path / "clips" / "sheet.png").is_file()


def test_statistics_of_clips_wait_for_nothing_but_their_sums(gpu: PretendedGPU) -> None:
    clips = open_clips("bouncing-balls", frames=4, size=16).batch(torch.arange(4))[0]
    on_cpu, on_gpu = ClipStatistics(), ClipStatistics(device=torch.device("cuda"))
    on_cpu.update(clips)
    gpu.reset()
    on_gpu.update(clips)
    torch.testing.assert_close(on_gpu._products, on_cpu._products)
    assert gpu.copies <= 2 * len(clips) + 20, gpu.report()

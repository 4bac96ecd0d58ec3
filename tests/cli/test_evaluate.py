"""`ornstein evaluate` as a user types it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

import ornstein as orn
from ornstein.cli import app
from ornstein.evaluation import held_out
from ornstein.nets import VideoUNet

QUICK = ("-n", 24, "--steps", "2,1", "--seeds", 2, "--images", 9, "--likelihood", "none", "--features", "pixels")


def ornstein(*arguments: object, width: int = 200) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": str(width)})


def refused(result: Result, *words: str) -> None:
    """Exit code 2 and one line on stderr that has all the words."""
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    for word in words:
        assert word in lines[0], lines[0]


def photos(folder: Path, count: int, size: int = 8) -> Path:
    folder.mkdir()
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 255, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "digits"
    result = ornstein("train", "--data", "digits", "--out", out, "--steps", 4, "--batch", 4, "--sample-every", 0)
    assert result.exit_code == 0, result.output
    return out


def test_the_whole_judgement_of_a_run_by_what_it_held_out(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_out, "STEPS", 10)
    monkeypatch.setattr(held_out, "FLOW_STEPS", 2)
    result = ornstein(
        "evaluate", digits, "-n", 24, "--solvers", "ddim,dpmpp-3m", "--steps", "2,1", "--seeds", 2, "--images", 9,
        "--likelihood", "vlb,continuous,ode", "--out", tmp_path,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert [b["method"] for b in found["likelihood"]] == ["vlb", "continuous", "ode"]
    assert all(b["count"] == 9 and b["error"] > 0 and 0 < b["mean"] < 50 for b in found["likelihood"])
    assert [(r["solver"], r["steps"]) for r in found["quality"]] == [
        ("ddim", 1), ("ddim", 2), ("dpmpp-3m", 1), ("dpmpp-3m", 2),
    ]  # fmt: skip
    for row in found["quality"]:
        assert len(row["frechet"]["values"]) == 2 and row["frechet"]["mean"] > 0
        assert 0 <= row["precision"]["mean"] <= 1 and 0 <= row["recall"]["mean"] <= 1
        # four steps of training: worse than real images by far
        assert row["frechet"]["mean"] > 5 * found["training_images"]["frechet"]["mean"]
    assert found["copies"]["duplicates"] == 0
    assert found["data"] == "digits" and found["samples_per_seed"] == 24 and found["reference_images"] == 24
    assert found["command"].startswith(f"ornstein evaluate {digits} -n 24 --solvers ddim,dpmpp-3m --steps 2,1")
    page = (tmp_path / "report.html").read_text()
    printed = " ".join(result.stdout.split())
    for place in (page, printed):
        for words in (
            "24 samples a seed, seeds 0 to 1, mean ± standard deviation over the seeds; against 24 real images",
            "features: conv (112 random multi-scale features, seed 0, scaled on 24 real images)",
            "180 images of digits that the run held out",
            "Bits per dimension of 9 held-out images, ± standard error over the images",
            "Likelihood", "Quality of samples", "Copies of training images", "dpmpp-3m", "training images", "Precision",
        ):  # fmt: skip
            assert words in place, words
    assert "Nearest training images" in page and "chart-quality-0" in page
    # the same command gives the same figures
    again = ornstein(*found["command"].split()[1:], "--out", tmp_path / "again")
    assert again.exit_code == 0, again.output
    assert json.loads((tmp_path / "again" / "evaluation.json").read_text())["quality"] == found["quality"]


def test_data_by_name_is_the_held_out_part_where_the_run_was_trained_on_it(digits: Path, tmp_path: Path) -> None:
    def judged(*options: object) -> dict:
        result = ornstein("evaluate", digits, *QUICK, "--solvers", "ddim", "--out", tmp_path, *options)
        assert result.exit_code == 0, result.output
        return json.loads((tmp_path / "evaluation.json").read_text())

    own, named, less = judged(), judged("--data", "digits"), judged("--held-out", 0.05)
    assert own["quality"] == named["quality"] and own["data_fingerprint"] == named["data_fingerprint"]
    assert "90 images of digits that the run held out" in less["about"]
    assert own["data_fingerprint"] != less["data_fingerprint"]
    refused(ornstein("evaluate", digits, *QUICK, "--held-out", 0.5), "--held-out 0.5", "trained on", "0.1")


def test_other_images_are_seen_as_those_of_the_training(tmp_path: Path) -> None:
    """Brought to the run's size; copies are looked for among the training images while they are there."""
    run, train, other = tmp_path / "run", photos(tmp_path / "a", 20), photos(tmp_path / "b", 12, size=20)
    made = ornstein("train", "--data", train, "--size", 8, "--out", run, "--steps", 2, "--batch", 4)
    assert made.exit_code == 0, made.output
    result = ornstein("evaluate", run, "--data", other, *QUICK, "--solvers", "ddim")
    assert result.exit_code == 0, result.output
    found = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert found["about"] == f"all 12 images of {other}, brought to 8x8 pixels as in the training"
    assert found["copies"] is not None and found["reference_images"] == 12
    shutil.rmtree(train)
    result = ornstein("evaluate", run, "--data", other, *QUICK, "--solvers", "ddim", "--held-out", 0.7)
    assert result.exit_code == 0, result.output
    assert "no copies are looked for" in result.stdout
    found = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert found["copies"] is None and found["about"].startswith(f"8 images of {other}, drawn by seed 0")
    refused(ornstein("evaluate", run, *QUICK), "no such folder or file", str(train))
    (run / "train.json").unlink()
    refused(ornstein("evaluate", run, *QUICK), "train.json", "give --data")
    refused(ornstein("evaluate", run, "--data", other, *QUICK), "3x20x20", "3x8x8")


def test_wrong_input_is_told_in_one_line(digits: Path, tmp_path: Path) -> None:
    evaluate = ("evaluate", digits, "-n", 10, "--likelihood", "none", "--steps", "1")
    refused(ornstein(*evaluate, "--steps", 0), "--steps", "0")
    refused(ornstein(*evaluate, "--steps", "5,x"), "--steps", "5,x")
    refused(ornstein(*evaluate, "--solvers", "magic"), "magic", "ddim")
    refused(ornstein(*evaluate, "--likelihood", "elbo"), "elbo", "vlb", "ode")
    refused(ornstein(*evaluate, "--features", "vgg"), "vgg", "conv")
    refused(ornstein(*evaluate, "-n", 0), "-n", "0")
    refused(ornstein(*evaluate, "--seeds", 0), "--seeds", "0")
    refused(ornstein(*evaluate, "--held-out", 2), "--held-out", "2")
    refused(ornstein("evaluate", tmp_path / "nowhere"), "nowhere", "no such folder")
    refused(ornstein(*evaluate, "--data", photos(tmp_path / "large", 9)), "3x8x8", "1x8x8")
    (tmp_path / "empty").mkdir()
    refused(ornstein(*evaluate, "--data", tmp_path / "empty"), "empty")
    refused(ornstein(*evaluate, "--data", tmp_path / "gone"), "gone")
    assert not (digits / "evaluation").exists()


def test_a_model_of_clips_is_refused_before_anything_is_read(digits: Path, tmp_path: Path) -> None:
    orn.Denoiser(
        VideoUNet.preset("xs", channels=1, size=8, frames=4),
        orn.Process(orn.schedules.Cosine()),
        data=orn.Data((1, 4, 8, 8)),
    ).save(tmp_path / "clips")
    refused(ornstein("evaluate", tmp_path / "clips"), "models of images", "clips 1x4x8x8")
    no_data = tmp_path / "plain"
    orn.Denoiser(orn.load(digits).net, orn.Process(orn.schedules.Cosine())).save(no_data)
    refused(ornstein("evaluate", no_data, "--data", "digits"), "models of images", "does not describe")


def test_a_solver_that_diverges_is_told_with_its_time(digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(digits, run)
    tensors = safetensors.torch.load((run / "model.safetensors").read_bytes())
    huge = {k: torch.full_like(v, 1e30) if v.is_floating_point() else v for k, v in tensors.items()}
    (run / "model.safetensors").write_bytes(safetensors.torch.save(huge))
    refused(ornstein("evaluate", run, *QUICK, "--solvers", "ddim"), "ddim with 1 steps", "diverged", "t = ")
    assert not (run / "evaluation" / "evaluation.json").exists()


def test_help_shows_an_example() -> None:
    page = ornstein("evaluate", "--help")
    assert page.exit_code == 0 and "Example: ornstein evaluate runs/photos" in " ".join(page.stdout.split())

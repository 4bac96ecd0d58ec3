"""The commands as a user types them: what they write, and what they say of a mistake."""

import json
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from running import ornstein, refused


def picture(path: Path, seed: int, size: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of twelve pictures, with two bad files among them."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(12):
        picture(folder / "dogs" / f"{i}.png", i)
        picture(folder / "<cats>" / f"{i}.jpg", 100 + i)
    whole = (folder / "<cats>" / "0.jpg").read_bytes()
    (folder / "dogs" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    picture(folder / "dogs" / "dot.png", 7, size=1)
    return folder


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "photos"
    result = ornstein(
        "train", "--data", photos, "--size", 8, "--out", out, "--steps", 6, "--batch", 4, "--checkpoint-every", 3,
        "--sample-every", 3,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "2 bad files skipped" in result.stdout
    return out


def test_a_run_holds_model_settings_curve_pictures_and_report(trained: Path) -> None:
    config = json.loads((trained / "config.json").read_text())
    assert config["data"]["classes"] == ["<cats>", "dogs"]
    assert config["data"]["shape"] == [3, 8, 8]
    assert (trained / "model.safetensors").is_file()
    assert json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 6
    assert Image.open(trained / "samples.png").size == (8 * (10 * 9 - 1), 8 * (2 * 9 - 1))
    assert (trained / "progress" / "step-000003.png").is_file()
    assert (trained / "solver.json").is_file()
    report = (trained / "report.html").read_text()
    assert "cut.jpg" in report and "dot.png" in report  # the skipped files are listed
    assert "<cats>" not in report and "&lt;cats&gt;" in report


def test_sample_writes_pictures_and_a_grid(trained: Path, tmp_path: Path) -> None:
    result = ornstein("sample", trained, "-n", 5, "--steps", 3, "--out", tmp_path / "a")
    assert result.exit_code == 0, result.output
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == [*(f"{i:05d}.png" for i in range(5)), "grid.png", "samples.json"]
    # sample 2 is the same picture in another batch, and of the class in turn
    result = ornstein("sample", trained, "-n", 3, "--steps", 3, "--batch", 1, "--out", tmp_path / "b")
    assert result.exit_code == 0, result.output
    first, second = (np.asarray(Image.open(tmp_path / f / "00002.png"), dtype=int) for f in "ab")
    assert np.abs(first - second).max() <= 1
    result = ornstein(
        "sample", trained, "-n", 2, "--class", "dogs", "--guidance", 2, "--solver", "ddpm", "--steps", 2,
        "--out", tmp_path / "c",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rule = ("--guidance-interval", "0.1,0.9", "--guidance-rescale", 0.5)
    again = ("sample", trained, "-n", 2, "--class", "dogs", "--steps", 2, "--out", tmp_path / "d")
    result = ornstein(*again, "--guidance", 2, *rule)
    assert result.exit_code == 0, result.output
    stored = json.loads((tmp_path / "d" / "samples.json").read_text())["settings"]
    assert (stored["guidance_interval"], stored["guidance_rescale"]) == ([0.1, 0.9], 0.5)
    refused(ornstein(*again, *rule), 2, "needs a --guidance")
    refused(ornstein(*again, "--guidance", 2, "--guidance-interval", "0.9,0.1"), 2, "low < high")


def test_resume_goes_on_with_the_stored_settings(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    refused(ornstein("train", "--data", "digits", "--out", out), 2, "already holds a run", "--resume")
    result = ornstein("train", "--out", out, "--resume", "--steps", 8)
    assert result.exit_code == 0, result.output
    assert json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 8
    refused(ornstein("train", "--out", out, "--resume", "--batch", 5), 2, "batch", "4", "5")


def test_a_zip_without_classes_trains_an_unconditional_model(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "flat.zip", "w") as archive:
        for i in range(8):
            picture(tmp_path / f"{i}.png", i)
            archive.write(tmp_path / f"{i}.png", f"{i}.png")
    out = tmp_path / "run"
    result = ornstein(
        "train", "--data", tmp_path / "flat.zip", "--size", 8, "--out", out, "--steps", 2, "--batch", 4,
        "--held-out", 0.3,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    refused(ornstein("sample", out, "--class", 1), 2, "without classes")
    refused(ornstein("sample", out, "--guidance", 3), 2, "without classes")
    refused(
        ornstein("train", "--data", tmp_path / "flat.zip", "--size", 8, "--conditional", "--out", tmp_path / "x"),
        2,
        "no class labels",
    )
    assert not (tmp_path / "x").exists()


def test_bad_data_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "run"
    refused(ornstein("train", "--data", tmp_path / "nowhere", "--out", out), 2, "nowhere")
    (tmp_path / "empty").mkdir()
    refused(ornstein("train", "--data", tmp_path / "empty", "--size", 8, "--out", out), 2, "empty")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.png").write_text("no picture")
    refused(ornstein("train", "--data", tmp_path / "texts", "--size", 8, "--out", out), 2, "texts")
    refused(ornstein("train", "--data", "digits", "--steps", 0, "--out", out), 2, "steps", "0")
    refused(ornstein("train", "--data", "digits", "--net", "xxl", "--out", out), 2, "xxl", "xs")
    refused(ornstein("train", "--data", "digits", "--noise", "pink", "--out", out), 2, "pink")
    refused(ornstein("train", "--out", out), 2, "--data")
    refused(ornstein("train", "--out", out, "--resume"), 2)
    assert not out.exists()


def test_sample_says_what_is_wrong(trained: Path, tmp_path: Path) -> None:
    refused(ornstein("sample", tmp_path / "no"), 2, "no such folder")
    refused(ornstein("sample", tmp_path), 2, "config.json")
    refused(ornstein("sample", trained, "--solver", "magic"), 2, "magic", "ddim", "dpmpp-3m")
    refused(ornstein("sample", trained, "--grid", "magic"), 2, "magic", "logistic")
    refused(ornstein("sample", trained, "--steps", 0), 2, "steps")
    refused(ornstein("sample", trained, "--class", "horse"), 2, "horse", "dogs")


@pytest.mark.parametrize("damage", ["missing", "foreign", "shape", "nan", "garbage", "config"])
def test_a_damaged_checkpoint_is_refused(trained: Path, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    file = out / "model.safetensors"
    tensors = safetensors.torch.load(file.read_bytes())
    name = sorted(tensors)[0]
    words = [name]
    if damage == "missing":
        del tensors[name]
    elif damage == "foreign":
        tensors["intruder"] = torch.zeros(1)
        words = ["intruder"]
    elif damage == "shape":
        tensors[name] = torch.zeros(3, 3, 3)
    elif damage == "nan":
        tensors[name] = tensors[name] * torch.nan
    file.write_bytes(safetensors.torch.save(tensors))
    if damage == "garbage":
        file.write_bytes(b"\x80\x04nothing of the kind")
        words = ["model.safetensors"]
    if damage == "config":
        (out / "config.json").write_text('{"format": 1, "schedule": {"type": "__import__"}}')
        words = ["config.json"]
    refused(ornstein("sample", out), 2, *words)


def test_help_shows_an_example_of_every_command() -> None:
    listing = ornstein("--help")
    assert listing.exit_code == 0
    for command in ("demo", "train", "sample"):
        assert command in listing.stdout
        page = ornstein(command, "--help")
        assert page.exit_code == 0
        assert f"Example: ornstein {command}" in " ".join(page.stdout.split())


def test_the_installed_command_and_the_module_end_with_the_exit_code(tmp_path: Path) -> None:
    for start in ([sys.executable, "-m", "ornstein"], [str(Path(sys.executable).with_name("ornstein"))]):
        result = subprocess.run([*start, "sample", tmp_path], capture_output=True, text=True, check=False)
        assert result.returncode == 2
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_exits_with_130(tmp_path: Path, how: signal.Signals) -> None:
    out = tmp_path / "run"
    start = [sys.executable, "-m", "ornstein", "train", "--data", "digits", "--out", str(out), "--steps", "100000"]
    process = subprocess.Popen([*start, "--batch", "1"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (out / "metrics.jsonl").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(how)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors and "--resume" in errors
    step = json.loads((out / "config.json").read_text())["training"]["step"]
    assert step >= 10
    result = ornstein("train", "--out", out, "--resume", "--steps", step + 1)
    assert result.exit_code == 0, result.output


def test_train_by_a_named_objective(photos: Path, tmp_path: Path) -> None:
    out, asked = tmp_path / "run", ("--steps", 2, "--batch", 4, "--size", 8, "--sample-every", 0)
    refused(
        ornstein("train", "--data", photos, "--out", out, *asked, "--objective", "elbo"),
        2,
        "'elbo'",
        "simple",
        "hybrid",
    )
    result = ornstein("train", "--data", photos, "--out", out, *asked, "--objective", "hybrid")
    assert result.exit_code == 0, result.output
    assert json.loads((out / "config.json").read_text())["net"]["learned_variance"] is True
    assert json.loads((out / "train.json").read_text())["objective"] == "hybrid"
    resumed = ("train", "--out", out, "--resume", "--steps", 3)
    refused(ornstein(*resumed, "--objective", "continuous"), 2, "was trained with", "resume with the same")
    result = ornstein(*resumed)
    assert result.exit_code == 0, result.output
    result = ornstein(
        "sample", out, "-n", 2, "--steps", 2, "--solver", "ddpm", "--guidance", 2, "--out", tmp_path / "x"
    )
    assert result.exit_code == 0, result.output


def test_a_run_is_not_resumed_on_other_data(photos: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(photos, data)
    options = ["--size", 8, "--steps", 2, "--batch", 2]
    assert ornstein("train", "--data", data, "--out", out, *options).exit_code == 0
    (data / "dogs" / "3.png").unlink()
    refused(ornstein("train", "--out", out, "--resume", "--steps", 3), 2, "has changed since")

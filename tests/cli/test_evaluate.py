"""`ornstein evaluate` as a user types it."""

import json
import shutil
import time
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


def test_the_whole_evaluation_of_a_run_on_what_it_held_out(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_out, "STEPS", 10)
    monkeypatch.setattr(held_out, "TOLERANCE", 1.0)
    result = ornstein(
        "evaluate", digits, "-n", 24, "--solvers", "ddim,dpmpp-3m", "--steps", "2,1", "--seeds", 2, "--images", 9,
        "--likelihood", "vlb,continuous,ode", "--out", tmp_path,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert [b["method"] for b in record["likelihood"]] == ["vlb", "continuous", "ode"]
    assert all(b["count"] == 9 and b["error"] > 0 and 0 < b["mean"] < 50 for b in record["likelihood"])
    assert [(r["solver"], r["steps"]) for r in record["quality"]] == [
        ("ddim", 1), ("ddim", 2), ("dpmpp-3m", 1), ("dpmpp-3m", 2),
    ]  # fmt: skip
    for row in record["quality"]:
        assert len(row["frechet"]["values"]) == 2 and row["frechet"]["mean"] > 0
        assert 0 <= row["precision"]["mean"] <= 1 and 0 <= row["recall"]["mean"] <= 1
        # four steps of training: worse than real images by far
        assert row["frechet"]["mean"] > 5 * record["training_images"]["frechet"]["mean"]
    assert record["copies"]["duplicates"] == 0
    assert record["data"] == "digits" and record["samples_per_seed"] == 24 and record["reference_images"] == 24
    assert record["command"].startswith(f"ornstein evaluate {digits} -n 24 --solvers ddim,dpmpp-3m --steps 2,1")
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
    assert "Nearest training images" in page and "Quality against steps" in page and "UNet, preset xs" in page
    # the same command gives the same figures
    again = ornstein(*record["command"].split()[1:], "--out", tmp_path / "again")
    assert again.exit_code == 0, again.output
    assert json.loads((tmp_path / "again" / "evaluation.json").read_text())["quality"] == record["quality"]


def test_data_by_name_is_the_held_out_part_where_the_run_was_trained_on_it(digits: Path, tmp_path: Path) -> None:
    def evaluated(*options: object) -> dict:
        result = ornstein("evaluate", digits, *QUICK, "--solvers", "ddim", "--out", tmp_path, *options)
        assert result.exit_code == 0, result.output
        return json.loads((tmp_path / "evaluation.json").read_text())

    own, named, less = evaluated(), evaluated("--data", "digits"), evaluated("--held-out", 0.05)
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
    record = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert record["about"] == f"all 12 images of {other}, brought to 8x8 pixels as in the training"
    assert record["copies"] is not None and record["reference_images"] == 12
    shutil.rmtree(train)
    result = ornstein("evaluate", run, "--data", other, *QUICK, "--solvers", "ddim", "--held-out", 0.7)
    assert result.exit_code == 0, result.output
    assert "held-out part unknown: the training images were not found" in result.stdout
    record = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert record["copies"] is None and record["about"].startswith(f"8 images of {other}, drawn by seed 0")
    assert "held-out part unknown" in record["about"]
    refused(ornstein("evaluate", run, *QUICK), "held-out part unknown", str(train), "give --data")
    (run / "train.json").unlink()
    refused(ornstein("evaluate", run, *QUICK), "train.json", "give --data")
    refused(ornstein("evaluate", run, "--data", other, *QUICK), "3x20x20", "3x8x8")


def test_wrong_input_is_refused_in_one_line(digits: Path, tmp_path: Path) -> None:
    evaluate = ("evaluate", digits, "-n", 10, "--likelihood", "none", "--steps", "1")
    refused(ornstein(*evaluate, "--steps", 0), "--steps", "0")
    refused(ornstein(*evaluate, "--steps", "5,x"), "--steps", "'x'")
    refused(ornstein(*evaluate, "--solvers", "magic"), "magic", "ddim")
    refused(ornstein(*evaluate, "--likelihood", "elbo"), "elbo", "vlb", "ode")
    refused(ornstein(*evaluate, "--features", "vgg"), "vgg", "conv")
    refused(ornstein(*evaluate, "-n", 0), "-n", "0")
    refused(ornstein(*evaluate, "--seeds", 0), "--seeds", "0")
    refused(ornstein(*evaluate, "--held-out", 2), "--held-out", "2")
    refused(ornstein(*evaluate, "--full", "--minutes", 1), "--full", "--minutes")
    refused(ornstein(*evaluate, "--likelihood", "none,vlb"), "none stands alone")
    refused(ornstein("evaluate", tmp_path / "nowhere"), "nowhere", "no such folder")
    refused(ornstein(*evaluate, "--data", photos(tmp_path / "large", 9)), "3x8x8", "1x8x8")
    (tmp_path / "empty").mkdir()
    refused(ornstein(*evaluate, "--data", tmp_path / "empty"), "empty")
    refused(ornstein(*evaluate, "--data", tmp_path / "gone"), "gone")
    assert not (digits / "evaluation").exists()


def test_models_that_do_not_say_what_they_were_trained_on(digits: Path, tmp_path: Path) -> None:
    orn.Denoiser(
        VideoUNet.preset("xs", channels=1, size=8, frames=4),
        orn.Process(orn.schedules.Cosine()),
        data=orn.Data((1, 4, 8, 8)),
    ).save(tmp_path / "clips")
    refused(ornstein("evaluate", tmp_path / "clips"), "held out are unknown", "--data")
    no_data = tmp_path / "plain"
    orn.Denoiser(orn.load(digits).net, orn.Process(orn.schedules.Cosine())).save(no_data)
    refused(ornstein("evaluate", no_data, "--data", "digits"), "models of images", "does not describe")


def test_a_solver_that_diverges_is_named_with_its_time(digits: Path, tmp_path: Path) -> None:
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


def fresh(out: Path) -> dict:
    return json.loads((out / "evaluation.json").read_text())


def test_a_plan_is_printed_and_kept_to(digits: Path, tmp_path: Path) -> None:
    """A minute, whatever the machine: what does not fit is left out of the plan, or named at the end."""
    began = time.monotonic()
    result = ornstein("evaluate", digits, "--minutes", 0.2, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert time.monotonic() - began < 120  # and not an hour
    (plan,) = [line for line in result.stdout.splitlines() if line.startswith("plan: ")]
    for words in ("samples", "held-out images", "network evaluations, about "):
        assert words in plan
    record = fresh(tmp_path)
    assert record["samples_per_seed"] < 2000 and record["quality"]
    assert record["command"] in result.stdout.replace("\n", " ")


def test_started_again_it_takes_up_its_own_sizes(digits: Path, tmp_path: Path) -> None:
    sizes = ("--steps", "2", "--solvers", "ddim", "--likelihood", "none", "--features", "pixels", "--out", tmp_path)
    first = ornstein("evaluate", digits, "-n", 24, "--seeds", 1, *sizes)
    assert first.exit_code == 0, first.output
    again = ornstein("evaluate", digits, "--seeds", 2, *sizes)
    assert again.exit_code == 0 and "1 parts of this are in" in again.stdout, again.output
    assert fresh(tmp_path)["samples_per_seed"] == 24 and len(fresh(tmp_path)["quality"][0]["frechet"]["values"]) == 2


def test_json_is_all_that_is_printed(digits: Path, tmp_path: Path) -> None:
    result = ornstein("evaluate", digits, *QUICK, "--solvers", "ddim", "--out", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == fresh(tmp_path)


def test_a_file_of_the_user_is_not_replaced(digits: Path, tmp_path: Path) -> None:
    for name, text in (("report.html", "<h1>mine</h1>"), ("evaluation.json", '{"my": 1}'), ("pieces.json", "[]")):
        out = tmp_path / name.partition(".")[0]
        out.mkdir()
        (out / name).write_text(text)
        refused(ornstein("evaluate", digits, *QUICK, "--solvers", "ddim", "--out", out), name, "--overwrite")
        assert (out / name).read_text() == text and [path.name for path in out.iterdir()] == [name]
    result = ornstein("evaluate", digits, *QUICK, "--solvers", "ddim", "--out", out, "--overwrite")
    assert result.exit_code == 0, result.output
    # what we wrote is replaced without being asked
    result = ornstein("evaluate", digits, *QUICK, "--solvers", "ddim", "--out", out, "--steps", "3")
    assert result.exit_code == 0, result.output


def test_links_are_refused(digits: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "out").symlink_to(elsewhere)
    refused(ornstein("evaluate", digits, *QUICK, "--out", tmp_path / "out"), "link")
    (tmp_path / "folder").mkdir()
    target = elsewhere / "precious.html"
    target.write_text("precious")
    (tmp_path / "folder" / "report.html").symlink_to(target)
    refused(ornstein("evaluate", digits, *QUICK, "--out", tmp_path / "folder"), "report.html")
    assert target.read_text() == "precious" and list(elsewhere.iterdir()) == [target]


@pytest.fixture(scope="module")
def photo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a folder of pictures; its folder holds the pictures too."""
    folder = tmp_path_factory.mktemp("photo")
    photos(folder / "pictures", 100)
    result = ornstein(
        "train", "--data", folder / "pictures", "--size", 8, "--out", folder / "run", "--steps", 2, "--batch", 4
    )
    assert result.exit_code == 0, result.output
    return folder


def evaluated(run: Path, out: Path, *options: object) -> dict:
    result = ornstein("evaluate", run, *QUICK, "--solvers", "ddim", "--steps", "1", "--out", out, *options)
    assert result.exit_code == 0, result.output
    return fresh(out)


def test_data_are_recognised_wherever_they_are(
    photo_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their contents: relative to another working directory, or moved, they are the same data."""
    run = photo_run / "run"
    own = evaluated(run, tmp_path / "own")
    assert "10 images" in own["about"] and "held out" in own["about"]
    monkeypatch.chdir(photo_run / "run")
    relative = evaluated(run, tmp_path / "relative", "--data", "../pictures")
    shutil.copytree(photo_run / "pictures", tmp_path / "moved")
    moved = evaluated(run, tmp_path / "moved-out", "--data", tmp_path / "moved")
    for other in (relative, moved):
        assert other["quality"] == own["quality"] and other["data_fingerprint"] == own["data_fingerprint"]
        assert "held out" in other["about"]


def test_training_images_are_left_out_of_other_data(photo_run: Path, tmp_path: Path) -> None:
    """The same folder with pictures added is another set, but most of it has been trained on."""
    more = tmp_path / "more"
    shutil.copytree(photo_run / "pictures", more)
    for i in range(5):
        pixels = np.random.default_rng(1000 + i).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(more / f"new{i}.png")
    record = evaluated(photo_run / "run", tmp_path / "out", "--data", more)
    assert "without 90 that are training images" in record["about"] and record["reference_images"] == 15
    # training images alone are no held-out images
    only = tmp_path / "only"
    only.mkdir()
    for i in range(20):
        shutil.copy(photo_run / "pictures" / f"{i}.png", only)
    refused(ornstein("evaluate", photo_run / "run", *QUICK, "--data", only), "training images of", "give others")


def test_replaced_pictures_of_the_same_size_are_other_data(photo_run: Path, tmp_path: Path) -> None:
    """An array of the same name, shape and length: what was measured on the first is not the result of the second."""
    scores = []
    for seed in (1, 2):
        draw = np.random.default_rng(seed)
        pixels = draw.integers(0, 255 // seed, (12, 8, 8, 3), dtype=np.uint8)
        np.save(tmp_path / "others.npy", pixels)
        scores.append(evaluated(photo_run / "run", tmp_path / "out", "--data", tmp_path / "others.npy")["quality"])
    assert scores[0] != scores[1]


def test_names_of_classes_do_not_become_markup(tmp_path: Path) -> None:
    evil = "[red]<b>&x\x1b[31m"
    data = tmp_path / "data"
    data.mkdir()
    for name in (evil, "plain"):
        photos(data / name, 60)
    run = tmp_path / "run"
    made = ornstein("train", "--data", data, "--size", 8, "--out", run, "--steps", 2, "--batch", 4, "--conditional")
    assert made.exit_code == 0, made.output
    result = ornstein("evaluate", run, *QUICK, "--solvers", "ddim", "--out", tmp_path / "[b]out")
    assert result.exit_code == 0, result.output
    assert "[b]out/report.html" in result.stdout.replace("\n", "") and "\x1b[31m" not in result.stdout
    for page in (tmp_path / "[b]out" / "report.html", run / "report.html"):
        text = page.read_text()
        assert "<b>" not in text and "\x1b" not in text and "[red]&lt;b&gt;&amp;x" in text

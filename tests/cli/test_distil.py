"""`ornstein distil`, and what the other commands make of its students."""

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ornstein as orn
from ornstein import Data, Denoiser, Process, autoencoders, checkpoint
from ornstein.data import to_uint8
from ornstein.nets import UNet, VideoUNet
from ornstein.noise import AR1
from ornstein.schedules import Cosine
from ornstein.solvers import SOLVER
from running import done, ornstein, refused


def drawn(net: nn.Module) -> nn.Module:
    """Every layer does something: those that start at zero are drawn."""
    for parameter in net.parameters():
        if bool((parameter == 0).all()):
            nn.init.normal_(parameter, std=0.1)
    return net


def model(classes: int = 2) -> Denoiser:
    torch.manual_seed(0)
    net = drawn(UNet(1, 8, classes, width=8, multipliers=(1, 2), depths=(1, 1), attention=()))
    return Denoiser(net, Process(Cosine()), "v", data=Data((1, 8, 8), tuple("ab"[:classes])))


SMALL = ("--trajectories", 48, "--batch", 16, "--steps", 6, "--checkpoint-every", 3)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    model().save(folder / "teacher")
    said = done("distil", folder / "teacher", "--out", folder / "student", "--to", 2, "--guidance", 2, *SMALL)
    assert "48 trajectories" in said and "to 2 steps" in said and "no scores" in said
    assert (folder / "student" / "samples.png").is_file()
    return folder / "student"


@pytest.mark.filterwarnings("error")
def test_sample_takes_its_steps_and_says_so(student: Path, tmp_path: Path) -> None:
    said = done("sample", student, "-n", 4, "--precision", "float32", "--out", tmp_path / "own")
    assert "distilled model: 2 steps of ddim, guidance 2 built in" in said and "warning" not in said
    loaded = orn.load(student)
    assert loaded.distilled is not None and loaded.distilled.guidance == 2.0
    exact = to_uint8(orn.sample(loaded, (4, 1, 8, 8), cond={"label": torch.arange(4) % 2}))
    for i in range(4):
        with Image.open(tmp_path / "own" / f"{i:05d}.png") as picture:
            assert np.array_equal(np.asarray(picture.convert("L")), exact[i, 0].numpy())
    other = done("sample", student, "-n", 4, "--steps", 5, "--out", tmp_path / "other")
    assert f"warning: {student} was distilled for 2 steps of ddim" in other
    own, five = ((tmp_path / f / "00000.png").read_bytes() for f in ("own", "other"))
    assert own != five


def test_going_on_knows_what_was_asked(student: Path, tmp_path: Path) -> None:
    teacher, out = student.parent / "teacher", tmp_path / "again"
    asked = ("distil", teacher, "--out", out, "--to", 2, "--guidance", 2, *SMALL)
    done(*asked, "--steps", 3)
    # what --resume is not told, it knows
    said = done("distil", teacher, "--out", out, "--resume", "--steps", 3)
    assert "to 2 steps" in said
    done("distil", teacher, "--out", out, "--resume", "--steps", 6)
    assert json.loads((out / "distil.json").read_text())["steps"] == 6
    refused(ornstein(*asked), "already holds a run", "--resume")
    refused(ornstein(*asked, "--resume", "--guidance", 3), "--guidance 2.0, and 3.0")
    refused(ornstein(*asked, "--resume", "--to", 1), "--to 2, and 1")
    again = orn.load(teacher)
    with torch.no_grad():
        next(again.parameters()).mul_(1.5)
    again.save(tmp_path / "other")
    refused(ornstein("distil", tmp_path / "other", "--out", out, "--resume"), "no student of")


def test_digits_from_teacher_to_judgement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the data of the run at hand: the report, and `evaluate` on what the teacher held out."""
    monkeypatch.setattr(import_module("ornstein.cli.distil"), "_JUDGED", 40)
    teacher, out = tmp_path / "teacher", tmp_path / "student"
    done("train", "--data", "digits", "--steps", 2, "--batch", 8, "--sample-every", 0, "--out", teacher)
    said = done("distil", teacher, "--out", out, "--to", 1, *SMALL)
    assert "Quality against steps" in said and "distilled" in said and "to 1 step," not in said
    page = (out / "report.html").read_text()
    assert "distilled to 1 step of ddim" in page and SOLVER in page and "this report leaves out" not in page
    judged = done("evaluate", out, "-n", 32, "--seeds", 1)
    assert "ddim" in judged
    found = json.loads((out / "evaluation" / "evaluation.json").read_text())
    assert [(row["solver"], row["steps"]) for row in found["quality"]] == [("ddim", 1)] and found["likelihood"] == []
    refused(ornstein("evaluate", out, "--likelihood", "vlb"), "distilled", "evaluate its teacher")
    refused(ornstein("train", "--resume", "--out", out), "ornstein distil")
    # a report that may take no time scores fewer samples, and says so
    monkeypatch.setattr(import_module("ornstein.cli.distil"), "report_seconds", lambda training: 0.0)
    done("distil", teacher, "--out", out, "--resume", "--steps", 7)
    assert "this report leaves out" in (out / "report.html").read_text()


def test_clips_with_correlated_noise(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = drawn(VideoUNet(1, 8, 4, width=8, multipliers=(1, 2), depths=(1, 1), attention=(), conditioning=True))
    Denoiser(net, Process(Cosine(), AR1(4, 0.8)), "v", data=Data((1, 4, 8, 8))).save(tmp_path / "teacher")
    out = tmp_path / "student"
    done("distil", tmp_path / "teacher", "--out", out, "--to", 2, *SMALL, "--steps", 2, "--trajectories", 16)
    assert "distilled model: 2 steps" in done("sample", out, "-n", 2) and (out / "samples" / "00001.mp4").is_file()
    assert checkpoint.load(out).process.noise == AR1(4, 0.8)
    refused(ornstein("sample", out, "-n", 1, "--frames", 8), "whole clips from noise")


def test_mistakes(student: Path, tmp_path: Path) -> None:
    teacher, out = student.parent / "teacher", tmp_path / "out"
    for to in (0, 11):
        refused(ornstein("distil", teacher, "--out", out, "--to", to), f"1 to 10 steps, not {to}")
    refused(ornstein("distil", tmp_path / "none", "--out", out), "no such folder")
    refused(ornstein("distil", teacher, "--out", out, "--resume"), "no run to resume")
    refused(ornstein("distil", teacher, "--out", out, "--steps", 5, "--minutes", 1), "steps and minutes")
    refused(ornstein("distil", teacher, "--out", out, "--steps", 0), "at least 1")
    refused(ornstein("distil", student, "--out", out), "already distilled, to 2 steps")
    refused(ornstein("tune", student), "distilled to 2 steps", "teacher")
    refused(ornstein("sample", student, "--guidance", 3), "guidance built in, 2")
    plain = tmp_path / "plain"
    model(classes=0).save(plain)
    refused(ornstein("distil", plain, "--out", out, "--guidance", 2), "without classes")
    autoencoders.save(autoencoders.AUTOENCODERS["kl"](1, 8, width=16, depths=(1, 1, 1)), tmp_path / "ae")
    refused(ornstein("distil", tmp_path / "ae", "--out", out), "autoencoder")
    assert not out.exists()


def test_a_damaged_memory_of_steps(student: Path, tmp_path: Path) -> None:
    config = json.loads((student / "config.json").read_text())
    run = tmp_path / "run"
    orn.load(student).save(run)
    assert orn.load(run).distilled == orn.load(student).distilled
    for wrong in ({"times": [1.0, 0.5], "guidance": 1.0}, {"times": "no"}, []):
        (run / "config.json").write_text(json.dumps(config | {"distilled": wrong}))
        refused(ornstein("sample", run), "does not describe a model")


def test_consistency_on_the_data_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It learns from the run's own images, with guidance built in; a resumption goes on, and mistakes are named."""
    monkeypatch.setattr(import_module("ornstein.cli.distil"), "_JUDGED", 24)
    teacher, out = tmp_path / "teacher", tmp_path / "student"
    done("train", "--data", "digits", "--steps", 2, "--batch", 8, "--sample-every", 0, "--no-report", "--out", teacher)
    asked = ("distil", teacher, "--out", out, "--to", 2, "--method", "consistency", "--guidance", 2, "--batch", 8)
    said = done(*asked, "--steps", 3, "--checkpoint-every", 2)
    assert "1617 images of" in said and "to 2 steps" in said and "Quality against steps" in said
    assert not (out / "trajectories").exists()
    known = json.loads((out / "config.json").read_text())
    assert known["teacher"] == checkpoint.fingerprint(teacher) and known["distilled"]["guidance"] == 2.0
    assert json.loads((out / "distil.json").read_text())["method"] == "consistency"
    said = done("distil", teacher, "--out", out, "--resume", "--steps", 5, "--no-report")
    assert "1617 images" in said and json.loads((out / "config.json").read_text())["training"]["step"] == 5
    assert "distilled model: 2 steps of ddim, guidance 2 built in" in done("sample", out, "-n", 2)
    refused(ornstein(*asked, "--resume", "--method", "trajectories"), "--method consistency, and trajectories")
    refused(ornstein("distil", teacher, "--out", tmp_path / "x", *asked[4:], "--trajectories", 9), "leave it out")
    refused(ornstein("distil", teacher, "--out", tmp_path / "x", "--method", "magic"), "magic")
    mean = ("distil", teacher, "--out", tmp_path / "mean", "--to", 1, "--method", "meanflow", "--batch", 4)
    done(*mean, "--steps", 2, "--no-report")
    assert "1 step of ddim" in done("sample", tmp_path / "mean", "-n", 2)
    (teacher / "train.json").unlink()
    refused(ornstein("distil", teacher, "--out", tmp_path / "x", *asked[4:]), "does not say what data")
    assert not (tmp_path / "x").exists()

"""Commands on a pipeline folder: the prompts are its classes, and results are kept beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from typer.testing import CliRunner

from interop.conftest import pipeline as pipeline
from ornstein.cli import app

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
Folders = Callable[[str], Path]


def run(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.fixture
def folder(pipeline: Folders, tmp_path: Path) -> Path:
    shutil.copytree(pipeline("sd1"), tmp_path / "sd1")
    return tmp_path / "sd1"


@pytest.mark.slow
def test_sample_tune_info_and_evaluate(folder: Path, tmp_path: Path) -> None:
    before = sorted(p.name for p in folder.rglob("*"))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n\na dog\na cat\n")
    run("sample", folder, "--prompts", prompts, "--negative", "bad", "--guidance", 3, "--steps", 2)
    samples = folder.parent / "sd1.ornstein" / "samples"
    assert sorted(p.name for p in samples.glob("0*.png")) == ["00000.png", "00001.png"]  # one a prompt
    pictures = [np.asarray(Image.open(samples / f"0000{i}.png")) for i in range(2)]
    assert pictures[0].shape == (64, 64, 3) and not np.array_equal(*pictures)
    # sample i is the same by itself: its noise and its prompt are its own
    run("sample", folder, "--prompt", "a cat", "--negative", "bad", "--guidance", 3, "--steps", 2, "-n", 1,
        "--out", tmp_path / "one")  # fmt: skip
    one = np.asarray(Image.open(tmp_path / "one" / "00000.png"))
    assert int(np.abs(one.astype(int) - pictures[0]).max()) <= 1
    out = run("tune", folder, "--prompts", prompts, "--guidance", 3, "--steps", "3", "--trajectories", 4,
              "--iterations", 6)  # fmt: skip
    assert "3 steps" in out
    about = json.loads(run("info", folder, "--json"))
    assert about["kind"] == "pipeline of diffusers, StableDiffusionPipeline" and about["parameters"] > 1000
    if "stored in" in out:
        assert about["tuned"] == [3]
        again = run("sample", folder, "--prompt", "a cat", "--guidance", 3, "--steps", 3, "--out", tmp_path / "tuned")
        assert "tuned solver: 3 steps" in again
    data = tmp_path / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(data / f"{i}.png")
    said = run("evaluate", folder, "--prompts", prompts, "--data", data, "-n", 8, "--steps", 2, "--solvers", "ddim",
               "--seeds", 1, "--features", "pixels")  # fmt: skip
    assert (folder.parent / "sd1.ornstein" / "evaluation" / "evaluation.json").is_file(), said
    assert sorted(p.name for p in folder.rglob("*")) == before  # nothing was written into it


def test_prompts_where_they_do_not_belong(folder: Path, pipeline: Folders, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    assert "takes text: give --prompt" in run("sample", folder, code=2)
    assert "has no prompts" in run("sample", folder, "--prompts", empty, code=2)
    assert "not both" in run("sample", folder, "--prompts", empty, "--prompt", "a", code=2)
    assert "a model without text: leave out --negative" in run("sample", pipeline("dit"), "--negative", "a", code=2)
    assert "no likelihood of pixels" in run("evaluate", folder, "--prompt", "a", "--likelihood", "vlb", code=2)

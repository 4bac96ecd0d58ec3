"""Commands on a pipeline folder: the prompts are its classes, and results are kept beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from typer.testing import CliRunner

from interop.conftest import pipeline as pipeline
from ornstein.cli import app
from running import ornstein, refused

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


def damaged(pipeline: Folders, tmp_path: Path) -> dict[str, tuple[list[object], list[str]]]:
    """Commands on pipelines that cannot be read or used, and words of the line that says why."""
    import diffusers
    from safetensors.torch import save_file

    def copy(name: str) -> Path:
        return Path(shutil.copytree(pipeline("sd1"), tmp_path / name))

    def text(name: str, file: str, content: str) -> Path:
        folder = copy(name)
        (folder / file).write_text(content)
        return folder

    def scheduler(name: str, kind: str) -> Path:
        folder = copy(name)
        index, config = folder / "model_index.json", folder / "scheduler" / "scheduler_config.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": ["diffusers", kind]}))
        config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": kind}))
        return folder

    small = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8,), "norm_num_groups": 4}
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "layers_per_block": 1}
    plain = tmp_path / "plain"
    diffusers.DDPMPipeline(diffusers.UNet2DModel(**small, **blocks), diffusers.DDPMScheduler()).save_pretrained(plain)
    weights = "unet/diffusion_pytorch_model.safetensors"
    pickled, blind, short = copy("pickled"), copy("blind"), copy("short")
    (pickled / weights).rename((pickled / weights).with_suffix(".bin"))
    shutil.rmtree(blind / "text_encoder")
    (short / weights).write_bytes((short / weights).read_bytes()[:1000])
    save_file({"model.diffusion_model.out.0.weight": torch.zeros(4)}, tmp_path / "kohya.safetensors")
    (tmp_path / "pickle.ckpt").write_bytes(b"\x80\x02}q.")
    for name, content in (("blank", b"\n \n"), ("binary", b"\xff\xfe\x00\xd8"), ("prompts", b"a cat\n")):
        (tmp_path / f"{name}.txt").write_bytes(content)
    asked: list[object] = ["--prompt", "a cat"]
    whole, prompts = pipeline("sd1"), tmp_path / "prompts.txt"
    return {
        "pickle": ([pickled, *asked], [".bin is a pickle", "safe_serialization"]),
        "no encoder": ([blind, *asked], ["has no text_encoder"]),
        "scheduler": ([scheduler("sched", "CMStochasticIterativeScheduler"), *asked], ["CMStochastic", "expressed"]),
        "no such scheduler": ([scheduler("none", "NoSuchScheduler"), *asked], ["NoSuchScheduler"]),
        "no text": ([plain, *asked], ["without text"]),
        "one file": ([tmp_path / "kohya.safetensors", *asked], ["weights alone", "tokenizers"]),
        "one pickle": ([tmp_path / "pickle.ckpt", *asked], ["pickle.ckpt"]),
        "hub": (["owner/name", *asked], ["owner/name is neither a folder here nor"]),
        "index": ([text("index", "model_index.json", "{"), *asked], ["model_index.json"]),
        "list": ([text("list", "model_index.json", "[]"), *asked], ["model_index.json"]),
        "config": ([text("config", "unet/config.json", '{"in_channels": '), *asked], ["unet"]),
        "wrong config": (
            [text("wrong", "unet/config.json", '{"in_channels": "four"}'), *asked],
            ["wrong cannot be read"],
        ),
        "schedule": ([text("betas", "scheduler/scheduler_config.json", "[1]"), *asked], ["scheduler"]),
        "truncated": ([short, *asked], ["unet"]),
        "blank prompts": ([whole, "--prompts", tmp_path / "blank.txt"], ["has no prompts"]),
        "binary prompts": ([whole, "--prompts", tmp_path / "binary.txt"], ["binary.txt"]),
        "no prompts": ([whole, "--prompts", tmp_path / "none.txt"], ["none.txt"]),
        "guidance": ([whole, *asked, "--guidance", "nan"], ["guidance"]),
        "no guidance": ([whole, *asked, "--guidance", "much"], ["guidance"]),
        "guidance of nothing": ([plain, "--guidance", 3], ["guidance"]),
        "scales": ([whole, "--prompts", prompts, "--guidance", "1,inf"], ["guidance"]),
    }


def test_every_mistake_with_a_pipeline_is_one_line(
    pipeline: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    wrong = []
    for name, (words, expected) in damaged(pipeline, tmp_path).items():
        command = "tune" if name == "scales" else "sample"
        try:
            refused(ornstein(command, *words), *expected)
        except AssertionError as error:
            wrong.append(f"{name}: {error}")
    assert not wrong, "\n".join(wrong)
    assert not list(tmp_path.glob("*.ornstein"))

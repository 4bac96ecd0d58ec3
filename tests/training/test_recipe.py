"""`orn.train`: what the command does, from Python; the settings that a run stores; the directory it may write in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ornstein as orn
from ornstein.errors import UserError
from ornstein.objectives import OBJECTIVES
from ornstein.solvers import SOLVERS, grids
from ornstein.training import recipe
from ornstein.training.config import OBJECTIVES as OBJECTIVE_NAMES
from ornstein.training.settings import AUTOENCODERS, DistilSettings, Settings
from running import done, ornstein, refused

TINY: dict[str, Any] = {"steps": 4, "batch": 8, "sample_every": 0}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "digits"
    made = orn.train("digits", out, **TINY)
    assert made.path == out and made.scores and len(made.held_out) == 180
    assert "held_out=" not in repr(made).replace("held_out=0.1", "") and len(repr(made)) < 2500
    return out


def test_python_and_the_command_make_the_same_run(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "digits"
    done("train", "--data", "digits", "--steps", 4, "--batch", 8, "--sample-every", 0, "--out", out)
    for name in ("model.safetensors", "config.json", "train.json"):
        assert (out / name).read_bytes() == (run / name).read_bytes(), name
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in run.iterdir())


def test_a_run_is_the_settings_of_another(run: Path, tmp_path: Path) -> None:
    for i, source in enumerate((run, run / "train.json", run / "config.json")):
        out = tmp_path / str(i)
        done("train", "--config", source, "--out", out, "--no-report")
        assert (out / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
        assert not (out / "report.html").exists()
    file = tmp_path / "settings.toml"
    file.write_text('data = "digits"\nsteps = 2\nbatch = 8\nlearning-rate = 0.5\nout = "unused"\n')
    done("train", "--config", file, "--learning-rate", 0.25, "--out", tmp_path / "toml", "--no-report")
    stored = json.loads((tmp_path / "toml" / "train.json").read_text())
    assert (stored["learning_rate"], stored["steps"]) == (0.25, 2) and not Path("unused").exists()


def test_a_finished_run_says_so(run: Path, tmp_path: Path) -> None:
    out = shutil.copytree(run, tmp_path / "run")
    before = (out / "report.html").stat().st_mtime_ns
    assert "is finished already: 4 steps" in done("train", "--resume", "--out", out)
    assert (out / "report.html").stat().st_mtime_ns == before
    again = orn.train(None, out, resume=True, report=False, steps=6)
    assert again.settings.steps == 6 and recipe.read_record(out)["step"] == 6


def test_names_that_need_no_torch_are_those_that_do() -> None:
    assert tuple(OBJECTIVES) == OBJECTIVE_NAMES
    assert tuple(orn.autoencoders.AUTOENCODERS) == AUTOENCODERS
    assert tuple(SOLVERS) == orn.request.SOLVERS and tuple(grids.GRIDS) == orn.request.GRIDS


def test_an_unknown_setting_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no setting 'step'; known: .*steps"):
        orn.train("digits", tmp_path / "x", step=3)
    with pytest.raises(UserError, match="batch must be at least 1, not 0"):
        orn.train("digits", tmp_path / "x", batch=0)
    with pytest.raises(UserError, match="--stride is for clips"):
        orn.train("digits", tmp_path / "x", stride=2)
    assert not (tmp_path / "x").exists()


_EDITS: list[tuple[str, Any]] = [
    ("steps", "many"), ("steps", -1), ("steps", 1.5), ("steps", [4]), ("minutes", "NaN"), ("batch", {"a": 1}),
    ("held_out", 0), ("held_out", 7), ("held_out", None), ("data", 3), ("data", None), ("data", ""), ("size", "8by8"),
    ("size", True), ("channels", 0), ("channels", [1]), ("optimizer", "sgd"), ("optimizer", 1), ("net", "xxl"),
    ("net", None), ("model", "gan"), ("model", {}), ("objective", "mse"), ("precision", "half"), ("seed", "zero"),
    ("seed", 0.5), ("betas", [0.9]), ("betas", "0.9,0.99"), ("betas", [0.9, 2]), ("ema", 1), ("clip", 0),
    ("conditional", "yes"), ("stream", 1), ("frames", 0), ("frames", "6"), ("stride", 0), ("noise", None),
    ("centre", None), ("fingerprint", 5), ("track", "mlflow"), ("track", ["wandb"]), ("latent", 4), ("kl", "big"),
    ("learning_rate", float("inf")), ("weight_decay", -1), ("condition_dropout", 2), ("colour", "blue"), ("fps", -1),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), _EDITS)
def test_an_edited_train_json_is_refused_in_one_line(run: Path, tmp_path: Path, key: str, value: Any) -> None:
    out = tmp_path / "run"
    out.mkdir()
    for name in ("config.json", "train.json", "model.safetensors"):
        shutil.copy(run / name, out / name)
    shutil.copytree(run / "state", out / "state")
    stored = json.loads((out / "train.json").read_text())
    (out / "train.json").write_text(json.dumps(stored | {key: value}))
    refused(ornstein("train", "--resume", "--out", out, "--steps", 5), "train.json", key)
    with pytest.raises(UserError, match=r"train\.json"):
        Settings.stored(out / "train.json")


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{", '{"data": "digits"', "[" * 100_000, "\x00", '{"a": NaN}'])
def test_a_file_of_settings_that_holds_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "train.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"train\.json"):
        Settings.stored(file)


def test_a_run_of_today_is_read_tomorrow(run: Path) -> None:
    """A run that stored fewer settings: what it lacks takes the default, and images are decoded at the start."""
    stored = json.loads((run / "train.json").read_text())
    file = run.parent / "old.json"
    file.write_text(json.dumps({k: stored[k] for k in ("data", "steps", "batch", "seed", "held_out")}))
    old = Settings.stored(file)
    assert old.stream is False and old.steps == 4 and old.flip is False and old.warmup == 100


def test_a_run_from_before_a_setting_is_resumed(run: Path, tmp_path: Path) -> None:
    out = shutil.copytree(run, tmp_path / "run")
    file, old = out / "state" / "trainer.safetensors", recipe.read_record(out)
    del old["run"]["training"]["flip"]
    tensors, _ = orn.store.load_tensors(file)
    orn.store.atomic_save_tensors(file, tensors, {"record": json.dumps(old)})
    orn.train(None, out, resume=True, report=False, steps=5)
    assert recipe.read_record(out)["step"] == 5
    with pytest.raises(UserError, match=r"training\.flip = False, and True"):
        orn.train(None, out, resume=True, report=False, steps=6, flip=True)


def test_data_are_found_from_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(24):
        pixels = np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        (tmp_path / "a" / "photos").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "a" / "photos" / f"{i}.png")
    monkeypatch.chdir(tmp_path / "a")
    made = orn.train("photos", "run", report=False, net="xs", **TINY)
    assert made.settings.data == str(tmp_path / "a" / "photos")
    monkeypatch.chdir(tmp_path)
    orn.train(None, "a/run", resume=True, report=False, steps=5)
    assert recipe.read_record(Path("a/run"))["step"] == 5


def test_few_images_are_warned_of(tmp_path: Path) -> None:
    for i in range(2):
        Image.fromarray(np.full((8, 8, 3), 90 * i, np.uint8)).save(tmp_path / f"{i}.png")
    options = ("--steps", 1, "--batch", 1, "--net", "xs", "--sample-every", 0, "--no-report")
    assert "warning: only 2 images" in done("train", "--data", tmp_path, "--out", tmp_path.parent / "few", *options)


def test_flip_mirrors_half_of_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    loss = orn.Denoiser.loss

    def watched(self: orn.Denoiser, x0: torch.Tensor, *args: Any, **cond: Any) -> torch.Tensor:
        seen.append(x0.clone())
        return loss(self, x0, *args, **cond)

    monkeypatch.setattr(orn.Denoiser, "loss", watched)
    settings = TINY | {"batch": 64, "steps": 2}
    orn.train("digits", tmp_path / "plain", report=False, **settings)
    plain, seen[:] = list(seen), []
    orn.train("digits", tmp_path / "flip", report=False, flip=True, **settings)
    for before, after in zip(plain, seen, strict=True):
        mirrored = (after == before.flip(-1)).flatten(1).all(1)
        assert bool((mirrored | (after == before).flatten(1).all(1)).all())
        assert 16 < int(mirrored.sum()) < 48  # 32 of 64 but for four standard deviations
    with pytest.raises(UserError, match="--flip"):
        orn.train("digits", tmp_path / "latent", latent=str(tmp_path / "plain"), flip=True)


@pytest.mark.parametrize("name", ["report.html", "samples.png", "train.json", "distil.json", "progress"])
def test_a_training_replaces_no_file_of_others(run: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / name).write_text("{}")
    refused(ornstein("train", "--data", "digits", "--out", out), name, "not of a run", "--out")
    refused(ornstein("train", "--data", "digits", "--resume", "--out", out), name)
    refused(ornstein("distil", run, "--out", out), name, "not of a run")
    assert [p.name for p in out.iterdir()] == [name] and (out / name).read_text() == "{}"


def test_a_report_has_a_minute_or_a_tenth_of_the_training() -> None:
    assert recipe.report_seconds(30.0) == 60.0 and recipe.report_seconds(3600.0) == 360.0


def test_stored_distillations_are_validated(tmp_path: Path) -> None:
    for key, value in (("to", "4"), ("guidance", None), ("trajectories", 0), ("batch", 0), ("nonsense", 1)):
        with pytest.raises(UserError, match=rf"distil\.json: .*{key}"):
            orn.settings.read(DistilSettings, {"teacher": "x", key: value}, "distil.json")

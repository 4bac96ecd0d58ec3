"""A swap adapted to one person, with stand-ins for the detector, the recogniser and the trained network."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from ornstein import checkpoint
from ornstein.cli import app
from ornstein.errors import RunError, UserError
from ornstein.faces.identity import IDENTITY
from ornstein.faces.provenance.card import read_card
from ornstein.faces.swap import load_model
from ornstein.faces.swap.sampling import FaceModel
from ornstein.faces.train.adapt import LORA, TARGETS, adapt_swap
from ornstein.interop.lora import load_lora


@pytest.fixture
def run(stubs: SimpleNamespace, tmp_path: Path) -> Path:
    model: FaceModel = stubs.untrained()
    checkpoint.save(model.denoiser, tmp_path / "run")
    model.recogniser.save(tmp_path / "run" / IDENTITY)
    return tmp_path / "run"


def photos(stubs: SimpleNamespace, folder: Path, names: list[str]) -> Path:
    folder.mkdir()
    for i, name in enumerate(names):
        people = {name: (15 + 2 * i, 20 + i, 20)} if name in stubs.PEOPLE else {}
        pixels = stubs.scenery(64, 70, **people)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    return folder


def adapted(stubs: SimpleNamespace, run: Path, source: Path, out: Path, **settings):
    quick = {"steps": 40, "rank": 2, "batch": 8, "learning_rate": 1e-2}
    return adapt_swap(run, source, out, detector=stubs.Squares(), recogniser=stubs.Colours(), **quick | settings)


def test_it_learns_on_the_identity_path_alone_and_writes_a_run(stubs, run, tmp_path):
    source, out = photos(stubs, tmp_path / "ann", ["green"] * 6 + ["nobody"]), tmp_path / "out"
    made = adapted(stubs, run, source, out)
    assert (made.photos, made.held_out) == (6, 1) and made.skipped == [("6.png", "no face found")]
    assert made.checks[0].step == 0 and made.best.error < 0.98 * made.checks[0].error
    before, after = (load_file(folder / checkpoint.MODEL) for folder in (run, out))
    moved = {name.removesuffix(".weight") for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.endswith(TARGETS) for name in moved)
    loaded = load_model(out)
    assert "adapted to 6 photos" in read_card(out).data and loaded.model.size == 16
    # the LoRA beside it is the same change, and knows its base
    again = checkpoint.load(run)
    load_lora(again, out / LORA)
    x, t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.full((2,), 0.5)
    cond = {"scene": torch.zeros(2, 5, 16, 16), "identity": torch.ones(2, 3), "appearance": torch.ones(2, 4, 16, 16)}
    with torch.no_grad():
        assert torch.allclose(again(x, t, **cond).x0, loaded.model.denoiser(x, t, **cond).x0, atol=1e-5)
        assert not torch.allclose(checkpoint.load(run)(x, t, **cond).x0, again(x, t, **cond).x0, atol=1e-4)


def test_the_same_seed_gives_the_same_bits(stubs, run, tmp_path):
    source = photos(stubs, tmp_path / "ann", ["green"] * 4)
    for name in "ab":
        adapted(stubs, run, source, tmp_path / name, steps=20)
    a, b = (load_file(tmp_path / name / checkpoint.MODEL) for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nobody"] * 4, "0 photos with a face"),
        (["green", "green", "nobody"], "2 photos with a face: give 3"),
        (["green", "green", "green", "red"], "two people"),
    ],
)
def test_photos_that_are_not_of_one_person(stubs, run, tmp_path, names, message):
    with pytest.raises(UserError, match=message):
        adapted(stubs, run, photos(stubs, tmp_path / "ann", names), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_training_that_does_not_help_writes_nothing(stubs, run, tmp_path):
    source = photos(stubs, tmp_path / "ann", ["green"] * 3)
    with pytest.raises(RunError, match="no better"):
        adapted(stubs, run, source, tmp_path / "out", steps=20, learning_rate=1e4)
    assert not (tmp_path / "out").exists()


def test_the_command_refuses_a_wrong_run_and_a_run_that_is_there(run, tmp_path, stubs):
    source = photos(stubs, tmp_path / "ann", ["green"] * 3)
    cases = {
        "holds no trained face-swap model": [
            str(tmp_path / "none"),
            "--source",
            str(source),
            "--out",
            str(tmp_path / "o"),
        ],
        "already holds a run": [str(run), "--source", str(source), "--out", str(run)],
        "no such": [str(run), "--source", str(tmp_path / "gone"), "--out", str(tmp_path / "o")],
    }
    for message, arguments in cases.items():
        result = CliRunner().invoke(app, ["faces", "adapt", *arguments])
        assert result.exit_code == 2 and message in result.output, result.output

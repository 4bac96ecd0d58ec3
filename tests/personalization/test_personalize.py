"""Personalisation end to end on a tiny pipeline: what the run is, who opens it, what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import ornstein as orn
from ornstein.cli import app
from ornstein.errors import UserError
from ornstein.interop.families import family_of
from ornstein.interop.lora import load_lora, merge_lora, parts_of, read_lora
from ornstein.interop.pipeline import Pipeline
from ornstein.personalization.recipe import Run
from ornstein.personalization.task import Personalisation
from running import done, torchrun

PROMPT = "a photo of sks dog"
FAST = {"report": False, "checkpoint_every": 4, "sample_every": 0, "learning_rate": 1e-2, "held_out": 0.0}

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs


def learn(base: Path, photos: Path, out: Path, **settings) -> Run:
    return orn.personalize(base, photos, PROMPT, out, **FAST | {"steps": 4} | settings)


def image(d, prompt: str = PROMPT) -> torch.Tensor:
    return orn.sample(d, (1, *d.data.shape), steps=3, seed=1, cond=d.encode([prompt]))


def weights(run: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run / "model.safetensors")


@pytest.fixture(scope="module")
def lora(base, photos, tmp_path_factory) -> Run:
    return learn(base, photos, tmp_path_factory.mktemp("lora") / "run", rank=3, alpha=1.5)


def test_every_file_of_a_lora_is_the_same_model(base, lora):
    run = orn.load(lora.path)
    plain, made = image(orn.load(base)), image(run)
    assert (made - plain).abs().max() > 1e-2
    for name in ("pytorch_lora_weights.safetensors", "lora_kohya.safetensors", ""):
        d = orn.load(base)
        load_lora(d, lora.path / name)
        merge_lora(d)
        assert torch.equal(image(d), made), name
    assert {layer.alpha for layer in read_lora(lora.path).layers.values()} == {1.5}
    assert (image(lora.model) - made).abs().max() < 1e-3  # attached, not merged: the same to rounding


def test_diffusers_loads_it_at_the_right_strength(base, lora):
    import diffusers

    made = {}
    for name in ("pytorch_lora_weights.safetensors", "lora_kohya.safetensors"):
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(base, safety_checker=None, local_files_only=True)
        pipe.load_lora_weights(lora.path, weight_name=name)
        made[name] = image(Pipeline(pipe, family_of("StableDiffusionPipeline"), base).eval())
    ours = image(orn.load(lora.path))
    effect = float((ours - image(orn.load(base))).abs().max())
    for name, theirs in made.items():
        assert float((theirs - ours).abs().max()) < 1e-3 * effect, name


def test_the_command_makes_a_run_that_sample_opens(base, photos, tmp_path):
    out, made = tmp_path / "run", tmp_path / "samples"
    command = ["personalize", str(base), "--images", str(photos), "--prompt", PROMPT, "--out", str(out), "--steps", "2"]
    result = CliRunner().invoke(app, [*command, "--previews", "1", "--rank", "2"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    page = (out / "report.html").read_text()
    assert "held-out loss" in page and "drift of the class" in page
    for given in ([str(out)], [str(base), "--lora", str(out)]):
        result = CliRunner().invoke(
            app, ["sample", *given, "--prompt", PROMPT, "-n", "1", "--steps", "2", "--out", str(made / given[0][-2:])]
        )
        assert result.exit_code == 0, result.output
    a, b = (np.asarray(Image.open(f)) for f in sorted(made.glob("*/00000.png")))
    assert np.array_equal(a, b)


def test_a_run_that_dies_resumes_to_the_same_bits(base, photos, tmp_path, monkeypatch):
    given = {"steps": 5, "held_out": 0.17, "prior": "frozen", "train_text": True, "flip": True, "ema": 0.2}
    given["checkpoint_every"] = 2
    whole = learn(base, photos, tmp_path / "whole", **given)
    loss = Personalisation.loss
    with monkeypatch.context() as patch:
        calls = iter(range(100))

        def dies(self, *args):
            if next(calls) == 3:
                raise InterruptedError
            return loss(self, *args)

        patch.setattr(Personalisation, "loss", dies)
        with pytest.raises(InterruptedError):
            learn(base, photos, tmp_path / "run", **given)
    resumed = orn.personalize(None, None, None, tmp_path / "run", resume=True, report=False)
    a, b = weights(whole.path), weights(resumed.path)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert resumed.checks == whole.checks


def test_a_base_that_has_changed_is_refused_by_hash(base, lora, tmp_path):
    other = tmp_path / "sd"
    shutil.copytree(base, other)
    run = tmp_path / "run"
    shutil.copytree(lora.path, run)
    config = json.loads((run / "config.json").read_text())
    config["personal"]["base"] |= {"path": str(other), "relative": "none"}
    (run / "config.json").write_text(json.dumps(config))
    orn.load(run)
    d = orn.load(other)
    with torch.no_grad():
        next(iter(parts_of(d).parameters())).add_(1)
    d.pipe.save_pretrained(other, safe_serialization=True)
    wanted = config["personal"]["base"]["hash"][:12]
    with pytest.raises(UserError, match=f"personalised from the base {wanted}"):
        orn.load(run)
    shutil.rmtree(other)
    with pytest.raises(UserError, match="is not there"):
        orn.load(run)


def test_what_cannot_work_is_refused(base, photos, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = [
        ({"images": empty}, "is empty: give a folder"),
        ({"rank": 500}, "rank 500 is not between 1 and"),
        ({"prior": "images", "method": "textual-inversion"}, "--prior is for --method"),
        ({"class_images": 5}, "needs --prior images"),
        ({"targets": ("nothing_here",)}, "ends in nothing_here"),
        ({"prompt": "a photo of a dog", "method": "textual-inversion"}, "placeholder"),
        ({"held_out": 0.5, "held_out_images": photos}, "give one of them"),
    ]  # fmt: skip
    for i, (given, message) in enumerate(cases):
        asked = {"images": photos, "prompt": PROMPT} | given
        with pytest.raises(UserError, match=message):
            orn.personalize(base, asked.pop("images"), asked.pop("prompt"), tmp_path / str(i), **FAST | asked)


def test_a_base_without_text_is_refused(photos, tmp_path):
    from ornstein.nets import UNet

    d = orn.Denoiser(
        UNet.preset("xs", channels=3, size=8, classes=0),
        orn.Process(orn.schedules.Cosine()),
        data=orn.SampleSpec((3, 8, 8)),
    )
    d.save(tmp_path / "base")
    with pytest.raises(UserError, match="takes no text"):
        orn.personalize(tmp_path / "base", photos, PROMPT, tmp_path / "run")


def test_what_is_doubtful_is_said(base, photos, tmp_path, capsys):
    bad = tmp_path / "bad"
    shutil.copytree(photos, bad)
    (bad / "broken.png").write_bytes(b"no picture")
    orn.personalize(base, bad, "a photo of a dog", tmp_path / "run", **FAST | {"steps": 1})
    said = " ".join(capsys.readouterr().out.split())
    assert "broken.png" in said and "does not hold the placeholder sks" in said
    orn.personalize(base, photos, "a photo of x", tmp_path / "word", placeholder="x", **FAST | {"steps": 1})
    assert "placeholder x is a word of the tokenizer" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_two_processes_learn_what_one_does(base, photos, tmp_path):
    pytest.importorskip("accelerate")
    command = ["personalize", base, "--images", photos, "--prompt", PROMPT, "--steps", 3, "--batch", 2, "--no-report"]
    command += ["--sample-every", 0, "--learning-rate", 0.01, "--prior", "images", "--class-images", 2, "--guidance", 1]
    command += ["--precision", "float32"]
    done(*command, "--out", tmp_path / "one", "--class-folder", tmp_path / "class")
    result = torchrun(*command, "--out", tmp_path / "two", "--class-folder", tmp_path / "class2")
    assert result.returncode == 0, result.stderr
    one, two = (weights(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys()
    apart = torch.cat([(one[name] - two[name]).abs().flatten() for name in one])
    assert float((apart > 1e-4).float().mean()) < 0.01  # a gradient that is zero but for rounding has either sign
    pictures = [sorted((tmp_path / name).glob("*.png")) for name in ("class", "class2")]
    apart = [
        np.abs(np.subtract(*(np.asarray(Image.open(f), int) for f in pair))).max()
        for pair in zip(*pictures, strict=True)
    ]
    assert len(apart) == 2 and max(apart) <= 1  # another batch: to rounding

"""Autoencoders and latent diffusion as a user types them."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import ornstein as orn
from ornstein import autoencoders
from running import ornstein, refused


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder of each of two kinds, and a diffusion model on the latents of one of them."""
    folder = tmp_path_factory.mktemp("runs")
    short = ("--data", "digits", "--steps", 6, "--batch", 16, "--net", "xs", "--sample-every", 3)
    assert ornstein("train", "--model", "kl", *short, "--out", folder / "kl").exit_code == 0
    assert ornstein("train", "--model", "hvae", "--layers", 3, *short, "--out", folder / "hvae").exit_code == 0
    result = ornstein("train", "--latent", folder / "kl", *short, "--out", folder / "latent")
    assert result.exit_code == 0, result.output
    assert "on latents of (4, 4, 4)" in result.output
    return folder


@pytest.mark.parametrize("kind", ["kl", "hvae"])
def test_an_autoencoder_leaves_a_model_pictures_and_a_report(runs: Path, kind: str):
    run = runs / kind
    assert {"model.safetensors", "config.json", "reconstructions.png", "samples.png", "train.json"} <= {
        p.name for p in run.iterdir()
    }
    assert len(list((run / "progress").iterdir())) == 2
    model = autoencoders.load(run)
    assert model.shape == (1, 8, 8)
    report = (run / "report.html").read_text()
    for section in ("Reconstructions", "Interpolations", "Traversals", "Rates", "Bits/dim", "PSNR"):
        assert section in report
    assert report.count('<th scope="row">layer ') == (1 if kind == "kl" else 3)


def test_a_collapsed_posterior_is_told(tmp_path: Path):
    """Under a weight that leaves nothing to say, in the terminal and in the report."""
    short = ("--data", "digits", "--steps", 40, "--batch", 64, "--net", "xs", "--sample-every", 0)
    result = ornstein("train", "--model", "vae", "--kl", 500, *short, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "collapsed posterior: layer 1 carries" in result.output
    assert "collapsed posterior" in (tmp_path / "run" / "report.html").read_text()


def test_sampling_from_an_autoencoder(runs: Path, tmp_path: Path):
    assert ornstein("sample", runs / "hvae", "-n", 5, "--out", tmp_path / "a").exit_code == 0
    assert ornstein("sample", runs / "hvae", "-n", 3, "--out", tmp_path / "b").exit_code == 0
    assert len(list((tmp_path / "a").glob("0*.png"))) == 5
    assert (tmp_path / "a" / "00002.png").read_bytes() == (tmp_path / "b" / "00002.png").read_bytes()


def test_sampling_from_latents_makes_images(runs: Path, tmp_path: Path):
    assert ornstein("sample", runs / "latent", "-n", 4, "--steps", 2, "--out", tmp_path).exit_code == 0
    from PIL import Image

    assert Image.open(tmp_path / "00000.png").size == (8, 8)
    d = orn.load(runs / "latent")
    assert d.shape == (1, 8, 8) and d.data is not None and d.data.shape == (4, 4, 4)
    assert len(d.data.classes) == 10


def test_evaluating_latents_gives_the_joint_bound(runs: Path, tmp_path: Path):
    result = ornstein(
        "evaluate", runs / "latent", "-n", 32, "--steps", 2, "--solvers", "ddim", "--seeds", 1,
        "--images", 8, "--likelihood", "continuous,ode", "--out", tmp_path,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = {b["method"]: b for b in json.loads((tmp_path / "evaluation.json").read_text())["likelihood"]}
    assert set(found) == {"continuous", "ode", "own prior"}
    for name in ("continuous", "ode"):
        assert set(found[name]["parts"]) == {"reconstruction", "minus entropy", "prior"}
        assert found[name]["mean"] == pytest.approx(sum(found[name]["parts"].values()), rel=1e-6)
    # the same decoder, images and posterior under both
    assert found["ode"]["parts"]["reconstruction"] == found["continuous"]["parts"]["reconstruction"]


def test_evaluating_an_autoencoder(runs: Path, tmp_path: Path):
    result = ornstein("evaluate", runs / "kl", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "PSNR" in result.output and (tmp_path / "report.html").is_file()


def test_a_latent_run_goes_on(runs: Path, tmp_path: Path):
    shutil.copytree(runs / "kl", tmp_path / "kl")
    shutil.copytree(runs / "latent", tmp_path / "latent")
    result = ornstein("train", "--resume", "--steps", 8, "--latent", tmp_path / "kl", "--out", tmp_path / "latent")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "latent" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 8


def test_a_changed_or_missing_autoencoder_is_refused(runs: Path, tmp_path: Path):
    shutil.copytree(runs / "kl", tmp_path / "kl")
    common = ("--data", "digits", "--steps", 2, "--batch", 8, "--net", "xs", "--sample-every", 0)
    assert ornstein("train", "--latent", tmp_path / "kl", *common, "--out", tmp_path / "ld").exit_code == 0
    model = autoencoders.load(tmp_path / "kl")
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    autoencoders.save(model, tmp_path / "kl")
    for command in (
        ("sample", tmp_path / "ld", "-n", 1),
        ("evaluate", tmp_path / "ld"),
        ("train", "--resume", "--out", tmp_path / "ld", "--steps", 4),
    ):
        refused(ornstein(*command), "has changed")
    shutil.rmtree(tmp_path / "kl")
    refused(ornstein("sample", tmp_path / "ld", "-n", 1), "is missing")
    refused(ornstein("train", "--latent", tmp_path / "kl", *common, "--out", tmp_path / "b"), "no such folder")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", "gan"), ("--model", "'gan'", "hvae")),
        (("--model", "kl", "--codes", 8), ("--codes", "vq")),
        (("--factor", 2), ("--factor", "--model")),
        (("--model", "vq", "--kl", 1), ("--kl", "vae")),
        (("--model", "kl", "--factor", 3), ("factor", "3")),
        (("--model", "kl", "--factor", 16), ("16", "8")),
        (("--model", "kl", "--kl", -1), ("--kl", "negative")),
        (("--model", "kl", "--objective", "simple"), ("--objective", "diffusion")),
        (("--model", "kl", "--perceptual", "no/such.pt"), ("no/such.pt",)),
        (("--model", "kl", "--perceptual-weight", 2), ("--perceptual",)),
        (("--model", "kl", "--noise", "ar1:0.5"), ("--noise", "diffusion")),
        (("--model", "hvae", "--layers", 0), ("layer",)),
        (("--model", "vq", "--codes", 1), ("--codes must be at least 2",)),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: tuple[object, ...], words: tuple[str, ...]):
    refused(ornstein("train", "--data", "digits", *options, "--steps", 2, "--out", tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()


def test_a_latent_run_of_another_size_is_refused(runs: Path, tmp_path: Path):
    common = ("--data", "digits", "--steps", 2, "--out", tmp_path / "run")
    refused(ornstein("train", "--latent", runs / "kl", "--size", 16, *common), "8 pixels", "16")
    refused(ornstein("train", "--latent", runs / "kl", "--model", "vq", *common), "--latent", "diffusion")
    refused(ornstein("train", "--latent", runs / "latent", *common), "no autoencoder")

"""Training, running and resuming the contrast, and its command."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import ornstein as orn
from ornstein.contrast import run
from ornstein.contrast.models import Diffusion, Gan, bits_per_dim, build
from ornstein.contrast.problems import open_problem
from ornstein.contrast.report import animation, columns, rows
from ornstein.contrast.settings import Contrast, family
from ornstein.contrast.training import check_budget, score, train
from ornstein.errors import RunError, UserError
from running import done, ornstein, refused

TINY = ("--data", "gaussians-8", "--minutes", 0.004, "--seeds", 2, "-n", 50, "--jobs", 1, "--likelihood", "none")


@pytest.fixture(autouse=True)
def few_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pictures of a training are enough."""
    monkeypatch.setattr(run, "train", partial(train, frames=3))


def test_a_command_trains_reports_and_keeps_what_is_finished(tmp_path: Path) -> None:
    out = tmp_path / "run"
    said = done("contrast", *TINY, "--models", "gan,diffusion", "--out", out)
    assert "gan, seed 1" in said and "report.html" in said
    stored = json.loads((out / "contrast.json").read_text())
    assert [(r["model"], r["seed"]) for r in stored["results"]] == [
        ("gan", 0),
        ("gan", 1),
        ("diffusion", 0),
        ("diffusion", 1),
    ]
    for record in stored["results"]:
        assert 0.12 <= record["seconds"] < 1 and record["steps"] >= 1 and record["ended"] is None
        assert record["bits"] == {}
        assert record["scores"]["n"] == 50 and record["costs"]["seconds"] > 0
    assert (out / "collapse.gif").read_bytes()[:4] == b"GIF8"
    page = (out / "report.html").read_text()
    for word in ("Samples over training", "Gradient of the critic", "reverse KL", "Losses"):
        assert word in page
    # again, with another model: the finished ones are not trained again
    before = {p.name: p.stat().st_mtime_ns for p in (out / "models").glob("*.json")}
    done("contrast", *TINY, "--models", "gan,autoregressive", "--out", out)
    after = {p.name: p.stat().st_mtime_ns for p in (out / "models").glob("*.json")}
    assert all(after[name] == before[name] for name in before) and "autoregressive-seed1.json" in after
    # half a result, as a killed process leaves it, and another budget are made again
    (out / "models" / "gan-seed1.json").write_text("{")
    settings = Contrast(data="gaussians-8", models=("gan",), minutes=0.004, seeds=2, num=50, out=out)
    assert [r.seed for r in run.load_results(settings)] == [0]
    assert not run.load_results(replace(settings, minutes=0.02))


@pytest.mark.slow
def test_processes_train_the_models_that_are_missing(tmp_path: Path) -> None:
    settings = Contrast(
        data="gaussians-8", models=("gan", "dragan"), minutes=0.004, seeds=1, num=20, jobs=2, out=tmp_path
    )
    lines: list[str] = []
    results = run.contrast(settings, lambda line, done, total: lines.append(f"{done}/{total} {line}"))
    assert [r.model for r in results] == ["gan", "dragan"] and lines[-1].startswith("2/2")
    assert all(0 < r.record["seconds"] < 5 for r in results)


def test_a_process_that_dies_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.sys, "executable", "/bin/false")
    settings = Contrast(data="gaussians-8", models=("gan", "dragan"), minutes=0.01, seeds=1, num=20, out=tmp_path)
    with pytest.raises(RunError, match="process that trained gan has failed"):
        run.contrast(settings)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--models", "gan,vae"), ("unknown model 'vae'", "wgan-gp")),
        (("--models", "unrolled"), ("unknown model 'unrolled'",)),
        (("--models", "unrolled-21"), ("unrolled-21", "between 0 and 20")),
        (("--data", "gaussians-9"), ("gaussians-9",)),
        (("--data", "no/such/folder"), ("no/such/folder",)),
        (("--minutes", "1e-7", "--models", "gan"), ("gan", "one step takes", "--minutes")),
        (("--minutes", "0"), ("--minutes", "positive")),
        (("--models", "gan,diffusion", "--likelihood", "gan"), ("gan has no likelihood", "density")),
        (("--models", "gan", "--likelihood", "diffusion"), ("diffusion", "not among the models")),
        (("--size", "16"), ("--size 16", "own size")),
        (("--data", "digits", "--models", "patchwise-3"), ("patchwise-3", "patches of 3")),
    ],
)
def test_wrong_input_is_named_in_one_line(options: tuple[str, ...], words: tuple[str, ...], tmp_path: Path) -> None:
    given = dict(zip(TINY[::2], TINY[1::2], strict=True)) | dict(zip(options[::2], options[1::2], strict=True))
    refused(ornstein("contrast", *[x for pair in given.items() for x in pair], "--out", tmp_path / "out"), *words)
    assert not list((tmp_path / "out").glob("models/*"))


def test_files_of_others_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    refused(ornstein("contrast", *TINY, "--models", "gan", "--out", tmp_path), "report.html", "another folder")
    assert (tmp_path / "report.html").read_text() == "mine"


def test_a_gan_has_no_likelihood() -> None:
    problem = open_problem("gaussians-8")
    with pytest.raises(UserError, match="GAN has no likelihood"):
        bits_per_dim(build("sn-gan", problem, 0), problem)


def test_names_of_models() -> None:
    assert family("unrolled-5") == ("unrolled", 5) and family("patchwise-2") == ("patchwise", 2)
    assert family("wgan-gp") == ("wgan-gp", 0)
    assert Contrast(out=Path("x"), models=("gan", "gan")).models == ("gan",)
    assert Contrast(out=Path("x"), minutes=3, seeds=3).seconds == 60


class Diverging:
    """A model whose third step has an infinite loss."""

    parameters, evaluations = 1, 1

    def __init__(self) -> None:
        self.steps = 0

    def step(self, time: float) -> dict[str, float]:
        self.steps += 1
        return {"critic": 1.0, "generator": math.inf if self.steps == 3 else 0.5}

    def sample(self, n: int, seed: int) -> torch.Tensor:
        return torch.zeros(n, 2)


def test_a_loss_that_is_not_finite_ends_the_training_and_is_recorded() -> None:
    trained = train(Diverging(), open_problem("gaussians-8"), steps=100)
    assert trained.ended == "the generator loss was inf at step 3" and trained.steps == 3
    assert trained.curves["generator"][-1][1] == math.inf


def test_a_diverged_gan_stays_in_the_table_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Gan.step

    def explode(self: Gan, time: float) -> dict[str, float]:
        for parameter in self.generator.parameters():
            parameter.data.fill_(math.nan)
        return step(self, time)

    monkeypatch.setattr(Gan, "step", explode)
    said = done("contrast", *TINY, "--models", "gan,diffusion", "--out", tmp_path)
    assert "nan at step 1, so its training ended" in said
    stored = json.loads((tmp_path / "contrast.json").read_text())["results"]
    assert [r["ended"] is None for r in stored] == [False, False, True, True]
    assert stored[0]["scores"]["finite"] == 0 and stored[0]["scores"]["modes"] == 0
    assert "ended early" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_by_patches_the_ring_loses_what_its_coordinates_share() -> None:
    """H(x) + H(y) - H(x, y) = 3 log 2 / 2 nats: 0.75 bits/dim; and 3 of 8 points are right."""
    problem = open_problem("gaussians-8")
    bits, good = [], []
    for name in ("autoregressive", "patchwise-2"):
        model = build(name, problem, 0)
        train(model, problem, steps=500, frames=2)
        bits.append(bits_per_dim(model, problem)["exact"])
        good.append(score(problem, model.sample(4000, 0), distances=False).good)
    assert bits[0] < problem.entropy + 0.3
    assert bits[1] - bits[0] == pytest.approx(0.75, abs=0.12)
    assert good[0] > 0.85 and good[1] == pytest.approx(3 / 8, abs=0.06)


def test_losses_that_are_not_finite_leave_the_weights() -> None:
    problem = open_problem("gaussians-8")
    model = build("gan", problem, 0)
    assert isinstance(model, Gan)
    before = [p.clone() for p in model.critic.parameters()]
    model.problem = problem.__class__(**{**problem.__dict__, "draw": lambda n, draw: torch.full((n, 2), math.nan)})
    assert math.isnan(model.step(0.0)["critic"])
    assert all(torch.equal(a, b) for a, b in zip(before, model.critic.parameters(), strict=True))


def test_the_budget_is_processor_time() -> None:
    problem = open_problem("gaussians-8")

    class Sleepy(Diverging):
        def step(self, time_: float) -> dict[str, float]:
            time.sleep(0.02)
            end = time.process_time() + 0.01
            while time.process_time() < end:
                pass
            return {"loss": 1.0}

    trained = train(Sleepy(), problem, seconds=0.1)
    assert 5 <= trained.steps <= 11 and 0.1 <= trained.seconds < 0.2
    assert len(trained.frames) == len(trained.modes) <= 25
    with pytest.raises(UserError, match="sleepy would train for"):
        check_budget("sleepy", Sleepy(), 0.001)
    check_budget("sleepy", Sleepy(), 1)


def test_the_table_and_the_animation() -> None:
    problem = open_problem("gaussians-8")
    record: dict[str, Any] = {
        "scores": {"modes": 3, "good": 0.25, "reverse_kl": 1.0, "frechet": 0.5, "floor": 0.1},
        "bits": {}, "evaluations": 1, "costs": {"seconds": 1e-3}, "steps": 10, "parameters": 7,
        "ended": None, "modes": [1, 2, 3],
    }  # fmt: skip
    frames = torch.zeros(3, 20, 2)
    other = {
        **record,
        "scores": record["scores"] | {"modes": 5, "reverse_kl": None},
        "ended": "the loss was nan at step 1",
    }
    results = [run.Result("gan", 0, record, frames), run.Result("gan", 1, other, frames[:1])]
    (row,) = rows(results)
    table = dict(zip(columns(results), row, strict=True))
    assert table["modes"] == "4 (3 to 5)" and table["good samples"] == "25.0%" and table["reverse KL"] == "1.000"
    assert table["ended"] == "seed 1: the loss was nan at step 1"
    shown = animation(results, problem)
    assert shown.dtype == torch.uint8 and shown.shape[:2] == (3, 3)


def test_averaged_weights_are_put_in_and_back() -> None:
    model = build("diffusion", open_problem("gaussians-8"), 0)
    assert isinstance(model, Diffusion)
    for _ in range(3):
        model.step(0.5)
    before = {name: p.clone() for name, p in model.denoiser.net.named_parameters()}
    back = model.averaged()
    assert all(torch.equal(p, model.average[n]) for n, p in model.denoiser.net.named_parameters())
    assert not torch.equal(before["head.weight"], model.average["head.weight"])
    back()
    assert all(torch.equal(p, before[n]) for n, p in model.denoiser.net.named_parameters())


@pytest.mark.slow
def test_on_a_ring_the_plain_gan_drops_modes_and_diffusion_keeps_them() -> None:
    problem = open_problem("gaussians-8")
    found = {}
    for name, steps in (("gan", 3000), ("diffusion", 1500)):
        model = build(name, problem, 0)
        train(model, problem, steps=steps)
        x = model.sample(2500, 0)
        found[name] = score(problem, x, distances=False)
    assert found["diffusion"].modes == 8 and found["diffusion"].good > 0.5
    assert found["gan"].modes < 8
    assert found["diffusion"].reverse_kl < 0.05 < 0.2 < found["gan"].reverse_kl


def test_the_likelihoods_of_diffusion_are_those_of_the_library() -> None:
    problem = open_problem("gaussians-8")
    few = replace(problem, held_out=problem.held_out[:8])
    model = build("diffusion", few, 0)
    assert isinstance(model, Diffusion)
    model.step(0.5)
    bits = bits_per_dim(model, few)
    back = model.averaged()
    nats = -orn.likelihood.ode(model.denoiser, few.held_out.double(), steps=64).value.mean()
    bound = orn.likelihood.vlb(model.denoiser, few.held_out.double(), decoder="gaussian", terms=200).total.mean()
    back()
    assert bits["ode"] == pytest.approx(float(nats) / (2 * math.log(2)) + 7, abs=0.01)
    assert bits["bound"] == pytest.approx(float(bound) / (2 * math.log(2)) + 7, abs=1e-3)

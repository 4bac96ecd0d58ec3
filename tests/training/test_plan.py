"""A plan is measured on this machine, and `train --minutes` takes what a plan chooses."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ornstein as orn
from ornstein.training import plan
from ornstein.training.scaling import Speed
from ornstein.training.settings import Settings
from running import done, ornstein, refused

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures of 20x20 pixels."""
    file = tmp_path_factory.mktemp("data") / "pixels.npy"
    np.save(file, np.random.default_rng(0).integers(0, 255, (40, 20, 20, 3), dtype=np.uint8))
    return file


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine whose speeds are given; the networks that were measured on it."""
    asked: list[str] = []
    seconds = {"xs": 0.05, "s": 0.1, "m": 0.25, "l": 5.0}

    def measured(settings: Settings, *_: object) -> Speed:
        asked.append(settings.net)
        step = seconds[settings.net]
        return Speed(settings.net, 1_000_000 * len(asked), ((8, step), (32, 3 * step)), 1e6, 1e6)

    monkeypatch.setattr(plan, "measured", measured)
    monkeypatch.setattr(plan, "_LEAST_MINUTES", 0.0)
    monkeypatch.setattr(plan.Speed, "slowed", lambda self, factor: self)
    return asked


def test_train_takes_what_the_plan_chose_and_a_resumed_run_is_not_measured(
    pixels: Path, machine: list[str], tmp_path: Path
) -> None:
    asked = ("--data", pixels, "--minutes", 0.01)
    facts = json.loads(ornstein("plan", *asked, "--json", "--save", tmp_path / "plan.json").stdout)
    out = tmp_path / "run"
    assert machine[0] == "xs"
    machine.clear()
    run = orn.train(str(pixels), out, minutes=0.01, report=False)
    stored = json.loads((out / "train.json").read_text())
    assert (stored["net"], stored["batch"]) == (facts["net"], facts["batch"]) == (run.settings.net, run.settings.batch)
    assert machine  # measured once more, by train
    machine.clear()
    orn.train(None, out, resume=True, minutes=0.02, report=False)
    assert not machine
    again = json.loads((out / "train.json").read_text())
    assert (again["net"], again["batch"], again["minutes"]) == (facts["net"], facts["batch"], 0.02)
    # the file of --save, and the options that are printed, leave nothing to measure
    saved = json.loads((tmp_path / "plan.json").read_text())
    assert saved == facts["train"] == {
        "data": str(pixels), "minutes": 0.01, "net": facts["net"], "batch": facts["batch"],
    }  # fmt: skip
    done("train", "--config", tmp_path / "plan.json", "--out", tmp_path / "saved", "--no-report")
    text = done("plan", *asked, "--batch", 4)
    assert f"ornstein train --batch 4 --data {pixels} --minutes 0.01 --net {facts['net']} --out RUN" in text


def test_steps_and_what_the_rule_is_not_for_are_not_measured(pixels: Path, machine: list[str], tmp_path: Path) -> None:
    for name, given in {
        "steps": {"steps": 1},
        "both": {"minutes": 1e-3, "net": "xs", "batch": 2},
        "clips": {"minutes": 1e-3, "data": "moving-digits", "frames": 2, "size": 16, "batch": 1},
        "tiny": {"minutes": 1e-3, "data": "digits"},
    }.items():
        orn.train(**{"data": str(pixels), "out": tmp_path / name, "report": False} | given)
        assert not machine, name
    orn.train(pixels, tmp_path / "batch", minutes=1e-3, batch=2, report=False)
    assert machine


def test_networks_are_measured_until_one_is_not_better(machine: list[str]) -> None:
    data = plan.Likeness((3, 32, 32), (), 1000)
    choice = plan.planned(Settings("x", minutes=3.0), data, CPU)
    assert machine == ["xs", "s", "m", "l"][: len(machine)]
    assert len(machine) < 4
    assert choice.speed.net in machine
    machine.clear()
    assert plan.planned(Settings("x", minutes=3.0, net="m"), data, CPU).speed.net == "m"
    assert machine == ["m"]


def test_a_measurement_is_of_the_step_that_was_asked_for_and_leaves_the_global_generator_alone() -> None:
    data = plan.Likeness((3, 20, 20), ("a", "b"), 1000)
    before = torch.random.get_rng_state()
    settings = Settings("x", net="xs", batch=2, precision="float32")
    counts = iter(range(1000))
    two = plan.measured(settings, data, CPU, lambda: float(next(counts)))
    assert two.seconds == ((2, 1.0),)  # a tick of the clock between two steps
    assert torch.equal(torch.random.get_rng_state(), before)
    free = plan.measured(Settings("x", net="xs", precision="float32"), data, CPU, lambda: float(next(counts)))
    assert [batch for batch, _ in free.seconds] == [8, 32]
    assert free.parameters == two.parameters
    # what is kept for an image does not depend on the batch, but for what a step keeps once
    assert free.activations == pytest.approx(two.activations, rel=0.2)
    # AdamW keeps two moments of 4 bytes for each weight, Muon one for matrices, which are most of them
    adamw = plan.measured(Settings("x", net="xs", batch=2, optimizer="adamw"), data, CPU, lambda: float(next(counts)))
    assert adamw.optimizer == 8 * adamw.parameters
    assert 4 * two.parameters < two.optimizer < 5 * two.parameters


_PEAK = """
import re, sys, tempfile
from dataclasses import replace
from itertools import islice
from pathlib import Path
import torch
from ornstein.training import plan
from ornstein.training.loop import run_task
from ornstein.training.models import new_denoiser
from ornstein.training.settings import Settings
from ornstein.training.task import Diffusion

settings, data = Settings("x", net="xs", precision="float32"), plan.Likeness((3, 32, 32), (), 1000)
cpu = torch.device("cpu")
largest, batch = 0, int(sys.argv[1])
for count in (1, batch):
    config = replace(settings.settled(32, True).config(), batch=count, steps=9)
    task = Diffusion(new_denoiser(settings, data, None, cpu), config)
    list(islice(run_task(task, data, config, tempfile.mkdtemp()), 2))
    before, largest = largest, 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
speed = plan.measured(replace(settings, batch=2), data, cpu, plan.time.process_time)
print(largest - before, speed.memory(batch))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the largest memory is read from /proc")
def test_the_memory_of_a_plan_is_that_of_the_training_within_a_factor_of_two() -> None:
    made = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PEAK, "64"], capture_output=True, text=True, check=True
    )
    measured, computed = map(float, made.stdout.split())
    assert 0.5 < computed / measured < 2, (computed, measured)


def test_mistakes_are_a_line(pixels: Path, tmp_path: Path) -> None:
    refused(ornstein("plan"), "--data")
    refused(ornstein("plan", "--data", tmp_path / "none"), "none")
    refused(ornstein("plan", "--data", pixels, "--minutes", 0), "--minutes", "positive")
    refused(ornstein("plan", "--data", pixels, "--minutes", "nan"), "--minutes")
    refused(ornstein("plan", "--data", pixels, "--net", "xxl"), "net", "xxl")
    refused(ornstein("plan", "--data", pixels, "--batch", 0), "batch")
    refused(ornstein("plan", "--data", pixels, "--device", "cuda:99"), "cuda:99")
    refused(ornstein("plan", "--data", pixels, "--stream"), "--stream")
    refused(ornstein("plan", "--data", pixels, "--conditional"), "class")
    refused(ornstein("plan", "--data", "moving-digits", "--frames", 0), "--frames")

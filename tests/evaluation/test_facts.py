"""What a report says about its run."""

import json
import sys

import pytest
import torch

import ornstein as orn
from ornstein.evaluation.facts import command_line, network_text, run_facts, seconds_text, training_facts
from ornstein.nets import UNet


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.04, "0.04 s"),
        (40.4, "40 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (3599.8, "1 h"),
    ],
)
def test_times_in_words(seconds, words):
    assert seconds_text(seconds) == words


def test_a_network_is_named_by_its_preset_or_by_its_width():
    for preset in ("xs", "s", "m", "l"):
        for size in (8, 32, 64):
            assert network_text(UNet.preset(preset, channels=3, size=size)) == f"UNet, preset {preset}"
    assert network_text(UNet(1, 8, width=20, multipliers=(1, 2), depths=(1, 3))) == "UNet, width 20, depths 1, 3"
    assert network_text(torch.nn.Linear(1, 1)) == "Linear"


def test_the_command_line_can_be_copied(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/ornstein", "train", "--data", "my photos", "--out", "runs/a"])
    assert command_line() == "ornstein train --data 'my photos' --out runs/a"
    monkeypatch.setattr(sys, "argv", ["/x/ornstein/__main__.py", "demo"])
    assert command_line() == "ornstein demo"
    monkeypatch.setattr(sys, "argv", ["script.py"])
    assert command_line() == "Python"


def test_steps_and_time_are_those_of_the_run_directory(tmp_path):
    assert training_facts(tmp_path) == {}
    (tmp_path / "config.json").write_text(json.dumps({"training": {"step": 120, "steps": 500}}))
    lines = [{"step": 60, "loss": 1.0, "elapsed": 30.0}, {"step": 100, "loss": 0.5, "elapsed": 50.0}]
    torn = '{"step": 110, "lo'
    (tmp_path / "metrics.jsonl").write_text("\n".join([*map(json.dumps, lines), torn]))
    assert training_facts(tmp_path) == {"steps reached": "120 of 500", "training time": "1 min"}
    (tmp_path / "config.json").write_text("[]")
    assert training_facts(tmp_path) == {}


def test_all_facts_of_a_run(tmp_path):
    train, held_out = orn.data.open_images("digits").split(0.1, 0)
    d = orn.Denoiser(UNet.preset("xs", channels=1, size=8), orn.Process(orn.schedules.Cosine()))
    facts = run_facts(tmp_path, d, train, held_out)
    wanted = (
        "data",
        "held out",
        "network",
        "parameters",
        "process",
        "prediction",
        "device",
        "command",
        "date",
        "versions",
    )
    assert set(wanted) <= facts.keys()
    assert facts["held out"] == 180 and facts["process"] == "Cosine schedule, Identity noise"
    assert torch.__version__ in facts["versions"] and "thread" in facts["device"]

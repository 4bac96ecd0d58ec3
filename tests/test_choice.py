"""The solver that is chosen for a model: what is stored, what `sample` makes of it, and bad files."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ornstein import Data, Denoiser, Process, checkpoint, sample
from ornstein.few_steps.choice import Choice, choose, nearest
from ornstein.few_steps.tuning import Start, untuned_solver
from ornstein.nets import UNet
from ornstein.schedules import Cosine
from running import ornstein, refused


def model(classes: int = 2) -> Denoiser:
    torch.manual_seed(0)
    net = UNet(1, 8, classes, width=8, multipliers=(1, 2), depths=(1, 1), attention=())
    for parameter in net.parameters():
        if bool((parameter == 0).all()):
            nn.init.normal_(parameter, std=0.2)
    return Denoiser(net, Process(Cosine()), "v", data=Data((1, 8, 8), tuple(map(str, range(classes))))).eval()


def no_noise(step: int, draw: int = 0) -> torch.Tensor:
    raise AssertionError


def test_a_floor_is_where_the_last_step_starts() -> None:
    times = untuned_solver(Cosine(), 6, Start("flow", 3, 0.2, 0.02)).times
    assert len(times) == 7 and times[0] == 1 and times[-1] == 0
    assert Process(Cosine()).at(times[-2])[1] == pytest.approx(0.02, rel=1e-3)


def test_the_choice_is_never_behind_the_default_where_it_was_made_and_is_reproducible() -> None:
    d = model()
    found = choose(d, (4, 6))
    assert [(c.steps, c.guidance) for c in found] == [(4, 1.0), (6, 1.0), (4, 4.0), (6, 4.0)]
    assert all(0 < c.error <= c.untuned * 1.001 for c in found)
    assert choose(d, (4,), (1.0,))[0] == found[0]
    assert [Choice.from_config(json.loads(json.dumps(c.to_config()))) for c in found] == found


def test_which_choice_serves_which_request() -> None:
    made = [Choice(n, g, Start("flow", 3, 0.35), 1.0, 1.0) for n in (5, 10, 20) for g in (1.0, 4.0)]

    def of(steps: int, guidance: float) -> tuple[int, float] | None:
        found = nearest(made, steps, guidance)
        return found and (found.steps, found.guidance)

    assert of(5, 1) == (5, 1) and of(8, 1) == (10, 1) and of(15, 7.5) == (20, 4)
    assert of(6, 3) == (5, 4) and of(2, 0) == (5, 1)
    assert of(1, 1) is None and of(50, 1) is None and nearest([], 5, 1) is None


def test_sample_takes_it_unless_told_otherwise(tmp_path: Path) -> None:
    run, d = tmp_path / "run", model()
    d.save(run)
    checkpoint.save_chosen(run, [Choice(5, 1.0, Start("x0", 2, 0.25), 0.1, 0.2)])
    said = ornstein("sample", run, "-n", 2, "--steps", 5, "--precision", "float32", "--out", tmp_path / "a")
    assert said.exit_code == 0 and "chosen solver: 5 steps, 50%" in said.output, said.output
    named = ornstein("sample", run, "-n", 2, "--steps", 5, "--solver", "flow-3m", "--out", tmp_path / "b")
    assert named.exit_code == 0 and "chosen solver" not in named.output
    again = checkpoint.load_chosen(run, 5, 1.0)
    assert again is not None and again == replace(
        untuned_solver(Cosine(), 5, Start("x0", 2, 0.25)), error=0.1, untuned=0.2, learned=False
    )
    x = sample(d, (2, 1, 8, 8), solver=again, cond={"label": torch.tensor([0, 1])})
    assert bool(x.isfinite().all())
    with torch.no_grad():  # other weights: the choice was another model's, and is no error
        next(d.parameters()).add_(0.01)
    d.save(run)
    assert checkpoint.load_chosen(run, 5, 1.0) is None


def test_python_takes_it_for_the_network_that_was_loaded_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model().save(tmp_path)
    checkpoint.save_chosen(tmp_path, [Choice(5, 1.0, Start("x0", 2, 0.25), 0.1, 0.2)])
    reads: list[Path] = []
    hashed = checkpoint.fingerprint
    monkeypatch.setattr(checkpoint, "fingerprint", lambda path: reads.append(path) or hashed(path))
    d = checkpoint.load(tmp_path)
    drawn = [sample(d, (2, 1, 8, 8), steps=5) for _ in range(3)]
    assert len(reads) == 1  # the weights are not read for each sample
    chosen = checkpoint.solver_of(tmp_path, 5, 1.0)
    plain = sample(d, (2, 1, 8, 8), solver="flow-3m", steps=5)
    assert torch.equal(drawn[0], sample(d, (2, 1, 8, 8), solver=chosen)) and not torch.equal(drawn[0], plain)
    copied = copy.deepcopy(d)  # may be pruned or trained: the run's solver is not its own
    assert torch.equal(sample(copied, (2, 1, 8, 8), steps=5), plain)


_GOOD = {"steps": 5, "guidance": 1, "error": 1, "untuned": 1, "start": {"form": "x0", "order": 2, "slope": 1}}
_BAD = [
    {"untuned": 0},
    {"steps": 1},
    {"start": {"form": "y", "order": 2, "slope": 1}},
    {"start": {"form": "x0", "order": 2, "slope": "1"}},
]


@pytest.mark.parametrize(
    "change", [{"choices": 3}, {"format": 99}, {"choices": [{"steps": 5}]}, *({"choices": [_GOOD | b]} for b in _BAD)]
)
def test_a_damaged_file_is_named(tmp_path: Path, change: dict) -> None:
    run = tmp_path / "run"
    model().save(run)
    checkpoint.save_chosen(run, [Choice(5, 1.0, Start("x0", 2, 0.25), 0.1, 0.2)])
    file = run / checkpoint.CHOSEN
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    refused(ornstein("sample", run, "--steps", 5, "--out", tmp_path / "out"), "solver.json cannot be used")

"""`ornstein tune` and what `ornstein sample` makes of it."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from ornstein import Data, Denoiser, Process, checkpoint, sample
from ornstein.data import to_uint8
from ornstein.data.decode import to_array
from ornstein.errors import UserError
from ornstein.nets import UNet
from ornstein.schedules import Cosine, Discrete
from ornstein.solvers import SOLVER
from running import ornstein, refused


def model(seed: int = 0, classes: int = 2) -> Denoiser:
    """Every layer of the network does something: those that start at zero are drawn."""
    torch.manual_seed(seed)
    net = UNet(1, 8, classes, width=8, multipliers=(1, 2), depths=(1, 1), attention=())
    for parameter in net.parameters():
        if bool((parameter == 0).all()):
            nn.init.normal_(parameter, std=0.2)
    names = tuple(f"class-{i}" for i in range(classes))
    return Denoiser(net, Process(Cosine()), "v", data=Data((1, 8, 8), names)).eval()


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "model"
    model().save(run)
    result = ornstein("tune", run, "--steps", "3,4", "--trajectories", 8, "--iterations", 15)
    assert result.exit_code == 0, result.output
    for word in ("3 steps: ", "4 steps: ", "untuned; ", "tuned.json"):
        assert word in " ".join(result.output.split()), result.output
    return run


def test_what_is_stored_is_better_on_noise_it_was_not_tuned_on(tuned: Path) -> None:
    solvers = checkpoint.load_tuned(tuned)
    assert [len(t.steps) for t in solvers] == [3, 4]
    assert all(0 < t.error < t.untuned for t in solvers)
    assert [len(t.steps) for t in checkpoint.load_tuned(tuned, 4)] == [4]
    # And so it is on the noise of its samples, which is other noise again.
    d, shape = checkpoint.load(tuned), (16, 1, 8, 8)
    labels = {"label": torch.arange(16) % 2}
    end = sample(d, shape, solver="dpmpp-3m", steps=200, cond=labels)
    for t in solvers:
        own = sample(d, shape, solver=t, cond=labels) - end
        untuned = sample(d, shape, solver=SOLVER, steps=len(t.steps), cond=labels) - end
        assert float(own.square().mean()) < float(untuned.square().mean())


def test_sample_uses_it_and_says_so(tuned: Path, tmp_path: Path) -> None:
    said = ornstein("sample", tuned, "-n", 2, "--steps", 3, "--out", tmp_path / "a")
    assert said.exit_code == 0 and "tuned solver: 3 steps" in said.output, said.output
    asked = ornstein("sample", tuned, "-n", 2, "--steps", 3, "--solver", "tuned", "--out", tmp_path / "b")
    assert asked.exit_code == 0, asked.output
    plain = ornstein("sample", tuned, "-n", 2, "--steps", 3, "--solver", "dpmpp-3m", "--out", tmp_path / "c")
    assert plain.exit_code == 0 and "tuned solver" not in plain.output
    other = ornstein("sample", tuned, "-n", 2, "--steps", 5, "--out", tmp_path / "d")
    assert other.exit_code == 0 and "tuned solver" not in other.output
    a, b, c = ((tmp_path / f / "00000.png").read_bytes() for f in "abc")
    assert a == b != c


def test_mistakes(tuned: Path, tmp_path: Path) -> None:
    refused(ornstein("tune", tuned, "--steps", "5,x"), "--steps must be a whole number", "'x'")
    refused(ornstein("tune", tuned, "--steps", "1"), "--steps must lie between 2 and 24, not 1")
    refused(ornstein("tune", tmp_path / "none"), "no such folder")
    refused(
        ornstein("sample", tuned, "--solver", "tuned", "--steps", 7), "no solver tuned for 7 steps", "3 (guidance 1)"
    )
    refused(ornstein("sample", tuned, "--solver", "tuned", "--steps", 3, "--guidance", 2), "with guidance 2")
    refused(ornstein("sample", tuned, "--solver", "tuned", "--steps", 3, "--grid", "uniform"), "leave out --grid")
    refused(ornstein("sample", tuned, "--steps", 3, "--grid", "cosine"), "unknown grid 'cosine'")
    refused(ornstein("sample", tuned, "--grid", "1,0.4,0", "--steps", 5), "the times of 2 steps", "leave out --steps 5")
    refused(ornstein("sample", tuned, "--grid", "1,0.4,0.6,0"), "fall from 1 to 0", "'1,0.4,0.6,0'")
    refused(ornstein("sample", tuned, "--grid", "0.9,0.4,0"), "fall from 1 to 0", "'0.9,0.4,0'")
    refused(ornstein("sample", tuned, "--grid", "1,half,0"), "times with commas between", "'1,half,0'")
    plain = tmp_path / "plain"
    model(classes=0).save(plain)
    refused(ornstein("tune", plain, "--guidance", 2), "without classes")
    refused(ornstein("sample", plain, "--guidance", 2), "without classes")


def test_one_solver_for_a_range_of_guidance(tuned: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    checkpoint.load(tuned).save(run)
    asked = ("--steps", 3, "--guidance", "1,4", "--trajectories", 6, "--iterations", 12)
    said = ornstein("tune", run, *asked)
    assert said.exit_code == 0 and "guidance 4: " in said.output, said.output
    (solver,) = checkpoint.load_tuned(run)
    assert (solver.guidance, solver.until) == (1.0, 4.0)
    within = ornstein("sample", run, "-n", 1, "--steps", 3, "--guidance", 2.5, "--class", 1, "--out", tmp_path / "a")
    assert within.exit_code == 0 and "tuned solver: 3 steps" in within.output, within.output
    refused(ornstein("sample", run, "--solver", "tuned", "--steps", 3, "--guidance", 5), "3 (guidance 1 to 4)")
    # and Python takes what the run keeps, where nothing else is named
    d, labels = checkpoint.load(run), {"label": torch.tensor([0, 1])}
    kept = sample(d, (2, 1, 8, 8), steps=3, cond=labels, guidance=2.0)
    assert torch.equal(kept, sample(d, (2, 1, 8, 8), solver, cond=labels, guidance=2.0))
    plain = sample(d, (2, 1, 8, 8), SOLVER, 3, cond=labels, guidance=2.0)
    assert not torch.equal(kept, plain) and torch.equal(
        plain, sample(d, (2, 1, 8, 8), SOLVER, 3, cond=labels, guidance=2)
    )


@pytest.mark.slow
def test_matching_images_and_the_likelihood(tuned: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    checkpoint.load(tuned).save(run)
    little = ("--trajectories", 8, "--data", "digits")
    matched = ornstein("tune", run, "--steps", 3, "--iterations", 9, *little)
    assert matched.exit_code == 0, matched.output
    learned = ornstein("tune", run, "--likelihood", 3, *little)
    assert learned.exit_code == 0 and "log p in 3 evaluations" in learned.output, learned.output
    asked = ("-n", 8, "--images", 8, "--steps", 2, "--seeds", 1, "--solvers", "ddim")
    found = ornstein("evaluate", run, "--data", "digits", "--likelihood", "few", *asked)
    assert found.exit_code == 0 and "3 evaluations" in " ".join(found.output.split()), found.output
    refused(ornstein("tune", run, "--likelihood", 3, "--steps", 5), "--steps is of solvers")
    refused(ornstein("tune", run, "--match", "data", "--steps", 3), "which images it was trained on: give --data")
    refused(ornstein("tune", run, "--match", "none", "--data", "digits"), "leave out --data")
    refused(ornstein("evaluate", tuned, "--data", "digits", "--likelihood", "few"), "--likelihood 8")


def test_more_steps_than_the_chain_has(tmp_path: Path) -> None:
    d = model()
    Denoiser(d.net, Process(Discrete.linear(10)), "v", data=d.data).save(tmp_path / "chain")
    above = ornstein("sample", tmp_path / "chain", "--grid", "trailing", "--steps", 11)
    refused(above, "has 10 steps", "11 were asked")
    made = ornstein("sample", tmp_path / "chain", "-n", 1, "--grid", "trailing", "--steps", 10)
    assert made.exit_code == 0, made.output


def test_a_grid_of_ones_own(tuned: Path, tmp_path: Path) -> None:
    """Its times stand for the steps, and for any solver that would bring times of its own."""
    exact = ("--precision", "float32", "--out", tmp_path / "a")
    made = ornstein("sample", tuned, "-n", 2, "--grid", "1,0.7,0.2,0", *exact)
    assert made.exit_code == 0 and "tuned solver" not in made.output, made.output
    d, labels = checkpoint.load(tuned), torch.tensor([0, 1])
    own = sample(d, (2, 1, 8, 8), SOLVER, grid=[1.0, 0.7, 0.2, 0.0], cond={"label": labels})
    with Image.open(tmp_path / "a" / "00001.png") as picture:
        assert torch.equal(torch.from_numpy(to_array(picture).copy()), to_uint8(own)[1])


def test_a_solver_tuned_for_another_model_is_refused(tuned: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    model(seed=1).save(other)
    (other / "tuned.json").write_bytes((tuned / "tuned.json").read_bytes())
    for arguments in (("--solver", "tuned"), ()):
        refused(ornstein("sample", other, "--steps", 3, *arguments), "another model", "ornstein tune")
    named = ornstein("sample", other, "-n", 1, "--steps", 3, "--solver", "ddim", "--out", tmp_path / "out")
    assert named.exit_code == 0, named.output
    # Tuning again replaces what was not this model's.
    assert ornstein("tune", other, "--steps", 3, "--trajectories", 4, "--iterations", 15).exit_code == 0
    assert [len(t.steps) for t in checkpoint.load_tuned(other)] == [3]


def test_a_file_of_that_name_that_is_not_ours_is_kept(tuned: Path, tmp_path: Path) -> None:
    model().save(tmp_path)
    for content in ('{"guitar": "E A D G B E"}', '{"format": 1, "solvers": []}', "[]", "no JSON"):
        (tmp_path / "tuned.json").write_text(content)
        with pytest.raises(UserError, match=r"tuned\.json"):
            checkpoint.save_tuned(tmp_path, checkpoint.load_tuned(tuned))
        assert (tmp_path / "tuned.json").read_text() == content


def test_another_schedule_is_another_model(tuned: Path, tmp_path: Path) -> None:
    d = checkpoint.load(tuned)
    Denoiser(d.net, Process(Cosine(-8.0)), "v", data=d.data).save(tmp_path / "m")
    assert checkpoint.fingerprint(tmp_path / "m") != checkpoint.fingerprint(tuned)


def test_a_damaged_file(tuned: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    checkpoint.load(tuned).save(run)
    stored = json.loads((tuned / "tuned.json").read_text())
    for content in ("{", "[]", json.dumps(stored | {"format": 9}), json.dumps({**stored, "solvers": [{}]})):
        (run / "tuned.json").write_text(content)
        refused(ornstein("sample", run, "--steps", 3), "tuned.json")


def test_what_is_no_better_is_not_stored(tmp_path: Path) -> None:
    """A network that answers 0: x0 is linear in x, and no solver of any steps can miss; nothing is left to gain."""
    net = UNet(1, 8, width=8, multipliers=(1, 2), depths=(1, 1), attention=())
    Denoiser(net, Process(Cosine()), "x0", data=Data((1, 8, 8))).save(tmp_path / "zero")
    result = ornstein("tune", tmp_path / "zero", "--steps", 2, "--trajectories", 2, "--iterations", 2)
    assert result.exit_code == 0 and "no better, not stored" in result.output, result.output
    assert not (tmp_path / "zero" / "tuned.json").exists()

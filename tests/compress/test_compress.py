"""`ornstein compress`: the result is a run like any other."""

import json
import shutil

import pytest
import torch

import ornstein as orn
from ornstein.compress.budget import network_macs
from ornstein.compress.imitation import Imitation
from running import done, ornstein, refused

_FAST = ("--device", "cpu", "--no-report", "-q")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "large"
    done("train", "--data", "digits", "--net", "xs", "--steps", 20, "--batch", 16, "--out", out, *_FAST)
    return out


@pytest.fixture(scope="module")
def small(run):
    out = run.with_name("small")
    done("compress", run, "--macs", 0.5, "--steps", 4, "--batch", 16, "--out", out, *_FAST)
    return out


def test_the_result_is_a_run_of_half_the_multiply_adds(run, small):
    large, model = orn.load(run), orn.load(small)
    share = network_macs(model.net, (1, 8, 8)) / network_macs(large.net, (1, 8, 8))
    assert share == pytest.approx(0.5, rel=0.03)
    assert model.data == large.data and model.prediction == large.prediction
    assert json.loads((small / "compress.json").read_text())["macs"] == 0.5


def test_it_samples_tunes_evaluates_and_is_pruned_again(small, tmp_path):
    done("sample", small, "-n", 2, "--steps", 2, "--out", tmp_path / "s", "--device", "cpu")
    assert (tmp_path / "s" / "grid.png").is_file()
    copy = shutil.copytree(small, tmp_path / "copy")
    done("tune", copy, "--steps", 2, "--trajectories", 2, "--iterations", 1, "--device", "cpu")
    done("evaluate", copy, "-n", 8, "--steps", 2, "--seeds", 1, "--images", 1, "--device", "cpu")
    said = done("compress", copy, "--macs", 0.6, "--steps", 0, "--out", tmp_path / "twice", "--device", "cpu")
    assert "tuned solvers" in said
    assert not (tmp_path / "twice" / "tuned.json").exists()
    share = network_macs(orn.load(tmp_path / "twice").net, (1, 8, 8)) / network_macs(orn.load(copy).net, (1, 8, 8))
    assert share == pytest.approx(0.6, rel=0.03)


def test_a_run_that_is_resumed_is_the_one_that_was_not(run, small, tmp_path):
    out = tmp_path / "resumed"
    about = {"macs": 0.5, "batch": 16, "report": False, "device": "cpu"}
    with pytest.raises(KeyboardInterrupt):
        _stopped_after(2, run, out, steps=4, checkpoint_every=2, **about)
    orn.compress(run, out, resume=True, report=False, device="cpu")
    ours, theirs = orn.load(out).net.state_dict(), orn.load(small).net.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def _stopped_after(calls_made, run, out, **about):
    """Compress, and be interrupted as by Ctrl-C after some steps."""
    with pytest.MonkeyPatch.context() as patch:
        follow = Imitation.__call__
        calls = []

        def counted(self, *arguments, **cond):
            calls.append(1)
            if len(calls) > calls_made:
                raise KeyboardInterrupt
            return follow(self, *arguments, **cond)

        patch.setattr(Imitation, "__call__", counted)
        orn.compress(run, out, **about)


def test_imitation_is_zero_for_the_teacher_itself_and_leaves_it_alone(run):
    teacher = orn.load(run)
    loss = Imitation(orn.load(run))(
        teacher, torch.randn(3, 1, 8, 8), torch.tensor([0.2, 0.5, 0.9]), torch.randn(3, 1, 8, 8)
    )
    torch.testing.assert_close(loss, torch.zeros(3))


def test_criteria_keep_different_channels(run, tmp_path):
    made = {}
    for criterion in ("magnitude", "random"):
        orn.compress(run, tmp_path / criterion, criterion=criterion, steps=0, device="cpu")
        made[criterion] = orn.load(tmp_path / criterion).net.state_dict()
    assert any(not torch.equal(value, made["random"][name]) for name, value in made["magnitude"].items())


def test_mistakes_are_one_line(run, small, tmp_path):
    new = ("--out", tmp_path / "new", *_FAST)
    refused(ornstein("compress", run, "--macs", 0.001, "--steps", 1, *new), "cannot be met", "least")
    refused(ornstein("compress", run, "--macs", 1.5, *new), "--macs")
    refused(ornstein("compress", run, "--criterion", "taylor", "--steps", 0, *new), "taylor needs data")
    refused(ornstein("compress", run, "--out", small, *_FAST), "run")
    refused(ornstein("compress", run, "--out", small, "--macs", 0.4, "--resume", *_FAST), "0.5", "0.4")
    refused(ornstein("compress", small, "--out", small, "--resume", *_FAST), "not made of")
    refused(ornstein("train", "--out", small, "--resume", *_FAST), "compressed model", "ornstein compress")
    refused(ornstein("compress", tmp_path / "none", *new), "none")
    assert not (tmp_path / "new" / "model.safetensors").exists()


def test_an_autoencoder_is_refused_by_name(tmp_path):
    out = tmp_path / "ae"
    done("train", "--data", "digits", "--model", "ae", "--net", "xs", "--steps", 1, "--batch", 4, "--out", out, *_FAST)
    refused(ornstein("compress", out, "--out", tmp_path / "x", *_FAST), "is an autoencoder")


def test_a_distilled_run_is_compressed_at_its_own_times(run, tmp_path):
    student = tmp_path / "student"
    done("distil", run, "--to", 2, "--steps", 1, "--trajectories", 4, "--batch", 4, "--out", student, *_FAST)
    orn.compress(student, tmp_path / "small", steps=2, batch=4, report=False, device="cpu")
    assert orn.load(tmp_path / "small").distilled == orn.load(student).distilled

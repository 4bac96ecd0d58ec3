import dataclasses
import itertools
import json
import signal

import pytest
import torch
from safetensors.torch import load_file

import ornstein as orn
from ornstein.errors import RunError, UserError
from ornstein.training import train
from ornstein.training.state import STATE


def run(toy, out, resume=False, denoiser=None, images=None, **settings):
    denoiser = denoiser or toy.denoiser()
    return list(train(denoiser, images or toy.Images(), toy.config(**settings), out, resume))


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def same(a, b):
    a, b = load_file(a / STATE), load_file(b / STATE)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_loss_falls_and_the_folder_is_a_model(toy, tmp_path):
    denoiser, images = toy.denoiser(dropout=0.0), toy.Images()
    states = run(toy, tmp_path, denoiser=denoiser, steps=100, batch=32, learning_rate=3e-3)
    losses = torch.tensor([s.loss for s in states])
    assert losses[-30:].mean() < 0.5 * losses[:5].mean()
    assert [s.step for s in states] == list(range(1, 101))
    assert states[-1].progress == 1.0
    assert states[0].images_per_second > 0
    # the averaged weights: in the folder and, after the last step, in the denoiser
    loaded = orn.checkpoint.load(tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(loaded.parameters(), denoiser.parameters(), strict=True))
    x0, label = images.batch(torch.arange(64))
    t, z = torch.full((64,), 0.5), torch.randn(64, 1, 8, 8)
    with torch.no_grad():
        right = loaded.loss(x0, t, z, label=label).mean()
        wrong = loaded.loss(x0, t, z, label=1 - label).mean()
    assert right < 0.5 * losses[0]
    assert wrong > 1.1 * right


def test_metrics_are_the_mean_of_the_steps(toy, tmp_path):
    states = run(toy, tmp_path, steps=23, checkpoint_every=15)
    losses = [s.loss for s in states]
    assert [line["step"] for line in lines(tmp_path)] == [10, 15, 20, 23]
    for line, part in zip(lines(tmp_path), (slice(0, 10), slice(10, 15), slice(15, 20), slice(20, 23)), strict=True):
        assert line["loss"] == pytest.approx(sum(losses[part]) / len(losses[part]))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_stopped_and_resumed_is_the_same_run(toy, tmp_path, optimizer):
    run(toy, tmp_path / "whole", optimizer=optimizer)
    # a second interruption while the caller draws: the first comes between two checkpoints
    for stop in (3, 7):
        with pytest.raises(KeyboardInterrupt):
            config = toy.config(optimizer=optimizer)
            for s in train(toy.denoiser(), toy.Images(), config, tmp_path / "parts", resume=stop > 3):
                if s.step == stop:
                    signal.raise_signal(signal.SIGTERM if stop == 3 else signal.SIGINT)
    torch.manual_seed(123)  # what the global generator does must not matter
    rest = run(toy, tmp_path / "parts", resume=True, optimizer=optimizer)
    assert [s.step for s in rest] == [8, 9, 10, 11, 12]
    assert same(tmp_path / "whole", tmp_path / "parts")
    steps = [line["step"] for line in lines(tmp_path / "parts")]
    assert steps == sorted(set(steps)) and steps[-1] == 12


def test_another_seed_is_another_run(toy, tmp_path):
    run(toy, tmp_path / "a", steps=2)
    run(toy, tmp_path / "b", steps=2, seed=1)
    run(toy, tmp_path / "c", steps=2)
    assert same(tmp_path / "a", tmp_path / "c")
    assert not same(tmp_path / "a", tmp_path / "b")


def test_signal_within_a_step_ends_the_step(toy, tmp_path):
    class Interrupting(toy.Images):
        def batch(self, indices):
            if self.calls == 5:
                signal.raise_signal(signal.SIGINT)
            self.calls += 1
            return super().batch(indices)

    images = Interrupting()
    images.calls = 0
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(toy, tmp_path, images=images, checkpoint_every=100)
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(run(toy, tmp_path, resume=True)) == 12 - 6


def test_caller_keeps_its_random_numbers(toy, tmp_path):
    denoiser = toy.denoiser()
    torch.manual_seed(5)
    run(toy, tmp_path, denoiser=denoiser, steps=2)
    after = torch.randn(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.randn(3))


def test_average_is_the_power_function_average(toy, tmp_path):
    from ornstein.training.config import ema_decay, ema_exponent

    denoiser = toy.denoiser()
    expected = None
    for s in train(denoiser, toy.Images(), toy.config(ema=0.1), tmp_path):
        now = [p.detach().double().clone() for p in denoiser.parameters()]
        decay = ema_decay(ema_exponent(0.1), s.step)
        expected = (
            now if expected is None else [decay * e + (1 - decay) * p for e, p in zip(expected, now, strict=True)]
        )
        for e, p in zip(expected, s.model.parameters(), strict=True):
            torch.testing.assert_close(p.double(), e, rtol=1e-4, atol=1e-6)


def test_sample_due_and_extension(toy, tmp_path):
    states = run(toy, tmp_path, steps=6, sample_every=3)
    assert [s.step for s in states if s.sample_due] == [3, 6]
    assert run(toy, tmp_path, resume=True, steps=6) == []
    longer = run(toy, tmp_path, resume=True, steps=9, checkpoint_every=5)
    assert [s.step for s in longer] == [7, 8, 9]
    with pytest.raises(UserError, match="already has 9 steps"):
        run(toy, tmp_path, resume=True, steps=8)


def test_minutes_end_the_run(toy, tmp_path, monkeypatch):
    seconds = itertools.count()  # one a step, by this clock
    monkeypatch.setattr("time.monotonic", lambda: float(next(seconds)))
    states = run(toy, tmp_path, steps=None, minutes=0.5)
    assert len(states) == 30
    assert states[-1].elapsed == 30.0
    # 1 second before the end the decay over the last 9 has 1/9 of its way to go
    assert states[-1].learning_rate == pytest.approx(1e-3 * (0.01 + 0.99 / 9))
    assert run(toy, tmp_path, resume=True, steps=None, minutes=0.5) == []
    assert len(run(toy, tmp_path, resume=True, steps=None, minutes=0.6)) == 6


def test_unconditional_net_and_unlabelled_images(toy, tmp_path):
    run(toy, tmp_path / "a", steps=2, denoiser=toy.denoiser(classes=0))
    run(toy, tmp_path / "b", steps=2, images=toy.Images(labelled=False))


def test_condition_dropout_one_never_shows_a_label(toy, tmp_path):
    run(toy, tmp_path / "all", steps=3, condition_dropout=1.0)
    run(toy, tmp_path / "none", steps=3, images=toy.Images(labelled=False), condition_dropout=1.0)
    run(toy, tmp_path / "some", steps=3, condition_dropout=0.0)
    # the labels' numbers are drawn last, so the rest of the draw is the same
    assert same(tmp_path / "all", tmp_path / "none")
    assert not same(tmp_path / "all", tmp_path / "some")


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_precision(toy, tmp_path, precision):
    seen = []
    denoiser = toy.denoiser()
    denoiser.net.stem.register_forward_hook(lambda _module, _inputs, out: seen.append(out.dtype))
    states = run(toy, tmp_path, denoiser=denoiser, steps=2, precision=precision)
    assert set(seen) == {torch.float32 if precision == "float32" else torch.bfloat16}
    assert not torch.is_autocast_enabled("cpu")
    assert len(states) == 2


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_not_finite_stops_with_the_checkpoint_kept(toy, tmp_path, where):
    class Broken(toy.Images):
        def batch(self, indices):
            x, label = super().batch(indices)
            self.calls += 1
            return (x * float("nan") if self.calls == 7 and where == "loss" else x), label

    images, denoiser = Broken(), toy.denoiser()
    images.calls = 0
    if where == "gradient":

        def spoil(gradient):
            return gradient * (float("inf") if images.calls == 7 else 1.0)

        denoiser.net.stem.weight.register_hook(spoil)
    with pytest.raises(RunError, match=r"step 7: the (loss|gradient norm) is .*checkpoint is kept") as error:
        run(toy, tmp_path, denoiser=denoiser, images=images)
    assert "\n" not in str(error.value)
    assert orn.checkpoint.load(tmp_path).net.config == denoiser.net.config
    assert all(p.isfinite().all() for p in denoiser.parameters())
    assert [s.step for s in run(toy, tmp_path, resume=True)] == list(range(5, 13))


def test_disk_full_keeps_the_old_checkpoint(toy, tmp_path, monkeypatch):
    import errno
    import os

    run(toy, tmp_path / "whole")
    fsync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 6:  # within the second checkpoint
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="the disk is full; free some space and continue with --resume"):
        run(toy, tmp_path / "full")
    monkeypatch.undo()
    assert not list((tmp_path / "full").rglob("*.partial"))
    assert [s.step for s in run(toy, tmp_path / "full", resume=True)] == list(range(5, 13))
    assert same(tmp_path / "whole", tmp_path / "full")


def test_existing_and_missing_runs_are_refused(toy, tmp_path):
    run(toy, tmp_path / "a", steps=1)
    with pytest.raises(UserError, match=r"already holds a run .*--resume"):
        train(toy.denoiser(), toy.Images(), toy.config(), tmp_path / "a")
    with pytest.raises(UserError, match="there is no run to resume"):
        train(toy.denoiser(), toy.Images(), toy.config(), tmp_path / "b", resume=True)
    (tmp_path / "a" / STATE).unlink()
    with pytest.raises(UserError, match="holds a model but no"):
        train(toy.denoiser(), toy.Images(), toy.config(), tmp_path / "a", resume=True)
    (tmp_path / "a" / STATE).write_bytes(b"junk")
    with pytest.raises(UserError, match="cannot read the trainer's state"):
        train(toy.denoiser(), toy.Images(), toy.config(), tmp_path / "a", resume=True)
    with pytest.raises(UserError, match="no images"):
        train(toy.denoiser(), toy.Images(n=0), toy.config(), tmp_path / "c")


def test_resuming_another_run_names_the_difference(toy, tmp_path):
    run(toy, tmp_path, steps=1)
    other = orn.Denoiser(toy.denoiser().net, orn.Process(orn.schedules.LinearBeta()), prediction="v")
    for changed, field, before, after in [
        ({"seed": 3}, "training.seed", "0", "3"),
        ({"batch": 4}, "training.batch", "8", "4"),
        ({"learning_rate": 0.5}, "training.learning_rate", "0.001", "0.5"),
        ({"denoiser": toy.denoiser(width=32)}, "net.width", "16", "32"),
        ({"denoiser": other}, "schedule", "", ""),
        ({"images": toy.Images(n=50)}, "images", "96", "50"),
    ]:
        with pytest.raises(UserError) as error:
            run(toy, tmp_path, resume=True, steps=2, **changed)
        message = str(error.value)
        assert field in message and before in message and after in message


def test_config_records_the_training(toy, tmp_path):
    run(toy, tmp_path, steps=1, learning_rate=2e-3)
    training = json.loads((tmp_path / "config.json").read_text())["training"]
    assert training["learning_rate"] == 2e-3 and training["step"] == 1
    fields = {f.name for f in dataclasses.fields(toy.config())}
    assert fields <= training.keys()

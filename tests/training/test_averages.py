"""Averages of the weights: of a width, of a decay rate, and of any width after the training."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import ornstein as orn
from ornstein.errors import UserError
from ornstein.store import load_tensors
from ornstein.training import averages, run_task
from ornstein.training.averages import SNAPSHOTS, interval, profile, reconstruct, snapshot_steps, weights_for
from ornstein.training.config import WIDTHS, TrainConfig, ema_exponent
from ornstein.training.settings import Settings
from ornstein.training.task import Diffusion
from running import done, ornstein, refused


def direct(history: list[torch.Tensor], width: float) -> torch.Tensor:
    """The power-function average of recorded weights: weight (k^g - (k-1)^g)/n^g of step k of n, g = gamma + 1."""
    n, g = len(history), ema_exponent(width) + 1
    return sum(((k / n) ** g - ((k - 1) / n) ** g) * w.double() for k, w in enumerate(history, 1))  # pyright: ignore[reportReturnType]


def train(toy, out: Path, steps: int, **settings) -> tuple[list[torch.Tensor], orn.Denoiser]:
    """The weights after each step, flat."""
    d = toy.denoiser(dropout=0.0)
    config = toy.config(steps=steps, checkpoint_every=5, **({"ema": "post-hoc"} | settings))
    history = []
    for _ in run_task(task := Diffusion(d, config), toy.Images(), config, out):
        history.append(torch.cat([p.detach().flatten() for p in task.model.parameters()]).clone())
    return history, d


def flat(state: dict[str, torch.Tensor], d: orn.Denoiser) -> torch.Tensor:
    return torch.cat([state[name].flatten() for name, _ in d.named_parameters()]).double()


def test_any_width_is_exact_where_every_step_is_kept(toy, tmp_path: Path):
    history, d = train(toy, tmp_path / "run", 20)
    assert snapshot_steps(tmp_path / "run") == list(range(1, 21))
    spread = float((history[-1] - history[0]).abs().max())
    for width in (0.02, 0.05, 0.08, 0.1, 0.2, 0.28):
        state, step, apart = reconstruct(tmp_path / "run", width)
        error = float((flat(state, d) - direct(history, width)).abs().max())
        assert step == 20 and apart < 1e-6
        assert error < 2e-4 * spread  # float32 averages, times the weights of the combination


def test_the_difference_is_within_the_bound_where_some_are_kept(toy, tmp_path: Path):
    history, d = train(toy, tmp_path / "run", 90)
    assert len(snapshot_steps(tmp_path / "run")) <= SNAPSHOTS
    last = history[-1].double()
    reach = torch.stack([w.double() - last for w in history]).abs().max(0).values
    for width in (0.03, 0.05, 0.07, 0.1, 0.15, 0.25):
        state, _, apart = reconstruct(tmp_path / "run", width)
        error = (flat(state, d) - direct(history, width)).abs()
        assert bool((error <= apart * reach + 1e-5).all())
        assert apart < {0.03: 0.1, 0.25: 0.1}.get(width, 0.02)
        if width in WIDTHS:
            assert apart == 0


def test_the_profiles_are_those_of_the_decay():
    steps = 50
    for width in (0.03, 0.1, 0.28):
        g = ema_exponent(width) + 1
        weights = np.zeros(steps)
        for k in range(1, steps + 1):
            weights *= (1 - 1 / k) ** g
            weights[k - 1] += 1 - (1 - 1 / k) ** g
        np.testing.assert_allclose(profile(np.arange(steps + 1), steps, width), weights, atol=1e-12)


@pytest.mark.parametrize("steps", [1_000, 20_000, 1_000_000])
def test_how_near_a_long_training_comes(steps: int):
    kept = [(n, w) for n in [*range(interval(steps), steps, interval(steps)), steps] for w in WIDTHS]
    assert SNAPSHOTS <= len(kept) <= 2 * SNAPSHOTS + 2
    for width, most in ((0.04, 0.02), (0.07, 0.01), (0.12, 0.01), (0.15, 0.02), (0.2, 0.05), (0.25, 0.12)):
        weights, apart = weights_for(kept, steps, width)
        assert float(weights.sum()) == pytest.approx(1)
        assert apart < most


def test_what_is_kept_follows_from_the_step_and_never_misses_what_was_dropped():
    kept: set[int] = set()
    for step in range(1, 3000):
        if step % interval(step) == 0:
            kept = {n for n in kept | {step} if n % interval(step) == 0}
            assert kept == set(range(interval(step), step + 1, interval(step)))
        assert len(kept) <= SNAPSHOTS


def test_a_decay_rate_is_that_of_other_libraries(toy, tmp_path: Path):
    d = toy.denoiser(dropout=0.0)
    config = toy.config(steps=6, ema=0.9)
    mean = torch.cat([p.detach().flatten() for p in d.parameters()]).clone()
    for k, state in enumerate(run_task(task := Diffusion(d, config), toy.Images(), config, tmp_path / "run"), 1):
        now = torch.cat([p.detach().flatten() for p in task.model.parameters()])
        decay = min(0.9, (1 + k) / (10 + k))
        mean = decay * mean + (1 - decay) * now
        shown = torch.cat([p.flatten() for p in state.model.parameters()])
        torch.testing.assert_close(shown, mean)


@pytest.mark.parametrize("ema", [0.3, 0.4999, 1, 1.5, -0.1, "0.999x", "posthoc", float("nan")])
def test_an_average_that_cannot_be(ema):
    for make in (lambda: TrainConfig(ema=ema), lambda: Settings(data="digits", ema=ema)):
        with pytest.raises(UserError, match=r"ema"):
            make()


def test_a_run_that_is_killed_keeps_the_same_averages(toy, tmp_path: Path):
    def tensors(out: Path) -> dict[str, torch.Tensor]:
        files = [*(out / "ema").iterdir(), out / "model.safetensors"]
        return {f"{file.name} {name}": value for file in files for name, value in load_tensors(file)[0].items()}

    train(toy, tmp_path / "whole", 60)
    d, config = toy.denoiser(dropout=0.0), toy.config(steps=60, checkpoint_every=25, ema="post-hoc")
    for state in run_task(Diffusion(d, config), toy.Images(), config, tmp_path / "cut"):
        if state.step == 58:
            break  # as after kill -9: the last checkpoint is of step 50, and averages of later steps are there
    assert snapshot_steps(tmp_path / "cut")[-1] > 50
    for _ in run_task(
        Diffusion(toy.denoiser(dropout=0.0), config), toy.Images(), config, tmp_path / "cut", resume=True
    ):
        pass
    cut, whole = tensors(tmp_path / "cut"), tensors(tmp_path / "whole")
    assert cut.keys() == whole.keys() and all(torch.equal(cut[name], value) for name, value in whole.items())


def test_the_command(tmp_path: Path):
    run, other = tmp_path / "run", tmp_path / "other"
    done("train", "--data", "digits", "--steps", 8, "--net", "xs", "--ema", "post-hoc", "--no-report", "--out", run)
    plain = load_tensors(run / "model.safetensors")[0]
    assert "width 0.2 at step 8" in done("ema", run, "--width", 0.2, "--out", other)
    wide = load_tensors(other / "model.safetensors")[0]
    assert any(not torch.equal(plain[name], wide[name]) for name in plain)
    assert torch.equal(plain["stem.weight"], load_tensors(run / "model.safetensors")[0]["stem.weight"])
    assert json.loads((other / "config.json").read_text())["training"]["ema_width"] == 0.2
    done("sample", other, "-n", 1, "--steps", 2)
    refused(ornstein("ema", run, "--width", 0.1, "--out", other), "already holds a run")
    refused(ornstein("ema", run, "--width", 0.4), "--width")
    done("ema", run, "--width", 0.2)
    assert torch.equal(load_tensors(run / "model.safetensors")[0]["stem.weight"], wide["stem.weight"])
    done("ema", run, "--width", 0.05)
    assert torch.equal(load_tensors(run / "model.safetensors")[0]["stem.weight"], plain["stem.weight"])
    refused(ornstein("ema", other, "--width", 0.1), "state")
    shutil.copy(run / "ema" / "00000003.safetensors", run / "ema" / "00000004.safetensors")
    (run / "ema" / "00000005.safetensors").write_bytes(b"x")
    refused(ornstein("ema", run, "--width", 0.1 + 0.01), "00000005.safetensors")
    refused(
        ornstein("train", "--data", "digits", "--model", "vae", "--ema", "post-hoc", "--out", tmp_path / "v"),
        "diffusion",
    )


def test_one_average_leaves_no_choice(toy, tmp_path: Path):
    train(toy, tmp_path / "run", 3, ema=0.05)
    assert not (tmp_path / "run" / averages.FOLDER).exists()
    with pytest.raises(UserError, match="train with --ema post-hoc"):
        reconstruct(tmp_path / "run", 0.1)

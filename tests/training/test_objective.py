"""Training by every objective through the trainer: the times that it draws, what it minimises, what it refuses."""

import math

import pytest
import torch

import ornstein as orn
from ornstein.errors import UserError
from ornstein.objectives import OBJECTIVES
from ornstein.schedules import Cosine
from ornstein.training import train
from ornstein.training.objective import times_of


def draw() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_times_are_those_that_each_objective_is_meant_for():
    n, schedule = 4000, Cosine()
    times = {name: times_of(name, n, schedule, draw()) for name in (None, *OBJECTIVES)}
    assert all(bool(((t > 0) & (t <= 1)).all()) and t.dtype == torch.float32 for t in times.values())
    even = ((torch.arange(n) + 0.5) / n).double()
    for name in (None, "simple", "continuous", "sigmoid", "min-snr"):
        assert float((times[name].double().sort().values - even).abs().max()) <= 1 / n
    step = (1000 * times["hybrid"].double()).round()
    assert torch.allclose(step / 1000, times["hybrid"].double(), atol=1e-7)
    assert sorted(set(step.tolist())) == list(range(1, 1001))
    step = (1000 * times["vlb-x0"].double()).round()
    assert sorted(set(step.tolist())) == list(range(2, 1001))
    assert torch.equal(times["vlb-x0"], times["vlb-eps"])
    level = -0.5 * schedule.log_snr(times["edm"].double())
    assert float(level.mean()) == pytest.approx(-1.2, abs=4 * 1.2 / math.sqrt(n))


def test_without_a_name_the_times_are_those_of_before():
    """Runs of older versions go on bit for bit."""
    generator = draw()
    offset = torch.rand(1, generator=generator, dtype=torch.float64)
    expected = (1 - (offset + torch.arange(7, dtype=torch.float64) / 7) % 1).clamp(min=1e-4).float()
    assert torch.equal(times_of(None, 7, Cosine(), draw()), expected)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_the_trainer_minimises_the_objective(toy, tmp_path, name):
    """The loss of the first step is the objective itself, and steps of it lower its mean on fixed draws."""
    denoiser = toy.denoiser(dropout=0.0, learned_variance=name == "hybrid")
    fixed = torch.Generator().manual_seed(1)
    x0, label = toy.Images().batch(torch.arange(96))
    t = times_of(name, 96, denoiser.process.schedule, fixed).clamp(min=0.05)
    z = torch.randn(x0.shape, generator=fixed)

    def mean() -> float:
        with torch.no_grad():
            return float(OBJECTIVES[name](denoiser, x0, t, z, label=label).mean())

    before = mean()
    config = toy.config(steps=30, batch=32, learning_rate=3e-3, objective=name, checkpoint_every=30)
    states = list(train(denoiser, toy.Images(), config, tmp_path))
    assert math.isfinite(states[-1].loss)
    assert mean() < 0.9 * before
    assert orn.load(tmp_path).net.config["learned_variance"] is (name == "hybrid")


def test_hybrid_needs_a_network_that_learns_a_variance(toy, tmp_path):
    with pytest.raises(UserError, match="this network learns none"):
        train(toy.denoiser(), toy.Images(), toy.config(objective="hybrid"), tmp_path)


def test_the_error_of_the_noise_says_nothing_at_zero_snr(toy, tmp_path):
    net, process = toy.denoiser(dropout=0.0).net, orn.Process(Cosine(log_snr_min=None))
    with pytest.raises(UserError, match="take vlb-x0"):
        train(orn.Denoiser(net, process), toy.Images(), toy.config(objective="vlb-eps"), tmp_path)
    for name in OBJECTIVES.keys() - {"vlb-eps", "hybrid"}:
        loss = OBJECTIVES[name](
            orn.Denoiser(net, process), *toy.Images().batch([0])[:1], torch.ones(1), torch.randn(1, 1, 8, 8)
        )
        assert bool(loss.isfinite().all()), name


def test_a_run_is_not_resumed_with_another_objective(toy, tmp_path):
    list(train(toy.denoiser(), toy.Images(), toy.config(steps=2, objective="simple"), tmp_path))
    with pytest.raises(UserError, match=r"training\.objective = simple, and min-snr is asked for"):
        train(toy.denoiser(), toy.Images(), toy.config(steps=4, objective="min-snr"), tmp_path, resume=True)
    assert len(list(train(toy.denoiser(), toy.Images(), toy.config(steps=4, objective="simple"), tmp_path, True))) == 2

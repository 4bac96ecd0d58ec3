"""Coefficients by least squares on fine paths (E43): exact where a step can be, and near the path where it cannot."""

import pytest
import torch
from torch import Tensor

from ornstein import Process
from ornstein.few_steps.following import Path, follow
from ornstein.few_steps.free_solver import FreeSolver, Start
from ornstein.noise import Identity
from ornstein.oracles import GaussianMixture
from ornstein.schedules import Cosine, LinearBeta, Rectified, Schedule
from ornstein.solvers import grids, multistep


def path(d, x: Tensor, steps: int = 100) -> Path:
    times = grids.make("logistic", d.process.schedule, (1.0, 0.0), steps)
    return Path(d, times, torch.stack([x, *multistep(d, x, times, lambda *_: torch.zeros(()))]))


def starts(count: int, seed: int) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine(None), Rectified()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("form", ["flow", "x0"])
def test_every_step_of_an_isotropic_gaussian_is_exact(schedule: Schedule, form):
    """There each state is the one before it times a number: two evaluations follow the flow, on any times."""
    d = GaussianMixture([1.0], torch.zeros(1, 3), 0.3 * torch.eye(3)[None]).denoiser(Process(schedule, Identity()))
    x = starts(20, 0)
    exact = path(d, x)
    free = FreeSolver(schedule, 2, Start(form, 2, 0.35))
    rough = free.run(d, x).detach()
    (ends,) = follow(free, [exact], [1.0])
    assert float((rough - exact.states[-1]).abs().max()) > 1e-2
    torch.testing.assert_close(ends, exact.states[-1], rtol=0, atol=2e-5)
    torch.testing.assert_close(free.run(d, x).detach(), ends, rtol=0, atol=1e-8)  # they are the solver's numbers
    with pytest.raises(AssertionError):
        torch.testing.assert_close(rough, ends, rtol=0, atol=1e-2)


def test_states_between_those_of_the_path(mixture: GaussianMixture):
    d = mixture.denoiser(Process(LinearBeta(), Identity()))
    x = starts(5, 1)
    coarse, fine = path(d, x, 100), path(d, x, 200)
    for i in (1, 37, 101, 163, 199):  # the odd ones lie between those of 100 steps
        there = float(fine.times[i])
        torch.testing.assert_close(coarse.at(there), fine.states[i], rtol=0, atol=2e-3)
    kept = Path(d, fine.times[::2], fine.states[::2])
    assert (
        max(float((kept.at(float(fine.times[i])) - fine.states[i]).abs().max()) for i in (1, 37, 101, 163, 199)) < 2e-4
    )


def test_a_solver_that_follows_is_nearer_on_other_starts(mixture: GaussianMixture):
    d = mixture.denoiser(Process(LinearBeta(), Identity()))
    free = FreeSolver(d.process.schedule, 5, Start("flow", 3, 0.35))
    x = starts(200, 3)
    end = path(d, x).states[-1]
    before = float((free.run(d, x).detach() - end).square().mean())
    # a part that weighs nothing decides nothing, even where its path is wrong
    wrong = path(d, starts(50, 4))
    wrong = Path(d, wrong.times, wrong.states.flip(1))
    ends = follow(free, [path(d, starts(200, 2)), wrong], [1.0, 0.0])
    assert [len(y) for y in ends] == [200, 50]
    assert float((free.run(d, x).detach() - end).square().mean()) < 0.5 * before

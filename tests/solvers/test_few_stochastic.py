"""The stochastic Adams solver for every tau, and restart sampling: their laws on Gaussians, in closed form."""

import math
from functools import partial

import pytest
import torch

from ornstein import Process
from ornstein.noise import AR1
from ornstein.oracles import GaussianMixture
from ornstein.schedules import Cosine, LinearBeta
from ornstein.solvers import SOLVERS, Counted, grids, multistep, restart

C = AR1(3, 0.7)


@pytest.mark.parametrize("tau", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("corrected", [False, True])
def test_a_point_is_reached_with_the_marginal_of_every_time(tau: float, corrected: bool, law):
    """For data that are one point x0 is constant: a step of any tau keeps N(a x0, s^2 C) exactly."""
    p = Process(Cosine(), C)
    point = GaussianMixture([1.0], [[0.3, -0.5, 0.1]], 1e-12 * torch.eye(3, dtype=torch.float64)[None])
    solver = partial(multistep, order=2, stochastic=tau, corrected=corrected)
    for end in (0.6, 0.2):
        (a1, s1, _), (a, s, _) = p.at(1.0), p.at(end)
        times = grids.make("logistic", p.schedule, (1.0, end), 4)
        mean, cov = law(solver, point.denoiser(p), times, a1 * point.means[0], s1**2 * C.dense())
        torch.testing.assert_close(mean, a * point.means[0], rtol=0, atol=1e-8)
        torch.testing.assert_close(cov, s**2 * C.dense(), rtol=0, atol=1e-8)


def test_without_noise_it_is_unipc(mixture: GaussianMixture, final):
    p = Process(LinearBeta(), C)
    times, x = grids.make("logistic", p.schedule, (1.0, 0.0), 6), torch.ones(2, 3, dtype=torch.float64)
    sa = partial(multistep, order=3, corrected=True, stochastic=0.0)
    assert torch.equal(final(sa, mixture.denoiser(p), x, times), final(SOLVERS["unipc"], mixture.denoiser(p), x, times))


@pytest.mark.parametrize("tau", [0.5, 1.0])
@pytest.mark.parametrize("corrected", [False, True])
def test_weak_order_of_the_stochastic_adams_solver(gauss: GaussianMixture, tau: float, corrected: bool, law, order):
    p = Process(LinearBeta(), C)
    a, s, _ = p.at(1.0)
    start = a * gauss.means[0], a**2 * gauss.covs[0] + s**2 * C.dense()
    solver = partial(multistep, order=3, corrected=corrected, stochastic=tau)
    steps, covs = [40, 80, 160], []
    for n in steps:
        times = grids.make("logistic", p.schedule, (1.0, 0.0), n)
        mean, cov = law(solver, gauss.denoiser(p), times, *start)
        torch.testing.assert_close(mean, gauss.means[0], rtol=0, atol=1e-10)
        covs.append(float((cov - gauss.covs[0]).norm()))
    assert order(steps, covs) > 1.8, covs


def test_a_restart_contracts_an_error_by_the_closed_form(law):
    """Down, up and down again, a wrong mean is multiplied by (a_high/a_low) sqrt(V_low/V_high), V = a^2 v + s^2."""
    p, v = Process(LinearBeta()), 0.2
    d = GaussianMixture([1.0], [[0.0]], [[[v]]]).denoiser(p)
    times = grids.make("logistic", p.schedule, (1.0, 0.0), 400)
    levels = [math.exp(-p.at(t)[2] / 2) for t in times.tolist()]
    inside = [k for k, r in enumerate(levels) if 0.1 <= r <= 1.0]
    (a_high, s_high, _), (a_low, s_low, _) = (p.at(float(times[k])) for k in (inside[0], inside[-1]))
    share = a_high / a_low * math.sqrt((a_low**2 * v + s_low**2) / (a_high**2 * v + s_high**2))
    a, s, _ = p.at(1.0)
    start = torch.tensor([1.0], dtype=torch.float64), torch.tensor([[a**2 * v + s**2]], dtype=torch.float64)
    plain, _ = law(partial(restart, repeats=0), d, times, *start)
    once, cov = law(restart, d, times, *start)
    assert float(once) == pytest.approx(float(plain) * share, rel=1e-3)
    assert share < 0.7
    assert float(cov) == pytest.approx(v, rel=1e-3)  # and the law that it should keep, it keeps


def test_a_restart_costs_the_steps_that_it_repeats(mixture: GaussianMixture):
    p = Process(LinearBeta(), C)
    times, d = grids.make("logistic", p.schedule, (1.0, 0.0), 12), Counted(mixture.denoiser(p))
    inside = sum(0.1 <= math.exp(-p.at(t)[2] / 2) <= 1.0 for t in times.tolist())

    def zero(step: int, draw: int = 0) -> torch.Tensor:
        return torch.zeros(2, 3, dtype=torch.float64)

    states = list(restart(d, torch.ones(2, 3, dtype=torch.float64), times, zero, repeats=2))
    assert len(states) == 12 and d.calls == 12 + 2 * (inside - 1)


@pytest.mark.parametrize("wrong", [{"low": 0.0}, {"low": 2.0, "high": 1.0}, {"repeats": -1}])
def test_levels_that_do_not_rise(gauss: GaussianMixture, wrong: dict):
    d, x = gauss.denoiser(Process(LinearBeta())), torch.zeros(1, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="a restart goes from a level low"):
        next(iter(restart(d, x, torch.tensor([1.0, 0.5]), lambda step, draw=0: x, **wrong)))

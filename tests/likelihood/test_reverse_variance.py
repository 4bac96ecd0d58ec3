"""Learned and analytic variances of the reverse step (E9): exact for a Gaussian, and at work in bound and sampler."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ornstein as orn
from ornstein import Denoiser, Process
from ornstein.likelihood import AnalyticVariance, fit_variance, vlb
from ornstein.noise import AR1
from ornstein.oracles import GaussianMixture
from ornstein.schedules import Cosine, Discrete, LinearBeta
from ornstein.solvers import ddpm
from ornstein.solvers.variance import reverse_log_variance

SIGMA = torch.tensor([[0.6, -0.2], [-0.2, 0.3]], dtype=torch.float64)
GAUSS = GaussianMixture([1.0], [[0.3, -0.5]], SIGMA[None])
P = Process(LinearBeta(), AR1(2, 0.6))


def draws(n: int, seed: int = 0) -> Tensor:
    return GAUSS.sample(n, torch.Generator().manual_seed(seed))


def exact_error(p: Process, t: float) -> float:
    """tr(C^-1 Cov[x_0 | x_t])/N for the Gaussian, by conditioning."""
    a, s, c = p.schedule.alpha(t), p.schedule.sigma(t), p.noise.dense()
    posterior = SIGMA - a**2 * SIGMA @ torch.linalg.inv(a**2 * SIGMA + s**2 * c) @ SIGMA
    return float(torch.trace(torch.linalg.solve(c, posterior))) / 2


def exact_table(p: Process, nodes: int = 2000) -> AnalyticVariance:
    level = torch.linspace(12.0, float(p.schedule.log_snr(1.0)), nodes, dtype=torch.float64)
    times = p.schedule.time(level).clamp(0, 1)
    errors = torch.tensor([exact_error(p, float(t)) for t in times]).double() / torch.sigmoid(-level)
    return AnalyticVariance(level, errors)


@pytest.mark.parametrize("p", [P, Process(Cosine(None), AR1(2, 0.6))])
def test_the_fit_is_the_conditional_variance_of_a_gaussian(p: Process):
    table = fit_variance(GAUSS.denoiser(p), draws(8000), nodes=24, batch=8000)
    for t in (0.05, 0.3, 0.7, 1.0):
        estimate = float(table.x0_error(p.schedule.log_snr(torch.tensor(t).double())))
        assert estimate == pytest.approx(exact_error(p, t), rel=0.05)


@pytest.mark.parametrize(("s", "t"), [(0.3, 0.31), (0.1, 0.6), (0.5, 1.0)])
def test_the_analytic_variance_is_the_optimum(s: float, t: float):
    """sigma^2 C nearest to the true reverse kernel of a Gaussian: tr(C^-1 Cov[x_s | x_t])/N, at any step length."""
    c, schedule = P.noise.dense(), P.schedule
    m_s, m_t = (schedule.alpha(u) ** 2 * SIGMA + schedule.sigma(u) ** 2 * c for u in (s, t))
    ratio = schedule.alpha(t) / schedule.alpha(s)
    true = m_s - ratio**2 * m_s @ torch.linalg.inv(m_t) @ m_s
    optimum = torch.trace(torch.linalg.solve(c, true)) / 2
    prediction = GAUSS.denoiser(P)(draws(3), t)
    own = reverse_log_variance(prediction, s, exact_table(P))
    torch.testing.assert_close(own.exp().squeeze(), optimum, rtol=1e-4, atol=0)
    lower, upper = (reverse_log_variance(prediction, s, name) for name in ("lower", "upper"))
    assert bool((lower < own).all())
    assert bool((own < upper - 2 * torch.log(ratio)).all())  # beta/alpha (Bao et al. 2022, theorem 2)


def test_the_analytic_variance_has_the_least_bound():
    d, x0 = GAUSS.denoiser(P), draws(4000, seed=1)
    totals = {
        name: float(vlb(d, x0, 6, decoder="gaussian", variance=variance, batch=4000).total.mean())
        for name, variance in (("lower", "lower"), ("upper", "upper"), ("analytic", exact_table(P)))
    }
    assert totals["analytic"] < min(totals["lower"], totals["upper"]) - 0.01


@pytest.mark.parametrize("steps", [4, 15])
def test_the_sampler_uses_it_at_every_number_of_steps(steps: int):
    """White data of variance r: the optimum is the true reverse variance, so every step keeps p_t, the last aside."""
    r, p = 0.3, Process(Discrete.linear(1000))
    data = GaussianMixture([1.0], [[0.0, 0.0]], r * torch.eye(2)[None])
    level = torch.linspace(14.0, -9.0, 3000, dtype=torch.float64)
    abar = torch.sigmoid(level)
    table = AnalyticVariance(level, r * (1 - abar) / (abar * r + 1 - abar) / torch.sigmoid(-level))
    end = 0.02

    def spread(variance: Any) -> float:
        solver = partial(ddpm, variance=variance)
        x = orn.sample(data.denoiser(p), (20000, 2), solver, steps, times=(1.0, end), grid="uniform")
        return float(x.var())

    expected = float(p.schedule.alpha(end) ** 2 * r + p.schedule.sigma(end) ** 2)
    assert spread(table) == pytest.approx(expected, rel=0.03)
    assert spread("lower") < 0.97 * expected
    assert spread("upper") > 1.03 * expected


class Net(nn.Module):
    """x0 = x/2 and the place of the variance, one for each element."""

    def __init__(self, place: Tensor) -> None:
        super().__init__()
        self.place = place

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        return torch.cat([x / 2, (2 * self.place - 1).expand_as(x)], dim=1)


def test_log_variance_interpolates_between_the_bounds_of_the_step():
    """E9 with the betas of the step itself: of a chain of 5, and of every second of its steps."""
    betas = torch.tensor([0.1, 0.3, 0.2, 0.4, 0.5]).double()
    p, place, x = Process(Discrete(betas), AR1(2, 0.5)), torch.tensor([0.2, 0.9]).double(), draws(3)
    prediction = Denoiser(Net(place), p, "x0")(x, 0.8)
    abar = torch.cumprod(1 - betas, 0)
    for n in (2, 1):
        beta = 1 - abar[3] / abar[n]
        lower = (1 - abar[n]) / (1 - abar[3]) * beta
        expected = (place * beta.log() + (1 - place) * lower.log()).expand(3, 2)
        torch.testing.assert_close(prediction.log_variance((n + 1) / 5), expected)
    assert bool(prediction.log_variance(0.0).isneginf().all())
    torch.testing.assert_close(prediction.x0, x / 2)


def test_the_learned_variance_multiplies_the_noise_before_its_colour():
    p, place, x = Process(LinearBeta(), AR1(2, 0.5)), torch.tensor([0.2, 0.9]).double(), draws(3)
    z = torch.randn(3, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    d = Denoiser(Net(place), p, "x0")
    (state,) = list(ddpm(d, x, torch.tensor([0.8, 0.5]).double(), lambda step, draw=0: z, variance="learned"))
    prediction = d(x, 0.8)
    std = torch.exp(prediction.log_variance(0.5) / 2)
    mean = p.posterior(x, x / 2, 0.5, 0.8).mean
    torch.testing.assert_close(state, mean + (std * z) @ torch.linalg.cholesky(p.noise.dense()).mT)


def test_twice_the_channels_of_an_image():
    class Wide(nn.Module):
        def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
            return torch.cat([x, torch.full_like(x, -1.0)], dim=1)

    d, x = Denoiser(Wide(), Process(Cosine()), "v"), torch.randn(2, 3, 4, 4)
    prediction = d(x, 0.5)
    assert prediction.x0.shape == x.shape
    assert prediction.variance_mix is not None
    assert bool((prediction.variance_mix == 0).all())
    assert d.loss(x, torch.full((2,), 0.5), torch.randn(2, 3, 4, 4)).shape == (2,)


def test_bad_arguments():
    d = GAUSS.denoiser(P)
    with pytest.raises(ValueError, match="learned no variance"):
        d(draws(1), 0.5).log_variance(0.2)
    with pytest.raises(ValueError, match='variance is "lower"'):
        orn.sample(d, (1, 2), partial(ddpm, variance="analytic"), 2)
    with pytest.raises(ValueError, match="at least 2 nodes"):
        fit_variance(d, draws(2), nodes=1)
    with pytest.raises(ValueError, match="fall strictly"):
        AnalyticVariance(torch.tensor([0.0, 1.0]), torch.ones(2))
    with pytest.raises(ValueError, match="tables of one length"):
        AnalyticVariance(torch.tensor([1.0, 0.0]), torch.ones(3))

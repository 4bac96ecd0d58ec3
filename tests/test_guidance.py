"""Classifier-free guidance against its closed form on a mixture whose conditional and marginal denoisers are exact."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from ornstein import Prediction, Process, sample
from ornstein.guidance import ClassifierFree
from ornstein.noise import AR1
from ornstein.oracles import GaussianMixture, Oracle
from ornstein.schedules import LinearBeta
from ornstein.solvers import ddpm

P = Process(LinearBeta(), AR1(2, 0.6))
MEANS = torch.tensor([[1.0, 0.5], [-1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
COVS = torch.tensor([[[0.5, 0.2], [0.2, 0.3]], [[0.2, -0.1], [-0.1, 0.4]], [[1.0, 0.0], [0.0, 0.1]]]).double()
WEIGHTS = [0.2, 0.3, 0.5]
X = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABEL = torch.tensor([0, 1, 2, 1])


@pytest.fixture
def oracle() -> Oracle:
    return GaussianMixture(WEIGHTS, MEANS, COVS).denoiser(P)


def component_means(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """E[x_0 | x_t, k] (B, K, N) and E[x_0 | x_t] (B, N), by dense Gaussian conditioning."""
    a, s, c = P.schedule.alpha(t), P.schedule.sigma(t), P.noise.dense()
    means, joint = [], []
    for weight, mu, cov in zip(WEIGHTS, MEANS, COVS, strict=True):
        m = a**2 * cov + s**2 * c
        means.append(mu + (x - a * mu) @ (a * cov @ torch.linalg.inv(m)).mT)
        joint.append(weight * torch.distributions.MultivariateNormal(a * mu, m).log_prob(x).exp())
    each = torch.stack(means, 1)
    share = torch.stack(joint, 1)
    return each, (share[..., None] * each).sum(1) / share.sum(1, keepdim=True)


@pytest.mark.parametrize("scale", [-0.5, 0.0, 1.0, 1.5, 7.0])
@pytest.mark.parametrize("t", [0.1, 0.6])
def test_closed_form(oracle: Oracle, scale: float, t: float):
    each, whole = component_means(X, t)
    conditional = each[torch.arange(4), LABEL]
    guided = ClassifierFree(oracle, scale)(X, t, label=LABEL)
    x0 = whole + scale * (conditional - whole)
    torch.testing.assert_close(guided.x0, x0, rtol=1e-9, atol=1e-9)
    a, s = P.schedule.alpha(t), P.schedule.sigma(t)
    torch.testing.assert_close(guided.eps, (X - a * x0) / s, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(guided.score, -P.noise.solve((X - a * x0) / s**2), rtol=1e-9, atol=1e-9)


def test_scale_1_is_conditional_and_0_is_not(oracle: Oracle):
    conditional, whole = oracle(X, 0.3, label=LABEL), oracle(X, 0.3)
    assert torch.equal(ClassifierFree(oracle, 1.0)(X, 0.3, label=LABEL).x0, conditional.x0)
    torch.testing.assert_close(ClassifierFree(oracle, 0.0)(X, 0.3, label=LABEL).x0, whole.x0)
    assert (conditional.x0 - whole.x0).abs().max() > 0.1


def test_interval_with_a_time_for_each_sample(oracle: Oracle):
    t = torch.tensor([0.1, 0.2, 0.5, 0.9], dtype=torch.float64)
    guided = ClassifierFree(oracle, 3.0, interval=(0.2, 0.5))(X, t, label=LABEL)
    conditional, everywhere = oracle(X, t, label=LABEL), ClassifierFree(oracle, 3.0)(X, t, label=LABEL)
    for b, inside in enumerate((False, True, True, False)):
        expected = everywhere if inside else conditional
        torch.testing.assert_close(guided.x0[b], expected.x0[b])
        torch.testing.assert_close(guided.eps[b], expected.eps[b])
        assert (everywhere.x0[b] - conditional.x0[b]).abs().max() > 1e-4


class Counted:
    """Counts the calls to a denoiser."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle, self.process, self.calls = oracle, oracle.process, 0

    def __call__(self, x_t: Tensor, t: Any, /, **cond: Any) -> Prediction:
        self.calls += 1
        return self.oracle(x_t, t, **cond)


@pytest.mark.parametrize(("scale", "t", "calls"), [(1.0, 0.3, 1), (3.0, 0.9, 1), (3.0, 0.3, 2)])
def test_the_second_evaluation_is_made_only_where_it_counts(oracle: Oracle, scale: float, t: float, calls: int):
    counted = Counted(oracle)
    ClassifierFree(counted, scale, interval=(0.0, 0.5))(X, t, label=LABEL)
    assert counted.calls == calls


class Learned(Counted):
    """With a variance placed at 0.3 given the condition, and at 0.8 without."""

    def __call__(self, x_t: Tensor, t: Any, /, **cond: Any) -> Prediction:
        mix = torch.full_like(x_t, 0.3 if cond else 0.8)
        return replace(super().__call__(x_t, t, **cond), variance_mix=mix)


def test_a_learned_variance_is_that_with_the_condition(oracle: Oracle):
    learned = Learned(oracle)
    guided, conditional = ClassifierFree(learned, 2.0)(X, 0.5, label=LABEL), learned(X, 0.5, label=LABEL)
    assert float((guided.x0 - conditional.x0).abs().max()) > 0.01
    torch.testing.assert_close(guided.log_variance(0.4), conditional.log_variance(0.4))
    for variance in ("learned", "lower"):
        x = sample(learned, (4, 2), partial(ddpm, variance=variance), 5, guidance=2.0, cond={"label": LABEL})
        assert bool(x.isfinite().all())


def test_samples_of_any_rank_and_dtype():
    mixture = GaussianMixture([0.5, 0.5], torch.randn(2, 1, 2, 1), torch.eye(2).expand(2, 2, 2))
    x = torch.randn(3, 1, 2, 1)
    guided = ClassifierFree(mixture.denoiser(P), 2.0)(x, torch.tensor([0.1, 0.5, 0.9]), label=torch.tensor([0, 1, 1]))
    assert guided.x0.shape == x.shape
    assert guided.x0.dtype == guided.v.dtype == torch.float32


def test_errors(oracle: Oracle):
    for cond in ({}, {"label": None}):
        with pytest.raises(ValueError, match="needs a condition, such as"):
            ClassifierFree(oracle, 2.0)(X, 0.5, **cond)
    for interval in ((0.5, 0.5), (0.6, 0.2), (-0.1, 1.0), (0.0, 1.5)):
        with pytest.raises(ValueError, match="guidance interval"):
            ClassifierFree(oracle, 2.0, interval=interval)

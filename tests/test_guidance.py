"""Classifier-free guidance against its closed form on a mixture whose conditional and marginal denoisers are exact."""

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ornstein import Denoiser, Prediction, Process, sample
from ornstein.guidance import AdaptiveProjected, ClassifierFree, both_sides
from ornstein.noise import AR1
from ornstein.oracles import GaussianMixture, Oracle
from ornstein.schedules import LinearBeta
from ornstein.solvers import ddpm
from ornstein.wrapper import Conditioned

P = Process(LinearBeta(), AR1(2, 0.6))
WHITE = Process(LinearBeta())
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


def test_the_negative_side_has_conditions_of_its_own(oracle: Oracle):
    other = torch.tensor([2, 0, 1, 0])
    each, _ = component_means(X, 0.4)
    c, u = each[torch.arange(4), LABEL], each[torch.arange(4), other]
    counted = Counted(oracle)
    guided = ClassifierFree(counted, 3.0)(X, 0.4, label=LABEL, negative={"label": other})
    torch.testing.assert_close(guided.x0, u + 3 * (c - u), rtol=1e-9, atol=1e-9)
    assert torch.equal(guided.x_t, X) and guided.eps.shape == X.shape
    # what does not guide has no use for it
    assert torch.equal(oracle(X, 0.4, label=LABEL, negative={"label": other}).x0, oracle(X, 0.4, label=LABEL).x0)
    for cond in ({"negative": {"label": other}}, {"label": None, "negative": {}}):
        with pytest.raises(ValueError, match="needs a condition"):
            ClassifierFree(oracle, 3.0)(X, 0.4, **cond)


def test_samples_with_a_negative_side_in_batches(oracle: Oracle):
    cond = {"label": LABEL, "negative": {"label": [2, 0, 1, 0]}}
    how: dict[str, Any] = {"solver": "heun", "steps": 5, "start": X, "guidance": 2.0}
    whole, parts = (sample(oracle, (4, 2), cond=cond, batch=b, **how) for b in (4, 3))
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=1e-12)
    plain = sample(oracle, (4, 2), cond={"label": LABEL}, **how)
    assert float((whole - plain).abs().max()) > 0.1
    with pytest.raises(ValueError, match=r"'label'.* has 3 rows for 4"):
        sample(oracle, (4, 2), cond={"label": LABEL, "negative": {"label": [2, 0, 1]}}, **how)
    with pytest.raises(ValueError, match="needs a condition"):
        sample(oracle, (4, 2), cond={"negative": {"label": LABEL}}, **how)


@pytest.mark.parametrize(
    ("cond", "negative", "calls"),
    [
        ({"a": torch.ones(2, 3)}, {"a": torch.zeros(2, 3)}, 1),
        ({"a": torch.ones(2, 3), "b": None}, {"a": torch.zeros(2, 3)}, 1),
        ({"a": torch.ones(2, 3)}, {"a": torch.zeros(2, 4)}, 2),  # shorter prompts
        ({"a": torch.ones(2, 3), "b": "x"}, {"a": torch.zeros(2, 3), "b": "y"}, 2),
        ({"a": torch.ones(2, 3)}, {"b": torch.zeros(2, 3)}, 2),
        ({"a": torch.ones(2, 3)}, {}, 2),
    ],
)
@pytest.mark.parametrize("t", [0.3, torch.tensor([0.2, 0.7])])
def test_one_call_for_both_sides_where_the_shapes_agree(cond: dict, negative: dict, calls: int, t: Any):
    class Sums(torch.nn.Module):
        calls = 0

        def forward(self, x: Tensor, log_snr: Tensor, **given: Any) -> Tensor:
            self.calls += 1
            rows = [v.sum(1, keepdim=True) for v in given.values() if isinstance(v, Tensor)]
            assert all(len(r) == len(x) == len(log_snr) for r in rows)
            return torch.cat([x * log_snr[:, None] + sum(rows), x.tanh()], 1)

    net, x = Sums(), X[:2]
    d = Denoiser(net, WHITE)
    sides = both_sides(d, x, t, cond, negative)
    assert net.calls == calls
    for side, given in zip(sides, (cond, negative), strict=True):
        alone = d(x, t, **given)
        for name in ("x0", "eps", "v", "score", "variance_mix", "x_t"):
            assert torch.equal(getattr(side, name), getattr(alone, name)), name
    assert both_sides(Conditioned(d, {}), x, t, cond, negative)[0].x0.shape == x.shape and net.calls > calls


def two_gaussians(means: list[list[float]], variances: list[list[float]]) -> Oracle:
    covs = torch.stack([torch.diag(torch.tensor(v, dtype=torch.float64)) for v in variances])
    return GaussianMixture([0.5, 0.5], means, covs).denoiser(WHITE)


def test_guidance_between_gaussians_of_one_covariance_is_the_model_of_another_mean():
    """E38: the guided flow is that of the mean m_u + w (m_c - m_u), from noise to data in closed form."""
    m_c, m_u, variance, w = torch.tensor([1.0, -0.5]), torch.tensor([0.2, 0.7]), [0.3, 1.5], 4.0
    d = two_gaussians([m_c.tolist(), m_u.tolist()], [variance, variance])
    mean = (m_u + w * (m_c - m_u)).double()
    whole = GaussianMixture([1.0], mean[None], torch.diag(torch.tensor(variance)).double()[None])
    cond = {"label": [0] * 4, "negative": {"label": [1] * 4}}
    got = sample(d, (4, 2), "rk4", 40, guidance=w, cond=cond, start=X)
    torch.testing.assert_close(got, whole.ode_map(X, WHITE, 1.0, 0.0), rtol=0, atol=2e-4)
    assert float((got - sample(d, (4, 2), "rk4", 10, cond=cond, start=X)).abs().max()) > 1


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.2, 0.6)])
def test_guidance_between_gaussians_of_two_covariances(interval: tuple[float, float]):
    """E38 at zero mean: x_s/x_t = (V_c(s)/V_c(t))^(w/2) (V_u(s)/V_u(t))^((1-w)/2), V = a^2 S + s^2; w = 1 outside."""
    s_c, s_u, w = torch.tensor([0.1, 2.0]).double(), torch.tensor([0.8, 1.2]).double(), 3.0

    def log_ratio(variance: Tensor, s: float, t: float) -> Tensor:
        at = [WHITE.schedule.alpha(u) ** 2 * variance + WHITE.schedule.sigma(u) ** 2 for u in (s, t)]
        return (at[0] / at[1]).log() / 2

    low, high = interval
    exponent = log_ratio(s_c, 0.0, 1.0) + (w - 1) * (log_ratio(s_c, low, high) - log_ratio(s_u, low, high))
    d = two_gaussians([[0.0, 0.0]] * 2, [s_c.tolist(), s_u.tolist()])
    cond = {"label": [0] * 4, "negative": {"label": [1] * 4}}
    # rule and flow are smooth on either side of an end of the interval: the steps end there, just inside
    x, ends = X, [1.0, *([high, low] if interval != (0.0, 1.0) else []), 0.0]
    for start, end in pairwise(ends):
        inside = low <= (start + end) / 2 <= high
        guided = ClassifierFree(d, w if inside else 1.0, interval)
        x = sample(guided, (4, 2), "rk4", 30, times=(start, end), start=x, cond=cond)
    torch.testing.assert_close(x, X * exponent.exp(), rtol=2e-4, atol=1e-5)
    whole = sample(d, (4, 2), "heun", 120, grid="uniform", guidance=w, guidance_interval=interval, start=X, cond=cond)
    torch.testing.assert_close(whole, X * exponent.exp(), rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("rescale", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_rescaling_gives_the_output_the_spread_of_the_conditional_one(prediction: Any, rescale: float):
    class Net(torch.nn.Module):
        def forward(self, x: Tensor, log_snr: Tensor, label: Tensor | None = None) -> Tensor:
            shift = 0 if label is None else (label[:, None] + 1) * torch.tensor([1.0, -2.0, 0.5])
            return torch.tanh(x) + shift

    d, x, label = Denoiser(Net(), WHITE, prediction), torch.randn(3, 3), torch.tensor([0, 1, 2])
    c, u, w = d.net(x, x, label).double().numpy(), d.net(x, x).double().numpy(), 5.0
    cfg = u + w * (c - u)
    scaled = cfg * c.std(1, ddof=1, keepdims=True) / cfg.std(1, ddof=1, keepdims=True)
    expected = torch.from_numpy(rescale * scaled + (1 - rescale) * cfg).float()
    guided = ClassifierFree(d, w, rescale=rescale)(x, 0.4, label=label)
    torch.testing.assert_close(getattr(guided, prediction), expected, rtol=1e-4, atol=1e-5)
    a, s = (float(f(0.4)) for f in (WHITE.schedule.alpha, WHITE.schedule.sigma))
    torch.testing.assert_close(a * guided.x0 + s * guided.eps, x, rtol=1e-4, atol=1e-4)  # E8
    same = sample(d, (3, 3), "ddim", 3, guidance=w, guidance_rescale=rescale, start=x, cond={"label": label})
    direct = sample(ClassifierFree(d, w, rescale=rescale), (3, 3), "ddim", 3, start=x, cond={"label": label})
    assert torch.equal(same, direct)


@pytest.mark.parametrize(("eta", "norm"), [(0.0, float("inf")), (0.4, float("inf")), (0.0, 0.5), (1.0, 0.1)])
def test_projected_guidance_in_closed_form(oracle: Oracle, eta: float, norm: float):
    each, whole = component_means(X, 0.3)
    c = each[torch.arange(4), LABEL]
    rows = []
    for one, other in zip(c.numpy(), whole.numpy(), strict=True):
        d = (one - other) * min(1.0, norm / np.linalg.norm(one - other))
        along = d @ one / (one @ one) * one
        rows.append(one + 6.0 * (d - along + eta * along))
    guided = AdaptiveProjected(oracle, 7.0, eta=eta, norm=norm)(X, 0.3, label=LABEL)
    torch.testing.assert_close(guided.x0, torch.from_numpy(np.stack(rows)), rtol=1e-8, atol=1e-8)
    if eta == 0:  # the change is at right angles to the conditional prediction
        torch.testing.assert_close(((guided.x0 - c) * c).sum(1), torch.zeros(4).double(), rtol=0, atol=1e-8)


def test_projected_guidance_that_keeps_everything_is_classifier_free(oracle: Oracle):
    one, two = (g(X, 0.3, label=LABEL) for g in (AdaptiveProjected(oracle, 7.0, eta=1.0), ClassifierFree(oracle, 7.0)))
    torch.testing.assert_close(one.x0, two.x0, rtol=1e-9, atol=1e-9)
    same = LABEL.new_zeros(4)
    still = AdaptiveProjected(oracle, 7.0, norm=1.0)(X, 0.3, label=same, negative={"label": same})
    torch.testing.assert_close(still.x0, oracle(X, 0.3, label=same).x0)  # no difference, no guidance, and no nan


def test_errors(oracle: Oracle):
    for cond in ({}, {"label": None}):
        with pytest.raises(ValueError, match="needs a condition, such as"):
            ClassifierFree(oracle, 2.0)(X, 0.5, **cond)
    for interval in ((0.5, 0.5), (0.6, 0.2), (-0.1, 1.0), (0.0, 1.5)):
        with pytest.raises(ValueError, match="guidance interval"):
            ClassifierFree(oracle, 2.0, interval=interval)
    for rescale in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="share from 0 to 1"):
            ClassifierFree(oracle, 2.0, rescale=rescale)
    for norm in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="norm of a guidance step"):
            AdaptiveProjected(oracle, 2.0, norm=norm)
    for options in ({"guidance_rescale": 0.5}, {"guidance_interval": (0.2, 0.8)}):
        with pytest.raises(ValueError, match="does nothing without guidance"):
            sample(oracle, (4, 2), cond={"label": LABEL}, **options)

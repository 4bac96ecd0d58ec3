"""The Gaussian kernels (E1-E8, E18, E26) against the sources' discrete formulas and dense linear algebra."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from ornstein import Gaussian, Process
from ornstein.noise import AR1, Covariance, Identity
from ornstein.process import kl_gaussians
from ornstein.schedules import EDM, VE, Cosine, Discrete, LinearBeta, Rectified, Schedule

BETAS = [0.05, 0.2, 0.1, 0.4, 0.3]
SCHEDULES: list[Schedule] = [
    Cosine(),
    Cosine(None),
    LinearBeta(),
    Discrete(BETAS),
    Discrete.linear(50).zero_terminal(),
    VE(),
    Rectified(),
    EDM(),
]
each = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a, b.expand_as(a), rtol=tolerance, atol=tolerance)


def abar(n: int) -> float:
    """abar_n = prod_{i<=n} alpha_i, abar_0 = 1."""
    product = 1.0
    for i in range(1, n + 1):
        product *= 1 - BETAS[i - 1]
    return product


@pytest.fixture
def chain() -> Process:
    return Process(Discrete(BETAS), AR1(3, 0.6))


@pytest.mark.parametrize("n", range(1, 6))
def test_one_step_and_marginal_of_a_chain(chain: Process, n: int):
    x, z, c = randn(2, 3), randn(2, 3, seed=1), chain.noise
    step = chain.transition(x, (n - 1) / 5, n / 5)  # E1
    assert_close(step.mean, math.sqrt(1 - BETAS[n - 1]) * x)
    assert float(step.std) == pytest.approx(math.sqrt(BETAS[n - 1]), rel=1e-10)
    marginal = chain.marginal(x, n / 5)  # E2
    assert_close(marginal.mean, math.sqrt(abar(n)) * x)
    assert float(marginal.std) == pytest.approx(math.sqrt(1 - abar(n)), rel=1e-12)
    noised = math.sqrt(abar(n)) * x + math.sqrt(1 - abar(n)) * c.color(z)
    assert_close(chain.add_noise(x, n / 5, z), noised)
    assert_close(marginal.sample(z), noised)


def test_steps_of_a_chain_add_up_to_the_marginal(chain: Process):
    """E1 five times over is E2: means multiply, variances a^2 v + b."""
    x, mean, variance = randn(2, 3), randn(2, 3), 0.0
    for n in range(1, 6):
        step = chain.transition(mean, (n - 1) / 5, n / 5)
        mean, variance = step.mean, (1 - BETAS[n - 1]) * variance + float(step.std) ** 2
        marginal = chain.marginal(x, n / 5)
        assert_close(marginal.mean, mean)
        assert variance == pytest.approx(float(marginal.std) ** 2, rel=1e-10)


@pytest.mark.parametrize("n", range(1, 6))
def test_posterior_of_a_chain(chain: Process, n: int):
    x_n, x0, beta = randn(2, 3), randn(2, 3, seed=1), BETAS[n - 1]
    posterior = chain.posterior(x_n, x0, (n - 1) / 5, n / 5)  # E6
    mean = (
        math.sqrt(abar(n - 1)) * beta / (1 - abar(n)) * x0
        + math.sqrt(1 - beta) * (1 - abar(n - 1)) / (1 - abar(n)) * x_n
    )
    assert_close(posterior.mean, mean)
    variance = (1 - abar(n - 1)) / (1 - abar(n)) * beta
    assert float(posterior.std) ** 2 == pytest.approx(variance, rel=1e-10, abs=1e-15)
    eps = (x_n - math.sqrt(abar(n)) * x0) / math.sqrt(1 - abar(n))  # E7
    assert_close(posterior.mean, (x_n - beta / math.sqrt(1 - abar(n)) * eps) / math.sqrt(1 - beta))


@each
@pytest.mark.parametrize("times", [(0.2, 0.7), (0.01, 0.99), (1e-4, 2e-4)])
def test_transition_and_posterior_are_bayes_rule_on_dense_gaussians(schedule: Schedule, times: tuple[float, float]):
    """The joint law of (x_s, x_t) given x_0, built from E2 alone, conditioned by block elimination (E3, E6)."""
    (s, t), p, n = times, Process(schedule, AR1(3, -0.5)), 3
    c = p.noise.dense()
    a_s, s_s, a_t, s_t = (float(f(u)) for u in (s, t) for f in (schedule.alpha, schedule.sigma))
    ratio = a_t / a_s
    # cov(x_s, x_t | x_0) = a_{t|s} s_s^2 C.
    s_ss, s_st, s_tt = s_s**2 * c, ratio * s_s**2 * c, s_t**2 * c
    x0, x_t, x_s = randn(1, n), randn(1, n, seed=1), randn(1, n, seed=2)

    gain = s_st @ torch.linalg.inv(s_tt)
    posterior = p.posterior(x_t, x0, s, t)
    assert_close(posterior.mean, a_s * x0 + (x_t - a_t * x0) @ gain.mT, 1e-7)
    assert_close(posterior.std**2 * c, s_ss - gain @ s_st.mT, 1e-7)

    gain = s_st.mT @ torch.linalg.inv(s_ss)  # x_t given x_s: x_0 must drop out
    transition = p.transition(x_s, s, t)
    assert_close(transition.mean, a_t * x0 + (x_s - a_s * x0) @ gain.mT, 1e-7)
    assert_close(transition.std**2 * c, s_tt - gain @ s_st, 1e-7)
    assert float(transition.std) > 0

    joint = MultivariateNormal(torch.cat([a_s * x0, a_t * x0], 1)[0], scale_tril=_joint_root(s_ss, s_st, s_tt))
    both = p.marginal(x0, s).log_prob(x_s) + transition.log_prob(x_t)
    assert_close(both, joint.log_prob(torch.cat([x_s, x_t], 1)), 1e-6)


def _joint_root(s_ss: Tensor, s_st: Tensor, s_tt: Tensor) -> Tensor:
    return torch.linalg.cholesky(torch.cat([torch.cat([s_ss, s_st], 1), torch.cat([s_st.mT, s_tt], 1)], 0))


shapes = st.lists(st.integers(1, 3), min_size=2, max_size=5).map(tuple)
schedules = st.sampled_from(SCHEDULES)
unit = st.floats(0.0, 1.0)
inner = st.floats(1e-3, 0.999)
kinds = st.sampled_from(["identity", "ar1"])


def noise_for(kind: str, shape: tuple[int, ...]) -> Covariance:
    return Identity() if kind == "identity" else AR1(shape[1 if len(shape) == 2 else 2], 0.8)


quick = settings(max_examples=60, deadline=None, derandomize=True)


@quick
@given(shapes, schedules, kinds, st.lists(unit, min_size=3, max_size=3).map(sorted))
def test_chapman_kolmogorov(shape: tuple[int, ...], schedule: Schedule, kind: str, times: list[float]):
    """Two transitions are one, and a marginal moved on is the later marginal (E3), for s = t and s = 0 too."""
    r, s, t = times
    p, x = Process(schedule, noise_for(kind, shape)), randn(*shape)
    first, both = p.transition(x, r, s), p.transition(x, r, t)
    second = p.transition(first.mean, s, t)
    assert second.mean.shape == x.shape
    scale = 1 + float(p.schedule.sigma(t)) ** 2
    assert_close(second.mean, both.mean, 1e-8)
    ratio = float(schedule.alpha(t) / schedule.alpha(s)) if s < t else 1.0
    assert ratio**2 * float(first.std) ** 2 + float(second.std) ** 2 == pytest.approx(
        float(both.std) ** 2, rel=1e-8, abs=1e-10 * scale
    )
    early, late = p.marginal(x, s), p.marginal(x, t)
    assert_close(p.transition(early.mean, s, t).mean, late.mean, 1e-8)
    assert ratio**2 * float(early.std) ** 2 + float(second.std) ** 2 == pytest.approx(
        float(late.std) ** 2, rel=1e-8, abs=1e-10 * scale
    )


@quick
@given(shapes, schedules, kinds, st.lists(unit, min_size=2, max_size=2).map(sorted))
def test_posterior_of_what_was_noised_averages_to_the_marginal(
    shape: tuple[int, ...], schedule: Schedule, kind: str, times: list[float]
):
    """E6 over x_t ~ q(x_t | x_0) is q(x_s | x_0)."""
    s, t = times
    p, x0 = Process(schedule, noise_for(kind, shape)), randn(*shape)
    at_mean = p.posterior(p.marginal(x0, t).mean, x0, s, t)
    assert_close(at_mean.mean, p.marginal(x0, s).mean, 1e-8)
    zero = torch.zeros_like(x0)
    keep = float(p.posterior(torch.ones_like(x0), zero, s, t).mean.flatten()[0])
    variance = (keep * float(p.marginal(x0, t).std)) ** 2 + float(at_mean.std) ** 2
    scale = 1 + float(schedule.sigma(s)) ** 2
    assert variance == pytest.approx(float(p.marginal(x0, s).std) ** 2, rel=1e-7, abs=1e-10 * scale)


@quick
@given(shapes, schedules, kinds, inner, st.integers(0, 2**20))
def test_any_prediction_converts_to_any_other(
    shape: tuple[int, ...], schedule: Schedule, kind: str, t: float, seed: int
):
    p = Process(schedule, noise_for(kind, shape))
    x0, z = randn(*shape, seed=seed), randn(*shape, seed=seed + 1)
    x_t, c_z = p.add_noise(x0, t, z), p.noise.color(z)
    a, s = float(schedule.alpha(t)), float(schedule.sigma(t))
    a_dot, s_dot = float(schedule.alpha_dot(t)), float(schedule.sigma_dot(t))
    truth = {
        "x0": x0,
        "eps": c_z,
        "v": a * c_z - s * x0,
        "score": -p.noise.solve(c_z) / s,
        "flow": a_dot * x0 + s_dot * c_z,
    }
    for name, value in truth.items():
        converted = p.convert(x_t, t, **{name: value})
        for other, expected in truth.items():
            got = getattr(converted, other)
            assert got.shape == x0.shape
            # x_0 from noise is divided by a, noise from x_0 by s: what rounding they magnify.
            tolerance = 1e-11 * (1 + s / a) * (1 + a / s) * (1 + float(expected.abs().max()))
            assert (got - expected).abs().max() < tolerance, (name, other)
        assert_close(converted.C_score, -converted.eps / s)


@quick
@given(shapes, schedules, kinds, st.data())
def test_times_per_sample(shape: tuple[int, ...], schedule: Schedule, kind: str, data: st.DataObject):
    """A batch with a time for each sample is each sample by itself."""
    p, (x, y, z) = Process(schedule, noise_for(kind, shape)), (randn(*shape, seed=i) for i in range(3))
    pairs = data.draw(st.lists(st.tuples(inner, inner).map(sorted), min_size=shape[0], max_size=shape[0]))
    s, t = torch.tensor(pairs, dtype=torch.float64).T

    def all_of(x: Tensor, y: Tensor, z: Tensor, s: Tensor, t: Tensor) -> list[Tensor]:
        transition, posterior, marginal = p.transition(x, s, t), p.posterior(x, y, s, t), p.marginal(x, t)
        prediction = p.convert(x, t, x0=y)
        return [
            p.add_noise(x, t, z),
            *(g.sample(z) for g in (transition, posterior, marginal)),
            *(prediction.eps, prediction.v, prediction.flow, prediction.score),
            p.convert(x, t, flow=y).x0,
            p.drift(x, t),
            p.diffusion(t, x) * x,
            marginal.log_prob(y),
        ]

    whole = all_of(x, y, z, s, t)
    for b in range(shape[0]):
        one = all_of(x[b : b + 1], y[b : b + 1], z[b : b + 1], s[b], t[b])
        for several, single in zip(whole, one, strict=True):
            assert_close(several[b : b + 1], single, 1e-9)


@each
def test_edges(schedule: Schedule):
    p, x, y = Process(schedule, AR1(3, 0.5)), randn(2, 3), randn(2, 3, seed=1)
    for t in (0.0, 0.3, 1.0):
        stay = p.transition(x, t, t)  # s = t: nothing happens
        assert torch.equal(stay.mean, x)
        assert float(stay.std) == 0
        stay = p.posterior(x, y, t, t)
        assert torch.equal(stay.mean, x)
        assert float(stay.std) == 0
    for t in (1e-3, 0.3, 1.0):
        start = p.posterior(x, y, 0.0, t)  # s = 0: x_0 is known
        assert_close(start.mean, y)
        assert float(start.std) == 0
        forward = p.transition(x, 0.0, t)
        assert_close(forward.mean, p.marginal(x, t).mean)
        assert_close(forward.std, p.marginal(x, t).std)
    assert torch.equal(p.add_noise(x, 0.0, y), x)
    data = p.convert(x, 0.0, v=y)
    assert torch.equal(data.x0, x)
    assert torch.equal(data.eps, torch.zeros_like(x))


def test_the_flow_at_the_data():
    """Where s grows as t the flow has the limit a' x_0 + s' 0; elsewhere it holds the score of the data."""
    x, y = randn(2, 3), randn(2, 3, seed=1)
    assert_close(Process(Rectified()).convert(x, 0.0, v=y).flow, -x)
    assert_close(Process(Cosine(None)).convert(x, 0.0, x0=y).flow, torch.zeros_like(x))
    near = Process(Cosine(None)).convert(x, 1e-6, eps=1e-6 * y)  # a smooth density has E[eps | x_t] = O(t)
    assert_close(near.flow, torch.zeros_like(x), 1e-5)
    times = torch.tensor([0.5, 0.0])
    for schedule in (LinearBeta(), Discrete(BETAS), VE(), EDM()):
        for t in (0.0, times):
            with pytest.raises(ValueError, match="at t = 0 this schedule's flow holds the score"):
                _ = Process(schedule).convert(x, t, x0=y).flow


@each
@pytest.mark.parametrize("name", ["x0", "eps", "v", "score", "flow"])
def test_the_score_at_the_data_is_refused(schedule: Schedule, name: str):
    x, y = randn(2, 3), randn(2, 3, seed=1)
    for t in (0.0, torch.tensor([0.0, 0.5])):
        prediction = Process(schedule).convert(x, t, **{name: y})
        assert torch.equal(prediction.x0[0], x[0]) and torch.equal(prediction.eps[0], torch.zeros(3).double())
        assert bool(prediction.v.isfinite().all())
        for form in ("score", "C_score"):
            with pytest.raises(ValueError, match="at t = 0 there is no noise to tell the score by"):
                getattr(prediction, form)


@each
def test_no_kernel_between_neighbouring_floats_is_nan(schedule: Schedule):
    s = torch.cat([torch.rand(2000, dtype=torch.float64), torch.logspace(-15, -1, 100, dtype=torch.float64)]) * 0.999
    t = torch.nextafter(s, torch.ones_like(s))
    p, x = Process(schedule), torch.ones(len(s), 1, dtype=torch.float64)
    for g in (p.transition(x, s, t), p.posterior(x, x, s, t)):
        assert bool(g.mean.isfinite().all())
        assert bool(g.std.isfinite().all())


@pytest.mark.parametrize("schedule", [Cosine(None), Rectified(), Discrete.linear(10).zero_terminal()], ids=str)
def test_zero_terminal_snr(schedule: Schedule):
    p, x, y = Process(schedule, AR1(3, 0.5)), randn(2, 3), randn(2, 3, seed=1)
    assert_close(p.marginal(x, 1.0).mean, torch.zeros_like(x))
    assert_close(p.posterior(x, y, 0.4, 1.0).mean, p.marginal(y, 0.4).mean)  # x_1 says nothing of x_0
    assert_close(p.convert(x, 1.0, v=y).x0, -y)
    assert_close(p.convert(x, 1.0, x0=y).eps, x)
    for name in ("eps", "score"):
        with pytest.raises(ValueError, match=r"zero SNR.*predict v or x0"):
            p.convert(x, 1.0, **{name: y})


def test_flow_at_the_ends():
    x, y = randn(2, 3), randn(2, 3, seed=1)
    straight = Process(Rectified())
    assert_close(straight.convert(x, 1.0, flow=y).x0, x - y)
    assert_close(straight.convert(x, 0.25, x0=y).flow, (x - 0.75 * y) / 0.25 - y)
    with pytest.raises(ValueError, match="flow is infinite"):
        Process(Discrete.linear(10).zero_terminal()).convert(x, 1.0, flow=y)


@each
def test_forward_sde(schedule: Schedule):
    """E18: mean and variance of dx = f x dt + g R dW obey m' = f m and V' = 2 f V + g^2 C; integrated by RK4."""
    p, one = Process(schedule, AR1(2, 0.5)), torch.ones(1, 1, dtype=torch.float64)
    start, end, steps = 0.2, 0.8, 600 if isinstance(schedule, Discrete) else 2000
    m, v, h = float(schedule.alpha(start)), float(schedule.sigma(start)) ** 2, (end - start) / steps

    def slope(t: float, m: float, v: float) -> tuple[float, float]:
        f, g = float(p.drift(one, t)), float(p.diffusion(t, one))
        return f * m, 2 * f * v + g * g

    for i in range(steps):
        t = start + i * h
        inside = t + 1e-9 * h, t + h / 2, t + h - 1e-9 * h  # not on a node, where beta jumps
        k1 = slope(inside[0], m, v)
        k2 = slope(inside[1], m + h / 2 * k1[0], v + h / 2 * k1[1])
        k3 = slope(inside[1], m + h / 2 * k2[0], v + h / 2 * k2[1])
        k4 = slope(inside[2], m + h * k3[0], v + h * k3[1])
        m += h / 6 * (k1[0] + 2 * k2[0] + 2 * k3[0] + k4[0])
        v += h / 6 * (k1[1] + 2 * k2[1] + 2 * k3[1] + k4[1])
    assert m == pytest.approx(float(schedule.alpha(end)), rel=1e-7)
    assert v == pytest.approx(float(schedule.sigma(end)) ** 2, rel=1e-6)
    if schedule.variance_preserving:
        beta = float(schedule.g2(0.5))
        assert float(p.drift(one, 0.5)) == pytest.approx(-beta / 2, rel=1e-12)
        assert float(p.diffusion(0.5, one)) == pytest.approx(math.sqrt(beta), rel=1e-12)


def test_unit_variance_is_the_fixed_point():
    """E4: data of covariance C keep it under any number of steps of the chain."""
    p = Process(Discrete(BETAS), AR1(4, 0.7))
    covariance = p.noise.dense()
    for n in range(1, 6):
        step = p.transition(torch.ones(1, 4, dtype=torch.float64), (n - 1) / 5, n / 5)
        covariance = float(step.mean[0, 0]) ** 2 * covariance + float(step.std) ** 2 * p.noise.dense()
        assert_close(covariance, p.noise.dense())


def test_the_noise_of_a_clip_is_correlated_over_its_frames():
    """E5: Toeplitz over frames, white over channels and pixels; by Monte Carlo."""
    p, n = Process(LinearBeta(), AR1(3, 0.8)), 20_000
    z = randn(n, 2, 3, 2, 1)
    x = p.add_noise(torch.zeros_like(z), 1.0, z).reshape(n, -1)
    pair = torch.eye(2, dtype=torch.float64)
    expected = p.schedule.sigma(1.0) ** 2 * torch.kron(pair, torch.kron(p.noise.dense(), pair))
    error = torch.sqrt((1 + expected**2) / n)
    assert ((x.mT @ x / n - expected).abs() < 4.5 * error).all()


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 4), (2, 3, 4, 2), (5, 4, 4, 2), (2, 3, 4, 2, 1)], ids=str)
@pytest.mark.parametrize("noise", [Identity(), AR1(4, 0.6)], ids=str)
def test_log_prob_of_any_rank(shape: tuple[int, ...], noise: Covariance):
    x, mean, std = randn(*shape), randn(*shape, seed=1), torch.rand(shape[0], dtype=torch.float64) + 0.5
    g = Gaussian(mean, std.reshape(-1, *[1] * (len(shape) - 1)), noise)
    unit = torch.eye(math.prod(shape[1:]), dtype=torch.float64)
    dense = noise.matvec(unit.reshape(-1, *shape[1:])).reshape(len(unit), -1)
    expected = MultivariateNormal(mean.flatten(1), std[:, None, None] ** 2 * dense).log_prob(x.flatten(1))
    assert_close(g.log_prob(x), expected)


def test_log_prob_of_singular_noise_is_refused():
    p, x = Process(LinearBeta(), AR1(4, 1.0)), randn(2, 4)
    with pytest.raises(ValueError, match=r"singular.*floored"):
        p.marginal(x, 0.5).log_prob(x)
    assert p.marginal(x, 0.5).sample().shape == x.shape
    prediction = p.convert(x, 0.5, x0=x)
    a, variance = p.schedule.alpha(0.5), p.schedule.sigma(0.5) ** 2
    assert_close(prediction.C_score, (a - 1) * x / variance)  # Tweedie needs no inverse of C
    with pytest.raises(ValueError, match=r"singular.*floored"):
        _ = prediction.score


def test_prior():
    p = Process(VE(), AR1(4, 0.5))
    prior = p.prior((3, 4), dtype=torch.float64)
    assert torch.equal(prior.mean, torch.zeros(3, 4, dtype=torch.float64))
    assert float(prior.std) == pytest.approx(math.sqrt(50**2 - 0.01**2), rel=1e-12)
    assert p.prior((3, 4)).mean.dtype == torch.float32
    assert float(p.prior((3, 4), t=0.5).std) == pytest.approx(float(p.schedule.sigma(0.5)), rel=1e-6)


def test_samples_keep_their_dtype():
    p, x = Process(Cosine(), AR1(4, 0.5)), torch.randn(2, 4)
    for t in (0.5, torch.tensor([0.2, 0.7], dtype=torch.float64)):
        prediction = p.convert(x, t, v=x)
        posterior = p.posterior(x, x, 0.1, t)
        for y in (p.add_noise(x, t, x), posterior.mean, posterior.std, prediction.x0, prediction.score):
            assert y.dtype == torch.float32
        assert p.drift(x, t).dtype == p.diffusion(t, x).dtype == prediction.flow.dtype == torch.float32


NAN = math.nan


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, x: p.transition(x, 0.6, 0.5), "s > t"),
        (lambda p, x: p.posterior(x, x, 0.6, 0.5), "s > t"),
        (lambda p, x: p.transition(x, torch.tensor([0.1, 0.6]), 0.5), "s > t"),
        (lambda p, x: p.marginal(x, 1.1), r"times lie in \[0, 1\]"),
        (lambda p, x: p.marginal(x, -0.1), r"times lie in \[0, 1\]"),
        (lambda p, x: p.add_noise(x, NAN, x), r"times lie in \[0, 1\]"),
        (lambda p, x: p.convert(x, torch.tensor([0.1, NAN]), v=x), r"times lie in \[0, 1\]"),
        (lambda p, x: p.drift(x, 2.0), r"times lie in \[0, 1\]"),
        (lambda p, x: p.diffusion(NAN, x), r"times lie in \[0, 1\]"),
        (lambda p, x: p.marginal(x, torch.rand(3)), r"times have shape \(3,\).*2 samples"),
        (lambda p, x: p.marginal(x, torch.rand(2, 1)), r"times have shape \(2, 1\)"),
        (lambda p, x: p.convert(x, 0.5), "exactly one of x0, eps, v, score, flow; got none"),
        (lambda p, x: p.convert(x, 0.5, v=x, eps=x), "exactly one of .*; got eps, v"),
        (lambda p, x: p.convert(x, 0.5, v=x[:, :2]), r"v has shape \(2, 2\), but x_t has \(2, 3\)"),
        (lambda p, x: p.convert(x, 0.5, score=x[:1]), r"score has shape \(1, 3\)"),
    ],
)
def test_bad_arguments(call, message: str):
    with pytest.raises(ValueError, match=message):
        call(Process(LinearBeta(), AR1(3, 0.5)), randn(2, 3))


def test_kl_of_two_gaussians_in_one_dimension():
    """E26 as S3 writes it: log(s2/s1) + (s1^2 + (m1 - m2)^2)/(2 s2^2) - 1/2."""
    for m1, s1, m2, s2 in ((0.0, 1.0, 0.0, 1.0), (0.3, 0.5, -0.2, 2.0), (1.0, 3.0, 1.0, 0.1)):
        expected = math.log(s2 / s1) + (s1**2 + (m1 - m2) ** 2) / (2 * s2**2) - 0.5

        def tensor(value: float) -> Tensor:
            return torch.full((1, 1), value, dtype=torch.float64)

        g1, g2 = Gaussian(tensor(m1), tensor(s1), Identity()), Gaussian(tensor(m2), tensor(s2), Identity())
        assert float(g1.kl(g2)) == pytest.approx(expected, rel=1e-12, abs=1e-14)
        full = kl_gaussians(tensor(m1), tensor(s1**2)[None], tensor(m2), tensor(s2**2)[None])
        assert float(full) == pytest.approx(expected, rel=1e-12, abs=1e-14)
        reference = kl_divergence(Normal(m1, s1), Normal(m2, s2))
        assert float(full) == pytest.approx(float(reference), rel=1e-5, abs=1e-7)


def random_covariances(batch: int, n: int, seed: int) -> Tensor:
    a = randn(batch, n, n, seed=seed)
    return a @ a.mT + 0.1 * torch.eye(n, dtype=torch.float64)


def test_kl_with_full_covariances():
    m1, m2 = randn(5, 4), randn(5, 4, seed=1)
    c1, c2 = random_covariances(5, 4, 2), random_covariances(5, 4, 3)
    expected = kl_divergence(MultivariateNormal(m1, c1), MultivariateNormal(m2, c2))
    assert_close(kl_gaussians(m1, c1, m2, c2), expected)
    assert_close(kl_gaussians(m1[0], c1[0], m2[0], c2[0]), expected[0])
    assert kl_gaussians(m1, c1, m1, c1).abs().max() < 1e-12
    with pytest.raises(ValueError, match="positive definite"):
        kl_gaussians(m1[0], c1[0], m2[0], torch.zeros(4, 4, dtype=torch.float64))


@pytest.mark.parametrize("noise", [Identity(), AR1(4, 0.6)], ids=str)
@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 4, 1), (3, 1, 4, 2, 1)], ids=str)
def test_kl_over_the_same_noise(noise: Covariance, shape: tuple[int, ...]):
    column = (-1, *[1] * (len(shape) - 1))
    std = torch.rand(3, dtype=torch.float64) + 0.5
    g1 = Gaussian(randn(*shape), std.reshape(column), noise)
    g2 = Gaussian(randn(*shape, seed=1), torch.tensor(0.8, dtype=torch.float64), noise)
    unit = torch.eye(math.prod(shape[1:]), dtype=torch.float64)
    dense = noise.matvec(unit.reshape(-1, *shape[1:])).reshape(len(unit), -1)
    for a, s_a, b, s_b in ((g1, std, g2, torch.full_like(std, 0.8)), (g2, torch.full_like(std, 0.8), g1, std)):
        expected = kl_divergence(
            MultivariateNormal(a.mean.flatten(1), s_a[:, None, None] ** 2 * dense),
            MultivariateNormal(b.mean.flatten(1), s_b[:, None, None] ** 2 * dense),
        )
        assert a.kl(b).shape == (3,)
        assert_close(a.kl(b), expected)


def test_kl_of_nearly_equal_spreads_does_not_cancel():
    """KL of stds 1 and 1 + d is N d^2 to first order, far below the rounding of its terms."""
    zero, d = torch.zeros(1, 4, dtype=torch.float64), 1e-9
    wide = Gaussian(zero, torch.tensor(1 + d, dtype=torch.float64), Identity())
    unit = Gaussian(zero, torch.tensor(1.0, dtype=torch.float64), Identity())
    assert wide.kl(unit).item() == pytest.approx(4 * d * d, rel=1e-4)


def test_kl_refuses_what_has_none():
    one, x = torch.tensor(1.0, dtype=torch.float64), randn(2, 3)
    with pytest.raises(ValueError, match="same noise"):
        Gaussian(x, one, Identity()).kl(Gaussian(x, one, AR1(3, 0.5)))
    with pytest.raises(ValueError, match="not the same space"):
        Gaussian(x, one, Identity()).kl(Gaussian(x[:, :2], one, Identity()))
    with pytest.raises(ValueError, match=r"singular.*floored"):
        Gaussian(x, one, AR1(3, 1.0)).kl(Gaussian(x, one, AR1(3, 1.0)))


@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine(), VE(), EDM(), Rectified()], ids=lambda s: type(s).__name__)
def test_the_drift_is_the_limit_of_the_steps_of_a_chain(schedule: Schedule):
    """E1 becomes E18: (E[x_{t+h} | x_t] - x_t)/h -> f x_t and Var/h -> g^2 C, at first order in h."""
    p, x, t = Process(schedule, AR1(3, 0.6)), randn(2, 3), 0.4
    errors = []
    for h in (1e-2, 5e-3, 2.5e-3):
        step = p.transition(x, t, t + h)
        drift, g2 = (step.mean - x) / h - p.drift(x, t), float(step.std) ** 2 / h - float(p.diffusion(t, x)) ** 2
        errors.append((float(drift.abs().max()), abs(g2)))
    for coarse, fine in pairwise(errors):
        for large, small in zip(coarse, fine, strict=True):
            assert small < 1e-12 or large / small == pytest.approx(2, rel=0.1)


def test_integers_are_refused():
    """Rounded to integers the noise would vanish: 8-bit images have to be scaled first."""
    p, image = Process(LinearBeta()), torch.zeros(2, 3, dtype=torch.uint8)
    z = randn(2, 3)
    for call in (
        lambda: p.add_noise(image, 0.5, z),
        lambda: p.add_noise(image.long(), torch.tensor([0.1, 0.5]), z),
        lambda: p.marginal(image, 0.5),
        lambda: p.posterior(image, image, 0.2, 0.5),
        lambda: p.convert(image, 0.5, x0=image),
    ):
        with pytest.raises(ValueError, match=r"floating point.*convert 8-bit x by x / 127.5 - 1") as error:
            call()
        assert "\n" not in str(error.value)

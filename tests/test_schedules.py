"""Schedules: inverses, derivatives, and the chains and kernels of the papers written out with plain loops."""

import json
import math

import pytest
import torch
from torch import Tensor

from ornstein.schedules import (
    EDM,
    VE,
    Cosine,
    Discrete,
    LinearBeta,
    Rectified,
    Schedule,
    Shifted,
    from_config,
    to_config,
)

SCHEDULES = [
    Cosine(),
    Cosine(log_snr_min=-4.0),
    Cosine(log_snr_min=None),
    LinearBeta(),
    LinearBeta(0.5, 0.5),
    Discrete.linear(),
    Discrete.cosine(),
    Discrete.linear(50).zero_terminal(),
    Discrete([0.1, 0.5, 0.3]),
    VE(),
    Rectified(),
    EDM(),
    EDM(0.01, 20.0, 3.0),
    Shifted(Cosine(), 2.5),
    Shifted(Cosine(None), -3.0),
    Shifted(LinearBeta(), -1.5),
    Shifted(Discrete([0.1, 0.5, 0.3]), 1.0),
]
each = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{type(s).__name__}")
PRESERVING = [s for s in SCHEDULES if s.variance_preserving]


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def times() -> Tensor:
    """The whole range: from 1e-12 up by decades, then evenly, then up to 1 by decades."""
    small = torch.logspace(-12, -2, 41, dtype=torch.float64)
    middle = torch.linspace(0.011, 0.989, 500, dtype=torch.float64)
    return torch.cat([f64(0.0), small, middle, (1 - small).flip(0), f64(1.0)])


@each
def test_time_inverts_log_snr(schedule: Schedule):
    t = times()
    back = schedule.time(schedule.log_snr(t))
    assert (back - t).abs().max() < 1e-9
    small = t[(t > 0) & (t < 0.01)]
    assert (schedule.time(schedule.log_snr(small)) / small - 1).abs().max() < 1e-9


@each
def test_log_snr_inverts_time(schedule: Schedule):
    low = max(float(schedule.log_snr(1.0)), -25.0)
    log_snr = torch.linspace(low, 50, 2000, dtype=torch.float64)
    t = schedule.time(log_snr)
    assert bool(((t >= 0) & (t <= 1 + 1e-12)).all())
    # A time near 1 resolves a vanishing SNR no better than |dlambda/dt| times its last place.
    resolution = 4e-16 * (2 * schedule.drift(t) - 2 * schedule.sigma_dot(t) / schedule.sigma(t)).abs().nan_to_num()
    assert ((schedule.log_snr(t) - log_snr).abs() <= 1e-9 + torch.where(t > 0.999, resolution, 0.0)).all()


@each
def test_ends_and_monotonicity(schedule: Schedule):
    assert float(schedule.alpha(0.0)) == 1
    assert float(schedule.sigma(0.0)) == 0
    assert float(schedule.log_snr(0.0)) == math.inf
    log_snr = schedule.log_snr(times())
    assert bool((log_snr[1:] < log_snr[:-1]).all())
    assert schedule.zero_terminal_snr == (float(schedule.alpha(1.0)) == 0)
    if schedule.zero_terminal_snr:
        assert float(schedule.log_snr(1.0)) == -math.inf


@each
def test_log_snr_is_its_definition(schedule: Schedule):
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    expected = torch.log(schedule.alpha(t) ** 2 / schedule.sigma(t) ** 2)
    torch.testing.assert_close(schedule.log_snr(t), expected, rtol=1e-12, atol=1e-12)


@each
def test_derivatives_against_autograd(schedule: Schedule):
    # Off the nodes of the chains, where a(t) has a kink.
    t = torch.linspace(0.0123, 0.9871, 97, dtype=torch.float64).requires_grad_()

    def derivative(y: Tensor) -> Tensor:
        if not y.requires_grad:  # a constant
            return torch.zeros_like(t)
        return torch.autograd.grad(y.sum(), t)[0]

    a_dot, s_dot = derivative(schedule.alpha(t)), derivative(schedule.sigma(t))
    close = {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(schedule.alpha_dot(t.detach()), a_dot, **close)
    torch.testing.assert_close(schedule.sigma_dot(t.detach()), s_dot, **close)
    a, s = schedule.alpha(t).detach(), schedule.sigma(t).detach()
    torch.testing.assert_close(schedule.drift(t.detach()), a_dot / a, **close)
    torch.testing.assert_close(schedule.g2(t.detach()), 2 * s * s_dot - 2 * a_dot / a * s**2, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", PRESERVING, ids=lambda s: type(s).__name__)
def test_variance_is_preserved(schedule: Schedule):
    # E4: b^2 = 1 - a^2 is the fixed point of a unit variance.
    t = times()
    torch.testing.assert_close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t))


@pytest.mark.parametrize("schedule", PRESERVING, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("T", [1, 7, 100])
def test_the_product_of_a_chain_is_alpha_squared(schedule: Schedule, T: int):
    abar = 1.0
    for n, beta in enumerate(schedule.betas(T).tolist(), start=1):
        assert 0 < beta <= 1
        abar *= 1 - beta
        assert abar == pytest.approx(float(schedule.alpha(n / T)) ** 2, rel=1e-11, abs=1e-14)


def test_a_chain_returns_its_betas():
    steps = [0.1, 0.5, 0.3, 0.02]
    torch.testing.assert_close(Discrete(steps).betas(4), f64(*steps), rtol=1e-12, atol=0)
    long = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    torch.testing.assert_close(Discrete(long).betas(1000), long, rtol=1e-9, atol=0)


def test_ddpm_linear_chain():
    chain, abar = Discrete.linear(), 1.0
    for n in range(1, 1001):
        abar *= 1 - (1e-4 + (n - 1) / 999 * (0.02 - 1e-4))
        if n % 37 == 0 or n in (1, 2, 1000):
            assert float(chain.alpha(n / 1000)) == pytest.approx(math.sqrt(abar), rel=1e-11)
            assert float(chain.sigma(n / 1000)) == pytest.approx(math.sqrt(1 - abar), rel=1e-11)


def test_cosine_chain():
    chain, abar = Discrete.cosine(100), 1.0

    def f(n: int) -> float:
        return math.cos((n / 100 + 0.008) / 1.008 * math.pi / 2) ** 2

    for n in range(1, 101):
        abar *= 1 - min(1 - f(n) / f(n - 1), 0.999)
        assert float(chain.alpha(n / 100)) == pytest.approx(math.sqrt(abar), rel=1e-10)


def test_zero_terminal_chain():
    """Lin et al. 2024, algorithm 1: sqrt(abar) shifted to 0 at T and scaled to what it was at 1."""
    chain = Discrete.linear(20, 0.01, 0.3)
    root = [float(chain.alpha(n / 20)) for n in range(1, 21)]
    expected = [(r - root[-1]) * root[0] / (root[0] - root[-1]) for r in root]
    rescaled = chain.zero_terminal()
    assert rescaled.zero_terminal_snr
    assert not chain.zero_terminal_snr
    for n in range(1, 21):
        assert float(rescaled.alpha(n / 20)) == pytest.approx(expected[n - 1], abs=1e-12)
    assert float(rescaled.betas(20)[-1]) == 1
    # At t = 1 the slope of a is infinite, that of s is not.
    assert float(rescaled.alpha_dot(1.0)) == -math.inf
    last = float(rescaled.alpha(19 / 20)) ** 2
    assert float(rescaled.sigma_dot(1.0)) == pytest.approx(20 * last / 2, rel=1e-12)


def test_linear_beta_kernel():
    # Song et al. 2021, eq. 33: the mean of x_t is exp(-t^2 (M - m)/4 - t m/2) x_0.
    schedule = LinearBeta(0.1, 20.0)
    for t in (0.001, 0.3, 0.8, 1.0):
        a = math.exp(-(t**2) * 19.9 / 4 - t * 0.1 / 2)
        assert float(schedule.alpha(t)) == pytest.approx(a, rel=1e-13)
        assert float(schedule.sigma(t)) == pytest.approx(math.sqrt(1 - a * a), rel=1e-10)
        assert float(schedule.g2(t)) == pytest.approx(0.1 + 19.9 * t, rel=1e-13)
        assert float(schedule.drift(t)) == pytest.approx(-(0.1 + 19.9 * t) / 2, rel=1e-13)


def test_cosine_kernel():
    schedule = Cosine(log_snr_min=-10.0)
    assert float(schedule.log_snr(1.0)) == pytest.approx(-10, abs=1e-12)
    w = math.atan(math.exp(5))
    for t in (0.01, 0.5, 1.0):
        assert float(schedule.alpha(t)) == pytest.approx(math.cos(w * t), rel=1e-12)
        assert float(schedule.log_snr(t)) == pytest.approx(-2 * math.log(math.tan(w * t)), rel=1e-12)
    assert float(Cosine(None).alpha(1.0)) == 0


def test_ve_and_edm_kernels():
    for t in (1e-6, 0.01, 0.4, 1.0):
        ve, edm = VE(0.01, 50.0), EDM(0.002, 80.0, 7.0)
        k = 0.01 * (50 / 0.01) ** t
        assert float(ve.sigma(t)) == pytest.approx(math.sqrt(k**2 - 0.01**2), rel=1e-8)
        low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
        k = (low + t * (high - low)) ** 7
        assert float(edm.sigma(t)) == pytest.approx(math.sqrt(k**2 - 0.002**2), rel=1e-8)
        assert float(ve.alpha(t)) == float(edm.alpha(t)) == 1


def test_rectified_is_the_straight_path():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert torch.equal(Rectified().alpha(t), 1 - t)
    assert torch.equal(Rectified().sigma(t), t)


@each
def test_elementwise_on_any_shape_and_dtype(schedule: Schedule):
    t = torch.rand(2, 3, 2, dtype=torch.float64)
    for f in (schedule.alpha, schedule.sigma, schedule.log_snr, schedule.g2, schedule.drift):
        assert f(t).shape == t.shape
        assert torch.equal(f(t)[1, 2, 0], f(float(t[1, 2, 0])))
        assert f(t.float()).dtype == torch.float32
        assert torch.equal(f(t.float()), f(t.float().double()).float())  # computed in float64, cast at the end
    assert torch.equal(schedule.time(schedule.log_snr(t))[0, 1, 1], schedule.time(schedule.log_snr(float(t[0, 1, 1]))))


@each
def test_config_round_trip_through_json(schedule: Schedule):
    again = from_config(json.loads(json.dumps(to_config(schedule))))
    assert again == schedule
    assert torch.equal(again.log_snr(times()), schedule.log_snr(times()))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "unknown schedule None; known: Cosine"),
        ({"type": "Sine"}, "unknown schedule 'Sine'"),
        ({"type": ["Cosine"]}, "unknown schedule"),
        ({"type": "Cosine", "beta": 1}, r"wrong arguments for the schedule Cosine: \['beta'\]"),
        ({"type": "LinearBeta", "beta_min": "a"}, "wrong arguments for the schedule LinearBeta"),
    ],
)
def test_bad_configs(config: dict, message: str):
    with pytest.raises(ValueError, match=message):
        from_config(config)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearBeta(0.0, 1.0), "0 < beta_min <= beta_max"),
        (lambda: LinearBeta(2.0, 1.0), "0 < beta_min <= beta_max"),
        (lambda: LinearBeta(0.1, math.nan), "0 < beta_min <= beta_max"),
        (lambda: Cosine(math.inf), "must be finite"),
        (lambda: Cosine(math.nan), "must be finite"),
        (lambda: Discrete([]), "betas must lie in"),
        (lambda: Discrete([0.1, 0.0]), "betas must lie in"),
        (lambda: Discrete([0.1, 1.1]), "betas must lie in"),
        (lambda: Discrete([1.0, 0.1]), "only the last may be 1"),
        (lambda: Discrete([0.1, math.nan]), "betas must lie in"),
        (lambda: VE(0.0, 1.0), "0 < sigma_min < sigma_max"),
        (lambda: VE(2.0, 1.0), "0 < sigma_min < sigma_max"),
        (lambda: EDM(0.1, math.inf), "0 < sigma_min < sigma_max"),
        (lambda: EDM(rho=0.0), "rho must be positive"),
        (lambda: EDM(rho=math.nan), "rho must be positive"),
        (lambda: VE().betas(10), "VE does not preserve variance"),
        (lambda: Rectified().betas(10), "Rectified does not preserve variance"),
        (lambda: Cosine().betas(0), "at least one step"),
    ],
)
def test_bad_arguments(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()

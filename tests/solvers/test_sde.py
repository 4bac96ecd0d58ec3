"""Euler-Maruyama on the reverse SDE (E19) and Langevin dynamics (E22): their laws, not their Monte Carlo estimates."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov
from scipy.stats import kstest, norm
from torch import Tensor

from ornstein import Process
from ornstein.noise import AR1, Covariance, Identity
from ornstein.oracles import GaussianMixture
from ornstein.schedules import Cosine, LinearBeta, Rectified
from ornstein.solvers import euler_maruyama, grids, langevin, langevin_step

C = AR1(3, 0.7)
END = 0.05


def marginal(p: Process, data: GaussianMixture, t: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of x_t for one Gaussian: a mu and M_t."""
    a, s = float(p.schedule.alpha(t)), float(p.schedule.sigma(t))
    c = torch.eye(3, dtype=torch.float64) if isinstance(p.noise, Identity) else p.noise.dense()
    return a * data.means[0], a**2 * data.covs[0] + s**2 * c


def euler_maruyama_law(p: Process, data: GaussianMixture, times: list[float]) -> tuple[Tensor, Tensor]:
    """x_{t-h} = x - h f x - h g^2 C M^-1 (x - a mu) + sqrt(h) g R z, with beta of the linear VP-SDE: f = -beta/2."""
    assert isinstance(p.schedule, LinearBeta)
    m, v = marginal(p, data, times[0])
    eye, c = torch.eye(3, dtype=torch.float64), C.dense()
    for t, s in pairwise(times):
        h, beta = t - s, 0.1 + t * (20.0 - 0.1)
        mean_t, m_t = marginal(p, data, t)
        pull = beta * c @ torch.linalg.inv(m_t)
        step = (1 + h * beta / 2) * eye - h * pull
        m, v = step @ m + h * pull @ mean_t, step @ v @ step.mT + (h * beta * c if s > 0 else 0)
    return m, v


@pytest.mark.parametrize("end", [END, 0.0])
def test_the_law_of_euler_maruyama(gauss: GaussianMixture, end: float, law):
    p = Process(LinearBeta(), C)
    times = grids.make("logistic", p.schedule, (1.0, end), 30)
    mean, cov = law(euler_maruyama, gauss.denoiser(p), times, *marginal(p, gauss, 1.0))
    expected_mean, expected_cov = euler_maruyama_law(p, gauss, times.tolist())
    torch.testing.assert_close(mean, expected_mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(cov, expected_cov, rtol=0, atol=1e-10)


@pytest.mark.parametrize("noise", [C, Identity()], ids=["AR1", "Identity"])
def test_euler_maruyama_has_weak_order_one(gauss: GaussianMixture, noise: Covariance, law, order):
    p = Process(LinearBeta(), noise)
    d, start, (mean_end, cov_end) = gauss.denoiser(p), marginal(p, gauss, 1.0), marginal(p, gauss, END)
    steps, means, covs = [64, 128, 256, 512], [], []
    for n in steps:
        mean, cov = law(euler_maruyama, d, grids.make("logistic", p.schedule, (1.0, END), n), *start)
        means.append(float((mean - mean_end).norm()))
        covs.append(float((cov - cov_end).norm()))
    assert order(steps, means) == pytest.approx(1, abs=0.15)
    assert order(steps, covs) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("schedule", [Rectified(), Cosine(None)], ids=lambda s: type(s).__name__)
def test_an_infinite_drift_is_named(gauss: GaussianMixture, schedule, final):
    d = gauss.denoiser(Process(schedule))
    with pytest.raises(ValueError, match=r"infinite drift at a zero terminal SNR; use ddim"):
        final(euler_maruyama, d, torch.zeros(1, 3, dtype=torch.float64), torch.tensor([1.0, 0.0]))
    # A start below zero SNR has none.
    times = torch.tensor([0.99, 0.5, 0.0], dtype=torch.float64)
    out = final(euler_maruyama, d, torch.zeros(1, 3, dtype=torch.float64), times, lambda k, draw=0: torch.zeros(1, 3))
    assert bool(out.isfinite().all())


def test_the_bias_of_langevin_is_of_the_order_of_its_step(gauss: GaussianMixture, order):
    """x' = A x + B z on a Gaussian settles at the V with V = A V A^T + B B^T; V - M_t falls as the step."""
    p, t = Process(LinearBeta(), C), 0.3
    d, (mean, m_t) = gauss.denoiser(p), marginal(p, gauss, t)
    unit, zero = torch.eye(3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    sizes, errors = [0.08, 0.04, 0.02, 0.01], []
    for size in sizes:
        at_mean = langevin_step(d, mean[None], t, size, zero[:1])[0]
        torch.testing.assert_close(at_mean, mean, rtol=0, atol=1e-12)  # the mean is exact at any step
        a = (langevin_step(d, mean + unit, t, size, zero) - at_mean).mT
        b = (langevin_step(d, mean + zero, t, size, unit) - at_mean).mT
        settled = torch.as_tensor(solve_discrete_lyapunov(a.numpy(), (b @ b.mT).numpy()))
        errors.append(float((settled - m_t).norm()))
    assert errors[-1] < 0.01
    assert order([round(1 / size) for size in sizes], errors) == pytest.approx(1, abs=0.15)


T = 0.1
N = 4000
DIRECTIONS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.6, -0.8], [0.6, 0.5, 0.6]], dtype=torch.float64)


def kolmogorov_smirnov(x: Tensor, p: Process, data: GaussianMixture, t: float) -> float:
    """The largest distance of the empirical law of x from the exact p_t, over three projections."""
    a, s = float(p.schedule.alpha(t)), float(p.schedule.sigma(t))
    worst = 0.0
    for u in DIRECTIONS:
        means = (a * data.means @ u).tolist()
        stds = torch.stack([u @ (a**2 * cov + s**2 * p.noise.dense()) @ u for cov in data.covs]).sqrt().tolist()
        parts = list(zip(data.weights.tolist(), means, stds, strict=True))

        def cdf(q, parts=parts):
            return sum(w * norm.cdf(q, m, sd) for w, m, sd in parts)

        worst = max(worst, float(kstest((x @ u).numpy(), cdf).statistic))
    return worst


def settle(step, d, x: Tensor, steps: int, size: float) -> Tensor:
    g = torch.Generator().manual_seed(7)
    for _ in range(steps):
        x = step(d, x, T, size, torch.randn(x.shape, generator=g, dtype=torch.float64))
    return x


# The Kolmogorov-Smirnov distance that an exact sample exceeds with probability 1e-4, three projections.
LIMIT = 2.346 / N**0.5


@pytest.fixture(scope="module")
def exact_samples(mixture: GaussianMixture) -> Tensor:
    p, g = Process(LinearBeta(), C), torch.Generator().manual_seed(3)
    x0 = mixture.sample(N, g)
    return p.add_noise(x0, T, torch.randn(x0.shape, generator=g, dtype=torch.float64))


def test_langevin_leaves_the_mixture_invariant(mixture: GaussianMixture, exact_samples: Tensor):
    p = Process(LinearBeta(), C)
    assert kolmogorov_smirnov(exact_samples, p, mixture, T) < LIMIT
    x = settle(langevin_step, mixture.denoiser(p), exact_samples, steps=250, size=0.004)
    assert float((x - exact_samples).square().mean()) > 0.1  # they have moved: one unit of time, several of mixing
    assert kolmogorov_smirnov(x, p, mixture, T) < LIMIT
    # Mean and covariance within five standard errors.
    a, s = float(p.schedule.alpha(T)), float(p.schedule.sigma(T))
    mean = a * mixture.weights @ mixture.means
    second = torch.einsum("k,kij->ij", mixture.weights, a**2 * mixture.covs + s**2 * C.dense())
    second = second + torch.einsum("k,ki,kj->ij", mixture.weights, a * mixture.means, a * mixture.means)
    products = x[:, :, None] * x[:, None]
    assert bool(((x.mean(0) - mean).abs() < 5 * x.std(0) / N**0.5).all())
    assert bool(((products.mean(0) - second).abs() < 5 * products.std(0) / N**0.5).all())


def without_c_in_drift(d, x, t, step, z):
    return x + step / 2 * d(x, t).score + step**0.5 * d.process.noise.color(z)


def without_r_in_noise(d, x, t, step, z):
    return x + step / 2 * d(x, t).C_score + step**0.5 * z


@pytest.mark.parametrize("wrong", [without_c_in_drift, without_r_in_noise])
def test_langevin_without_the_covariance_is_detected(mixture: GaussianMixture, exact_samples: Tensor, wrong):
    p = Process(LinearBeta(), C)
    x = settle(wrong, mixture.denoiser(p), exact_samples, steps=250, size=0.004)
    assert kolmogorov_smirnov(x, p, mixture, T) > 1.5 * LIMIT


def test_predictor_corrector_reaches_the_data(gauss: GaussianMixture, law):
    """Its law on Gaussian data, exactly: DDIM's error, made smaller by the corrections."""
    p = Process(LinearBeta(), C)
    d, start = gauss.denoiser(p), marginal(p, gauss, 1.0)

    def error(solver, steps: int) -> float:
        mean, cov = law(solver, d, grids.make("logistic", p.schedule, (1.0, 0.0), steps), *start)
        return float((mean - gauss.means[0]).norm() + (cov - gauss.covs[0]).norm())

    errors = [error(langevin, n) for n in (20, 80, 320)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.02
    assert error(partial(langevin, corrections=1, size=0.2), 40) < error(partial(langevin, corrections=0), 40)


def test_several_corrections_draw_their_own_noise(gauss: GaussianMixture, final):
    asked = []

    def noise(step: int, draw: int = 0) -> Tensor:
        asked.append((step, draw))
        return torch.zeros(1, 3, dtype=torch.float64)

    d = gauss.denoiser(Process(LinearBeta(), C))
    times = torch.tensor([1.0, 0.5, 0.2, 0.0], dtype=torch.float64)
    final(partial(langevin, corrections=2), d, torch.zeros(1, 3, dtype=torch.float64), times, noise)
    assert asked == [(0, 0), (0, 1), (1, 0), (1, 1)]  # none at the data


@pytest.mark.parametrize("arguments", [{"corrections": -1}, {"size": 0.0}])
def test_bad_arguments(gauss: GaussianMixture, arguments: dict, final):
    d = gauss.denoiser(Process(LinearBeta(), C))
    with pytest.raises(ValueError, match="corrections must be >= 0 and size > 0"):
        final(partial(langevin, **arguments), d, torch.zeros(1, 3), torch.tensor([1.0, 0.0]))

"""DDPM and DDIM (E6, E9, E24) against laws written out for a chain, step by step in matrices."""

from functools import partial

import pytest
import torch
from torch import Tensor

from ornstein import Process
from ornstein.noise import AR1
from ornstein.oracles import GaussianMixture
from ornstein.schedules import EDM, VE, Cosine, Discrete, LinearBeta, Rectified, Schedule
from ornstein.solvers import ddim, ddpm, grids

C = AR1(3, 0.7)


def ancestral_law(abar: list[float], data: GaussianMixture, upper: bool) -> tuple[Tensor, Tensor]:
    """Mean and covariance at n = 0 of E6 run on the exact x0_hat from N(0, (1 - abar_T) C), abar_0 = 1 to abar_T.

    x0_hat = mu + sqrt(abar) Sigma M^-1 (x - sqrt(abar) mu), so each step is x -> K x + k + sqrt(var) R z.
    """
    mu, sigma, c, eye = data.means[0], data.covs[0], C.dense(), torch.eye(3, dtype=torch.float64)
    m, v = torch.zeros(3, dtype=torch.float64), (1 - abar[-1]) * c
    for n in range(len(abar) - 1, 0, -1):
        now, before = abar[n], abar[n - 1]
        alpha, beta = now / before, 1 - now / before
        gain = now**0.5 * sigma @ torch.linalg.inv(now * sigma + (1 - now) * c)
        of_x0 = before**0.5 * beta / (1 - now)
        of_x = alpha**0.5 * (1 - before) / (1 - now)
        step = of_x0 * gain + of_x * eye
        variance = beta if upper else (1 - before) / (1 - now) * beta
        m = step @ m + of_x0 * (mu - now**0.5 * gain @ mu)
        v = step @ v @ step.mT + (variance * c if n > 1 else 0)
    return m, v


@pytest.mark.parametrize("variance", ["lower", "upper"])
@pytest.mark.parametrize("steps", [20, 1000])
def test_the_law_of_ancestral_sampling(gauss: GaussianMixture, steps: int, variance: str, law):
    chain = Discrete.linear(1000)
    p = Process(chain, C)
    times = grids.make("trailing", chain, (1.0, 0.0), steps)
    every = 1000 // steps
    abar = [1.0, *(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0).tolist()][::every]
    mean, cov = law(
        partial(ddpm, variance=variance),
        gauss.denoiser(p),
        times,
        torch.zeros(3, dtype=torch.float64),
        (1 - abar[-1]) * C.dense(),
    )
    expected_mean, expected_cov = ancestral_law(abar, gauss, variance == "upper")
    torch.testing.assert_close(mean, expected_mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(cov, expected_cov, rtol=0, atol=1e-9)
    # And that law is the data's, as far as the number of steps allows.
    distance = float((cov - gauss.covs[0]).norm() / gauss.covs[0].norm())
    assert distance < (0.01 if steps == 1000 else 0.4)
    if steps == 20:  # the two bounds are told apart where the steps are few
        _, other = ancestral_law(abar, gauss, variance != "upper")
        assert float((cov - other).abs().max()) > 0.01


@pytest.mark.parametrize("variance", ["lower", "upper"])
def test_ancestral_sampling_approaches_the_data_at_order_one(gauss: GaussianMixture, variance: str, law, order):
    p = Process(LinearBeta(), C)
    d, a1 = gauss.denoiser(p), float(p.schedule.alpha(1.0))
    mean_1 = a1 * gauss.means[0]
    cov_1 = a1**2 * gauss.covs[0] + float(p.schedule.sigma(1.0)) ** 2 * C.dense()
    steps, covs = [40, 80, 160, 320], []
    for n in steps:
        times = grids.make("logistic", p.schedule, (1.0, 0.0), n)
        mean, cov = law(partial(ddpm, variance=variance), d, times, mean_1, cov_1)
        torch.testing.assert_close(mean, gauss.means[0], rtol=0, atol=1e-12)  # the mean of every step is exact
        covs.append(float((cov - gauss.covs[0]).norm()))
    assert order(steps, covs) == pytest.approx(1, abs=0.15)


def white(seed: int, shape: tuple[int, ...] = (5, 3)):
    def noise(step: int, draw: int = 0) -> Tensor:
        g = torch.Generator().manual_seed(1000 * seed + step)
        return torch.randn(shape, generator=g, dtype=torch.float64)

    return noise


SCHEDULES: list[Schedule] = [
    Discrete.linear(1000), LinearBeta(), Cosine(), Cosine(None), VE(), EDM(), Rectified(),
    Discrete.linear(1000).zero_terminal(),
]  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{type(s).__name__}{s.zero_terminal_snr:d}")
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_ddim_with_eta_one_is_ancestral(mixture: GaussianMixture, schedule: Schedule, steps: int):
    p = Process(schedule, C)
    d, times = mixture.denoiser(p), grids.make("logistic", schedule, (1.0, 0.0), steps)
    x = float(schedule.sigma(1.0)) * C.color(white(1)(0))
    runs = zip(ddim(d, x, times, white(2), eta=1.0), ddpm(d, x, times, white(2), variance="lower"), strict=True)
    for one, other in runs:
        scale = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(one / scale, other / scale, rtol=0, atol=1e-12)


def test_eta_between_0_and_1_scales_the_noise(mixture: GaussianMixture):
    """One step of E24 to the letter, at two times of no grid."""
    p = Process(LinearBeta(), C)
    d, x, z = mixture.denoiser(p), white(3)(0), white(4)
    t, s, eta = 0.8, 0.3, 0.5
    (a_t, s_t), (a_s, s_s) = ((float(p.schedule.alpha(u)), float(p.schedule.sigma(u))) for u in (t, s))
    sigma = eta * (s_s / s_t) * (1 - a_t**2 / a_s**2) ** 0.5
    x0, eps = d(x, t).x0, d(x, t).eps
    expected = a_s * x0 + (s_s**2 - sigma**2) ** 0.5 * eps + sigma * C.color(z(0))
    (got,) = ddim(d, x, torch.tensor([t, s], dtype=torch.float64), z, eta=eta)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_deterministic_ddim_inverts_without_noise(mixture: GaussianMixture, final):
    p = Process(LinearBeta(), C)
    d, times = mixture.denoiser(p), torch.linspace(0.05, 1.0, 400, dtype=torch.float64)
    x = mixture.sample(5, torch.Generator().manual_seed(0))
    back = final(ddim, d, final(ddim, d, x, times), times.flip(0))
    assert float((back - x).abs().max()) < 0.03


def test_bad_arguments(mixture: GaussianMixture):
    d, x = mixture.denoiser(Process(LinearBeta())), torch.zeros(2, 3)
    down, up = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    with pytest.raises(ValueError, match=r"lower.*upper.*'middle'"):
        next(iter(ddpm(d, x, down, white(0), variance="middle")))  # pyright: ignore[reportArgumentType]
    for eta in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf"eta lies in \[0, 1\], got {eta}"):
            next(iter(ddim(d, x, down, white(0), eta=eta)))
    for solver in (ddpm, partial(ddim, eta=0.5)):
        with pytest.raises(ValueError, match="runs down in t"):
            next(iter(solver(d, x, up, white(0))))

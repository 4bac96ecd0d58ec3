"""What holds of every solver: the covariance of the noise is a change of coordinates, and zero SNR is a start."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ornstein import Process
from ornstein.noise import AR1
from ornstein.oracles import GaussianMixture
from ornstein.schedules import VE, Cosine, Discrete, LinearBeta, Rectified, Schedule
from ornstein.solvers import SOLVERS, ddim, euler_maruyama, grids

C = AR1(3, 0.7)
# The steps that a stochastic solver draws noise for, of four: none that ends at the data, no churn above t = 1.
STOCHASTIC = {
    **{
        name: [(0, 0), (1, 0), (2, 0)]
        for name in ("ddpm", "ddpm-upper", "euler-maruyama", "langevin", "dpmpp-2m-sde", "sa-3m")
    },
    "restart": [(3, 0)],  # the last time above its low level
    "heun-churn": [(1, 0), (2, 0), (3, 0)],
}
ZERO: list[Schedule] = [Cosine(None), Rectified(), Discrete.linear(1000).zero_terminal()]


def white(shape: tuple[int, ...]) -> Callable[..., Tensor]:
    def noise(step: int, draw: int = 0) -> Tensor:
        g = torch.Generator().manual_seed(100 * step + draw)
        return torch.randn(shape, generator=g, dtype=torch.float64)

    return noise


def distance_from_whitened(solver, mixture: GaussianMixture) -> float:
    """C-diffusion on x against I-diffusion on y = R^-1 x with the same white z: the largest |x - R y| of any step."""
    inverse = torch.linalg.inv(torch.linalg.cholesky(C.dense()))
    whitened = GaussianMixture(mixture.weights, mixture.means @ inverse.mT, inverse @ mixture.covs @ inverse.mT)
    schedule = LinearBeta()
    times = grids.make("logistic", schedule, (1.0, 0.0), 8)
    y, noise = white((6, 3))(99), white((6, 3))
    coloured = solver(mixture.denoiser(Process(schedule, C)), C.color(y), times, noise)
    plain = solver(whitened.denoiser(Process(schedule)), y, times, noise)
    return max(float((x - C.color(y)).abs().max()) for x, y in zip(coloured, plain, strict=True))


@pytest.mark.parametrize("name", SOLVERS)
def test_the_covariance_is_a_change_of_coordinates(mixture: GaussianMixture, name: str):
    assert distance_from_whitened(SOLVERS[name], mixture) < 1e-9


def reverse_sde(drift: str, coloured: bool):
    """Euler-Maruyama written out, with its C in the drift ("C_score", or "score" without) and R in the noise."""

    def solver(d, x, times, noise):
        p = d.process
        for k, (t, s) in enumerate(zip(times[:-1].tolist(), times[1:].tolist(), strict=True)):
            h, z, g2 = t - s, noise(k), float(p.schedule.g2(t))
            x = x - h * p.drift(x, t) + h * g2 * getattr(d(x, t), drift)
            if s > 0:
                x = x + math.sqrt(h * g2) * (p.noise.color(z) if coloured else z)
            yield x

    return solver


def test_dropping_the_covariance_from_the_reverse_sde_is_detected(mixture: GaussianMixture):
    """The negative control of E19: from its drift, from its noise, and from neither."""
    assert distance_from_whitened(reverse_sde("C_score", True), mixture) < 1e-9
    assert distance_from_whitened(reverse_sde("score", True), mixture) > 0.1
    assert distance_from_whitened(reverse_sde("C_score", False), mixture) > 0.1


@pytest.mark.parametrize("name", SOLVERS)
def test_only_stochastic_solvers_draw_noise(mixture: GaussianMixture, name: str):
    d, asked = mixture.denoiser(Process(LinearBeta(), C)), []
    times = grids.make("logistic", LinearBeta(), (1.0, 0.0), 4)

    def noise(step: int, draw: int = 0) -> Tensor:
        asked.append((step, draw))
        return white((2, 3))(step, draw)

    for _ in SOLVERS[name](d, white((2, 3))(9), times, noise):
        pass
    assert asked == STOCHASTIC.get(name, [])  # every draw once, one a step


def null_mode_start(p: Process, mixture: GaussianMixture) -> tuple[Tensor, Tensor]:
    """x_0, and x_1 = a x_0 + s R z with singular C: one draw of noise shared by all frames."""
    x0 = mixture.sample(5, torch.Generator().manual_seed(0))
    return x0, p.add_noise(x0, 1.0, white((5, 3))(50))


def null_part(x: Tensor) -> Tensor:
    return x - x.mean(1, keepdim=True)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "langevin", "dpmpp-2m", "dpmpp-3m"])
@pytest.mark.parametrize(
    "schedule", [LinearBeta(), Cosine(), VE(), Discrete.linear(1000)], ids=lambda s: type(s).__name__
)
def test_null_modes_of_a_singular_covariance_are_carried_exactly(
    mixture: GaussianMixture, schedule: Schedule, name: str
):
    """C = AR1(rho=1): no noise across frames, x_t = a x_0 there at every step (a_t/a_1 magnifies rounding)."""
    p = Process(schedule, AR1(3, 1.0))
    times = grids.make("logistic", schedule, (1.0, 0.0), 10)
    x0, x1 = null_mode_start(p, mixture)
    for t, x in zip(times[1:], SOLVERS[name](mixture.denoiser(p), x1, times, white((5, 3))), strict=True):
        expected = float(schedule.alpha(t)) * null_part(x0)
        torch.testing.assert_close(null_part(x), expected, rtol=0, atol=1e-9)


def test_null_modes_in_euler_maruyama(mixture: GaussianMixture):
    """There the reverse SDE is dx = f x dt: its Euler steps are x (1 - h f), exact where f = 0 (VE)."""
    for schedule in (VE(), LinearBeta()):
        p = Process(schedule, AR1(3, 1.0))
        times = grids.make("logistic", schedule, (1.0, 0.05), 40)
        x0, x1 = null_mode_start(p, mixture)
        factor = 1.0
        states = euler_maruyama(mixture.denoiser(p), x1, times, white((5, 3)))
        for t, s, x in zip(times[:-1].tolist(), times[1:].tolist(), states, strict=True):
            factor *= 1 - (t - s) * float(schedule.drift(t))
            expected = factor * float(schedule.alpha(1.0)) * null_part(x0)
            torch.testing.assert_close(null_part(x), expected, rtol=0, atol=1e-9)
        if isinstance(schedule, VE):
            assert factor == 1


def test_null_modes_in_euler_maruyama_converge(order):
    """prod (1 - h f) -> a_s/a_t at order one."""
    schedule, steps, errors = LinearBeta(), [200, 400, 800, 1600], []
    for n in steps:
        t = grids.make("uniform", schedule, (1.0, 0.05), n)
        product = float((1 + t.diff() * schedule.drift(t[:-1])).prod())
        errors.append(abs(product * float(schedule.alpha(1.0) / schedule.alpha(0.05)) - 1))
    assert order(steps, errors) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("schedule", ZERO, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", SOLVERS)
def test_zero_terminal_snr(gauss: GaussianMixture, schedule: Schedule, name: str, final, law):
    """From pure noise, exactly N(0, C) = p_1, every solver reaches the Gaussian data or refuses by name."""
    p = Process(schedule, C)
    d = gauss.denoiser(p)
    if name == "euler-maruyama":  # f is infinite there
        with pytest.raises(ValueError, match=r"infinite.*zero terminal SNR.*use ddim"):
            final(SOLVERS[name], d, torch.zeros(1, 3, dtype=torch.float64), grids.make("logistic", schedule, (1, 0), 4))
        return
    for steps in (1, 2, 5):
        times = grids.make("logistic", schedule, (1.0, 0.0), steps)
        assert bool(final(SOLVERS[name], d, white((3, 3))(9), times, white((3, 3))).isfinite().all())
    first_order = name in {"ddim", "ddpm", "ddpm-upper", "euler", "langevin"}

    def error(steps: int) -> float:
        """Of the law of the output, from its first two moments, which are all of it."""
        times = grids.make("logistic", schedule, (1.0, 0.0), steps)
        mean, cov = law(SOLVERS[name], d, times, torch.zeros(3, dtype=torch.float64), C.dense())
        return float((mean - gauss.means[0]).norm() + (cov - gauss.covs[0]).norm() / gauss.covs[0].norm())

    if name not in {"rk45", "heun-churn"}:  # the steps of one depend on the sample, the other's order is reached later
        assert error(160) < (0.06 if first_order else 3e-3 if name in ("dpmpp-2m-sde", "sa-3m") else 1e-3)
        assert error(160) / error(40) < (0.35 if first_order else 0.1)  # 1/4 at order one, 1/16 at order two
    if name not in STOCHASTIC:  # and path by path
        x = C.color(white((4, 3))(77))
        out = final(SOLVERS[name], d, x, grids.make("logistic", schedule, (1.0, 0.0), 4 if name == "rk45" else 160))
        exact = gauss.ode_map(x, p, 1.0, 0.0)
        torch.testing.assert_close(out, exact, rtol=0, atol=0.1 if first_order else 3e-3)


def test_a_first_step_out_of_pure_noise_goes_to_the_mean(mixture: GaussianMixture):
    """At zero SNR x0_hat is the mean of the data whatever x is."""
    p = Process(Cosine(None))
    (x,) = ddim(mixture.denoiser(p), white((4, 3))(0), torch.tensor([1.0, 0.0]), white((4, 3)))
    torch.testing.assert_close(x, (mixture.weights @ mixture.means).expand(4, 3), rtol=0, atol=1e-12)

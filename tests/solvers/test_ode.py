"""Order of convergence of every deterministic solver on the probability-flow ODE (E20, E24), and its fixed point."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ornstein import Process
from ornstein.noise import AR1, Covariance, Identity, Matrix
from ornstein.oracles import GaussianMixture
from ornstein.schedules import EDM, VE, Cosine, Discrete, LinearBeta, Rectified, Schedule
from ornstein.solvers import SOLVERS, grids, rk4

ORDERS = {"ddim": 1, "euler": 1, "heun": 2, "dpmpp-2m": 2, "dpmpp-3m": 3, "rk4": 4}
END = 0.05  # at t = 0 the log-SNR is infinite and the last step caps the order
noises = pytest.mark.parametrize("noise", [AR1(3, 0.7), Identity()], ids=["AR1", "Identity"])


def starts(p: Process, n: int) -> Tensor:
    z = torch.randn(n, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return p.prior((n, 3), dtype=torch.float64).sample(z)


def rms(error: Tensor) -> float:
    return float(error.square().mean().sqrt())


def check_orders(d, x: Tensor, reference: Tensor, final, order) -> None:
    orders = {}
    for name in ORDERS:
        steps = [64, 128, 256, 512] if name.startswith("dpmpp") else [32, 64, 128, 256]
        errors = []
        for n in steps:
            times = grids.make("logistic", d.process.schedule, (1.0, END), n)
            errors.append(rms(final(SOLVERS[name], d, x, times) - reference))
        orders[name] = order(steps, errors)
    assert orders == pytest.approx(ORDERS, abs=0.15)


@noises
def test_orders_on_a_correlated_gaussian(gauss: GaussianMixture, noise: Covariance, final, order):
    p = Process(LinearBeta(), noise)
    x = starts(p, 8)
    check_orders(gauss.denoiser(p), x, gauss.ode_map(x, p, 1.0, END), final, order)


@pytest.mark.parametrize(
    ("schedule", "noise"),
    [(LinearBeta(), AR1(3, 0.7)), (LinearBeta(), Identity()), (Cosine(), AR1(3, 0.7))],
    ids=["LinearBeta-AR1", "LinearBeta-Identity", "Cosine-AR1"],
)
def test_orders_on_a_mixture(mixture: GaussianMixture, schedule: Schedule, noise: Covariance, final, order):
    c = noise.dense() if isinstance(noise, AR1) else torch.eye(3, dtype=torch.float64)
    if isinstance(noise, AR1):
        assert all(float((s @ c - c @ s).abs().max()) > 0.01 for s in mixture.covs)
    p = Process(schedule, noise)
    d, x = mixture.denoiser(p), starts(p, 8)

    def accurate(n: int) -> Tensor:
        return final(rk4, d, x, grids.make("logistic", schedule, (1.0, END), n))

    reference = accurate(512)
    # Of order 4, its own error is a fifteenth of the difference from half as many steps: less than a tenth of the
    # smallest error that is measured, that of rk4 at 256 steps, and nothing beside the others.
    assert rms(accurate(256) - reference) / 15 < 3e-10
    check_orders(d, x, reference, final, order)


def test_orders_are_not_reached_by_a_solver_of_lower_order(gauss: GaussianMixture, final, order):
    """The control: a rule that is one order short fails the check above."""
    p = Process(LinearBeta(), AR1(3, 0.7))
    x = starts(p, 8)
    d, reference = gauss.denoiser(p), gauss.ode_map(x, p, 1.0, END)

    def lazy_heun(d, x, times, noise):  # the second slope taken at the wrong point
        for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
            x = x + (s - t) / 2 * (d(x, t).flow + d(x, s).flow)
            yield x

    steps = [64, 128, 256, 512]
    errors = [rms(final(lazy_heun, d, x, grids.make("logistic", p.schedule, (1.0, END), n)) - reference) for n in steps]
    assert order(steps, errors) < 2 - 0.15


@pytest.mark.parametrize("solver", ["euler", "heun", "rk4"])
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine(), Discrete.linear(100)], ids=lambda s: type(s).__name__)
def test_with_noise_of_the_data_covariance_the_state_stays(
    gauss: GaussianMixture, schedule: Schedule, steps: int, solver: str, final
):
    """C = Sigma and a^2 + s^2 = 1: the marginal never changes, the velocity is 0 and any number of steps is exact."""
    p = Process(schedule, Matrix(gauss.covs[0]))
    centred = GaussianMixture([1.0], [[0.0, 0.0, 0.0]], gauss.covs)
    x = starts(p, 4)
    for end in (END, 0.0):
        times = grids.make("logistic", schedule, (1.0, end), steps)
        assert float((final(SOLVERS[solver], centred.denoiser(p), x, times) - x).abs().max()) < 1e-10


@pytest.mark.parametrize("name", sorted(set(ORDERS) - {"ddim"}))
def test_only_ddim_runs_from_data_to_noise(gauss: GaussianMixture, name: str):
    p = Process(LinearBeta())
    times = torch.tensor([0.1, 0.5], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"runs down in t.*only ddim with eta = 0"):
        next(iter(SOLVERS[name](gauss.denoiser(p), starts(p, 2), times, lambda k, draw=0: torch.zeros(2, 3))))


def karras(d, x: Tensor, times: Tensor, second: bool) -> Tensor:
    """Algorithm 1 of Karras et al. (2022) written out for a = 1, in the noise level, with their D = x0_hat."""
    levels = d.process.schedule.sigma(times).tolist()
    for (t, s), (low, high) in zip(pairwise(times.tolist()), pairwise(levels), strict=True):
        slope = (x - d(x, t).x0) / low
        ahead = x + (high - low) * slope
        if second and high > 0:
            slope = (slope + (ahead - d(ahead, s).x0) / high) / 2
            ahead = x + (high - low) * slope
        x = ahead
    return x


@pytest.mark.parametrize("schedule", [EDM(), VE()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", ["euler", "heun"])
@pytest.mark.parametrize("grid", ["karras", "logistic"])
def test_exploding_variance_takes_the_steps_of_karras(
    mixture: GaussianMixture, schedule: Schedule, name: str, grid: str, final
):
    d = mixture.denoiser(Process(schedule, AR1(3, 0.7)))
    x, times = starts(d.process, 8), grids.make(grid, schedule, (1.0, 0.0), 8)
    expected = karras(d, x, times, name == "heun")
    torch.testing.assert_close(final(SOLVERS[name], d, x, times), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", [EDM(), VE()], ids=lambda s: type(s).__name__)
def test_few_steps_of_exploding_variance_reach_the_data(mixture: GaussianMixture, schedule: Schedule, final):
    """In t the noise spans decades within a step, and 8 steps of heun end 8 data deviations away."""
    d = mixture.denoiser(Process(schedule))
    x = starts(d.process, 64)
    exact = final(SOLVERS["rk4"], d, x, grids.make("karras", schedule, (1.0, 0.0), 400))
    for name, most in (("heun", 0.5), ("rk4", 0.5), ("euler", 1.0)):
        assert rms(final(SOLVERS[name], d, x, grids.make("karras", schedule, (1.0, 0.0), 8)) - exact) < most


@pytest.mark.parametrize(
    "schedule",
    [Discrete.linear(1000), Discrete.cosine(20), Discrete.linear(100).zero_terminal(), EDM(), VE(), Rectified()],
    ids=lambda s: type(s).__name__,
)
@pytest.mark.parametrize("name", ["euler", "heun", "rk4"])
def test_orders_under_every_schedule(gauss: GaussianMixture, schedule: Schedule, name: str, final, order):
    """The path has no kinks: between the steps of a chain rk4 has its order too."""
    p = Process(schedule, AR1(3, 0.7))
    # From and to the same SNRs under every schedule.
    start = 1.0 if schedule.zero_terminal_snr else float(schedule.time(-6.0))
    end = float(schedule.time(4.0))
    x = p.prior((8, 3), torch.float64, start).sample(starts(Process(Rectified()), 8))
    exact = gauss.ode_map(x, p, start, end)
    steps = [32, 64, 128, 256]
    errors = [
        rms(final(SOLVERS[name], gauss.denoiser(p), x, grids.make("logistic", schedule, (start, end), n)) - exact)
        for n in steps
    ]
    assert order(steps, errors) == pytest.approx(ORDERS[name], abs=0.25)


@pytest.mark.parametrize(
    "schedule", [LinearBeta(), Cosine(None), Discrete.cosine(20), EDM(), VE(), Rectified()], ids=str
)
def test_the_curve_of_a_schedule(schedule: Schedule):
    """`curve_time` inverts `curve`, and `curve_tangent` is the derivative of (a, s) by it."""
    for t in (0.03, 0.4, 0.97):
        u, h = schedule.curve(t), 1e-5
        assert schedule.curve_time(u) == pytest.approx(t, abs=1e-9)
        low, high = schedule.curve_time(u - h * u), schedule.curve_time(u + h * u)
        for f, slope in zip((schedule.alpha, schedule.sigma), schedule.curve_tangent(u), strict=True):
            assert float(f(high) - f(low)) / (2 * h * u) == pytest.approx(slope, rel=1e-5, abs=1e-5)

"""The quadrature weights of the multistep family against scipy's quadrature, and the family's algebra."""

import math
from functools import partial

import pytest
import torch
from scipy.integrate import quad

from ornstein import Process
from ornstein.noise import AR1
from ornstein.oracles import GaussianMixture
from ornstein.schedules import LinearBeta
from ornstein.solvers import ddim, grids, multistep
from ornstein.solvers.coefficients import weights

# (rho_from, rho_to, the levels at which x0 is known): noise, middle, data, a step over many octaves, extrapolation.
STEPS = [
    (150.0, 100.0, [150.0]),
    (150.0, 100.0, [150.0, 157.0]),
    (2.0, 1.0, [2.0, 4.0]),
    (2.0, 1.0, [2.0, 4.0, 9.0]),
    (0.1, 0.001, [0.1, 0.3, 0.7]),
    (157.0, 0.01, [157.0, 150.0]),
    (80.0, 20.0, [80.0, 20.0]),  # the correction of a first step: its own end is known
]


@pytest.mark.parametrize(("rho_from", "rho_to", "known"), STEPS)
def test_weights_integrate_polynomials_of_their_variable(rho_from: float, rho_to: float, known: list[float]):
    w = weights(rho_from, rho_to, known).tolist()
    assert len(w) == len(known)
    for power in range(len(known)):

        def x0(rho: float, power: int = power) -> float:
            return (math.log(rho + 0.5) - 0.7) ** power

        # rho_to int x0/rho^2 drho over v = log rho, where quad has an easy integrand.
        exact, error = quad(
            lambda v, f=x0: rho_to * math.exp(-v) * f(math.exp(v)),
            math.log(rho_to),
            math.log(rho_from),
            epsabs=1e-13,
            epsrel=1e-12,
        )
        assert error < 1e-10
        assert sum(wj * x0(r) for wj, r in zip(w, known, strict=True)) == pytest.approx(exact, abs=1e-9, rel=1e-9)


@pytest.mark.parametrize(("rho_from", "rho_to", "known"), STEPS)
def test_weights_sum_to_the_exact_share_of_the_data(rho_from: float, rho_to: float, known: list[float]):
    assert float(weights(rho_from, rho_to, known).sum()) == pytest.approx(1 - rho_to / rho_from, abs=1e-12)


def test_a_step_over_thirty_octaves_keeps_its_weights():
    """Rectified flows come close to zero SNR before they reach it: rho_to/rho_from down to 1e-10."""
    (first, second) = weights(1e9, 0.1, [1e9, 1e8]).tolist()
    exact, _ = quad(lambda v: 0.1 * math.exp(-v) * math.log(math.exp(v) + 0.5), math.log(0.1), math.log(1e9), limit=200)
    assert first + second == pytest.approx(1 - 1e-10, abs=1e-9)
    assert first * math.log(1e9 + 0.5) + second * math.log(1e8 + 0.5) == pytest.approx(exact, abs=1e-7)


def test_weights_at_the_ends():
    """Into the data all is x0 at rho = 0, extrapolated; out of pure noise the one value there is."""
    known = [0.2, 0.5, 1.1]
    at_data = weights(0.2, 0.0, known).tolist()
    assert sum(at_data) == pytest.approx(1, abs=1e-12)
    for power in (1, 2):
        value = sum(w * math.log(r + 0.5) ** power for w, r in zip(at_data, known, strict=True))
        assert value == pytest.approx(math.log(0.5) ** power, abs=1e-12)
    assert weights(math.inf, 3.0, [math.inf]).tolist() == [1.0]
    assert weights(math.inf, 0.0, [math.inf]).tolist() == [1.0]


def test_order_one_is_ddim(mixture: GaussianMixture):
    p = Process(LinearBeta(), AR1(3, 0.7))
    d, times = mixture.denoiser(p), grids.make("logistic", p.schedule, (1.0, 0.0), 6)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for ours, theirs in zip(multistep(d, x, times, None, order=1), ddim(d, x, times, None), strict=True):  # pyright: ignore
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name_and_order", [(2, "2m"), (3, "3m")])
def test_one_evaluation_a_step(mixture: GaussianMixture, name_and_order: tuple[int, str], final):
    p = Process(LinearBeta())
    d, calls = mixture.denoiser(p), []

    class Counting:
        process = p

        def __call__(self, x, t):
            calls.append(t)
            return d(x, t)

    times = grids.make("logistic", p.schedule, (1.0, 0.0), 7)
    final(partial(multistep, order=name_and_order[0]), Counting(), torch.zeros(2, 3, dtype=torch.float64), times)
    assert calls == times[:-1].tolist()


def test_unknown_orders_are_refused(mixture: GaussianMixture):
    p = Process(LinearBeta())
    for order in (0, 5):
        with pytest.raises(ValueError, match=f"1, 2, 3 or 4, got {order}"):
            next(iter(multistep(mixture.denoiser(p), torch.zeros(1, 3), torch.tensor([1.0, 0.0]), None, order=order)))  # pyright: ignore

"""The solvers that people expect: their measured orders under correlated noise, and what each is equal to."""

import math
from functools import partial

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from ornstein import Process
from ornstein.noise import AR1, Covariance, Identity
from ornstein.oracles import GaussianMixture
from ornstein.schedules import VE, Cosine, LinearBeta, Rectified
from ornstein.solvers import SOLVERS, Counted, ddim, ddpm, grids, heun, multistep, rk45, singlestep
from ornstein.solvers.coefficients import adams, weights

C = AR1(3, 0.7)
END = 0.05
# Order on the probability-flow ODE, and the numbers of steps between which it is measured.
ORDERS = {"flow-3m": (3, [128, 256]), "dpmpp-2s": (2, [64, 128]), "ipndm": (2, [128, 256]), "deis": (3, [128, 256])}


def rms(error: Tensor) -> float:
    return float(error.square().mean().sqrt())


def starts(p: Process, n: int = 8) -> Tensor:
    z = torch.randn(n, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return p.prior((n, 3), dtype=torch.float64).sample(z)


def errors(name: str, d, x: Tensor, reference: Tensor, steps: list[int], final) -> list[float]:
    p = d.process
    return [
        rms(final(SOLVERS[name], d, x, grids.make("logistic", p.schedule, (1.0, END), n)) - reference) for n in steps
    ]


@pytest.mark.parametrize("noise", [C, Identity()], ids=["AR1", "Identity"])
def test_orders_on_a_gaussian(gauss: GaussianMixture, noise: Covariance, final, order):
    p = Process(LinearBeta(), noise)
    x = starts(p)
    d, exact = gauss.denoiser(p), gauss.ode_map(x, p, 1.0, END)
    for name, (expected, steps) in ORDERS.items():
        assert order(steps, errors(name, d, x, exact, steps, final)) == pytest.approx(expected, abs=0.2), name
    # Corrected at every step it reaches order 4 for a while; the first steps, of lower order, leave it at 3 in the end.
    assert order([64, 128], errors("unipc", d, x, exact, [64, 128], final)) > 2.9


@pytest.mark.parametrize(
    ("schedule", "noise"),
    [(LinearBeta(), C), (Cosine(), C), (LinearBeta(), Identity())],
    ids=lambda v: type(v).__name__,
)
def test_orders_on_a_mixture(mixture: GaussianMixture, schedule, noise: Covariance, final, order):
    p = Process(schedule, noise)
    d, x = mixture.denoiser(p), starts(p)
    # unipc itself at 512 steps: two orders below the smallest error that is measured.
    reference = final(SOLVERS["unipc"], d, x, grids.make("logistic", schedule, (1.0, END), 512))
    check = final(SOLVERS["rk4"], d, x, grids.make("logistic", schedule, (1.0, END), 200))
    assert rms(check - reference) < 3e-8
    for name, (expected, steps) in ORDERS.items():
        assert order(steps, errors(name, d, x, reference, steps, final)) == pytest.approx(expected, abs=0.3), name
    assert order([32, 64], errors("unipc", d, x, reference, [32, 64], final)) > 2.9


def test_few_steps_of_the_corrected_solver_beat_the_uncorrected(gauss: GaussianMixture, final):
    p = Process(LinearBeta(), C)
    x = starts(p, 32)
    d, exact = gauss.denoiser(p), gauss.ode_map(x, p, 1.0, END)
    for n in (32, 64):
        assert errors("unipc", d, x, exact, [n], final)[0] < 0.5 * errors("dpmpp-3m", d, x, exact, [n], final)[0]


# ---- coefficients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rho_from", "rho_to", "known"),
    [
        (150.0, 100.0, [150.0, 157.0]),
        (2.0, 1.0, [2.0, 4.0, 9.0]),
        (0.1, 0.0, [0.1, 0.3, 0.7]),
        (80.0, 20.0, [20.0, 80.0]),
    ],
)
def test_weights_of_eps_and_of_the_sde(rho_from: float, rho_to: float, known: list[float]):
    of_eps, of_sde = weights(rho_from, rho_to, known, "eps"), weights(rho_from, rho_to, known, power=2)
    for power in range(len(known)):

        def m(rho: float, power: int = power) -> float:
            return (math.log(rho + 0.5) - 0.7) ** power

        values = torch.tensor([m(r) for r in known], dtype=torch.float64)
        exact, _ = quad(m, rho_from, rho_to, epsabs=1e-12, epsrel=1e-12)
        assert float(of_eps @ values) == pytest.approx(exact, abs=1e-8, rel=1e-9)
        if rho_to > 0:
            exact, _ = quad(lambda r, f=m: 2 * rho_to**2 * f(r) / r**3, rho_to, rho_from, epsabs=1e-13, epsrel=1e-12)
            assert float(of_sde @ values) == pytest.approx(exact, abs=1e-9, rel=1e-9)
        else:
            assert float(of_sde @ values) == pytest.approx(m(0.0), abs=1e-9)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_adams_weights_are_exact_for_polynomials_at_equal_steps(count: int):
    known = [1.0 + 0.1 * j for j in range(count)]
    w = adams(1.0, 0.9, known)
    for power in range(count):
        values = torch.tensor([r**power for r in known], dtype=torch.float64)
        exact = (0.9 ** (power + 1) - 1) / (power + 1)
        assert float(w @ values) == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize(
    ("rho_from", "rho_to", "known"),
    [
        (math.inf, 20.0, [math.inf]),
        (20.0, 3.0, [20.0, math.inf]),
        (2.0, 1.0, [2.0, 4.0, 9.0, math.inf]),
        (0.3, 0.0, [0.3, 0.7, 2.0]),
        (80.0, 20.0, [20.0, 80.0]),
    ],
)
def test_weights_of_the_straight_flow(rho_from: float, rho_to: float, known: list[float]):
    """Polynomials in u = s/(a + s), which is finite from pure noise to the data."""

    def u(rho: float) -> float:
        return rho / (1 + rho) if rho < math.inf else 1.0

    w = weights(rho_from, rho_to, known, "flow")
    for power in range(len(known)):
        values = torch.tensor([(u(r) - 0.4) ** power for r in known], dtype=torch.float64)
        exact, _ = quad(lambda v, power=power: (v - 0.4) ** power, u(rho_from), u(rho_to), epsabs=1e-14)
        assert float(w @ values) == pytest.approx((1 + rho_to) * exact, abs=1e-11)


def test_a_flow_that_is_a_cubic_is_solved_exactly():
    """Two steps from the third on of the solver of order 4, from pure noise to the data."""

    class Cubic:
        process = Process(Rectified())

        def __call__(self, x_t: Tensor, t, /):
            u = torch.as_tensor(t, dtype=torch.float64)
            w = torch.full_like(x_t, 1.0) * (1 - 2 * u + 3 * u**2 - 4 * u**3)
            return self.process.convert(x_t, t, x0=x_t - u * w)  # x = (1 - u) x0 + u eps, w = eps - x0

    times = torch.tensor([1.0, 0.9, 0.7, 0.6, 0.2, 0.0], dtype=torch.float64)
    states = list(multistep(Cubic(), torch.zeros(1, 2, dtype=torch.float64), times, white, 4, "flow"))

    def integral(u: float) -> float:
        return u - u**2 + u**3 - u**4

    for i in (3, 4):
        step = float(states[i][0, 0] - states[i - 1][0, 0])
        assert step == pytest.approx(integral(float(times[i + 1])) - integral(float(times[i])), abs=1e-12)


def test_weights_are_differentiable_in_their_levels():
    def f(start: Tensor, end: Tensor, before: Tensor) -> Tensor:
        return torch.cat([weights(start, end, [start, before], form) for form in ("x0", "eps", "flow")])

    levels = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (2.0, 1.0, 4.0)]
    assert torch.autograd.gradcheck(f, levels)


# ---- what they are equal to -----------------------------------------------------------------------------------------


def white(step: int, draw: int = 0) -> Tensor:
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(step + 1), dtype=torch.float64)


@pytest.mark.parametrize("form", ["x0", "eps", "flow"])
def test_order_one_of_either_form_is_ddim(mixture: GaussianMixture, form):
    p = Process(LinearBeta(), C)
    d, times, x = mixture.denoiser(p), grids.make("logistic", p.schedule, (1.0, 0.0), 6), white(0)
    for ours, theirs in zip(multistep(d, x, times, white, 1, form), ddim(d, x, times, white), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_order_one_of_the_sde_is_ancestral(mixture: GaussianMixture):
    """Path by path, from the same noise: both integrate the reverse SDE exactly for a constant x0."""
    p = Process(Cosine(None), C)
    d, times, x = mixture.denoiser(p), grids.make("logistic", p.schedule, (1.0, 0.0), 6), white(0)
    one = multistep(d, x, times, white, order=1, stochastic=True)
    for ours, theirs in zip(one, ddpm(d, x, times, white), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_the_sde_of_second_order_ends_in_the_data_at_weak_order_two(gauss: GaussianMixture, law, order):
    p = Process(LinearBeta(), C)
    d, a, s = gauss.denoiser(p), float(p.schedule.alpha(1.0)), float(p.schedule.sigma(1.0))
    start = a * gauss.means[0], a**2 * gauss.covs[0] + s**2 * C.dense()
    steps, covs = [40, 80, 160], []
    for n in steps:
        mean, cov = law(SOLVERS["dpmpp-2m-sde"], d, grids.make("logistic", p.schedule, (1.0, 0.0), n), *start)
        torch.testing.assert_close(mean, gauss.means[0], rtol=0, atol=1e-12)
        covs.append(float((cov - gauss.covs[0]).norm()))
    assert order(steps, covs) == pytest.approx(2, abs=0.15)


def test_singlestep_has_two_evaluations_a_step_and_multistep_one(mixture: GaussianMixture, final):
    p = Process(LinearBeta(), C)
    times = grids.make("logistic", p.schedule, (1.0, 0.0), 5)
    for name, per_step in {"dpmpp-2s": 2, "unipc": 1, "deis": 1, "ipndm": 1, "flow-3m": 1}.items():
        d = Counted(mixture.denoiser(p))
        final(SOLVERS[name], d, starts(p), times)
        assert (d.calls, d.evaluations) == (5 * per_step, 5 * per_step * 8), name


def test_singlestep_is_exact_where_x0_is_linear_in_its_variable():
    """The midpoint of log(rho + 1/2) is a node of the polynomial: x0 = c log(rho + 1/2) is integrated exactly."""

    class Linear:
        process = Process(VE(0.01, 20.0))

        def __call__(self, x_t: Tensor, t, /):
            rho = self.process.schedule.sigma(torch.as_tensor(t, dtype=torch.float64))
            return self.process.convert(x_t, t, x0=torch.full_like(x_t, 3.0) * torch.log(rho + 0.5))

    d, times = Linear(), torch.tensor([0.9, 0.5], dtype=torch.float64)
    high, low = (float(d.process.schedule.sigma(float(t))) for t in times)
    integral, _ = quad(lambda r: 3 * math.log(r + 0.5) / r**2, low, high, epsabs=1e-13)
    (x,) = singlestep(d, torch.ones(1, 2, dtype=torch.float64), times, white)
    expected = low / high + low * integral
    assert x.flatten().tolist() == pytest.approx([expected, expected], abs=1e-10)


# ---- churn ----------------------------------------------------------------------------------------------------------


def test_churn_is_algorithm_2_of_karras(gauss: GaussianMixture):
    """One step of Karras et al. 2022, algorithm 2, written out for s = rho, a = 1."""
    p = Process(VE(0.01, 20.0))
    d, x, churn = gauss.denoiser(p), 3 * white(7), 0.6
    times = torch.tensor([0.8, 0.5, 0.3], dtype=torch.float64)
    before, after = list(heun(d, x, times, white, churn=churn))
    rho, end = float(p.schedule.sigma(0.5)), float(p.schedule.sigma(0.3))
    up = rho * (1 + min(churn / 2, math.sqrt(2) - 1))
    lifted = before + math.sqrt(up**2 - rho**2) * white(1)
    t_up = float(p.schedule.time(-2 * math.log(up)))
    h = end - up
    first = (lifted - d(lifted, t_up).x0) / up
    ahead = lifted + h * first
    expected = lifted + h / 2 * (first + (ahead - d(ahead, 0.3).x0) / end)
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-11)
    assert up > rho > end


def test_churned_heun_ends_in_the_data(gauss: GaussianMixture, law, order):
    p = Process(LinearBeta(), C)
    d, a, s = gauss.denoiser(p), float(p.schedule.alpha(1.0)), float(p.schedule.sigma(1.0))
    start = a * gauss.means[0], a**2 * gauss.covs[0] + s**2 * C.dense()
    steps, covs = [80, 160], []
    for n in steps:
        _, cov = law(partial(heun, churn=10.0), d, grids.make("logistic", p.schedule, (1.0, 0.0), n), *start)
        covs.append(float((cov - gauss.covs[0]).norm()))
    assert order(steps, covs) == pytest.approx(2, abs=0.15)
    times = grids.make("logistic", p.schedule, (1.0, 0.0), 5)
    *_, plain = heun(d, white(3), times, white)
    *_, churned = heun(d, white(3), times, white, churn=10.0)
    assert rms(plain - churned) > 0.01


# ---- error control --------------------------------------------------------------------------------------------------


def test_the_error_follows_the_tolerance(gauss: GaussianMixture, final):
    p = Process(LinearBeta(), C)
    x = starts(p)
    exact = gauss.ode_map(x, p, 1.0, END)
    found = []
    for tolerance in (1e-3, 1e-5, 1e-7):
        d = Counted(gauss.denoiser(p))
        out = final(partial(rk45, tolerance=tolerance), d, x, torch.tensor([1.0, END], dtype=torch.float64))
        found.append((rms(out - exact), d.calls))
        assert found[-1][0] < 20 * tolerance
    calls = [c for _, c in found]
    assert calls == sorted(calls) and calls[0] < 60 and calls[-1] < 250


def test_adaptive_steps_are_chosen_for_each_sample(mixture: GaussianMixture, final):
    p = Process(Cosine(None), C)
    d, x, times = mixture.denoiser(p), starts(p), torch.tensor([1.0, 0.0], dtype=torch.float64)
    whole = final(rk45, d, x, times)
    for i in range(3):
        torch.testing.assert_close(final(rk45, d, x[i : i + 1], times), whole[i : i + 1], rtol=0, atol=1e-10)


def test_adaptive_steps_end_at_the_given_times(gauss: GaussianMixture, final):
    p = Process(VE(0.01, 20.0), C)
    x, times = 20 * starts(p), torch.tensor([1.0, 0.6, 0.2], dtype=torch.float64)
    for t, state in zip(times[1:], rk45(gauss.denoiser(p), x, times, white, tolerance=1e-7), strict=True):
        torch.testing.assert_close(state, gauss.ode_map(x, p, 1.0, float(t)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (partial(multistep, form="x0", equal=True), "Adams-Bashforth weights are those of eps"),
        (partial(multistep, form="eps", stochastic=True), "the stochastic step is written for x0"),
        (partial(multistep, stochastic=-1.0), "tau is a number >= 0, got -1"),
        (partial(heun, churn=-1.0), "churn is a number >= 0, got -1"),
        (partial(rk45, tolerance=0.0), "the tolerance is a number > 0, got 0"),
    ],
)
def test_bad_settings_are_refused(gauss: GaussianMixture, solver, message: str):
    d = gauss.denoiser(Process(LinearBeta()))
    with pytest.raises(ValueError, match=message):
        next(iter(solver(d, torch.zeros(1, 3, dtype=torch.float64), torch.tensor([1.0, 0.5]), white)))

"""log p(x_0) by the probability-flow ODE against mixtures whose density is known, and its errors against theory."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ornstein import Denoiser, Process
from ornstein.likelihood import bits_per_dim, ode
from ornstein.likelihood.dequantise import dequantise
from ornstein.likelihood.flow import TOLERANCE
from ornstein.noise import AR1, Identity, Matrix
from ornstein.oracles import GaussianMixture, Oracle
from ornstein.schedules import EDM, VE, Cosine, Discrete, LinearBeta, Rectified, Schedule
from ornstein.solvers.runge_kutta import _ERROR, _NODES, _STAGES

MIXTURE = GaussianMixture(
    [0.3, 0.7], [[1.0, 0.0], [-1.0, 0.5]], [[[0.2, 0.05], [0.05, 0.3]], [[0.3, 0.0], [0.0, 0.15]]]
)
NARROW = GaussianMixture(MIXTURE.weights, MIXTURE.means, MIXTURE.covs / 10)
P = Process(LinearBeta(), AR1(2, 0.6))


def draws(mixture: GaussianMixture, n: int) -> Tensor:
    return mixture.sample(n, torch.Generator().manual_seed(0))


def exact_prior(d: Oracle):
    return lambda x: d.log_prob(x, 1.0)


OTHER = Matrix(torch.tensor([[2.0, 0.3], [0.3, 0.5]]))


EACH = pytest.mark.parametrize(
    "p",
    [
        *(Process(s, AR1(2, 0.6)) for s in (LinearBeta(), Cosine(None), Rectified(), EDM(), Discrete.cosine(20))),
        *(Process(s, OTHER) for s in (LinearBeta(), VE())),
        Process(Cosine()),
    ],
    ids=lambda p: f"{type(p.schedule).__name__}-{type(p.noise).__name__}",
)


@EACH
def test_the_default_keeps_its_tolerance_and_its_error_bounds_the_truth(p: Process):
    d, x0 = NARROW.denoiser(p), draws(NARROW, 8)
    check_default(d, x0)


@EACH
def test_sixty_four_steps_are_exact_to_a_millionth(p: Process):
    """Where no direction is narrow; the difference from 32 steps bounds the error."""
    d, x0 = NARROW.denoiser(p), draws(NARROW, 8)
    fixed = ode(d, x0, steps=64, prior=exact_prior(d))
    assert float((fixed.value - d.log_prob(x0, 0.0)).abs().max()) / 2 < 1e-6
    assert fixed.evaluations.tolist() == [4 * 64 + 4 * 32] * 8
    assert bool(((fixed.value - d.log_prob(x0, 0.0)).abs() <= fixed.error).all())


def check_default(d: Oracle, x0: Tensor, evaluations: int = 400) -> None:
    """Of the default call: the error is at most the tolerance, and the estimate bounds it without being loose."""
    result = ode(d, x0, prior=exact_prior(d))
    wrong = (result.value - d.log_prob(x0, 0.0)).abs()
    n = x0[0].numel()
    assert bool((wrong <= result.error).all()), (wrong, result.error)
    assert float(wrong.max()) < TOLERANCE * n
    assert float(result.error.max()) < 20 * TOLERANCE * n
    assert torch.equal(result.error, result.solver_error)  # the divergence is exact
    assert float(result.evaluations.double().mean()) < evaluations


def narrow(std: float) -> GaussianMixture:
    """One pixel of an image is constant, up to `std`."""
    cov = torch.diag(torch.tensor([std**2, 0.3, 0.1], dtype=torch.float64))
    return GaussianMixture([1.0], [[0.5, 0.1, -0.3]], cov[None])


SCHEDULES = [LinearBeta(), Cosine(), Cosine(None), Rectified(), EDM(), VE(), Discrete.linear(1000)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_a_constant_pixel(schedule: Schedule):
    """Spread over its bin of 8 bits it has a deviation of 0.0023; 64 equal steps are off by a nat there."""
    data = narrow((2 / 256) / math.sqrt(12))
    d = data.denoiser(Process(schedule))
    check_default(d, draws(data, 6))
    coarse = ode(d, draws(data, 6), steps=64, prior=exact_prior(d))
    assert float((coarse.value - d.log_prob(draws(data, 6), 0.0)).abs().max()) > 0.1
    assert bool((coarse.error > 0.01).any())  # and fixed steps do not say 0 either


@pytest.mark.parametrize("schedule", [LinearBeta(), Rectified(), VE()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("std", [1e-4, 1e-6])
def test_narrower_still(schedule: Schedule, std: float):
    check_default(narrow(std).denoiser(Process(schedule)), draws(narrow(std), 4), evaluations=700)


@pytest.mark.parametrize("schedule", [LinearBeta(), Rectified(), VE()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("rho", [0.9, 1 - 1e-6])
def test_nearly_singular_covariances(schedule: Schedule, rho: float):
    """Of the noise, and of the data."""
    check_default(HIDDEN.denoiser(Process(schedule, AR1(3, rho))), draws(HIDDEN, 4), evaluations=700)
    data = GaussianMixture([1.0], torch.zeros(1, 4), AR1(4, rho).dense()[None])
    check_default(data.denoiser(Process(schedule)), draws(data, 4), evaluations=700)


HIDDEN = GaussianMixture(
    [0.5, 0.3, 0.2],
    [[1.0, -0.5, 0.2], [-1.0, 0.4, 1.0], [0.3, 1.0, -1.2]],
    torch.diag_embed(torch.tensor([[0.1, 0.3, 0.2], [0.05, 0.1, 0.4], [0.3, 0.02, 0.1]])),
)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_a_mild_mixture_in_three_dimensions(schedule: Schedule):
    check_default(HIDDEN.denoiser(Process(schedule)), draws(HIDDEN, 16))


@pytest.mark.parametrize("seed", range(12))
def test_random_mixtures(seed: int):
    """Any number of modes and dimensions, deviations over two decades, any schedule and covariance."""
    g = torch.Generator().manual_seed(seed)
    modes, n = int(torch.randint(1, 4, (1,), generator=g)), int(torch.randint(1, 5, (1,), generator=g))
    rotation = torch.linalg.qr(torch.randn(modes, n, n, generator=g, dtype=torch.float64))[0]
    spread = 0.5 * 10 ** (-2 * torch.rand(modes, n, generator=g, dtype=torch.float64))
    covs = rotation * spread[:, None] ** 2 @ rotation.mT
    weights = torch.rand(modes, generator=g, dtype=torch.float64) + 0.1
    means = torch.randn(modes, n, generator=g, dtype=torch.float64)
    data = GaussianMixture(weights / weights.sum(), means, (covs + covs.mT) / 2)
    schedule = SCHEDULES[seed % len(SCHEDULES)]
    noise = [Identity(), AR1(n, 0.8), AR1(n, -0.99)][seed % 3]
    check_default(data.denoiser(Process(schedule, noise)), draws(data, 4), evaluations=600)


def test_latents():
    """Of the shape (C, H, W) of latents, with a deviation that is not 1."""
    g = torch.Generator().manual_seed(3)
    root = torch.randn(16, 16, generator=g, dtype=torch.float64)
    data = GaussianMixture([1.0], 2 * torch.randn(1, 4, 2, 2, generator=g), (root @ root.mT / 4)[None])
    check_default(data.denoiser(Process(Cosine())), draws(data, 2))


@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine(None)], ids=lambda s: type(s).__name__)
def test_order_four(schedule: Schedule):
    d, x0 = MIXTURE.denoiser(Process(schedule, AR1(2, 0.6))), draws(MIXTURE, 10)
    truth = d.log_prob(x0, 0.0)
    errors = [float((ode(d, x0, steps=n, prior=exact_prior(d)).value - truth).abs().mean()) for n in (16, 32, 64)]
    for coarse, fine in pairwise(errors):
        assert 3.5 < math.log2(coarse / fine) < 5


def test_the_gap_with_the_prior_of_sampling_is_the_mismatch_at_the_end():
    data = GaussianMixture([1.0], [[0.3, -0.5]], MIXTURE.covs[:1])
    p = Process(Cosine(-3.0), AR1(2, 0.6))
    d, x0 = data.denoiser(p), draws(data, 6)
    x1 = data.ode_map(x0, p, 0.0, 1.0)
    cov = p.schedule.sigma(1.0) ** 2 * p.noise.dense()
    mismatch = torch.distributions.MultivariateNormal(torch.zeros(2).double(), cov).log_prob(x1) - d.log_prob(x1, 1.0)
    torch.testing.assert_close(ode(d, x0).value - d.log_prob(x0, 0.0), mismatch, rtol=1e-5, atol=1e-6)
    assert float(mismatch.abs().max()) > 0.01


def test_chosen_steps_keep_their_tolerance_and_their_sample():
    d, x0 = NARROW.denoiser(P), draws(NARROW, 6)
    truth = d.log_prob(x0, 0.0)
    coarse, fine = (ode(d, x0, solver="rk45", tolerance=tol, prior=exact_prior(d)) for tol in (1e-4, 1e-7))
    assert float((coarse.value - truth).abs().max()) < 3e-3
    assert float((fine.value - truth).abs().max()) < 3e-6
    for result in (coarse, fine):
        assert bool(((result.value - truth).abs() <= result.error).all())
    assert bool((fine.evaluations > coarse.evaluations).all())
    assert len(set(fine.evaluations.tolist())) > 1
    alone = ode(d, x0[4:], first=4, solver="rk45", tolerance=1e-7, prior=exact_prior(d))
    torch.testing.assert_close(alone.value, fine.value[4:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased_with_an_honest_error(probe: Any):
    generator = torch.Generator().manual_seed(1)
    b = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64)
    data = GaussianMixture([0.5, 0.5], torch.randn(2, 4, generator=generator), b @ b.mT / 4 + 0.1 * torch.eye(4))
    d = data.denoiser(Process(LinearBeta(), AR1(4, 0.3)))
    x0 = draws(data, 1).expand(60, 4)  # one sample, sixty addresses of its probes
    exact = float(ode(d, x0[:1], steps=10).value)
    result = ode(d, x0, "hutchinson", steps=10, probes=6, probe=probe)
    spread = float(result.value.std())
    assert abs(float(result.value.mean()) - exact) < 4 * spread / math.sqrt(60)
    assert float(result.error.square().mean().sqrt()) == pytest.approx(spread, rel=0.4)
    again = ode(d, x0[:5], "hutchinson", steps=10, probes=6, probe=probe, batch=3)
    torch.testing.assert_close(again.value, result.value[:5], rtol=1e-11, atol=1e-11)
    single = ode(d, x0[:1], "hutchinson", steps=4, probes=1, probe=probe)
    assert bool(single.error.isnan().all())
    assert bool(single.value.isfinite().all())


def test_the_density_of_correlated_data_differs_by_the_determinant():
    """C-diffusion of x is I-diffusion of R^-1 x: the log-densities differ by 1/2 log det C."""
    noise = AR1(2, 0.6)
    root = torch.linalg.cholesky(noise.dense())
    inverse = torch.linalg.inv(root)
    white = GaussianMixture(MIXTURE.weights, MIXTURE.means @ inverse.mT, inverse @ MIXTURE.covs @ inverse.mT)
    x0 = draws(MIXTURE, 5)
    coloured = ode(MIXTURE.denoiser(Process(LinearBeta(), noise)), x0, steps=16).value
    plain = ode(white.denoiser(Process(LinearBeta())), x0 @ inverse.mT, steps=16).value
    torch.testing.assert_close(coloured, plain - 0.5 * noise.logdet((2,)), rtol=1e-9, atol=1e-9)


def test_clips_and_images():
    for shape in ((1, 2, 1), (1, 2, 1, 1)):
        p = Process(LinearBeta(), Identity() if len(shape) == 3 else AR1(2, 0.6))
        shaped = GaussianMixture(MIXTURE.weights, MIXTURE.means.reshape(2, *shape), MIXTURE.covs)
        x0 = draws(MIXTURE, 4)
        whole = ode(shaped.denoiser(p), x0.reshape(4, *shape), "hutchinson", steps=8).value
        torch.testing.assert_close(whole, ode(MIXTURE.denoiser(p), x0, "hutchinson", steps=8).value)


def test_a_later_start_is_the_density_with_noise_added():
    d, x0, t = NARROW.denoiser(P), draws(NARROW, 5), 0.05
    ratio = float(P.schedule.sigma(t) / P.schedule.alpha(t))
    noisy = GaussianMixture(NARROW.weights, NARROW.means, NARROW.covs + ratio**2 * P.noise.dense())
    value = ode(d, x0, t_min=t, prior=exact_prior(d)).value
    torch.testing.assert_close(value, noisy.log_prob(x0, P, 0.0), rtol=1e-6, atol=1e-6)


class Network(nn.Module):
    """The exact v in float32, as a network would give it; float32 parameters say so."""

    def __init__(self, oracle: Oracle, broken_at: float = math.inf) -> None:
        super().__init__()
        self.oracle, self.broken_at = oracle, broken_at
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        p = self.oracle.process
        v = self.oracle(x, p.schedule.time(log_snr.double()).clamp(max=1)).v
        return torch.where((log_snr < -self.broken_at)[:, None], torch.nan, v * self.scale)


def test_a_float32_network():
    oracle = NARROW.denoiser(P)
    d, x0 = Denoiser(Network(oracle), P, "v"), draws(NARROW, 8)
    values = {
        "exact": ode(d, x0, prior=exact_prior(oracle)),
        "rk45": ode(d, x0, solver="rk45", tolerance=1e-5, prior=exact_prior(oracle)),
    }
    default = ode(d, x0, prior=exact_prior(oracle))
    assert float(default.evaluations.double().mean()) < 300  # rounding does not drive the steps to nothing
    assert bool(((default.value - oracle.log_prob(x0, 0.0)).abs() < 5 * default.error).all())
    for result in values.values():
        assert result.value.dtype == torch.float64
        assert float((result.value - oracle.log_prob(x0, 0.0)).abs().max()) < 1e-3
        assert not result.value.requires_grad


@pytest.mark.parametrize("solver", ["rk4", "rk45"])
def test_a_trajectory_that_diverges_is_named(solver: Any):
    d = Denoiser(Network(MIXTURE.denoiser(P), broken_at=1.0), P, "v")
    t = float(P.schedule.time(torch.tensor(-1.0)))
    with pytest.raises(ValueError, match="the ODE diverged: values that are not finite at t = ") as caught:
        ode(d, draws(MIXTURE, 2), solver=solver)
    assert abs(float(str(caught.value).split("t = ")[1]) - t) < 0.1


def test_dequantised_pixels_fill_their_bins():
    pixels = torch.arange(256).repeat(40, 1)
    x, log_q = dequantise(pixels / 127.5 - 1, "uniform", 0, torch.arange(40))
    assert torch.equal(log_q, torch.zeros(40).double())
    assert torch.equal(((x + 1) * 128).floor().long(), pixels)
    inside = (x + 1) * 128 - pixels
    assert abs(float(inside.mean()) - 0.5) < 0.01
    assert abs(float(inside.var()) - 1 / 12) < 0.003
    again, _ = dequantise(pixels[7:9] / 127.5 - 1, "uniform", 0, torch.tensor([7, 8]))
    assert torch.equal(again, x[7:9])


def test_uniform_dequantisation_bounds_the_probability_of_pixels():
    """A smooth density: the probability of a bin is the density in it, and the bits agree with it to rounding."""
    data = GaussianMixture([1.0], [[0.1, -0.2]], 0.15 * torch.eye(2)[None])
    d = data.denoiser(Process(LinearBeta()))
    index = torch.tensor([[100, 90], [160, 140], [30, 128]])
    x0 = (index / 127.5 - 1).float()
    result = ode(d, x0, dequantisation="uniform", prior=exact_prior(d))
    assert result.dequantisation == "uniform"
    assert ode(d, x0, steps=2).dequantisation == "none"
    edges = index / 128 - 1
    normal = torch.distributions.Normal(data.means[0], 0.15**0.5)
    log_mass = (normal.cdf(edges + 1 / 128) - normal.cdf(edges.double())).log().sum(1)
    bits = bits_per_dim(-result.value, x0.shape)
    torch.testing.assert_close(bits, -log_mass / (2 * math.log(2)), rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"divergence": "some"}, 'divergence is "exact" or "hutchinson"'),
        ({"solver": "euler"}, 'solver is "rk4" or "rk45"'),
        ({"probe": "uniform"}, 'probe is "rademacher" or "gaussian"'),
        ({"dequantisation": "variational"}, 'dequantisation is "none", "uniform" or a Dequantiser'),
        ({"dequantisation": "uniform"}, "not 8-bit pixels"),
        ({"steps": 0}, "steps and probes must be >= 1 and tolerance > 0, got 0"),
        ({"solver": "rk45", "steps": 8}, "rk45 chooses its steps by the tolerance: leave steps out"),
        ({"tolerance": math.inf}, "tolerance > 0"),
        ({"tolerance": 0.0}, "tolerance > 0"),
        ({"t_min": 1.0}, r"t_min lies in \[0, 1\)"),
    ],
)
def test_bad_arguments(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ode(MIXTURE.denoiser(P), draws(MIXTURE, 2), **settings)


def test_bad_samples():
    with pytest.raises(ValueError, match="not finite"):
        ode(MIXTURE.denoiser(P), torch.full((1, 2), math.inf))
    singular = MIXTURE.denoiser(Process(LinearBeta(), AR1(2, 1.0)))
    with pytest.raises(ValueError, match="singular"):
        ode(singular, draws(MIXTURE, 1), steps=4)


def test_the_pair_of_dormand_and_prince_meets_its_order_conditions():
    """Sums that a method of order 5 (order 4 for the embedded one) must have: sum b c^k = 1/(k + 1)."""
    for k in range(5):
        powers = [c**k for c in _NODES]
        fifth = sum(b * c for b, c in zip(_STAGES[-1], powers[:6], strict=True))
        assert fifth == pytest.approx(1 / (k + 1), abs=1e-14)
        difference = sum(e * c for e, c in zip(_ERROR, powers, strict=True))
        assert (abs(difference) < 1e-14) == (k < 4)
    for node, row in zip(_NODES, _STAGES, strict=True):
        assert sum(row) == pytest.approx(node, abs=1e-13)

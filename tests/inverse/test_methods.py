"""Denoisers of the posterior against its closed form, that of a Gaussian mixture given a linear measurement (E39)."""

from functools import partial

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein.inverse import DDNM, DPS, METHODS, Decoded, Mask, Matrix, Moments, invert, repaint, twisted
from ornstein.noise import AR1, Covariance, Identity
from ornstein.oracles import GaussianMixture

N = 4


def spread(seed: int) -> Tensor:
    root = torch.randn(N, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.mT / N + 0.1 * torch.eye(N, dtype=torch.float64)


ONE = GaussianMixture([1.0], torch.tensor([[0.5, -1.0, 0.3, 0.0]], dtype=torch.float64), spread(1)[None])
TWO = GaussianMixture(
    [0.4, 0.6],
    torch.tensor([[1.5, 1.0, -1.0, 0.5], [-1.0, -1.0, 1.0, 0.5]], dtype=torch.float64),
    torch.stack([0.1 * spread(1), 0.15 * spread(2)]),
)
A = torch.tensor([[1.0, 0.5, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]], dtype=torch.float64)
Y = torch.tensor([[0.4, -0.2]], dtype=torch.float64)
STD = 0.3


def process(noise: Covariance) -> orn.Process:
    return orn.Process(orn.schedules.Cosine(), noise)


@pytest.mark.parametrize("noise", [Identity(), AR1(N, 0.7)], ids=["white", "ar1"])
@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_moment_matching_is_exact_for_one_gaussian(noise: Covariance, t: float) -> None:
    p = process(noise)
    x = torch.randn(5, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = Moments(ONE.denoiser(p), Matrix(A, (N,)), Y, STD, iterations=4, tolerance=0.0)(x, t).x0
    exact = ONE.posterior(A, Y[0], STD).denoiser(p)(x, t).x0
    torch.testing.assert_close(ours, exact, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("t", [0.0, 0.05, 0.4, 0.9, 1.0])
def test_noise_on_a_whole_sample_is_removed_exactly_for_a_mixture(t: float) -> None:
    schedules = (orn.schedules.Cosine(), orn.schedules.Rectified(), orn.schedules.LinearBeta())
    whole, y = Mask(torch.ones(N), (N,)), torch.tensor([[0.4, -0.2, 0.1, 0.3]], dtype=torch.float64)
    for p in map(orn.Process, schedules):
        x = torch.randn(5, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        ours = Moments(TWO.denoiser(p), whole, y, 0.8)(x, t).x0
        exact = TWO.posterior(torch.eye(N, dtype=torch.float64), y[0], 0.8).denoiser(p)(x, t).x0
        torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5)


def test_what_was_measured_of_decoded_pictures_is_exact_for_a_linear_decoder() -> None:
    p = process(Identity())
    draw = torch.Generator().manual_seed(4)
    W, b = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((6, N), (6,)))
    of_pictures = torch.randn(3, 6, generator=draw, dtype=torch.float64)
    y = torch.randn(1, 3, generator=draw, dtype=torch.float64)
    A = Decoded(Matrix(of_pictures, (6,)), lambda z: z @ W.mT.to(z) + b.to(z), (N,))
    x = torch.randn(5, N, generator=draw, dtype=torch.float64)
    ours = Moments(ONE.denoiser(p), A, y, STD, iterations=3, tolerance=0.0)(x, 0.4).x0
    exact = ONE.posterior(of_pictures @ W, y[0] - of_pictures @ b, STD).denoiser(p)(x, 0.4).x0
    torch.testing.assert_close(ours, exact, rtol=1e-6, atol=1e-7)


def test_the_decoder_is_linearised_where_it_is_asked() -> None:
    draw = torch.Generator().manual_seed(5)
    attention = torch.nn.MultiheadAttention(4, 2, batch_first=True).double()

    def decode(z: Tensor) -> Tensor:  # with attention, whose fused kernel has no second derivative
        tokens = torch.nn.functional.silu(z.double()).reshape(len(z), 3, 4)
        q = attention(tokens, tokens, tokens, need_weights=False)[0]
        return (tokens + q).flatten(1).to(z)

    A = Decoded(Mask(torch.tensor([1, 0] * 6), (12,)), decode, (12,))
    z, v = torch.randn(2, 2, 12, generator=draw, dtype=torch.float64)
    tangent, value = A.at(z)
    torch.testing.assert_close(value, A.linear(z))
    h = 1e-6
    slope = (A.linear(z + h * v) - A.linear(z - h * v)) / (2 * h)
    torch.testing.assert_close(tangent.linear(v), slope, rtol=1e-6, atol=1e-8)
    w = torch.randn(2, 12, generator=draw, dtype=torch.float64)
    torch.testing.assert_close((tangent.linear(v) * w).sum(), (v * tangent.adjoint(w)).sum())


@pytest.mark.parametrize("noise", [Identity(), AR1(N, 0.7)], ids=["white", "ar1"])
def test_samples_of_moment_matching_have_the_posterior_and_those_of_dps_have_not(noise: Covariance) -> None:
    p, count = process(noise), 4000
    exact = ONE.posterior(A, Y[0], STD)
    mean, cov = exact.means[0], exact.covs[0]

    def off(method: type, **options: object) -> tuple[float, float]:
        d = method(ONE.denoiser(p), Matrix(A, (N,)), Y, STD, **options)
        start = p.prior((count, N), torch.float64).sample(
            torch.randn(count, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        )
        x = orn.sample(d, (count, N), steps=50, start=start, batch=count)
        return float((x.mean(0) - mean).norm() / mean.norm()), float((x.T.cov() - cov).norm() / cov.norm())

    bias, shape = off(Moments, iterations=4, tolerance=0.0)
    assert bias < 0.04 and shape < 0.08  # 4,000 samples: a standard error is about half of that
    assert max(off(DPS)) > 0.1


def test_a_noiseless_measurement_is_kept() -> None:
    p = process(Identity())
    known = torch.tensor([1, 0, 1, 0])
    for method in ("ddnm", "ddrm", "moments", "pigdm", "diffpir"):
        d = METHODS[method](TWO.denoiser(p), Mask(known, (N,)), torch.tensor([[1.5, 0.0, -1.0, 0.0]]), 0.0)
        x = orn.sample(d, (8, N), steps=30)
        assert float((x[:, [0, 2]] - torch.tensor([1.5, -1.0])).abs().max()) < 0.05, method
    d = DDNM(TWO.denoiser(p), Mask(known, (N,)), torch.tensor([[1.5, 0.0, -1.0, 0.0]]), 0.0)
    x = orn.sample(d, (8, N), solver=repaint, steps=10)
    assert float((x[:, 0] - 1.5).abs().max()) < 0.05


def test_particles_correct_what_moments_leave_out() -> None:
    p, y = process(Identity()), torch.tensor([[0.0, 0.0]], dtype=torch.float64)
    exact = TWO.posterior(A, y[0], 1.0)
    mean = (exact.weights[:, None] * exact.means).sum(0)
    d = Moments(TWO.denoiser(p), Matrix(A, (N,)), y, 1.0, iterations=4)
    start = torch.randn(400, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = orn.sample(d, (400, N), solver=partial(twisted, particles=16), steps=40, start=start)
    d_of_each = Moments(TWO.denoiser(p), Matrix(A, (N,)), y.expand(400, -1), 1.0, iterations=4)
    again = orn.sample(d_of_each, (400, N), solver=partial(twisted, particles=16), steps=40, start=start, batch=400)
    torch.testing.assert_close(again, x)  # a measurement for each sample, here the same
    error = float((x.mean(0) - mean).norm())
    assert error < 0.35  # four standard errors of the mean of 400 samples of this spread, and the 40 steps


@pytest.mark.parametrize("solver", ["flow-3m", "dpmpp-3m", "unipc", "deis", "ipndm", "heun", "rk4", "ddim"])
@pytest.mark.parametrize("noise", [Identity(), AR1(N, 0.7)])
def test_a_solver_is_inverted_to_the_last_digits(solver: str, noise: Covariance) -> None:
    d = TWO.denoiser(process(noise))
    x0 = TWO.sample(6, torch.Generator().manual_seed(0)).double()
    found = invert(d, x0, solver, steps=12)
    assert float(found.error.max()) <= 1e-6
    again = orn.sample(d, (6, N), solver=solver, steps=12, start=found.x)
    assert float((again - x0).abs().max()) < 1e-5
    torch.testing.assert_close((again - x0).square().mean(1).sqrt(), found.error, rtol=1e-3, atol=1e-12)


def test_inversion_at_zero_snr_and_without_one_trajectory() -> None:
    d = TWO.denoiser(orn.Process(orn.schedules.Rectified()))
    x0 = TWO.sample(3, torch.Generator().manual_seed(0)).double()
    assert float(invert(d, x0, "dpmpp-2m", steps=12).error.max()) <= 1e-6
    with pytest.raises(ValueError, match="draws noise"):
        invert(d, x0, "ddpm", steps=5)
    with pytest.raises(ValueError, match="chooses its steps"):
        invert(d, x0, "rk45")


def test_bad_measurements_are_refused() -> None:
    d = ONE.denoiser(process(Identity()))
    with pytest.raises(ValueError, match="noise_std is a standard deviation"):
        Moments(d, Matrix(A, (N,)), Y, -1.0)
    with pytest.raises(ValueError, match="but y has"):
        Moments(d, Matrix(A, (N,)), torch.zeros(1, 3), 0.1)
    with pytest.raises(ValueError, match="no measurement"):
        Moments(d, Matrix(A, (N,)))(torch.zeros(1, N), 0.5)
    with pytest.raises(ValueError, match="2 measurements for 3"):
        Moments(d, Matrix(A, (N,)), torch.zeros(2, 2))(torch.zeros(3, N), 0.5)

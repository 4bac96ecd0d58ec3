"""Noise of a given power spectrum over pixels (E41): its law, its algebra, and what "equal SNR" means."""

import json
import math

import pytest
import torch
from torch import Tensor

from ornstein import Gaussian, Process
from ornstein.noise import Identity, SingularCovarianceError, Spectrum, from_config, to_config
from ornstein.oracles import GaussianMixture
from ornstein.schedules import Cosine

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def falling(height: int, width: int, exponent: float = -2.0) -> Tensor:
    """A power law of the radius |k|, as images have; exponent > 0 is blue noise."""
    y, x = torch.fft.fftfreq(height).double(), torch.fft.fftfreq(width).double()
    return ((y[:, None] ** 2 + x**2).sqrt() + 0.1) ** exponent


def dense(power: Tensor) -> Tensor:
    """F* diag(P) F with the Fourier matrices written out, P scaled to mean 1."""
    height, width = power.shape

    def dft(n: int) -> Tensor:
        k = torch.arange(n, dtype=torch.float64)
        return torch.exp(-2j * math.pi * torch.outer(k, k) / n) / math.sqrt(n)

    f = torch.kron(dft(height), dft(width))
    return (f.conj().T @ torch.diag((power / power.mean()).flatten()).to(f) @ f).real


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (4, 3), (1, 6), (5, 1)])
@pytest.mark.parametrize("exponent", [-2.0, 2.0])
def test_algebra_against_the_dense_matrix(size: tuple[int, int], exponent: float):
    c, n = Spectrum(7 * falling(*size, exponent)), math.prod(size)
    matrix = dense(falling(*size, exponent))
    torch.testing.assert_close(c.dense(), matrix, **CLOSE)
    torch.testing.assert_close(matrix.diagonal(), torch.ones(n).double())  # unit variance of every pixel
    for shape in ((2, *size), (2, 3, *size), (2, 3, 2, *size)):
        x = randn(*shape)
        flat = x.reshape(-1, n)
        torch.testing.assert_close(c.matvec(x).reshape(-1, n), flat @ matrix, **CLOSE)
        torch.testing.assert_close(c.solve(x).reshape(-1, n), flat @ torch.linalg.inv(matrix), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(c.whiten(c.color(x)), x, **CLOSE)
        quadratic = (x * c.solve(x)).flatten(1).sum(1)
        torch.testing.assert_close(c.mahalanobis(x), quadratic, rtol=1e-8, atol=1e-8)
        frames = math.prod(shape[1:]) // n
        assert c.logdet(shape[1:]) == pytest.approx(frames * float(torch.linalg.slogdet(matrix)[1]), rel=1e-9)
    root = c.color(torch.eye(n).double().reshape(n, *size)).reshape(n, n).mT
    torch.testing.assert_close(root @ root.mT, matrix, **CLOSE)
    floored = c.floored(0.3)
    assert isinstance(floored, Spectrum)
    torch.testing.assert_close(floored.dense(), 0.7 * matrix + 0.3 * torch.eye(n).double(), **CLOSE)


def test_flat_power_is_white_noise():
    x = randn(2, 3, 4, 6)
    c = Spectrum(torch.full((4, 6), 5.0))
    for name in ("color", "matvec", "whiten", "solve"):
        torch.testing.assert_close(getattr(c, name)(x), x)
    assert c.logdet((3, 4, 6)) == pytest.approx(0, abs=1e-12)


def test_samples_have_the_power():
    """Monte Carlo: |F x|^2 at each frequency within 5 standard errors, sqrt(2/n) of it where it is real."""
    power, n = falling(6, 6), 4000
    x = Spectrum(power).sample((n, 1, 6, 6), torch.Generator().manual_seed(0), torch.float64)
    measured = torch.fft.fft2(x, norm="ortho").abs().square().mean((0, 1))
    assert float((measured * power.mean() / power - 1).abs().max()) < 5 * math.sqrt(2 / n)


def test_noise_with_the_data_s_power_has_one_snr_at_every_frequency():
    """E41: with P the data's power, x0_hat is the same multiple of x_t at every frequency; white noise has many."""
    power = falling(3, 4)
    c = Spectrum(power)
    data = GaussianMixture([1.0], torch.zeros(1, 1, 3, 4), dense(power)[None])
    x = randn(5, 1, 3, 4)

    def gains(p: Process) -> Tensor:
        out, f = torch.fft.fft2(data.denoiser(p)(x, 0.4).x0), torch.fft.fft2(x)
        return (out / f).real

    p = Process(Cosine(), c)
    torch.testing.assert_close(gains(p), p.schedule.alpha(0.4).expand(5, 1, 3, 4), rtol=1e-8, atol=1e-8)
    assert float(gains(Process(Cosine(), Identity())).std()) > 0.1


def test_log_prob_is_that_of_the_dense_gaussian():
    c, x = Spectrum(falling(3, 4)), randn(5, 2, 3, 4)
    normal = torch.distributions.MultivariateNormal(torch.zeros(12).double(), c.dense())
    value = Gaussian(torch.zeros_like(x), torch.ones(()).double(), c).log_prob(x)
    torch.testing.assert_close(value, normal.log_prob(x.flatten(2)).sum(1))


def test_a_frequency_without_power_is_a_null_direction():
    power = torch.ones(4, 4)
    power[0, 0] = 0
    c, x = Spectrum(power), randn(2, 1, 4, 4)
    assert float(c.color(x).mean((-2, -1)).abs().max()) < 1e-15
    for f in (c.whiten, c.solve, c.mahalanobis):
        with pytest.raises(SingularCovarianceError, match="floored"):
            f(x)
    with pytest.raises(SingularCovarianceError):
        c.logdet((1, 4, 4))
    torch.testing.assert_close(c.floored(0.1).whiten(c.floored(0.1).color(x)), x)


def test_config_and_dtype():
    c = Spectrum(falling(5, 4))
    again = from_config(json.loads(json.dumps(to_config(c))))
    assert again == c
    assert repr(c) == "Spectrum(5x4)"
    for dtype in (torch.float32, torch.bfloat16):
        x = randn(2, 1, 5, 4).to(dtype)
        for f in (c.color, c.matvec, c.whiten, c.solve):
            assert f(x).dtype == dtype
    assert c.color(torch.zeros(0, 1, 5, 4)).shape == (0, 1, 5, 4)


@pytest.mark.parametrize(
    ("power", "message"),
    [
        (torch.ones(4), r"power is \(H, W\)"),
        (torch.ones(0, 4), r"power is \(H, W\)"),
        (-torch.ones(2, 2), "smallest eigenvalue is -1, below zero"),
        (torch.full((2, 2), math.nan), "not finite"),
        (torch.zeros(2, 2), "zero at every frequency"),
        (torch.tensor([[1.0, 2.0, 3.0]]), "at a frequency k and at -k"),
    ],
)
def test_bad_powers(power: Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        Spectrum(power)


def test_the_wrong_shape_is_named():
    c = Spectrum(torch.ones(3, 4))
    for shape in ((2, 12), (2, 4, 3), (3, 4)):
        with pytest.raises(ValueError, match="acts on the last two axes"):
            c.color(randn(*shape))
    with pytest.raises(ValueError, match=r"acts on samples \(\*, H, W\)"):
        c.logdet((12,))

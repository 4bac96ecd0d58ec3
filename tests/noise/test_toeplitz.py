"""Toeplitz noise on long axes: circulant embedding, Levinson's recursion, and what they do where they fail."""

import math

import pytest
import torch
from torch import Tensor

from ornstein.noise import AR1, Toeplitz
from ornstein.noise.toeplitz import levinson


def matern(n: int, length: float) -> Tensor:
    """The Matern-5/2 autocovariance."""
    u = math.sqrt(5) * torch.arange(n, dtype=torch.float64) / length
    return (1 + u + u * u / 3) * torch.exp(-u)


def circulant_eigenvalues(row: Tensor) -> Tensor:
    return torch.fft.fft(torch.cat([row, row[1:-1].flip(0)])).real


def covariance_of_samples(c: Toeplitz, n: int, seed: int = 0) -> Tensor:
    x = c.sample((n, c.length), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.mT @ x / n


def test_the_textbook_failure_of_circulant_embedding():
    """Matern-5/2 of length 8 over 16 frames: the circulant matrix has an eigenvalue of -0.07, the covariance none."""
    row = matern(16, 8)
    assert float(circulant_eigenvalues(row).min()) == pytest.approx(-0.07, abs=0.005)
    c = Toeplitz(row)
    root = c.color(torch.eye(16, dtype=torch.float64)).mT
    torch.testing.assert_close(root @ root.mT, c.dense(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("row", "padded"),
    [(0.9 ** torch.arange(70.0).double(), False), (matern(70, 40), True), (matern(100, 50), True)],
    ids=["ar1", "matern-70", "matern-100"],
)
def test_circulant_embedding_is_padded_if_needed(row: Tensor, padded: bool):
    c = Toeplitz(row)
    assert (float(circulant_eigenvalues(row).min()) < -1e-3) == padded
    eigenvalues = c._embedding
    assert eigenvalues is not None
    assert float(eigenvalues.min()) >= 0
    corner = torch.fft.irfft(eigenvalues)[: len(row)]  # the circulant matrix begins with the covariance itself
    torch.testing.assert_close(corner, row, rtol=1e-9, atol=1e-9)
    assert (len(eigenvalues) > len(row)) == padded


def test_without_an_embedding_the_samples_come_from_the_root():
    """Nearly periodic: no extension is positive; the law must still be C."""
    lags = torch.arange(80, dtype=torch.float64)
    c = Toeplitz(0.999 * torch.cos(lags) + 0.001 * (lags == 0))
    assert c._embedding is None
    drawn = c.sample((2, 80), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    z = torch.randn(2, 80, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    torch.testing.assert_close(drawn, c.color(z))


@pytest.mark.parametrize("row", [0.8 ** torch.arange(66.0).double(), matern(66, 30)], ids=["ar1", "matern"])
def test_the_law_of_long_samples(row: Tensor):
    """Monte Carlo: each entry within 5 standard errors, sqrt((r_0^2 + r_tau^2)/n)."""
    c, n = Toeplitz(row), 20_000
    error = torch.sqrt((1 + c.dense() ** 2) / n)
    assert bool(((covariance_of_samples(c, n) - c.dense()).abs() < 5 * error).all())


def test_levinson_against_the_dense_matrix():
    row = matern(12, 2)
    prediction = levinson(row)
    assert prediction is not None
    filter_, errors = prediction
    lags = torch.arange(12)
    dense = row[(lags[:, None] - lags[None]).abs()]
    last = torch.linalg.solve(dense[:-1, :-1], dense[:-1, -1])  # the best weights of the 11 frames before the last
    torch.testing.assert_close(filter_[1:].flip(0), -last, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(errors, torch.linalg.cholesky(dense).diagonal() ** 2, rtol=1e-8, atol=1e-10)
    assert levinson(torch.ones(5, dtype=torch.float64)) is None
    assert levinson(torch.tensor([1.0, 0.9, 0.0], dtype=torch.float64)) is None


def test_singular_rows_are_found_by_eigenvalues():
    lags = torch.arange(70, dtype=torch.float64)
    c = Toeplitz(torch.cos(lags))  # of rank two; neither embedding nor recursion proves it
    assert c.singular
    assert float(c.eigenvalues[-3]) < 1e-10
    with pytest.raises(ValueError, match="smallest eigenvalue is -0"):
        Toeplitz(torch.cos(lags) - 0.01 * (lags == 0))


def test_10000_frames_need_no_dense_matrix():
    """10,000 frames: a dense matrix would take 0.8 GB."""
    n = 10_000
    c = Toeplitz(0.9 ** torch.arange(n, dtype=torch.float64))
    same = AR1(n, 0.9)
    x = torch.randn(1, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(c.matvec(x), same.matvec(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(c.solve(x), same.solve(x), rtol=1e-9, atol=1e-8)
    assert float(c.mahalanobis(x)) == pytest.approx(float(same.mahalanobis(x)), rel=1e-10)
    assert c.logdet((n,)) == pytest.approx(same.logdet((n,)), rel=1e-10)
    assert c.sample((1, n)).shape == (1, n)
    assert "_matrices" not in vars(c)


def test_a_root_is_cast_once(monkeypatch: pytest.MonkeyPatch):
    """A float32 call must not cast the float64 matrix again: at length 4096 that is 128 MB a call."""
    c = Toeplitz(matern(100, 5) + 0.1 * (torch.arange(100) == 0))
    z = torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
    first = [f(z) for f in (c.color, c.whiten, c.matvec, c.solve)]
    monkeypatch.setattr("ornstein.noise.covariance.cast_like", lambda *_: pytest.fail("a cast was made again"))
    assert all(torch.equal(a, f(z)) for a, f in zip(first, (c.color, c.whiten, c.matvec, c.solve), strict=True))

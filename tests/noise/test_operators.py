"""OU, Mixed, Toeplitz, LowRank, Kronecker and SpectralAR1: their algebra against dense matrices written down here."""

import math
from typing import cast

import pytest
import torch
from torch import Tensor

from ornstein import Gaussian, Process
from ornstein.noise import (
    AR1,
    OU,
    Covariance,
    FrameCovariance,
    Kronecker,
    LowRank,
    Matrix,
    Mixed,
    SingularCovarianceError,
    SpectralAR1,
    Toeplitz,
)
from ornstein.schedules import Cosine

CLOSE = {"rtol": 1e-8, "atol": 1e-8}


def randn(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rand(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def lags(n: int) -> Tensor:
    return torch.arange(n, dtype=torch.float64)


def symmetric(height: int, width: int) -> Tensor:
    """Correlations that are the same at k and at -k."""
    rho = 1.6 * rand(height, width) - 0.8
    return (rho + rho.flip(0, 1).roll((1, 1), (0, 1))) / 2


def bare(n: int, count: int) -> Tensor:
    """Variances of which the first `count` are 0."""
    return torch.cat([torch.zeros(count, dtype=torch.float64), rand(n - count) + 0.1])


# Each with the shape of a sample without channels, and C written as a sum over that sample flattened.
FRAMES: list[FrameCovariance] = [
    *(OU(rand(n).cumsum(0), 0.7) for n in (1, 5, 90)),
    *(Mixed(n, c) for n in (5, 90) for c in (0.4, 0.0, -0.9 / (n - 1))),
    Mixed(1, 1.0),
    *(Toeplitz(2 * 0.8 ** lags(n) + 0.3 * (lags(n) == 0)) for n in (5, 90)),
    Toeplitz(0.7 * torch.cos(lags(80)) + 0.3 * (lags(80) == 0)),  # its circulant matrix is not positive
    Toeplitz([4.0]),
    *(LowRank(bare(n, zeros), randn(n, 3)) for n in (6, 90) for zeros in (0, 1, 3)),
    LowRank(rand(6) + 0.1, torch.zeros(6, 0)),
    AR1(5, 0.7).floored(0.2),
    AR1(90, -0.7).floored(0.2),
]
CLIPS: list[tuple[Covariance, tuple[int, int, int]]] = [
    *((SpectralAR1(5, symmetric(h, w)), (5, h, w)) for h in (3, 4) for w in (3, 4)),
    (SpectralAR1(5, symmetric(4, 3)).floored(0.3), (5, 4, 3)),
    (SpectralAR1(4, [0.9, 0.5, -0.1], size=(4, 4)), (4, 4, 4)),
    (SpectralAR1(70, [0.9, 0.0], size=(1, 2)), (70, 1, 2)),
    (Kronecker(AR1(4, 0.6), (Mixed(3, 0.2), AR1(2, -0.5))), (4, 3, 2)),
    (Kronecker(time=Toeplitz([1.0, 0.5, 0.1])), (3, 2, 2)),
    (Kronecker(space=(AR1(3, 0.4), AR1(4, 0.3))), (2, 3, 4)),
    (Kronecker(AR1(3, 0.6), LowRank(rand(6) + 0.1, randn(6, 2))), (3, 2, 3)),
    (Kronecker(AR1(4, 1.0), (Mixed(3, 0.2), AR1(2, -0.5))).floored(0.1), (4, 3, 2)),
    (Kronecker(AR1(3, 0.6), LowRank(bare(6, 5), randn(6, 2))).floored(0.25), (3, 2, 3)),
]


def expected(c: Covariance) -> Tensor:
    """The matrix by its definition, entry by entry, where it is not the dense() that is under test."""
    if isinstance(c, OU):
        t = torch.as_tensor(c.times)
        return torch.stack([torch.exp(-c.rate * (t - s).abs()) for s in t])
    if isinstance(c, Mixed):
        return (1 - c.c) * torch.eye(c.length, dtype=torch.float64) + c.c * torch.ones(c.length, c.length).double()
    if isinstance(c, Toeplitz):
        row = torch.as_tensor(c.first_row).tolist()
        return torch.tensor([[row[abs(i - j)] for j in range(c.length)] for i in range(c.length)], dtype=torch.float64)
    if isinstance(c, LowRank):
        u = torch.as_tensor(c.factor)
        return torch.diag(torch.as_tensor(c.diag)) + sum(
            (torch.outer(column, column) for column in u.T), torch.zeros(c.length, c.length, dtype=torch.float64)
        )
    if isinstance(c, Kronecker):
        space = c.space if isinstance(c.space, tuple) else (c.space,)
        matrix = torch.ones(1, 1, dtype=torch.float64)
        for factor in (c.time, *space):
            if factor is not None:
                matrix = torch.kron(matrix, expected(factor) if not isinstance(factor, AR1) else factor.dense())
        return (1 - c.white) * matrix + c.white * torch.eye(len(matrix), dtype=torch.float64)
    assert isinstance(c, SpectralAR1)
    height, width = c.frame
    # F as a matrix, and rho over the whole of fft2, from the definition of the bands.
    f = torch.kron(dft(height), dft(width))
    rho = torch.as_tensor(c.rho)
    if rho.ndim == 1:
        y, x = torch.fft.fftfreq(height).double(), torch.fft.fftfreq(width).double()
        radius = (y[:, None] ** 2 + x**2).sqrt() / math.sqrt(0.5)
        rho = rho[(radius * len(rho)).long().clamp(max=len(rho) - 1)]
    matrix = torch.zeros(c.length, height * width, c.length, height * width, dtype=torch.float64)
    for i in range(c.length):
        for j in range(c.length):
            share = (1 - c.white) * rho.flatten() ** abs(i - j) + c.white * (i == j)
            matrix[i, :, j] = (f.conj().T @ torch.diag(share).to(f) @ f).real
    return matrix.reshape(c.length * height * width, -1)


def dft(n: int) -> Tensor:
    return torch.exp(-2j * math.pi * torch.outer(lags(n), lags(n)) / n) / math.sqrt(n)


def over_sample(c: Covariance, frame: tuple[int, int, int]) -> Tensor:
    """The matrix over a whole sample (F, H, W): `expected`, times the identity over what it has no factor for."""
    own = expected(c)
    rest = torch.eye(math.prod(frame) // len(own), dtype=torch.float64)
    return torch.kron(own, rest) if isinstance(c, Kronecker) and c.space is None else torch.kron(rest, own)


def check_algebra(c: Covariance, matrix: Tensor, x: Tensor) -> None:
    """Every operation against the matrix over the last dims of x (B, C, *), flattened."""
    flat = x.reshape(-1, len(matrix))
    inverse = torch.linalg.inv(matrix)

    def close(a: Tensor, rows: Tensor) -> None:
        torch.testing.assert_close(a, rows.reshape(x.shape), **CLOSE)

    close(c.matvec(x), flat @ matrix)
    close(c.solve(x), flat @ inverse)
    close(c.whiten(c.color(x)), flat)
    close(c.color(c.whiten(x)), flat)
    quadratic = ((flat @ inverse) * flat).sum(1).reshape(len(x), -1).sum(1)
    torch.testing.assert_close(c.mahalanobis(x), quadratic, **CLOSE)
    logdet = x[0].numel() // len(matrix) * float(torch.linalg.slogdet(matrix)[1])
    assert c.logdet(tuple(x.shape[1:])) == pytest.approx(logdet, rel=1e-8, abs=1e-8)
    units = torch.eye(len(matrix), dtype=torch.float64).reshape(-1, *((1,) if x.ndim > 2 else ()), *x.shape[2:])
    if x.ndim == 2:
        units = torch.eye(len(matrix), dtype=torch.float64)
    root = c.color(units).reshape(len(matrix), -1).mT
    torch.testing.assert_close(root @ root.mT, matrix, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("c", FRAMES, ids=str)
def test_covariances_over_frames(c: FrameCovariance):
    matrix = expected(c)
    torch.testing.assert_close(c.dense(), matrix, rtol=1e-13, atol=1e-13)
    check_algebra(c, matrix, randn(2, c.length))
    clip = randn(2, 3, c.length, 2, 1)
    by_vectors = clip.movedim(2, -1).reshape(-1, c.length)
    for name in ("color", "matvec", "whiten", "solve"):
        f = getattr(c, name)
        assert_rows = f(by_vectors).reshape(2, 3, 2, 1, c.length).movedim(-1, 2)
        torch.testing.assert_close(f(clip), assert_rows, **CLOSE)
    torch.testing.assert_close(c.mahalanobis(clip), (clip * c.solve(clip)).flatten(1).sum(1), **CLOSE)
    assert c.logdet((3, c.length, 2, 1)) == pytest.approx(6 * c.logdet((c.length,)))


@pytest.mark.parametrize(("c", "frame"), CLIPS, ids=lambda v: str(v) if isinstance(v, Covariance) else "")
def test_covariances_over_clips(c: Covariance, frame: tuple[int, int, int]):
    torch.testing.assert_close(c.dense(), expected(c), rtol=1e-10, atol=1e-12)
    check_algebra(c, over_sample(c, frame), randn(2, 3, *frame))


def test_images():
    c = Kronecker(space=(AR1(3, 0.4), Mixed(4, 0.3)))
    check_algebra(c, expected(c), randn(2, 2, 3, 4))
    with pytest.raises(ValueError, match="acts on"):
        c.logdet((5, 2, 3, 4, 1))
    x = randn(5, 2, 3, 4)
    noise = Gaussian(torch.zeros_like(x), torch.ones((), dtype=torch.float64), c)
    normal = torch.distributions.MultivariateNormal(torch.zeros(12).double(), c.dense())
    torch.testing.assert_close(noise.log_prob(x), normal.log_prob(x.flatten(2)).sum(1))


@pytest.mark.parametrize("c", [c for c in FRAMES if c.length > 1], ids=str)
def test_dtype_and_gradient(c: FrameCovariance):
    x = randn(2, 3, c.length, 1, 2)
    for dtype in (torch.float32, torch.bfloat16):
        for f in (c.color, c.matvec, c.whiten, c.solve):
            assert f(x.to(dtype)).dtype == dtype
        assert c.sample(tuple(x.shape), dtype=dtype).dtype == dtype
    torch.testing.assert_close(c.color(x.float()), c.color(x).float(), rtol=1e-4, atol=1e-4)
    x.requires_grad_()
    gradient = torch.autograd.grad(c.mahalanobis(x).sum(), x)[0]
    torch.testing.assert_close(gradient, 2 * c.solve(x.detach()), **CLOSE)


@pytest.mark.parametrize(("c", "frame"), CLIPS, ids=lambda v: str(v) if isinstance(v, Covariance) else "")
def test_dtype_of_clips(c: Covariance, frame: tuple[int, int, int]):
    x = randn(2, 1, *frame)
    for f in (c.color, c.matvec, c.whiten, c.solve):
        assert f(x.bfloat16()).dtype == torch.bfloat16
        torch.testing.assert_close(f(x.float()), f(x).float(), rtol=1e-3, atol=1e-3)
    assert f(x[:0]).shape == x[:0].shape


SINGULAR: list[tuple[Covariance, tuple[int, ...]]] = [
    (OU([0.0, 1.0, 2.0], 0.0), (3,)),
    (OU([0.0, 1.0, 1.0, 2.0], 0.5), (4,)),
    (OU([*range(70), 69], 0.5), (71,)),
    (Mixed(4, 1.0), (4,)),
    (Mixed(4, -1 / 3), (4,)),
    (Mixed(70, 1.0), (70,)),
    (Mixed(70, -1 / 69), (70,)),
    (Mixed(50, -1 / 49), (50,)),  # 49 x (1/49) is not 1
    (Toeplitz(torch.ones(4)), (4,)),
    (Toeplitz(torch.ones(70)), (70,)),
    (Toeplitz(torch.cos(lags(70))), (70,)),
    (LowRank(bare(5, 3), randn(5, 2)), (5,)),
    (LowRank(torch.zeros(70), randn(70, 3)), (70,)),
    (Kronecker(Mixed(3, 1.0), (AR1(2, 0.5), AR1(2, 0.1))), (1, 3, 2, 2)),
    (SpectralAR1(3, [1.0, 0.5], size=(2, 3)), (1, 3, 2, 3)),
    (SpectralAR1(3, [-1.0, 0.5], size=(3, 2)), (1, 3, 3, 2)),
]
singular = pytest.mark.parametrize(("c", "shape"), SINGULAR, ids=lambda v: str(v) if isinstance(v, Covariance) else "")


@singular
def test_singular_covariances(c: Covariance, shape: tuple[int, ...]):
    n = math.prod(shape)
    units = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
    root = c.color(units).reshape(n, n).mT
    torch.testing.assert_close(root @ root.mT, c.dense(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(c.matvec(units).reshape(n, n), c.dense(), rtol=1e-9, atol=1e-9)
    assert c.sample((2, *shape)).shape == (2, *shape)
    for refused in (c.whiten, c.solve, c.mahalanobis):
        with pytest.raises(SingularCovarianceError, match=r"singular.*\.floored") as error:
            refused(units)
        assert "\n" not in str(error.value)
    with pytest.raises(SingularCovarianceError):
        c.logdet(shape)


@singular
def test_null_modes_shrink_with_the_signal(c: Covariance, shape: tuple[int, ...]):
    """x_t = a x_0 exactly where C has no variance (singular C, EQUATIONS: exact oracles)."""
    p, x0, z = Process(Cosine(), c), randn(3, *shape), randn(3, *shape, seed=8)
    a, _ = p.coefficients(0.6, x0)
    values, vectors = torch.linalg.eigh(c.dense())
    null = vectors[:, values < 1e-9 * values[-1]]
    assert null.shape[1] > 0
    added = (p.add_noise(x0, 0.6, z) - a * x0).flatten(1)
    assert float((added @ null).abs().max()) < 1e-11
    assert float(added.abs().max()) > 0.1


@singular
@pytest.mark.parametrize("g", [1e-3, 0.5, 1.0])
def test_a_floor(c: Covariance, shape: tuple[int, ...], g: float):
    floored = c.floored(g)
    matrix = (1 - g) * c.dense() + g * torch.eye(math.prod(shape), dtype=torch.float64)
    torch.testing.assert_close(floored.dense(), matrix, rtol=1e-10, atol=1e-10)
    kept = {Mixed: Mixed, Toeplitz: Toeplitz, LowRank: LowRank, SpectralAR1: SpectralAR1, Kronecker: Kronecker}
    assert type(floored) is kept.get(type(c), Matrix)
    x = randn(2, *shape)
    torch.testing.assert_close(floored.whiten(floored.color(x)), x, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(floored.solve(floored.matvec(x)), x, rtol=1e-6, atol=1e-6)
    again = floored.floored(0.5)
    torch.testing.assert_close(again.dense(), (matrix + torch.eye(len(matrix)).double()) / 2, rtol=1e-9, atol=1e-9)
    for bad in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"\(0, 1\]"):
            c.floored(bad)


def test_ou_at_equal_times_is_ar1():
    z = randn(3, 100)
    torch.testing.assert_close(OU(lags(100) * 0.5, 0.3).color(z), AR1(100, math.exp(-0.15)).color(z))


def test_spectral_noise_of_one_correlation_is_ar1():
    c, z = SpectralAR1(5, torch.full((3, 4), 0.6)), randn(2, 3, 5, 3, 4)
    torch.testing.assert_close(c.color(z), AR1(5, 0.6).color(z))
    floored = AR1(5, 0.6).floored(0.3)
    torch.testing.assert_close(c.floored(0.3).color(z), floored.color(z))  # both roots are the Cholesky factor


def test_spectral_samples_have_unit_variance_and_their_correlation():
    """Monte Carlo, 4 standard errors: slow at zero frequency, white at the corner."""
    c = SpectralAR1(3, [0.95, 0.5, 0.0], size=(6, 6))
    x = c.sample((4000, 1, 3, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(x.var()) == pytest.approx(1, abs=4 * math.sqrt(2 / (4000 * 36)))
    f = torch.fft.fft2(x, norm="ortho")
    for at, rho in (((0, 0), 0.95), ((3, 3), 0.0)):
        mode = f[:, 0, :, at[0], at[1]].real
        assert float((mode[:, 0] * mode[:, 1]).mean()) == pytest.approx(rho, abs=4 * math.sqrt(2 / 4000))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OU([], 1.0), "one time for each frame"),
        (lambda: OU([0.0, 2.0, 1.0], 1.0), r"do not decrease, got a step of -1"),
        (lambda: OU([0.0, math.nan], 1.0), "finite"),
        (lambda: OU([0.0, 1.0], -0.5), r"smallest -0\.649"),
        (lambda: OU([0.0, 1.0], math.inf), "finite"),
        (lambda: Mixed(0, 0.5), "at least one frame"),
        (lambda: Mixed(4, 1.1), r"\[-0.3333, 1\], got 1.1: the smallest eigenvalue would be -0.1"),
        (lambda: Mixed(4, -0.5), r"got -0.5: the smallest eigenvalue would be -0.5"),
        (lambda: Mixed(4, math.nan), "got nan"),
        (lambda: Toeplitz([]), "a vector"),
        (lambda: Toeplitz(torch.ones(2, 2)), "a vector"),
        (lambda: Toeplitz([1.0, math.inf]), "not finite"),
        (lambda: Toeplitz([1.0, 2.0]), "the smallest eigenvalue is -1, below zero"),
        (lambda: Toeplitz([-1.0]), "the smallest eigenvalue is -1, below zero"),
        (lambda: Toeplitz([1.0, 0.9] + [0.0] * 98), r"the smallest eigenvalue is -0\.79"),
        (lambda: LowRank([1.0, 1.0], torch.ones(3, 1)), r"factor must be \(2, k\)"),
        (lambda: LowRank([], torch.ones(0, 1)), "a vector"),
        (lambda: LowRank([1.0, -0.5], torch.ones(2, 1)), "smallest eigenvalue of diag is -0.5"),
        (lambda: LowRank([1.0, math.nan], torch.ones(2, 1)), "finite"),
        (lambda: Kronecker(), "over time, over space, or both"),
        (lambda: Kronecker(space=(AR1(2, 0.1),)), "a pair"),  # pyright: ignore[reportArgumentType]
        (lambda: Kronecker(time=Kronecker(AR1(2, 0.1))), "over one axis"),  # pyright: ignore[reportArgumentType]
        (lambda: Kronecker(AR1(2, 0.1), white=1.2), r"\[0, 1\]"),
        (lambda: SpectralAR1(0, [0.5], size=(2, 2)), "at least one frame"),
        (lambda: SpectralAR1(3, [0.5]), "size"),
        (lambda: SpectralAR1(3, torch.ones(2, 2), size=(2, 2)), "size"),
        (lambda: SpectralAR1(3, [0.5], size=(2, 2, 2)), r"size is \(H, W\)"),
        (lambda: SpectralAR1(3, [1.5], size=(2, 2)), r"got one of size 1.5: neighbours would have eigenvalue -0.5"),
        (lambda: SpectralAR1(3, [math.nan], size=(2, 2)), "not finite"),
        (lambda: SpectralAR1(3, rand(3, 3)), "at a frequency k and at -k"),
        (lambda: SpectralAR1(3, [0.5], size=(2, 2), white=-0.1), r"\[0, 1\]"),
    ],
)
def test_bad_arguments(make, message: str):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_the_wrong_shape_is_named():
    spectral, product = SpectralAR1(3, [0.5], size=(2, 4)), Kronecker(AR1(3, 0.5), (AR1(2, 0.1), AR1(4, 0.1)))
    for c in (spectral, product):
        for f in (c.color, c.matvec, c.whiten, c.solve):
            for shape in ((2, 1, 3, 4, 2), (2, 1, 4, 2, 4), (2, 3, 2, 4), (2, 24)):
                with pytest.raises(ValueError, match="acts on"):
                    f(randn(*shape))
        with pytest.raises(ValueError, match="acts on"):
            c.logdet((1, 3, 4, 2))
    with pytest.raises(ValueError, match="acts on an axis of 5"):
        cast(Covariance, Mixed(5, 0.1)).color(randn(2, 4))
    with pytest.raises(ValueError, match="acts on an axis of 70"):
        Toeplitz(0.5 ** lags(70)).sample((2, 69))

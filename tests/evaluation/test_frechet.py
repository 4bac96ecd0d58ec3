import numpy as np
import pytest
import torch
from scipy import linalg

from ornstein.evaluation import frechet_distance, frechet_gaussians, pixel_frechet, real_floor


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(dim: int, rank: int, seed: int) -> torch.Tensor:
    factor = normal(rank, dim, seed=seed)
    return factor.T @ factor / rank


def test_diagonal_gaussians_have_the_closed_form():
    a, b = torch.tensor([1.0, 4.0, 9.0]), torch.tensor([4.0, 0.25, 9.0])
    mu = torch.tensor([1.0, -2.0, 0.5])
    value = frechet_gaussians(mu, a.diag(), torch.zeros(3), b.diag())
    assert value == pytest.approx(float(mu.square().sum() + (a.sqrt() - b.sqrt()).square().sum()), rel=1e-12)


def test_agrees_with_scipys_matrix_square_root_where_that_is_well_conditioned():
    c1, c2 = covariance(12, 40, 1), covariance(12, 40, 2)
    mu1, mu2 = normal(12, seed=3), normal(12, seed=4)
    root = linalg.sqrtm((c1 @ c2).numpy())
    expected = float((mu1 - mu2).square().sum() + (c1 + c2).trace()) - 2 * float(np.trace(root).real)
    assert frechet_gaussians(mu1, c1, mu2, c2) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_equal_gaussians_are_at_distance_zero_at_any_rank(scale):
    mu = normal(30, seed=1)
    for rank in (1, 7, 30):
        c = scale * covariance(30, rank, rank)
        assert frechet_gaussians(mu, c, mu, c) <= 1e-10 * float(c.trace())


def test_rank_deficient_covariances_in_one_subspace_have_the_closed_form():
    basis = torch.linalg.qr(normal(20, 3, seed=5)).Q
    a, b = torch.tensor([4.0, 1.0, 9.0]).double(), torch.tensor([1.0, 1.0, 0.0]).double()
    zero = torch.zeros(20, dtype=torch.float64)
    value = frechet_gaussians(zero, basis @ a.diag() @ basis.T, zero, basis @ b.diag() @ basis.T)
    assert value == pytest.approx(1.0 + 0.0 + 9.0, abs=1e-10)


def test_orthogonal_subspaces_share_nothing():
    e = torch.eye(4, dtype=torch.float64)
    zero = torch.zeros(4, dtype=torch.float64)
    assert frechet_gaussians(zero, 4 * e[:2].T @ e[:2], zero, 9 * e[2:].T @ e[2:]) == pytest.approx(26.0, rel=1e-14)


def test_rank_one_covariances_at_an_angle():
    # C1 = u u^T, C2 = v v^T: the trace of the root is |u . v|
    u, v = normal(15, seed=6), normal(15, seed=7)
    zero = torch.zeros(15, dtype=torch.float64)
    expected = float(u @ u + v @ v - 2 * (u @ v).abs())
    assert frechet_gaussians(zero, torch.outer(u, u), zero, torch.outer(v, v)) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(("n", "m", "dim"), [(200, 300, 9), (5, 8, 40), (2, 60, 10)])
def test_features_and_their_moments_agree(n, m, dim):
    a, b = normal(n, dim, seed=8), 0.5 * normal(m, dim, seed=9) + 1
    expected = frechet_gaussians(a.mean(0), a.T.cov(), b.mean(0), b.T.cov())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-7)


def test_constant_pixels_and_shifts():
    x = normal(50, 6, seed=10)
    x[:, 2:4] = 3.0  # pixels that never change, as in the corners of digits
    assert frechet_distance(x, x) < 1e-12
    shift = torch.tensor([0.0, 1, 0, 2, 0, 0]).double()
    assert frechet_distance(x, x + shift) == pytest.approx(5.0, rel=1e-12)
    assert frechet_distance(x, 2 * (x - x.mean(0)) + x.mean(0)) == pytest.approx(float(x.var(0).sum()), rel=1e-12)


def test_float32_features_are_computed_in_float64():
    x = (1000 + normal(400, 5, seed=11)).float()
    assert frechet_distance(x, x.double()) < 1e-9


def test_the_floor_is_a_split_of_the_real_ones():
    real = normal(2000, 4, seed=12)
    floor = real_floor(real)
    assert floor == real_floor(real)
    assert floor != real_floor(real, seed=1)
    assert 0 < floor < 0.1
    ordered = real.sort(0).values  # halves taken in order would differ wildly
    assert real_floor(ordered) < 0.1
    assert real_floor(real[:40]) > floor


def test_pixel_frechet_names_itself_and_puts_the_floor_beside():
    real = torch.randint(0, 256, (400, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    score = pixel_frechet(real[:200], real[200:])
    assert score.name == "Frechet distance on raw pixels (64-D)"
    flat = real.flatten(1).double() / 127.5 - 1
    assert score.value == pytest.approx(frechet_distance(flat[:200], flat[200:]), rel=1e-9)
    assert score.floor == pytest.approx(real_floor(flat[200:]), rel=1e-9)


def eye(dim: int) -> torch.Tensor:
    return torch.eye(dim, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_distance(normal(5, 3), normal(5, 4)), "differ in length: 3 against 4"),
        (lambda: frechet_distance(normal(1, 3), normal(5, 3)), "two images or more"),
        (lambda: frechet_distance(normal(5, 3), normal(5, 3) * torch.nan), "b holds values that are not finite"),
        (lambda: real_floor(normal(3, 3)), "four images"),
        (lambda: frechet_gaussians(normal(3), eye(2), normal(3), eye(3)), r"cov1 must have shape \(3, 3\)"),
        (lambda: frechet_gaussians(normal(3), eye(3), normal(3), -eye(3)), "cov2 has the negative eigenvalue -1"),
        (lambda: frechet_gaussians(normal(2), eye(2), normal(2), eye(2) + normal(2, 2)), "cov2 is not symmetric"),
        (lambda: pixel_frechet(torch.zeros(4, 1, 2, 2), torch.zeros(4, 1, 4, 1)), "differ in shape"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

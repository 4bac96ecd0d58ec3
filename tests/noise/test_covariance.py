"""The algebra of every covariance against its dense matrix, on vectors and clips, at short and long lengths."""

import json
import math
from typing import cast

import pytest
import torch
from torch import Tensor

from ornstein.noise import AR1, Covariance, Identity, Matrix, SingularCovarianceError, from_config, parse, to_config
from ornstein.noise.frames import FrameCovariance


def random_covariance(n: int, seed: int = 0) -> Tensor:
    a = torch.randn(n, n + 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a @ a.mT / (n + 2)


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


REGULAR = [
    AR1(1, 0.7),
    AR1(5, -0.9),
    AR1(5, 0.0),
    AR1(5, 0.5),
    AR1(64, 0.99),
    AR1(65, 0.99),  # the first length of the recursive path
    AR1(100, -0.9),
    AR1(100, 0.0),
    AR1(100, 0.5),
    Matrix(random_covariance(4)),
    Matrix(random_covariance(70)),
    AR1(5, 1.0).floored(0.1),
]
regular = pytest.mark.parametrize("c", REGULAR, ids=str)

SINGULAR = [
    AR1(4, 1.0),
    AR1(4, -1.0),
    AR1(100, 1.0),
    AR1(100, -1.0),
    Matrix(torch.ones(3, 3)),
    Matrix(torch.diag(torch.tensor([1.0, 0.0, 2.0]))),
]
singular = pytest.mark.parametrize("c", SINGULAR, ids=str)


def along_frames(matrix: Tensor, x: Tensor) -> Tensor:
    """The dense matrix on the frame axis: dim 1 of vectors, dim 2 of clips."""
    return torch.einsum("ij,bj->bi" if x.ndim == 2 else "ij,bcj...->bci...", matrix, x)


@regular
@pytest.mark.parametrize("clip", [False, True], ids=["vectors", "clips"])
def test_operations_against_the_dense_matrix(c: FrameCovariance, clip: bool):
    x = randn(2, 3, c.length, 2, 2) if clip else randn(2, c.length)
    dense = c.dense()
    assert dense.dtype == torch.float64
    assert c.matvec(x).shape == x.shape
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(c.matvec(x), along_frames(dense, x), **close)
    torch.testing.assert_close(c.solve(x), along_frames(torch.linalg.inv(dense), x), **close)
    torch.testing.assert_close(c.whiten(c.color(x)), x, **close)
    torch.testing.assert_close(c.color(c.whiten(x)), x, **close)
    torch.testing.assert_close(c.solve(c.matvec(x)), x, **close)
    quadratic = (x * along_frames(torch.linalg.inv(dense), x)).flatten(1).sum(1)
    torch.testing.assert_close(c.mahalanobis(x), quadratic, **close)
    frames = x.shape[1:].numel() // c.length
    assert c.logdet(tuple(x.shape[1:])) == pytest.approx(
        frames * float(torch.linalg.slogdet(dense)[1]), rel=1e-9, abs=1e-9
    )


@regular
def test_color_is_a_root_of_the_dense_matrix(c: FrameCovariance):
    root = c.color(torch.eye(c.length, dtype=torch.float64)).mT  # row i of the argument is the unit vector i
    torch.testing.assert_close(root @ root.mT, c.dense(), rtol=1e-10, atol=1e-10)


@singular
def test_singular_covariances_color_but_have_no_density(c: FrameCovariance):
    unit = torch.eye(c.length, dtype=torch.float64)
    root = c.color(unit).mT
    torch.testing.assert_close(root @ root.mT, c.dense(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(c.matvec(unit), c.dense(), rtol=1e-10, atol=1e-10)
    for refused in (c.whiten, c.solve, c.mahalanobis):
        with pytest.raises(SingularCovarianceError, match=r"singular.*\.floored"):
            refused(unit)
    with pytest.raises(ValueError, match=r"singular.*\.floored"):
        c.logdet((c.length,))


@singular
@pytest.mark.parametrize("g", [1e-3, 0.5, 1.0])
def test_floored_covariances_are_invertible(c: FrameCovariance, g: float):
    floored = c.floored(g)
    expected = (1 - g) * c.dense() + g * torch.eye(c.length, dtype=torch.float64)
    torch.testing.assert_close(floored.dense(), expected, rtol=1e-12, atol=1e-12)
    x = randn(2, c.length)
    torch.testing.assert_close(floored.whiten(floored.color(x)), x, rtol=1e-8, atol=1e-8)
    logdet = floored.logdet((c.length,))
    assert logdet == pytest.approx(float(torch.linalg.slogdet(expected)[1]), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("c", [Identity(), AR1(3, 0.5)], ids=str)
@pytest.mark.parametrize("g", [0.0, -0.1, 1.1, math.nan])
def test_floor_outside_its_range(c: Covariance, g: float):
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        c.floored(g)


@pytest.mark.parametrize("rho", [-0.9, 0.0, 0.5, 0.99, 1.0, -1.0])
def test_ar1_is_the_autoregression(rho: float):
    """e_1 = z_1, e_k = rho e_{k-1} + sqrt(1 - rho^2) z_k and C_ij = rho^|i-j|, by plain loops (E5)."""
    length = 6
    for c in (AR1(length, rho), AR1(90, rho)):
        z = randn(2, c.length)
        e = torch.zeros_like(z)
        for k in range(c.length):
            e[:, k] = z[:, 0] if k == 0 else rho * e[:, k - 1] + math.sqrt(1 - rho * rho) * z[:, k]
        torch.testing.assert_close(c.color(z), e, rtol=1e-11, atol=1e-11)
        dense = c.dense()
        for i in range(length):
            for j in range(length):
                assert float(dense[i, j]) == pytest.approx(rho ** abs(i - j), abs=1e-14)


def test_ar1_sample_covariance_by_monte_carlo():
    c, n = AR1(4, 0.8), 100_000
    x = c.sample((n, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    estimate = x.mT @ x / n
    error = torch.sqrt((1 + c.dense() ** 2) / n)  # standard error of a product of two unit normals
    assert ((estimate - c.dense()).abs() < 4 * error).all()


@pytest.mark.parametrize("c", [AR1(3, 0.6), Identity()], ids=str)
def test_sample_is_the_coloured_draw(c: Covariance):
    draw = c.sample((2, 3), generator=torch.Generator().manual_seed(1))
    assert draw.dtype == torch.float32
    assert torch.equal(draw, c.color(torch.randn(2, 3, generator=torch.Generator().manual_seed(1))))


@pytest.mark.parametrize("c", [AR1(5, 0.6), AR1(80, 0.6), Matrix(random_covariance(5)), Identity()], ids=str)
def test_dtype_and_shape_are_kept(c: Covariance):
    length = getattr(c, "length", 5)
    for dtype in (torch.float32, torch.bfloat16):
        x = randn(2, 3, length, 1, 2).to(dtype)
        for f in (c.color, c.matvec, c.whiten, c.solve):
            assert f(x).dtype == dtype
            assert f(x).shape == x.shape
        assert c.mahalanobis(x).shape == (2,)
    x = randn(2, length)
    torch.testing.assert_close(c.color(x.float()), c.color(x).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("c", [AR1(5, 0.6), AR1(80, 0.6), Identity()], ids=str)
def test_an_empty_batch(c: Covariance):
    assert c.color(torch.zeros(0, getattr(c, "length", 5))).shape == (0, getattr(c, "length", 5))
    assert c.whiten(torch.zeros(0, 2, getattr(c, "length", 5), 1, 1)).shape[0] == 0


def test_logdet_takes_the_shape_of_one_sample():
    """A 4-tuple is a clip (C, F, H, W), whatever its numbers; a batch is refused, not guessed."""
    c = AR1(3, 0.5)
    one = float(torch.linalg.slogdet(c.dense())[1])
    for shape, axes in (((3,), 1), ((7, 3), 7), ((2, 3, 4, 5), 40), ((8, 3, 3, 16), 8 * 48), ((3, 3, 1, 1), 3)):
        assert c.logdet(shape) == pytest.approx(axes * one, rel=1e-12)
        assert Identity().logdet(shape) == 0
    with pytest.raises(ValueError, match="without the batch"):
        c.logdet((7, 2, 3, 4, 5))


@pytest.mark.parametrize("c", [AR1(6, 0.9), AR1(70, 0.9), Matrix(random_covariance(6))], ids=str)
def test_noise_over_frames_warns_on_images(c: FrameCovariance):
    """Rows of an image are not frames: the covariance acts on them with a warning that names the right noise."""
    x = randn(2, 3, c.length, c.length)
    for f in (c.color, c.matvec, c.whiten, c.solve):
        with pytest.warns(UserWarning, match=r"the rows.*use Kronecker\(space=.*images have no frames"):
            f(x)


@pytest.mark.parametrize("c", [AR1(5, 0.6), AR1(70, 0.6), Matrix(random_covariance(70)), Identity()], ids=str)
def test_casts_are_made_once_for_each_dtype(c: Covariance, monkeypatch: pytest.MonkeyPatch):
    x = randn(2, getattr(c, "length", 5))
    expected = [f(x.float()) for f in (c.color, c.matvec, c.whiten, c.solve)]

    def refuse(*_: object):
        raise AssertionError("a cast was made again")

    monkeypatch.setattr("ornstein.noise.covariance.cast_like", refuse)
    again = [f(x.float()) for f in (c.color, c.matvec, c.whiten, c.solve)]
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))


def test_a_cast_made_in_inference_mode_serves_training():
    c, x = AR1(5, 0.6), randn(1, 5)
    with torch.inference_mode():
        c.color(x)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(c.color(x).sum(), x)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("c", [*REGULAR, *SINGULAR], ids=str)
def test_repr_is_one_short_line(c: Covariance):
    assert len(repr(c)) < 80
    assert "\n" not in repr(c)
    assert "object at" not in repr(c)


def test_a_generator_draws_on_its_own_device():
    """The usual case is a CPU generator and samples elsewhere: the "meta" device stands for any other."""
    draw = AR1(3, 0.6).sample((2, 3), torch.Generator().manual_seed(0), device="cpu")
    assert torch.equal(draw, AR1(3, 0.6).sample((2, 3), torch.Generator().manual_seed(0)))
    assert Identity().sample((2, 3), torch.Generator(), device="meta").device.type == "meta"


def test_identity():
    c, x = Identity(), randn(2, 3, 4)
    for f in (c.color, c.matvec, c.whiten, c.solve):
        assert torch.equal(f(x), x)
    torch.testing.assert_close(c.mahalanobis(x), (x**2).sum((1, 2)))
    assert torch.equal(c.dense(), torch.ones(1, 1, dtype=torch.float64))
    assert c.floored(0.3) == c


def test_a_single_frame_gives_the_identity():
    c, x = AR1(1, 1.0), randn(2, 1)
    assert torch.equal(c.whiten(c.color(x)), x)
    assert c.logdet((1,)) == 0


@pytest.mark.parametrize("rho", [0.9, -1.0])
def test_long_axes_need_no_quadratic_memory(rho: float):
    """20,000 frames: a dense matrix would take 3.2 GB, and its eigenvalues hours."""
    length = 20_000
    c, x = AR1(length, rho), randn(1, length)
    assert c.color(x).shape == c.matvec(x).shape == x.shape
    if c.singular:
        with pytest.raises(SingularCovarianceError):
            c.solve(x)
    else:
        torch.testing.assert_close(c.whiten(c.color(x)), x, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(c.solve(c.matvec(x)), x, rtol=1e-9, atol=1e-9)
        assert c.mahalanobis(c.color(x)).item() == pytest.approx(float((x**2).sum()), rel=1e-10)
        assert c.logdet((length,)) == pytest.approx((length - 1) * math.log(1 - rho * rho), rel=1e-12)
    assert "_matrices" not in vars(c), "a long axis must not cache a matrix"


@pytest.mark.parametrize("c", [AR1(4, 0.5), AR1(100, 0.5), Matrix(random_covariance(4))], ids=str)
def test_gradients_flow(c: Covariance):
    x = randn(1, cast(FrameCovariance, c).length).requires_grad_()
    gradient = torch.autograd.grad(c.mahalanobis(x).sum(), x)[0]
    torch.testing.assert_close(gradient, 2 * c.solve(x.detach()), rtol=1e-9, atol=1e-9)


def test_the_wrong_length_is_named():
    c = AR1(4, 0.5)
    with pytest.raises(ValueError, match=r"acts on an axis of 4, but dim 1 of \(2, 5\) has 5"):
        c.color(randn(2, 5))
    with pytest.raises(ValueError, match=r"acts on an axis of 4, but dim 2 of \(2, 4, 3, 1, 1\) has 3"):
        c.whiten(randn(2, 4, 3, 1, 1))
    with pytest.raises(ValueError, match="acts on an axis of 4"):
        c.logdet((4, 3, 1, 1))
    with pytest.raises(ValueError, match="without a batch"):
        c.color(randn(4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AR1(0, 0.5), "at least one frame"),
        (lambda: AR1(3, 1.2), r"correlation in \[-1, 1\], got 1.2"),
        (lambda: AR1(3, -1.2), r"correlation in \[-1, 1\], got -1.2"),
        (lambda: AR1(3, math.nan), r"correlation in \[-1, 1\]"),
        (lambda: Matrix(torch.tensor([[1.0, 2.0], [2.0, 1.0]])), "smallest eigenvalue is -1"),
        (lambda: Matrix(torch.tensor([[1.0, 0.2], [0.3, 1.0]])), "not symmetric"),
        (lambda: Matrix(torch.tensor([[1.0, math.nan], [math.nan, 1.0]])), "not finite"),
        (lambda: Matrix(torch.full((1, 1), math.inf)), "not finite"),
        (lambda: Matrix(torch.ones(2, 3)), r"square, got shape \(2, 3\)"),
        (lambda: Matrix(torch.ones(2)), "square"),
        (lambda: Matrix(torch.ones(0, 0)), "square"),
    ],
)
def test_bad_arguments(make, message: str):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("c", [Identity(), AR1(4, -0.3), AR1(4, 0.3).floored(0.2)], ids=str)
def test_config_round_trip_through_json(c: Covariance):
    c.matvec(randn(2, 4))  # what is cached must not reach the file
    again = from_config(json.loads(json.dumps(to_config(c))))
    assert type(again) is type(c)
    assert torch.equal(again.dense(), c.dense())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "Pink"}, "unknown noise 'Pink'; known: Identity, AR1"),
        ({"type": ["AR1"]}, "unknown noise"),
        ({"type": "AR1", "rho": 0.5}, r"wrong arguments for the noise AR1: \['rho'\]"),
        ({"type": "AR1", "length": 3, "rho": "a"}, "wrong arguments for the noise AR1"),
        ({"type": "AR1", "length": 3, "rho": 2}, "correlation in"),
    ],
)
def test_bad_configs(config: dict, message: str):
    with pytest.raises(ValueError, match=message):
        from_config(config)


def test_parse():
    assert parse("white", 5) == Identity()
    assert parse("ar1:0.9", 5) == AR1(5, 0.9)
    for text, message in (
        ("ar1:2", "noise 'ar1:2': AR1 needs a correlation"),
        ("ar1:x", "noise 'ar1:x'"),
        ("white:1", "unknown noise 'white:1'"),
        ("pink", "unknown noise 'pink'; write white or ar1:0.9"),
    ):
        with pytest.raises(ValueError, match=message):
            parse(text, 5)

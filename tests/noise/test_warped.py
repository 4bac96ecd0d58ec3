"""Noise carried by motion (E40), against the areas of shifted pixels, and its law under any flow."""

import math

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein.noise import SingularCovarianceError, Warped


def shift(frames: int, height: int, width: int, dx: float, dy: float) -> Tensor:
    """The flow of a plane that moves by (dx, dy) a frame."""
    return torch.tensor([dx, dy], dtype=torch.float64).view(1, 2, 1, 1).expand(frames - 1, 2, height, width)


def wild(frames: int, height: int, width: int, size: float = 1.5) -> Tensor:
    """A smooth flow that expands, contracts and folds."""
    coarse = torch.randn(frames - 1, 2, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return size * torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")


def matrix(noise: Warped) -> Tensor:
    """C as (F, H, W, F, H, W)."""
    return noise.dense().reshape(*noise.frame, *noise.frame)


def overlap(a: float) -> float:
    """The length that two unit intervals share whose centres are `a` apart."""
    return max(0.0, 1 - abs(a))


@pytest.mark.parametrize("move", [(0.5, 0.0), (0.25, 0.0), (0.5, -0.25), (-1.75, 0.5), (0.0, 0.0), (2.0, 1.0)])
def test_a_moving_plane_correlates_as_its_pixels_overlap(move):
    frames, height, width = 4, 7, 8
    c = matrix(Warped(shift(frames, height, width, *move)))
    y, x = 3, 4
    for k in range(frames):
        for l in range(frames):
            for q in range(height):
                for p in range(width):
                    # pixel (y, x) of frame k came from (y - k dy, x - k dx)
                    expected = overlap(x - k * move[0] - p + l * move[0]) * overlap(y - k * move[1] - q + l * move[1])
                    assert float(c[k, y, x, l, q, p]) == pytest.approx(expected, abs=1e-12)


def test_whole_pixels_move_as_they_are_and_what_comes_in_is_fresh():
    noise = Warped(shift(6, 20, 24, 2.0, -1.0))  # too large for the root by eigenvectors
    z = torch.randn(3, 2, 6, 20, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = noise.color(z)
    for k in range(1, 6):
        assert torch.equal(x[:, :, k, :-k, 2 * k :], x[:, :, 0, k:, : -2 * k])
    c = matrix(noise)
    assert not c[3, :, :6, 0].any() and not c[3, -3:, :, 0].any()


@pytest.mark.parametrize("shape", [(2, 5, 6), (5, 12, 9), (7, 20, 24)])
def test_every_frame_is_white_under_any_flow(shape):
    noise = Warped(wild(*shape))
    c = matrix(noise)
    eye = torch.eye(shape[1] * shape[2], dtype=torch.float64)
    for k in range(shape[0]):
        assert torch.allclose(c[k, :, :, k].reshape(len(eye), -1), eye, atol=1e-12)
    assert float(noise.dense().diagonal(shape[1] * shape[2]).abs().max()) > 0.3  # and it is carried along


@pytest.mark.parametrize("degrade", [0.0, 0.4])
@pytest.mark.parametrize("shape", [(3, 6, 5), (6, 14, 14)])
def test_the_operations_are_those_of_the_matrix(shape, degrade):
    noise = Warped(wild(*shape), degrade)
    n, c = math.prod(shape), noise.dense()
    units = torch.eye(n, dtype=torch.float64).reshape(n, 1, *shape)
    root = noise.color(units).reshape(n, n)  # rows are R e_i: R^T
    assert torch.allclose(root.mT @ root, c, atol=3e-5)
    assert torch.allclose(noise.matvec(units).reshape(n, n), c, atol=1e-12)
    if not degrade:
        return
    x = torch.randn(4, 2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(noise.whiten(noise.color(x)), x, atol=1e-3)
    assert torch.allclose(noise.matvec(noise.solve(x)), x, atol=1e-3)
    expected = torch.einsum("bci,ij,bcj->b", x.flatten(2), torch.linalg.inv(c), x.flatten(2))
    assert torch.allclose(noise.mahalanobis(x), expected, rtol=1e-3)
    assert noise.logdet((2, *shape)) == pytest.approx(2 * float(torch.logdet(c)))


@pytest.mark.parametrize("degrade", [0.0, 0.5])
def test_samples_have_that_covariance(degrade):
    noise = Warped(wild(4, 5, 5), degrade)
    x = noise.sample((20_000, 1, 4, 5, 5), torch.Generator().manual_seed(0), torch.float64).flatten(1)
    error = (x.mT @ x / len(x) - noise.dense()).abs().max()
    assert float(error) < 5 * math.sqrt(2 / len(x))  # five standard errors of a variance
    assert float((x**4).mean()) == pytest.approx(3, abs=0.05)


def test_degraded_noise_is_mixed_with_white_noise():
    flow, gamma = wild(4, 6, 6), 0.3
    kept, mixed = (1 - gamma) ** 2, gamma**2
    expected = (kept * Warped(flow).dense() + mixed * torch.eye(144, dtype=torch.float64)) / (kept + mixed)
    assert torch.allclose(Warped(flow, gamma).dense(), expected)
    floored = Warped(flow).floored(0.2)
    assert torch.allclose(floored.dense(), 0.8 * Warped(flow).dense() + 0.2 * torch.eye(144, dtype=torch.float64))


def test_uncovered_pixels_get_fresh_noise():
    flow = torch.zeros(3, 2, 8, 14, dtype=torch.float64)
    for k in range(3):  # an object of 3 pixels moves right by 3 pixels a frame over a background at rest
        flow[k, 0, 2:5, 1 + 3 * k : 4 + 3 * k] = 3.0
    c = matrix(Warped(flow))
    assert not c[1, 2:5, 1:4, 0].any()  # uncovered in frame 1
    assert float(c[3, 3, 2, 1, 3, 2]) == pytest.approx(1)  # and at rest since then
    assert float(c[1, 3, 0, 0, 3, 0]) == pytest.approx(1)  # the background beside it
    # where the object covers the background, both areas count
    assert float(c[1, 3, 5, 0, 3, 2]) == pytest.approx(math.sqrt(0.5))
    assert float(c[1, 3, 5, 0, 3, 5]) == pytest.approx(math.sqrt(0.5))


def test_a_zoom_divides_the_noise_of_a_pixel():
    x = torch.arange(8, dtype=torch.float64) - 3.5
    flow = torch.stack([x.expand(8, 8), x[:, None].expand(8, 8)])[None]  # twice as large about the centre
    c = matrix(Warped(flow))[1, :, :, 0]
    expected = torch.zeros(8, 8, 8, 8, dtype=torch.float64)
    for i in range(8):
        for j in range(8):
            expected[i, j, 2 + i // 2, 2 + j // 2] = 0.5  # a quarter of the pixel: its root
    assert torch.allclose(c, expected, atol=1e-12)


def test_a_static_clip_and_a_single_frame():
    x = Warped(torch.zeros(4, 2, 16, 20)).sample((2, 3, 5, 16, 20))
    assert torch.equal(x[:, :, :1].expand_as(x), x)
    one = Warped(torch.zeros(0, 2, 6, 6))
    z = torch.randn(2, 1, 1, 6, 6)
    assert torch.allclose(torch.eye(36, dtype=torch.float64), one.dense())
    assert float(one.color(z).var()) == pytest.approx(float(z.var()), rel=1e-4)


def test_it_goes_through_the_process_and_its_config():
    noise = Warped(wild(6, 16, 16), 0.25)
    again = orn.noise.from_config(orn.noise.to_config(noise))
    assert again == noise
    p = orn.Process(orn.schedules.Cosine(), noise=Warped(wild(6, 16, 16)))
    x0, z = torch.zeros(2, 1, 6, 16, 16), torch.randn(2, 1, 6, 16, 16)
    assert torch.allclose(p.add_noise(x0, 1.0, z), p.noise.color(z), atol=1e-4)


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        (torch.zeros(3, 3, 8, 8), r"flow is \(F - 1, 2, H, W\)"),
        (torch.zeros(2, 8, 8), r"flow is \(F - 1, 2, H, W\)"),
        (torch.full((3, 2, 8, 8), math.nan), "not finite"),
    ],
)
def test_a_flow_that_is_none_is_refused(flow, message):
    with pytest.raises(ValueError, match=message):
        Warped(flow)


def test_what_it_cannot_do_is_said():
    noise = Warped(shift(6, 16, 16, 1.0, 0.0))
    for call in (noise.whiten, noise.solve, noise.mahalanobis):
        with pytest.raises(SingularCovarianceError, match=r"Warped\(6x16x16\) is singular"):
            call(torch.zeros(1, 1, 6, 16, 16))
    with pytest.raises(SingularCovarianceError):
        noise.logdet((1, 6, 16, 16))
    with pytest.raises(ValueError, match="no fast determinant"):
        Warped(torch.zeros(7, 2, 32, 32), 0.5).logdet((1, 8, 32, 32))
    for shape in ((1, 1, 6, 16, 15), (6, 16, 16), (1, 1, 5, 16, 16)):
        with pytest.raises(ValueError, match="last three axes"):
            noise.color(torch.zeros(shape))
        with pytest.raises(ValueError, match="last three axes"):
            noise.sample(shape)
    with pytest.raises(ValueError, match="degrade"):
        Warped(torch.zeros(3, 2, 4, 4), 1.0)

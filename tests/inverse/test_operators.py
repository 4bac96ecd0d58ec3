"""Operators against their adjoints, matrices and pseudo-inverses."""

import math

import pytest
import torch
from torch import Tensor

from ornstein.inverse import (
    JPEG,
    Blur,
    Cut,
    Grey,
    Mask,
    Matrix,
    Operator,
    Stacked,
    downsampling,
    known_frames,
    radon,
    sensing,
)

KERNEL = torch.tensor([[0.1, 0.2, 0.0], [0.0, 0.4, 0.1], [0.05, 0.1, 0.05]])
OPERATORS: dict[str, Operator] = {
    "mask": Mask(torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) < 0.5, (3, 8, 8)),
    "blur": Blur(KERNEL, (3, 8, 8)),
    "area": downsampling(2, (3, 8, 8)),
    "bicubic": downsampling(4, (3, 8, 8), "bicubic"),
    "grey": Grey((3, 8, 8)),
    "sensing": sensing(20, (3, 4, 4)),
    "radon": radon(7, (1, 8, 8)),
    "frames": known_frames([0, -1], (1, 4, 6, 6)),
    "chain": downsampling(2, (1, 8, 8)) @ Grey((3, 8, 8)),
    "cut": Cut(1, 0, 3, 4, (3, 6, 6)),
    "cut of frames": Cut(1, 0, 3, 4, (1, 5, 6, 6), frames=(2, 2)),
    "stacked": Stacked(
        downsampling(2, (3, 2, 4, 4)) @ Cut(0, 2, 4, 4, (3, 5, 6, 6), frames=(3, 2)),
        known_frames([0], (3, 5, 6, 6)),
        3.0,
    ),
    "jpeg": JPEG(60, (3, 16, 16)),
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", OPERATORS)
def test_the_adjoint_is_the_transpose(name: str) -> None:
    A = OPERATORS[name]
    x, y = draw(3, *A.shape), draw(3, *A.measured, seed=1)
    left, right = (A.linear(x) * y).flatten(1).sum(1), (x * A.adjoint(y)).flatten(1).sum(1)
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        A.linear(2 * x + draw(3, *A.shape, seed=2)), 2 * A.linear(x) + A.linear(draw(3, *A.shape, seed=2))
    )


@pytest.mark.parametrize("name", [name for name, A in OPERATORS.items() if A.diagonalisable])
def test_the_pseudo_inverse_and_functions_of_the_gram_matrix(name: str) -> None:
    A = OPERATORS[name]
    x, y = draw(2, *A.shape), draw(2, *A.measured, seed=1)
    torch.testing.assert_close(A.linear(A.pinv(A.linear(x))), A.linear(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(A.gram(y, lambda k: k), A.linear(A.adjoint(y)), rtol=1e-8, atol=1e-8)
    least = A.pinv(A.linear(x))  # of all that explain y it is the smallest
    assert bool((least.flatten(1).norm(dim=1) <= x.flatten(1).norm(dim=1) + 1e-9).all())


def test_a_blur_is_a_periodic_convolution() -> None:
    A, x = OPERATORS["blur"], draw(1, 3, 8, 8)
    expected = torch.zeros_like(x)
    for i in range(3):
        for j in range(3):
            expected += float(KERNEL[i, j]) * x.roll((i - 1, j - 1), (2, 3))
    torch.testing.assert_close(A.linear(x), expected)


def test_smaller_pictures_are_means_and_grey_is_the_luma() -> None:
    x = draw(1, 3, 8, 8)
    torch.testing.assert_close(OPERATORS["area"].linear(x), torch.nn.functional.avg_pool2d(x, 2))
    luma = 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]
    torch.testing.assert_close(OPERATORS["grey"].linear(x), luma)


def test_a_cut_and_a_stack_are_parts_of_the_clip() -> None:
    x = draw(2, 3, 5, 6, 6)
    part = Cut(1, 0, 3, 4, (3, 5, 6, 6), frames=(2, 2))
    assert torch.equal(part.linear(x), x[:, :, 2:4, 1:4, :4])
    y = Stacked(Grey((3, 5, 6, 6)), part, 2.0).linear(x)
    luma = 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    torch.testing.assert_close(y, torch.cat([luma.flatten(1), 2 * x[:, :, 2:4, 1:4, :4].flatten(1)], 1))


def test_a_projection_has_the_mass_of_the_picture() -> None:
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    x[..., 3:5, 3:5] = draw(1, 1, 2, 2).abs()
    views = OPERATORS["radon"].linear(x).reshape(7, 8)
    torch.testing.assert_close(views.sum(1), (x.sum() / 8).expand(7), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mask(torch.ones(7, 8), (3, 8, 8)), "the mask has sizes"),
        (lambda: Mask(torch.full((8, 8), 0.5), (3, 8, 8)), "0 and 1"),
        (lambda: Blur(torch.ones(9, 9), (1, 8, 8)), "larger than the picture"),
        (lambda: downsampling(3, (1, 8, 8)), "cannot be divided by 3"),
        (lambda: Grey((1, 8, 8)), "3 weights do not fit"),
        (lambda: Matrix(torch.ones(2, 5), (6,)), "6 columns"),
        (lambda: downsampling(2, (3, 8, 8)) @ Grey((3, 8, 8)), "the outer operator takes"),
        (lambda: OPERATORS["area"].check(torch.zeros(1, 3, 8, 8)), "but y has"),
        (lambda: OPERATORS["area"].check(torch.full((1, 3, 4, 4), math.nan)), "not finite"),
        (lambda: known_frames([4], (1, 4, 6, 6)), "frames 0 to 3"),
        (lambda: Cut(0, 0, 6, 6, (1, 4, 6, 6), frames=(3, 2)), "2 frames from 3 on"),
        (lambda: Cut(4, 0, 3, 6, (1, 6, 6)), "no part of"),
        (lambda: Stacked(OPERATORS["jpeg"], OPERATORS["jpeg"]), "that rounds"),
        (lambda: Stacked(OPERATORS["area"], OPERATORS["frames"]), "are of samples"),
    ],
)
def test_what_does_not_fit_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()

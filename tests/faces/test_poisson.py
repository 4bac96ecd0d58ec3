"""The membrane against harmonic functions and against the dense linear system."""

import pytest
import torch

from ornstein.faces.swap.poisson import membrane


def blob(size: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return ((x - 0.45 * size) / (0.3 * size)) ** 2 + ((y - 0.5 * size) / (0.35 * size)) ** 2 < 1


@pytest.mark.parametrize("size", [9, 64, 151])
def test_harmonic_functions_and_constants_are_reproduced(size: int) -> None:
    y, x = torch.meshgrid(torch.arange(size).double() / size, torch.arange(size).double() / size, indexing="ij")
    true = torch.stack([x * x - y * y, x * y + 0.3 * x, torch.full_like(x, 0.37)])  # of Laplacian 0
    inside = blob(size)
    given = torch.where(inside, torch.rand(size, size, generator=torch.Generator().manual_seed(0)), true)
    torch.testing.assert_close(membrane(given, inside), true, atol=2e-5, rtol=0)
    assert torch.equal(membrane(given, inside)[:, ~inside], true[:, ~inside])


def test_any_region_is_solved_as_by_the_dense_system() -> None:
    draw = torch.Generator().manual_seed(1)
    size = 14
    inside = torch.rand(size, size, generator=draw) < 0.7
    inside[:, 0] = inside[0] = True  # it reaches the border, where there is nothing to meet
    values = torch.randn(2, size, size, generator=draw, dtype=torch.float64)
    matrix, right = torch.eye(size * size, dtype=torch.float64), values.flatten(1).T.clone()
    for row in range(size):
        for column in range(size):
            if not inside[row, column]:
                continue
            here = row * size + column
            matrix[here, here] = 0
            right[here] = 0
            for r, c in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                if 0 <= r < size and 0 <= c < size:
                    matrix[here, here] += 1
                    matrix[here, r * size + c] -= 1
    expected = torch.linalg.solve(matrix, right).T.reshape(2, size, size)
    torch.testing.assert_close(membrane(values, inside), expected, atol=2e-5, rtol=0)


def test_regions_of_nothing_and_of_everything() -> None:
    values = torch.rand(3, 12, 12)
    assert torch.equal(membrane(values, torch.zeros(12, 12, dtype=torch.bool)), values)
    assert torch.equal(membrane(values, torch.ones(12, 12, dtype=torch.bool)), torch.zeros(3, 12, 12))

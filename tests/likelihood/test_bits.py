"""Bits per dimension: a uniform density over [-1, 1] is 8 bits, and so are 256 equal probabilities."""

import math

import pytest
import torch

from ornstein.likelihood import bits_per_dim


@pytest.mark.parametrize("shape", [(12,), (3, 2, 2), (5, 12), (5, 3, 2, 2), (5, 3, 2, 2, 1), (3, 2, 2, 1)])
def test_a_uniform_density_is_eight_bits(shape: tuple[int, ...]):
    nats = torch.full((5,), 12 * math.log(2))
    torch.testing.assert_close(bits_per_dim(nats, shape), torch.full((5,), 8.0).double())


def test_probabilities_have_no_offset():
    assert float(bits_per_dim(12 * math.log(256), (3, 2, 2), bins=None)) == pytest.approx(8)
    assert float(bits_per_dim(12 * math.log(2), (3, 2, 2), bins=32)) == pytest.approx(5)


def test_a_mean_over_a_batch():
    assert float(bits_per_dim(12 * math.log(2), (64, 3, 2, 2))) == pytest.approx(8)


def test_bad_arguments():
    with pytest.raises(ValueError, match="could be one sample"):
        bits_per_dim(torch.zeros(3), (3, 8, 8))
    with pytest.raises(ValueError, match="at least 2 bins, got 1; None"):
        bits_per_dim(1.0, (3,), bins=1)
    for shape in ((), (3, 0)):
        with pytest.raises(ValueError, match="a shape is"):
            bits_per_dim(1.0, shape)

"""Addressed randomness: known answers of the generator, independence of batch and dtype, and the law of the draws."""

import math

import pytest
import torch

from ornstein.randomness import _philox, generator, normal


def words(counter: list[int], key: tuple[int, int]) -> list[str]:
    return [f"{int(w):08x}" for w in _philox([torch.tensor(c) for c in counter], key)]


def test_philox_known_answers():
    # The vectors published with the generator (Random123, kat_vectors, philox4x32 with 10 rounds).
    ones = 0xFFFFFFFF
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    assert words([0] * 4, (0, 0)) == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    assert words([ones] * 4, (ones, ones)) == ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]
    assert words(pi, (0xA4093822, 0x299F31D0)) == ["d16cfe09", "94fdcceb", "5001e420", "24126ea1"]


def test_normal_is_box_muller_of_the_addressed_words():
    z = normal((1, 4), seed=5, index=torch.tensor([7]), step=3, stream=2, dtype=torch.float64)
    u = [(int(w, 16) + 0.5) / 2**32 for w in words([0, 3, 7, 2], (5, 0))]
    expected = []
    for a, b in ((u[0], u[1]), (u[2], u[3])):
        radius = math.sqrt(-2 * math.log(a))
        expected += [radius * math.cos(2 * math.pi * b), radius * math.sin(2 * math.pi * b)]
    torch.testing.assert_close(z[0], torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(5,), (2, 3), (1, 3, 5), (3, 4, 2, 2)])
def test_a_row_does_not_depend_on_its_batch(shape: tuple[int, ...]):
    whole = normal((64, *shape), seed=11, index=torch.arange(64), step=4)
    alone = normal((1, *shape), seed=11, index=torch.tensor([7]), step=4)
    shuffled = normal((3, *shape), seed=11, index=torch.tensor([40, 7, 0]), step=4)
    assert torch.equal(alone[0], whole[7])
    assert torch.equal(shuffled, whole[[40, 7, 0]])


def test_every_part_of_the_address_matters():
    def draw(seed: int = 1, index: int = 0, step: int = 0, stream: int = 0) -> torch.Tensor:
        return normal((1, 1000), seed, torch.tensor([index]), step, stream, dtype=torch.float64)

    draws = [draw(), draw(seed=2), draw(seed=1 + 2**32), draw(index=1), draw(step=1), draw(stream=1)]
    assert torch.equal(draws[0], draw())
    correlation = torch.corrcoef(torch.cat(draws))
    assert (correlation - torch.eye(6, dtype=torch.float64)).abs().max() < 5 / math.sqrt(1000)


def test_float32_is_float64_cast():
    index = torch.arange(3)
    exact = normal((3, 7), 1, index, 2, dtype=torch.float64)
    assert torch.equal(normal((3, 7), 1, index, 2), exact.float())
    assert torch.equal(normal((3, 7), 1, index, 2, dtype=torch.bfloat16), exact.bfloat16())


def test_index_of_any_integer_type():
    index = torch.tensor([0, 3, 90000])
    expected = normal((3, 5), 1, index, 2)
    assert torch.equal(normal((3, 5), 1, index.int(), 2), expected)


def test_law_is_standard_normal():
    n = 200_000
    z = normal((4, n // 4), seed=0, index=torch.arange(4), step=0, dtype=torch.float64).flatten()
    # Moments 1 to 4 of a standard normal, each within 4 standard errors of n draws.
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((z**power).mean()) - moment) < 4 * math.sqrt(variance / n)
    # Kolmogorov-Smirnov: the largest gap of the distribution functions, 1.95/sqrt(n) at the 0.1% level.
    cdf = torch.special.ndtr(z.sort().values)
    steps = torch.arange(1, n + 1, dtype=torch.float64) / n
    assert float(torch.maximum(steps - cdf, cdf - steps + 1 / n).max()) < 1.95 / math.sqrt(n)


def test_neighbours_are_uncorrelated():
    n = 100_000
    z = normal((2, n), seed=9, index=torch.arange(2), step=0, dtype=torch.float64)
    for lag in (1, 2, 3, 4):
        assert abs(float((z[0, lag:] * z[0, :-lag]).mean())) < 4 / math.sqrt(n)
        assert abs(float((z[0, lag:] ** 2 * z[0, :-lag] ** 2).mean()) - 1) < 4 * math.sqrt(8 / n)
    assert abs(float((z[0] * z[1]).mean())) < 4 / math.sqrt(n)


def test_empty_shapes():
    assert normal((0, 3), 1, torch.arange(0), 0).shape == (0, 3)
    assert normal((2, 0), 1, torch.arange(2), 0).shape == (2, 0)


def test_index_must_fit_the_batch():
    with pytest.raises(ValueError, match="batch has 3"):
        normal((3, 2), 1, torch.arange(2), 0)


def test_generator_is_a_function_of_its_address():
    def draw(*address: int | str) -> torch.Tensor:
        return torch.rand(4, generator=generator(*address))  # pyright: ignore[reportArgumentType]

    assert torch.equal(draw(1, "train", 2), draw(1, "train", 2))
    others = [draw(1, "train", 3), draw(1, "data", 2), draw(2, "train", 2), draw(1, 2, "train"), draw(1)]
    assert not any(torch.equal(draw(1, "train", 2), other) for other in others)


def plain(shape: tuple[int, ...], seed: int, index: torch.Tensor, step: int, stream: int) -> torch.Tensor:
    """The same numbers, word by word and out of place: samples of a seed must never change."""
    count = math.prod(shape[1:])
    zero = torch.zeros(shape[0], (count + 3) // 4, dtype=torch.int64)
    c = [zero + torch.arange((count + 3) // 4), zero + step, zero + index[:, None], zero + stream]
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        high, low = [(p >> 32) & 0xFFFFFFFF for p in (p0, p1)], [p & 0xFFFFFFFF for p in (p0, p1)]
        c = [high[1] ^ c[1] ^ k0, low[1], high[0] ^ c[3] ^ k1, low[0]]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    u = [(w.double() + 0.5) / 2**32 for w in c]
    z = []
    for a, b in ((u[0], u[1]), (u[2], u[3])):
        radius = torch.sqrt(-2 * torch.log(a))
        z += [torch.cos(2 * math.pi * b) * radius, torch.sin(2 * math.pi * b) * radius]
    return torch.stack(z, -1).flatten(1)[:, :count].reshape(shape)


@pytest.mark.parametrize("shape", [(1, 3), (300, 5), (2, 140_001), (3, 2, 50, 7)])
def test_the_numbers_of_an_address_stay(shape: tuple[int, ...]):
    """In parts that fit the cache or not: to the last bit but one, which vector instructions may round."""
    index = torch.arange(3, 3 + shape[0])
    z = normal(shape, 2**40 + 5, index, 9, 4, dtype=torch.float64)
    torch.testing.assert_close(z, plain(shape, 2**40 + 5, index, 9, 4), rtol=1e-14, atol=1e-15)

import math

import pytest
import torch

from ornstein.evaluation import kernel
from ornstein.evaluation.kernel import kernel_distance


def draw(n, d, seed, mean=0.0, std=1.0):
    return mean + std * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_force(a, b):
    """The definition, pair by pair."""
    k = lambda x, y: (float(x @ y) / len(x) + 1) ** 3  # noqa: E731
    n, m = len(a), len(b)
    within_a = sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_b = sum(k(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_a + within_b - 2 * sum(k(x, y) for x in a for y in b) / (n * m)


def gaussian_distance(mean, std):
    """d^2 between N(0, 1) and N(mean, std^2) on the line: k = 1 + 3xy + 3(xy)^2 + (xy)^3 compares three moments."""
    moments = (mean, mean**2 + std**2, mean**3 + 3 * mean * std**2)
    return sum(w * (m - m0) ** 2 for w, m, m0 in zip((3, 3, 1), moments, (0, 1, 0), strict=True))


@pytest.mark.parametrize("block", [2**22, 7])
def test_the_estimate_is_the_definition_in_blocks_of_any_size(monkeypatch, block):
    monkeypatch.setattr(kernel, "_BLOCK", block)
    a, b = draw(9, 4, 0), draw(13, 4, 1, mean=0.5)
    assert kernel_distance(a, b).value == pytest.approx(brute_force(a, b), rel=1e-12)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.7, 1.0), (0.0, 1.5), (-0.4, 0.6)])
def test_it_is_unbiased_for_gaussians_at_any_number_of_images(mean, std):
    truth = gaussian_distance(mean, std)
    for n in (4, 32):
        values = torch.tensor(
            [kernel_distance(draw(n, 1, 2 * i), draw(n, 1, 2 * i + 1, mean, std), 1).value for i in range(500)],
            dtype=torch.float64,
        )
        assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / math.sqrt(len(values))


def test_its_error_covers_the_truth_and_falls_with_the_number_of_images():
    truth = gaussian_distance(0.5, 1.2)
    scores = [kernel_distance(draw(400, 1, 2 * i), draw(400, 1, 2 * i + 1, 0.5, 1.2)) for i in range(60)]
    within = sum(abs(s.value - truth) < 2 * s.error for s in scores)
    assert within >= 52  # 95 % and more: the error errs on the safe side
    spread = torch.tensor([s.value for s in scores]).std()
    assert spread < 1.15 * sum(s.error for s in scores) / len(scores) < 2.5 * spread
    small = [kernel_distance(draw(100, 1, 2 * i), draw(100, 1, 2 * i + 1, 0.5, 1.2)).error for i in range(60)]
    assert sum(small) > 1.5 * sum(s.error for s in scores)


def test_few_images_make_fewer_subsets():
    assert kernel_distance(draw(5, 2, 0), draw(50, 2, 1)).subsets == 2
    assert math.isnan(kernel_distance(draw(3, 2, 0), draw(50, 2, 1)).error)


def test_wrong_features_are_named():
    good = draw(5, 2, 0)
    with pytest.raises(ValueError, match=r"b must be \(N, D\) features of at least 2 images, got \(1, 2\)"):
        kernel_distance(good, good[:1])
    with pytest.raises(ValueError, match="differ in length: 2 against 1"):
        kernel_distance(good, good[:, :1])
    with pytest.raises(ValueError, match="a holds values that are not finite"):
        kernel_distance(good / 0, good)
    with pytest.raises(ValueError, match="at least one subset"):
        kernel_distance(good, good, 0)

import pytest
import torch

from ornstein.evaluation import precision
from ornstein.evaluation.precision import precision_recall


def line(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def draw(n, d, seed, mean=0.0):
    return mean + torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_definition(samples, real, k):
    def inside(points, centres):
        count = 0
        for p in points:
            for i, c in enumerate(centres):
                others = torch.cat([centres[:i], centres[i + 1 :]])
                radius = (others - c).norm(dim=1).sort().values[k - 1]
                if (p - c).norm() <= radius:
                    count += 1
                    break
        return count / len(points)

    return inside(samples, real), inside(real, samples)


def test_on_a_line_by_hand():
    # The nearest neighbour of every real point is at 1, so their support is [-1, 4] and [9, 12].
    real = line(0, 1, 2, 3, 10, 11)
    samples = line(-0.5, 3.9, 6, 9, 12.5, 100)
    found = precision_recall(samples, real, k=1)
    assert found.precision == 3 / 6
    # Balls of the samples: [-4.9, 3.9], [1.8, 6], [3.9, 8.1], [6, 12], [9, 16], [12.5, 187.5]: all real points
    assert found.recall == 1.0


def test_real_images_that_no_sample_reaches_cost_recall_alone():
    real = torch.cat([draw(60, 3, 0), draw(60, 3, 1, mean=30)])
    found = precision_recall(draw(120, 3, 2), real)
    assert found.recall <= 0.5 and found.precision > 0.8
    found = precision_recall(real, draw(120, 3, 2))
    assert found.precision <= 0.5 and found.recall > 0.8


@pytest.mark.parametrize("block", [2**22, 50])
@pytest.mark.parametrize("k", [1, 3])
def test_it_is_the_definition_in_blocks_of_any_size(monkeypatch, block, k):
    monkeypatch.setattr(precision, "_BLOCK", block)
    samples, real = draw(30, 4, 0, mean=0.8), draw(41, 4, 1)
    found = precision_recall(samples, real, k)
    assert (found.precision, found.recall) == by_definition(samples, real, k)


def test_the_same_set_is_all_precise_and_recalled_far_from_the_origin_too():
    x = draw(50, 6, 0, mean=1e6)
    found = precision_recall(x, x)
    assert (found.precision, found.recall) == (1.0, 1.0)


def test_copies_of_one_real_image_are_precise_and_recall_nothing_else():
    real = draw(80, 5, 0)
    found = precision_recall(real[:1].expand(80, -1), real)
    assert (found.precision, found.recall) == (1.0, 1 / 80)


def test_wrong_features_are_named():
    good = draw(5, 2, 0)
    with pytest.raises(ValueError, match=r"a must be \(N, D\) features of at least 4 images, got \(3, 2\)"):
        precision_recall(good[:3], good)
    with pytest.raises(ValueError, match="k must be at least 1"):
        precision_recall(good, good, k=0)
    with pytest.raises(ValueError, match="b holds values that are not finite"):
        precision_recall(good, good * torch.nan)

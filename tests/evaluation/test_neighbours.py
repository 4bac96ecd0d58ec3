import math

import pytest
import torch

from ornstein.evaluation import copy_report, flat_pixels, knn_agreement, nearest, nearest_distances, neighbours


def noise(n: int, seed: int, size: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 1, size, size), generator=generator, dtype=torch.uint8)


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.from_numpy(data.images / 8 - 1)[:, None].float(), torch.from_numpy(data.target)


def test_uint8_and_floats_are_on_one_scale():
    assert flat_pixels(torch.tensor([[0, 255]], dtype=torch.uint8)).tolist() == [[-1.0, 1.0]]
    black, white = torch.full((1, 3, 2, 2), -1.0), torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    assert nearest_distances(black, white).tolist() == [2.0]


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("block", [1, 70, 333, 10**6])
def test_nearest_is_brute_force_at_any_block_size(monkeypatch, block, exclude_self):
    monkeypatch.setattr(neighbours, "_BLOCK", block)
    a = noise(23, 0)
    b = a if exclude_self else noise(41, 1)
    gap = (a[:, None].double() - b[None].double()).flatten(2) / 127.5
    brute = gap.square().mean(2).sqrt()
    if exclude_self:
        brute.fill_diagonal_(math.inf)
    found = nearest(a, b, exclude_self)
    torch.testing.assert_close(found.distance, brute.min(1).values, rtol=1e-12, atol=0)
    assert torch.equal(found.index, brute.min(1).indices)


def test_an_image_is_its_own_neighbour_at_exactly_zero_unless_excluded():
    images = noise(50, 2)
    assert (nearest_distances(images, images) == 0).all()
    assert (nearest_distances(images, images, exclude_self=True) > 0).all()


def test_small_distances_survive_the_matrix_product():
    a = torch.full((1, 1, 8, 8), 0.9, dtype=torch.float64)
    b = a + 1e-9
    torch.testing.assert_close(nearest_distances(a, b), torch.tensor([1e-9], dtype=torch.float64), rtol=1e-6, atol=0)


def test_the_distance_matrix_is_never_held_whole(monkeypatch):
    monkeypatch.setattr(neighbours, "_BLOCK", 1000)
    largest = 0
    product = torch.addmm

    def watched(*args, **kwargs):
        nonlocal largest
        result = product(*args, **kwargs)
        largest = max(largest, result.numel())
        return result

    monkeypatch.setattr(torch, "addmm", watched)
    nearest(noise(300, 3), noise(400, 4))
    assert 0 < largest <= 1000


def test_knn_agreement_is_high_on_real_digits_and_falls_with_the_labels_asked_for():
    images, labels = digits()
    train, train_labels, test, test_labels = images[:1400], labels[:1400], images[1400:], labels[1400:]
    assert knn_agreement(test, test_labels, train, train_labels) > 0.94
    assert knn_agreement(test, (test_labels + 1) % 10, train, train_labels) < 0.03
    half = test_labels.clone()
    half[::2] = (half[::2] + 1) % 10
    assert 0.45 < knn_agreement(test, half, train, train_labels) < 0.52


def test_knn_agreement_takes_the_majority_of_k():
    train = torch.tensor([-0.1, 0.2, 0.3]).view(3, 1, 1, 1)
    labels = torch.tensor([7, 9, 9])
    sample = torch.zeros(1, 1, 1, 1)
    assert knn_agreement(sample, torch.tensor([7]), train, labels, k=1) == 1.0
    assert knn_agreement(sample, torch.tensor([9]), train, labels, k=3) == 1.0


def test_copy_report_tells_copies_from_new_images():
    images, _ = digits()
    train, test, fresh = images[:1000], images[1000:1400], images[1400:]
    honest = copy_report(fresh, train, test)
    assert honest.close_share < 0.05
    assert honest.duplicates == honest.test_duplicates == 0
    assert 0.9 < honest.sample_median / honest.test_median < 1.1
    assert 0 < honest.threshold < honest.test_q05 < honest.test_median
    assert 0 < honest.sample_q05 < honest.sample_median

    noisy_copies = train[:300] + 0.01 * torch.randn(300, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    copied = copy_report(torch.cat([noisy_copies, train[:100]]), train, test)
    assert copied.close_share == 1.0
    assert copied.duplicates == 100


def test_duplicates_count_as_close_even_where_the_data_set_has_doubles():
    train = noise(200, 5)
    test = torch.cat([train[:10], noise(90, 6)])
    report = copy_report(torch.cat([train[:30], noise(70, 7)]), train, test)
    assert report.threshold == 0
    assert (report.duplicates, report.test_duplicates, report.close_share) == (30, 10, pytest.approx(0.3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nearest(noise(2, 0), noise(2, 0, size=5)), r"differ in shape: \(1, 4, 4\) against \(1, 5, 5\)"),
        (lambda: nearest(noise(2, 0), noise(3, 0), exclude_self=True), "got 2 and 3"),
        (lambda: nearest(noise(1, 0), noise(1, 0), exclude_self=True), "two images"),
        (lambda: flat_pixels(torch.zeros(0, 1, 4, 4)), "non-empty"),
        (lambda: flat_pixels(torch.zeros(2, 4, dtype=torch.int64)), "int64"),
        (lambda: flat_pixels(torch.full((2, 4), torch.nan)), "not finite"),
        (lambda: knn_agreement(noise(2, 0), torch.zeros(3), noise(9, 0), torch.zeros(9)), "2 samples need labels"),
        (lambda: knn_agreement(noise(2, 0), torch.zeros(2), noise(4, 0), torch.zeros(4)), "k must lie between 1 and"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

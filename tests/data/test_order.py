import pytest
import torch

from ornstein.data import batch_indices
from ornstein.data.order import _permutation
from ornstein.errors import UserError


def test_every_epoch_is_a_permutation_and_no_two_are_alike() -> None:
    n, batch = 30, 8  # 15 batches = 4 epochs, whose borders fall inside batches
    read = torch.cat([batch_indices(n, batch, step, seed=3) for step in range(15)]).view(4, n)
    for epoch in read:
        assert sorted(epoch.tolist()) == list(range(n))
    assert len({tuple(epoch.tolist()) for epoch in read}) == 4


def test_a_step_needs_no_history() -> None:
    forwards = [batch_indices(100, 7, step, seed=1) for step in range(60)]
    _permutation.cache_clear()
    backwards = [batch_indices(100, 7, step, seed=1) for step in reversed(range(60))]
    assert all(torch.equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))


def test_seeds_give_different_orders() -> None:
    orders = {tuple(batch_indices(50, 50, 0, seed).tolist()) for seed in (0, 1, 2, -1, 2**63)}
    assert len(orders) == 5


@pytest.mark.parametrize("world", [2, 3, 4, 12])
@pytest.mark.parametrize("n", [5, 12, 50])  # 5: batches larger than the data
def test_processes_share_the_batch_of_one(n: int, world: int) -> None:
    for step in (0, 1, 17):
        whole = batch_indices(n, 12, step, seed=5)
        parts = [batch_indices(n, 12, step, seed=5, rank=r, world=world) for r in range(world)]
        assert all(len(part) == 12 // world for part in parts)
        assert torch.equal(torch.cat(parts), whole)


def test_a_batch_larger_than_the_data_repeats_nothing_within_an_epoch() -> None:
    indices = batch_indices(4, 10, 0, seed=0)
    assert indices.dtype == torch.int64 and indices.shape == (10,)
    assert sorted(indices[:4].tolist()) == sorted(indices[4:8].tolist()) == [0, 1, 2, 3]
    assert indices[8] != indices[9]


def test_the_order_is_random() -> None:
    # For a uniform permutation each of the 20 indices comes first in 1/20 of the epochs: chi-square, 19 degrees
    # of freedom, 0.999 quantile 43.8; the rank correlation with 0..n-1 has standard deviation 1/sqrt(n - 1).
    firsts = torch.bincount(torch.tensor([batch_indices(20, 20, k, 0)[0].item() for k in range(4000)]), minlength=20)
    assert ((firsts - 200.0) ** 2 / 200).sum() < 43.8
    order = batch_indices(10_000, 10_000, 0, seed=7).double()
    assert abs(torch.corrcoef(torch.stack([order, torch.arange(10_000.0).double()]))[0, 1]) < 4 / 100


def test_the_order_is_fixed_for_good() -> None:
    # A resumed run continues the order of the version that began it: these numbers may never change.
    assert batch_indices(10, 10, 0, seed=0).tolist() == PINNED[0]
    assert batch_indices(10, 10, 1, seed=2**40).tolist() == PINNED[1]


PINNED = [[0, 3, 5, 7, 9, 6, 2, 8, 1, 4], [4, 5, 7, 0, 2, 1, 9, 6, 8, 3]]


def test_an_indivisible_batch_is_the_users_to_mend() -> None:
    with pytest.raises(UserError, match="batch of 10 does not divide among 4 processes"):
        batch_indices(100, 10, 0, seed=0, world=4)


@pytest.mark.parametrize(
    "wrong", [{"n": 0}, {"batch": 0}, {"step": -1}, {"rank": 1}, {"rank": -1}, {"rank": 2, "world": 2}]
)
def test_wrong_arguments(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        batch_indices(**({"n": 10, "batch": 2, "step": 0, "seed": 0} | wrong))

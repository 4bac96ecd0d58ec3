"""The order of a streamed set."""

import numpy as np
import pytest
import torch

from ornstein.data.windows import RUN, WINDOW, Windows


def shards(*sizes: int) -> np.ndarray:
    return np.repeat(np.arange(len(sizes)), sizes)


def read(windows: Windows, count: int, batch: int, seed: int = 3) -> torch.Tensor:
    return torch.cat([windows.indices(batch, step, seed) for step in range(-(-count // batch))])[:count]


@pytest.mark.parametrize("sizes", [(5,), (64,), (65, 1, 700), (RUN * WINDOW,), (RUN * WINDOW * 2 + 1, 3, 129)])
def test_every_epoch_is_a_permutation_and_no_two_are_alike(sizes: tuple[int, ...]) -> None:
    windows, n = Windows(shards(*sizes)), sum(sizes)
    epochs = read(windows, 3 * n, batch=97).view(3, n)  # borders of windows and epochs fall inside batches
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.arange(n))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3
    assert not torch.equal(read(windows, n, batch=97, seed=4), epochs[0])


def test_a_step_needs_no_history_and_no_batch_size() -> None:
    windows = Windows(shards(9000, 4000, 1))
    forwards = [windows.indices(100, step, 1) for step in range(150)]
    fresh = Windows(shards(9000, 4000, 1))
    assert all(torch.equal(fresh.indices(100, step, 1), forwards[step]) for step in reversed(range(150)))
    assert torch.equal(read(windows, 15000, batch=37, seed=1), torch.cat(forwards))


def test_what_is_read_in_a_window_lies_in_pieces_of_the_shards() -> None:
    sizes = [1000] * 40
    windows = Windows(shards(*sizes))
    address, pieces = windows.pieces(100, 0, 0)
    assert address == (0, 0, 0) and pieces.shape == (WINDOW, 2)
    count = int((pieces[:, 1] - pieces[:, 0]).sum())
    first = windows.indices(count, 0, 0)
    assert torch.equal(first.sort().values, torch.from_numpy(np.sort(np.concatenate([np.arange(*p) for p in pieces]))))
    lengths = pieces[:, 1] - pieces[:, 0]
    assert lengths.max() <= RUN and lengths.min() >= 1000 // 16
    assert (pieces[:, 0] // 1000 == (pieces[:, 1] - 1) // 1000).all()  # none over the border of two shards
    # from all over: 128 of 640 runs leave hardly one of 40 shards out
    assert len(np.unique(pieces[:, 0] // 1000)) > 35
    # the address changes with the first step that begins in the next window
    following = [step for step in range(1, 200) if windows.pieces(100, step, 0)[0] != address]
    assert following[0] == -(-count // 100) and following == list(range(following[0], 200))


def test_a_batch_of_sorted_data_is_mixed() -> None:
    # ten classes one after the other, as archives are often made: runs are of one class, batches are not
    windows = Windows(shards(*[5000] * 10))
    batches = read(windows, 50_000, 250).view(200, 250) // 5000
    share = torch.stack([torch.bincount(batch, minlength=10) for batch in batches]) / 250
    # of 128 runs with probability 1/10 each, and of 250 samples: sqrt(0.09/128 + 0.09/250) = 0.033
    assert float((share - 0.1).abs().max()) < 6 * 0.033
    assert 0.5 < float((share - 0.1).square().mean().sqrt()) / 0.033 < 1.3


def test_the_order_is_fixed_for_good() -> None:
    # a resumed run continues the order of the version that began it: these numbers may never change
    windows = Windows(shards(150, 60))
    assert windows.indices(8, 0, 0).tolist() == PINNED[0]
    assert windows.indices(8, 30, 2**40).tolist() == PINNED[1]


PINNED = [[0, 94, 154, 34, 195, 3, 43, 138], [138, 136, 74, 173, 198, 75, 0, 117]]

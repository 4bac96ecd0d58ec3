"""The order in which a set is streamed: shuffled, a function of the step, and read in contiguous pieces."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ornstein.data.order import permutation

__all__ = ["RUN", "WINDOW", "Windows"]

RUN = 64  # contiguous samples: a piece that is worth a seek on a disk or a request on a network
WINDOW = 128  # runs that are shuffled together: 8,192 samples


class Windows:
    """The order of n samples in shards, epoch after epoch, as a function of the step.

    Each shard is cut into runs of up to 64 samples. An epoch is a permutation of all runs fixed by (seed, epoch); each
    128 consecutive runs are a window, whose samples are shuffled by (seed, epoch, window). So a batch has samples from
    up to 128 places of the whole set, no two epochs have the same windows, each sample is read once an epoch, and some
    thousand consecutive samples lie in 128 pieces.

    shards: int (n,), not descending: the archive of each sample.
    """

    def __init__(self, shards: np.ndarray) -> None:
        self.count = len(shards)
        first = np.concatenate([[0], np.flatnonzero(np.diff(shards)) + 1]).astype(np.int64)
        sizes = np.diff(np.append(first, self.count))
        pieces = -(-sizes // RUN)
        # piece j of k of a shard of s samples begins at its j s / k: no piece is much shorter than the others
        j = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        starts = np.repeat(first, pieces) + j * np.repeat(sizes, pieces) // np.repeat(pieces, pieces)
        self.bounds = np.append(starts, self.count)
        self._epoch = lru_cache(maxsize=2)(self._order_of_epoch)
        self._window = lru_cache(maxsize=3)(self._order_of_window)

    def indices(self, batch: int, step: int, seed: int) -> Tensor:
        """The samples of the global batch of `step`, int64 (batch,); it may run over windows and epochs."""
        rows, at = [], step * batch
        while at < (step + 1) * batch:
            epoch, place = divmod(at, self.count)
            starts = self._epoch(seed, epoch)[1]
            window = int(np.searchsorted(starts, place, side="right")) - 1
            order = self._window(seed, epoch, window)[place - starts[window] :]
            rows.append(order[: (step + 1) * batch - at])
            at += len(rows[-1])
        return torch.from_numpy(np.concatenate(rows))

    def pieces(self, batch: int, step: int, seed: int) -> tuple[tuple[int, int, int], np.ndarray]:
        """The address of the window in which `step` begins, and the bounds of its runs in their order, int64 (k, 2)."""
        epoch, place = divmod(step * batch, self.count)
        runs, starts = self._epoch(seed, epoch)
        window = int(np.searchsorted(starts, place, side="right")) - 1
        chosen = runs[window * WINDOW : (window + 1) * WINDOW]
        return (seed, epoch, window), np.stack([self.bounds[chosen], self.bounds[chosen + 1]], 1)

    def _order_of_epoch(self, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The runs of an epoch in their order, and the place in the epoch where each window begins."""
        runs = permutation(len(self.bounds) - 1, seed, epoch)
        ends = np.cumsum(self.bounds[runs + 1] - self.bounds[runs])
        return runs, np.concatenate([[0], ends[WINDOW - 1 : -1 : WINDOW]])

    def _order_of_window(self, seed: int, epoch: int, window: int) -> np.ndarray:
        chosen = self._epoch(seed, epoch)[0][window * WINDOW : (window + 1) * WINDOW]
        rows = np.concatenate([np.arange(int(self.bounds[i]), int(self.bounds[i + 1])) for i in chosen])
        return rows[permutation(len(rows), seed, epoch, window)]

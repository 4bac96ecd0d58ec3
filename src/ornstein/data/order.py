"""Which images make up a step: a function of the step, so that a resumed run needs no saved position."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ornstein.errors import UserError

__all__ = ["batch_indices", "permutation"]


def batch_indices(n: int, batch: int, step: int, seed: int, rank: int = 0, world: int = 1) -> Tensor:
    """The indices of the images that process `rank` of `world` trains on at `step`: int64 (batch / world,).

    The data are read epoch after epoch, each epoch a permutation of 0..n-1 fixed by (seed, epoch). The global
    batch of a step is the same for every `world`; rank r takes its r-th part of it, in order. A batch may
    be larger than n: it then runs over several epochs.

    Raises:
        UserError: `batch` does not divide among the processes.
        ValueError: other wrong arguments.
    """
    if n < 1 or batch < 1 or step < 0:
        raise ValueError(f"need n >= 1, batch >= 1 and step >= 0, not n={n}, batch={batch}, step={step}")
    if not 0 <= rank < world:
        raise ValueError(f"rank must lie in 0..{world - 1}, not {rank}")
    if batch % world:
        raise UserError(f"a batch of {batch} does not divide among {world} processes: use a multiple of {world}")
    share = batch // world
    start = step * batch + rank * share
    first, last = start // n, (start + share - 1) // n
    parts = []
    for epoch in range(first, last + 1):
        order = _permutation(n, seed, epoch)
        parts.append(order[max(start - epoch * n, 0) : start + share - epoch * n])
    return torch.from_numpy(np.concatenate(parts))


@lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch, as read-only."""
    order = permutation(n, seed, epoch)
    order.flags.writeable = False
    return order


def permutation(n: int, seed: int, *address: int) -> np.ndarray:
    """0..n-1 sorted by a 64-bit hash of (seed, *address, i): int64 (n,).

    A hash, not a library's generator: those may change from one version to the next, and a run that is resumed after
    an upgrade would see another order.
    """
    key = np.array([seed % 2**64], dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in address:
            key = _mix(_mix(key) + np.uint64(part % 2**64))
        hashes = _mix(key + np.arange(n, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return np.argsort(hashes, kind="stable").astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's output function, a bijection of 64 bits (Steele, Lea and Flood 2014, figure 17)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))

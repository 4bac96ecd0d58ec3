"""Which images make up a step, and which of them are mirrored: functions of the step, so that nothing is saved."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ornstein.errors import UserError

__all__ = ["batch_indices", "flip_rows", "permutation"]

_FLIP = 0x666C6970  # separates the draws of flips from those of the order


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


def flip_rows(images: Tensor, seed: int, step: int, first: int = 0) -> Tensor:
    """Mirror each image (B, ..., W) of a batch left to right with probability 1/2.

    Image b of the batch is row `first` + b of the global batch of `step`: whether it is mirrored is a function of
    (seed, step, row) alone, so that a resumed run mirrors the same images, on any number of processes. All frames of a
    clip are mirrored together.
    """
    rows = np.arange(first, first + len(images), dtype=np.uint64)
    flipped = torch.from_numpy(_hashes(rows, seed, _FLIP, step) >> np.uint64(63) == 1)
    flipped = flipped.to(images.device).view(-1, *[1] * (images.ndim - 1))
    return torch.where(flipped, images.flip(-1), images)


def permutation(n: int, seed: int, *address: int) -> np.ndarray:
    """0..n-1 sorted by a 64-bit hash of (seed, *address, i): int64 (n,).

    A hash, not a library's generator: those may change from one version to the next, and a run that is resumed after
    an upgrade would see another order.
    """
    return np.argsort(_hashes(np.arange(n, dtype=np.uint64), seed, *address), kind="stable").astype(np.int64)


def _hashes(rows: np.ndarray, seed: int, *address: int) -> np.ndarray:
    """A 64-bit hash of (seed, *address, row) for each of `rows`, uint64."""
    key = np.array([seed % 2**64], dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in address:
            key = _mix(_mix(key) + np.uint64(part % 2**64))
        return _mix(key + rows * np.uint64(0x9E3779B97F4A7C15))


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's output function, a bijection of 64 bits (Steele, Lea and Flood 2014, figure 17)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))

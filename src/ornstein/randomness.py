"""Addressed randomness: a draw is a function of where it is used, not of what was drawn before it.

Noise for sample `i` at step `k` comes from `(seed, i, k)` by a counter-based generator, so an image does not depend on
the size of the batch it was made in, on the device or the number of processes, and nothing has to be saved to resume.
"""

import hashlib
import math

import torch
from torch import Tensor

from ornstein.devices import float64_device

__all__ = ["generator", "normal"]

_MASK = 0xFFFFFFFF

# Counters that go through the generator together on a CPU: their words stay in its cache.
_BLOCKS = 32768


def _philox(counter: list[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Philox-4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): four 32-bit words a counter.

    Words are held in int64. The product of two of them wraps modulo 2^64, which leaves its 64 bits intact. A word that
    is only an operand of the next xor keeps the upper half of its product until that xor is masked. In the first two
    rounds each word depends on one index alone, and they broadcast; the others are in place.
    """
    c0, c1, c2, c3 = counter
    keys = [((key[0] + turn * 0x9E3779B9) & _MASK, (key[1] + turn * 0xBB67AE85) & _MASK) for turn in range(10)]
    for k0, k1 in keys[:2]:
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c2 = (((p1 >> 32) ^ c1) ^ k0) & _MASK, (((p0 >> 32) ^ c3) ^ k1) & _MASK
        c1, c3 = p1, p0
    c0, c1, c2, c3 = (c.contiguous() for c in torch.broadcast_tensors(c0, c1, c2, c3))
    p0, p1 = torch.empty_like(c0), torch.empty_like(c0)
    for k0, k1 in keys[2:]:
        torch.mul(c0, 0xD2511F53, out=p0)
        torch.mul(c2, 0xCD9E8D57, out=p1)
        torch.bitwise_right_shift(p1, 32, out=c0).bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(_MASK)
        torch.bitwise_right_shift(p0, 32, out=c2).bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(_MASK)
        c1, p1, c3, p0 = p1, c1, p0, c3
    return [c0, c1.bitwise_and_(_MASK), c2, c3.bitwise_and_(_MASK)]


def _box_muller(words: list[Tensor], out: Tensor) -> None:
    """Four normal numbers of each four words, into out (*, 4); computed in float64, in place."""
    u = [w.double().add_(0.5).mul_(2.0**-32) for w in words]  # in (0, 1): the logarithm is finite
    for j in (0, 2):
        radius = u[j].log_().mul_(-2).sqrt_()
        angle = u[j + 1].mul_(2 * torch.pi)
        out[..., j] = torch.cos(angle).mul_(radius)
        out[..., j + 1] = angle.sin_().mul_(radius)


def normal(
    shape: tuple[int, ...],
    seed: int,
    index: Tensor,
    step: int,
    stream: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """White noise z ~ N(0, I), row b addressed by (seed, stream, index[b], step).

    The same address gives the same numbers in any dtype (they are made in float64) and in any batch.

    Args:
        shape: (B, *).
        seed: of all draws.
        index: (B,) integers, the numbers of the samples; on any device.
        step: the number of the draw.
        stream: separates purposes.
        dtype, device: of the result.

    Raises:
        ValueError: index is not (B,).
    """
    if index.shape != shape[:1]:
        raise ValueError(f"index has shape {tuple(index.shape)}, but the batch has {shape[0]} samples")
    count, device = math.prod(shape[1:]), torch.device(device)
    made = float64_device(device)
    blocks = (count + 3) // 4
    rows = (index.to(made, torch.int64) & _MASK)[:, None]
    out = torch.empty(shape[0], blocks, 4, dtype=dtype, device=made)
    high, wide = (max(1, _BLOCKS // max(1, blocks)), _BLOCKS) if made.type == "cpu" else (shape[0], blocks)
    for top in range(0, shape[0], max(1, high)):
        for left in range(0, blocks, max(1, wide)):
            part = out[top : top + high, left : left + wide]
            counter = [
                torch.arange(left, left + part.shape[1], device=made)[None],
                torch.full((1, 1), step & _MASK, device=made),
                rows[top : top + high],
                torch.full((1, 1), stream & _MASK, device=made),
            ]
            _box_muller(_philox(counter, (seed & _MASK, (seed >> 32) & _MASK)), part)
    return out.flatten(1)[:, :count].reshape(shape).to(device)


def generator(seed: int, *address: int | str) -> torch.Generator:
    """A CPU generator for the given address, e.g. `generator(seed, "train", step)`: same address, same numbers."""
    digest = hashlib.blake2b(repr((int(seed), *address)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)

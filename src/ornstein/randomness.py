"""Addressed randomness: a draw is a function of where it is used, not of what was drawn before it.

Noise for sample `i` at step `k` comes from `(seed, i, k)` by a counter-based generator, so an image does not depend on
the size of the batch it was made in, on the device or the number of processes, and nothing has to be saved to resume.
"""

import hashlib

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def _philox(counter: list[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Philox-4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): four 32-bit words a counter.

    Words are held in int64; the product of two of them wraps modulo 2^64, which leaves its 64 bits intact.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return [c0, c1, c2, c3]


def normal(
    shape: tuple[int, ...],
    seed: int,
    index: Tensor,
    step: int,
    stream: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """White noise z ~ N(0, I) of `shape` (B, *), row b addressed by (seed, stream, index[b], step).

    Args: `index` (B,) integers, which samples these are; `step` which draw of theirs; `stream` separates purposes.
    The same address gives the same numbers in any dtype (they are made in float64) and in any batch.
    """
    if index.shape != shape[:1]:
        raise ValueError(f"index has shape {tuple(index.shape)}, but the batch has {shape[0]} samples")
    count = 1
    for n in shape[1:]:
        count *= n
    blocks = torch.arange((count + 3) // 4, device=device)
    words = _philox(
        [
            blocks.expand(shape[0], -1),
            torch.full((1, 1), step & _MASK, device=device),
            (index.to(device, torch.int64) & _MASK)[:, None],
            torch.full((1, 1), stream & _MASK, device=device),
        ],
        (seed & _MASK, (seed >> 32) & _MASK),
    )
    u = [(w.double() + 0.5) / 2**32 for w in words]  # in (0, 1): the logarithm is finite
    radius = [torch.sqrt(-2 * torch.log(u[0])), torch.sqrt(-2 * torch.log(u[2]))]
    angle = [2 * torch.pi * u[1], 2 * torch.pi * u[3]]
    z = torch.stack([f(angle[j]) * radius[j] for j in (0, 1) for f in (torch.cos, torch.sin)], dim=-1)
    return z.flatten(1)[:, :count].reshape(shape).to(dtype)


def generator(seed: int, *address: int | str) -> torch.Generator:
    """A CPU generator for the given address, e.g. `generator(seed, "train", step)`: same address, same numbers."""
    digest = hashlib.blake2b(repr((int(seed), *address)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)

"""Nats per sample to bits per dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["bits_per_dim"]


def bits_per_dim(nats: Tensor | float, shape: Sequence[int], bins: int | None = 256) -> Tensor:
    """-log p(x_0) in nats per sample, as bits per dimension: nats/(N log 2) + log2(bins/2), N numbers a sample.

    Args:
        nats: minus a log-likelihood, a number or (B,): `-ode(d, x).value`, or the `total` of a bound.
        shape: of one sample, (N,) or (C, H, W), or of the batch, (B, N), (B, C, H, W) or (B, C, F, H, W). Four numbers
            are a clip (C, F, H, W) only if there are B nats and B is not the first of the four.
        bins: a density on data in [-1, 1] becomes the probability of one of `bins` equal bins of width 2/bins by the
            offset log2(bins/2): 7 bits for 8-bit pixels, so that a uniform density has 8 bits/dim. None for no offset:
            the nats are of a probability already (`vlb` with the decoder "discrete" or "vdm"), or the bits of a density
            are wanted.

    Raises:
        ValueError: the shape is ambiguous, or there are fewer than 2 bins.
    """
    shape = tuple(int(n) for n in shape)
    value = torch.as_tensor(nats).to("cpu").double()
    if bins is not None and bins < 2:
        raise ValueError(f"a pixel has at least 2 bins, got {bins}; None leaves the offset out")
    if not 1 <= len(shape) <= 5 or min(shape) < 1:
        raise ValueError(f"a shape is (N,), (C, H, W), or one of a batch, got {shape}")
    fits = value.ndim == 1 and shape[:1] == tuple(value.shape)
    if len(shape) == 3 and fits and shape[0] > 1:
        raise ValueError(
            f"{shape} could be one sample (C, H, W) or a batch of {shape[0]}; write {(1, *shape)} for the one"
        )
    batched = len(shape) in (2, 5) or (len(shape) == 4 and (fits or value.ndim == 0))
    size = math.prod(shape[1:] if batched else shape)
    return value / (size * math.log(2)) + (0.0 if bins is None else math.log2(bins / 2))

"""An autoregressive model with an exact likelihood, log p(x) = sum_i log p(x_i | x_<i), pixel by pixel or by patches.

By patches, the numbers of a patch are drawn at once given the earlier patches: fewer evaluations, and the dependence
inside a patch is lost (E35).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CausalTransformer", "dependence_loss", "from_levels", "raster", "to_levels"]

_WIDENING = 4


def to_levels(x: Tensor, levels: int) -> Tensor:
    """Numbers in [-1, 1] as the indices of `levels` equal bins, int64."""
    return ((x.double() + 1) * (levels / 2)).floor().clamp(0, levels - 1).long()


def from_levels(index: Tensor, levels: int) -> Tensor:
    """The centres of the bins, float32: k -> (2k + 1)/levels - 1."""
    return ((2 * index.double() + 1) / levels - 1).float()


def raster(shape: Sequence[int], patch: int = 1) -> Tensor:
    """The order in which the numbers of a sample are generated, as indices into the flattened sample, (N,).

    Row by row, the channels of a pixel one after another; by patches of `patch` pixels a side, each patch as a whole.
    Samples that are no images keep their own order, and a patch of theirs is `patch` numbers.

    Raises:
        ValueError: the sample cannot be divided into such patches.
    """
    index = torch.arange(math.prod(shape)).reshape(*shape)
    if any(side % patch for side in (shape if len(shape) == 1 else shape[1:])):
        raise ValueError(f"samples of {tuple(shape)} cannot be divided into patches of {patch}")
    if len(shape) == 1:
        return index
    channels, height, width = shape
    tiles = index.reshape(channels, height // patch, patch, width // patch, patch)
    return tiles.permute(1, 3, 2, 4, 0).flatten()


class _Layer(nn.Module):
    """Pre-norm self-attention and MLP; `cache` (2, B, heads, N, D) has keys and values of the tokens before `place`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, _WIDENING * width), nn.GELU(), nn.Linear(_WIDENING * width, width))

    def forward(self, h: Tensor, mask: Tensor | None, cache: Tensor | None = None, place: int = 0) -> Tensor:
        batch, count, width = h.shape
        q, k, v = self.qkv(self.norm1(h)).reshape(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if cache is not None:
            end = place + count
            cache[:, :, :, place:end] = torch.stack([k, v])
            k, v = cache[:, :, :, :end]
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        h = h + self.out(seen.transpose(1, 2).reshape(batch, count, width))
        return h + self.mlp(self.norm2(h))


class CausalTransformer(nn.Module):
    """Logits (B, N, levels) of each of N numbers given those before it, from their levels (B, N).

    Args:
        length: N.
        levels: values that a number can take.
        group: numbers that are generated at once; a divisor of N. A number sees the earlier groups only: the inputs are
            shifted by `group` places.
        width, depth, heads: of the transformer.

    Raises:
        ValueError: the group does not divide the length, or the heads the width.
    """

    def __init__(
        self, length: int, levels: int, group: int = 1, width: int = 64, depth: int = 3, heads: int = 4
    ) -> None:
        super().__init__()
        if length % group or width % heads:
            raise ValueError(f"group {group} must divide length {length}, and heads {heads} width {width}")
        self.length, self.levels, self.group = length, levels, group
        self.token = nn.Embedding(levels, width)
        self.start = nn.Parameter(0.02 * torch.randn(group, width))
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(depth))
        self.heads = heads
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, levels)
        block = torch.arange(length) // group
        self.mask: Tensor
        self.register_buffer("mask", block[:, None] >= block[None], persistent=False)

    @property
    def evaluations(self) -> int:
        """Evaluations of the network that a sample takes: N / group."""
        return self.length // self.group

    def forward(self, index: Tensor) -> Tensor:
        """All logits at once, (B, N, levels), from the true levels (B, N)."""
        shifted = self.token(index[:, : self.length - self.group])
        h = torch.cat([self.start.expand(len(index), -1, -1), shifted], 1) + self.place
        for layer in self.layers:
            h = layer(h, self.mask)
        return self.head(self.norm(h))

    def log_prob(self, index: Tensor) -> Tensor:
        """log p of the levels (B, N), (B,) float64 in nats: the sum of N true categorical log-probabilities."""
        logits = self(index).double()
        return torch.log_softmax(logits, -1).gather(2, index[..., None]).sum((1, 2))

    def sample(self, u: Tensor, cache: bool = True) -> tuple[Tensor, Tensor]:
        """Samples by the inverse distribution function of each number in turn.

        Args:
            u: (B, N) uniform numbers that decide the samples.
            cache: keep keys and values of earlier numbers; without it the whole prefix is computed again every time.

        Returns:
            Levels (B, N), and the sum of the logs of the probabilities that were drawn from, (B,) float64: log p by the
            chain rule, one factor at a time.
        """
        batch, group = len(u), self.group
        index = torch.zeros(batch, self.length, dtype=torch.long)
        total = torch.zeros(batch, dtype=torch.float64)
        heads, width = self.heads, self.place.shape[1]
        shape = (len(self.layers), 2, batch, heads, self.length, width // heads)
        caches = self.place.new_empty(shape) if cache else [None] * len(self.layers)
        for low in range(0, self.length, group):
            high = low + group
            if cache:
                before = self.token(index[:, low - group : low]) if low else self.start.expand(batch, -1, -1)
                h, mask = before + self.place[low:high], None
            else:
                before = self.token(index[:, :low])
                h = torch.cat([self.start.expand(batch, -1, -1), before], 1) + self.place[:high]
                mask = self.mask[:high, :high]
            for layer, kept in zip(self.layers, caches, strict=True):
                h = layer(h, mask, kept, low)
            log_p = torch.log_softmax(self.head(self.norm(h[:, -group:])).double(), -1)
            below = log_p.exp().cumsum(-1)
            drawn = (below < u[:, low:high, None].double() * below[..., -1:]).sum(-1).clamp(max=self.levels - 1)
            index[:, low:high] = drawn
            total += log_p.gather(2, drawn[..., None]).sum((1, 2))
        return index, total


def dependence_loss(joint: Tensor) -> Tensor:
    """What a patch loses if its numbers are drawn independently, in nats: sum_i H(x_i) - H(x) >= 0.

    It is the total correlation, the smallest KL divergence from the joint law to a product, reached by the product of
    the marginals: averaging within the patch (S4, 1.1).

    Args:
        joint: (L, ..., L) probabilities of the values of the numbers of a patch.

    Raises:
        ValueError: they are negative or do not sum to 1.
    """
    p = joint.double()
    if bool((p < 0).any()) or not abs(float(p.sum()) - 1) <= 1e-5:
        raise ValueError(f"a joint law has probabilities >= 0 that sum to 1, not to {float(p.sum()):.6g}")
    alone = [p.sum([d for d in range(p.ndim) if d != axis]) for axis in range(p.ndim)]
    return sum((_entropy(q) for q in alone), torch.zeros((), dtype=torch.float64)) - _entropy(p)


def _entropy(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p).sum()

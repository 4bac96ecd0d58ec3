"""Residual blocks, attention and norms: the building blocks of all networks on images."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ornstein.nets.conditions import Context

__all__ = [
    "Attention", "Block", "CrossAttention", "Stage", "attend", "group_norm", "heads_of", "largest_divisor", "zeroed",
]  # fmt: skip

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


class Block(nn.Module):
    """Residual block: norm, SiLU, (downsampling), 3x3 convolution, norm, SiLU, 3x3 convolution.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        embedding: width of the embedding (B, `embedding`) that modulates the second norm; 0 for a norm with a learned
            scale and shift instead.
        down: halve height and width.
        attention: add self-attention at the end.
        dropout: probability of dropping a feature before the last convolution.
        context: width of the tokens that a block with attention reads after itself; 0 for none.
        inner: channels between the two convolutions, by default those of the output; 0 leaves both out.
        shortcut: a convolution beside the block, by default where input and output differ.
        heads: of attention, by default of about 64 channels.
        attends, reads: widths of the queries of self-attention and of the attention to tokens, by default `outputs`; 0
            leaves it out.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        down: bool = False,
        attention: bool = False,
        dropout: float = 0.0,
        context: int = 0,
        *,
        inner: int | None = None,
        shortcut: bool | None = None,
        heads: int | None = None,
        attends: int | None = None,
        reads: int | None = None,
    ) -> None:
        super().__init__()
        inner = outputs if inner is None else inner
        shortcut = inputs != outputs if shortcut is None else shortcut
        self.down, self.inner = down, inner
        if inner:
            self.norm1 = group_norm(inputs)
            self.conv1 = nn.Conv2d(inputs, inner, 3, padding=1)
            self.modulation = nn.Linear(embedding, 2 * inner) if embedding else None
            self.norm2 = group_norm(inner, affine=not embedding)
            self.dropout = nn.Dropout(dropout)
            self.conv2 = zeroed(nn.Conv2d(inner, outputs, 3, padding=1))
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if shortcut else nn.Identity()
        self.attention = Attention(outputs, attends, heads) if attention and attends != 0 else nn.Identity()
        self.reading = CrossAttention(outputs, context, reads, heads) if attention and context and reads != 0 else None

    def forward(self, x: Tensor, embedding: Tensor | None = None, context: Context | None = None) -> Tensor:
        """(B, `inputs`, H, W) -> (B, `outputs`, H, W), or half the height and width."""
        h = self.shortcut(F.avg_pool2d(x, 2) if self.down else x)
        if self.inner:
            h = h + self._convolved(x, embedding)
        h = self.attention(h)
        return h if self.reading is None or context is None else self.reading(h, context)

    def _convolved(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        h = F.silu(self.norm1(x))
        if self.down:
            h = F.avg_pool2d(h, 2)
        h = self.norm2(self.conv1(h))
        if self.modulation is not None:
            scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        return self.conv2(self.dropout(F.silu(h)))


class Stage(nn.ModuleList):
    """The blocks of one resolution level of an encoder or decoder."""

    def forward(self, x: Tensor, embedding: Tensor | None = None, context: Context | None = None) -> Tensor:
        for block in self:
            x = block(x, embedding, context)
        return x


class Attention(nn.Module):
    """Self-attention over the pixels, added to its input (B, C, H, W).

    `width` of the queries is C by default, in `heads` of about 64 channels.
    """

    def __init__(self, channels: int, width: int | None = None, heads: int | None = None) -> None:
        super().__init__()
        width = channels if width is None else width
        self.heads = heads_of(channels) if heads is None else heads
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * width)
        self.out = zeroed(nn.Linear(width, channels))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v)
        return x + self.out(mixed.transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, x.shape[2:])


class CrossAttention(nn.Module):
    """Attention of the pixels (B, C, H, W) to tokens, added to its input; `width` and `heads` as of `Attention`."""

    def __init__(self, channels: int, context: int, width: int | None = None, heads: int | None = None) -> None:
        super().__init__()
        width = channels if width is None else width
        self.heads = heads_of(channels) if heads is None else heads
        self.norm = group_norm(channels)
        self.q = nn.Linear(channels, width)
        self.kv = nn.Linear(context, 2 * width)
        self.out = zeroed(nn.Linear(width, channels))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        tokens, bias = context
        q = self.q(self.norm(x).flatten(2).transpose(1, 2)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v, bias.to(q.dtype)).transpose(1, 2).flatten(2)
        return x + self.out(mixed).transpose(1, 2).unflatten(2, x.shape[2:])


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T + bias) v for q, k, v (..., heads, N, D); the bias broadcasts to (..., heads, N, N).

    The scale is 1/sqrt(D) unless given.
    """
    if q.device.type == "cpu":
        # PyTorch's fused kernel is up to 8 times slower than two matrix products here (bf16, backward)
        scores = q @ k.transpose(-1, -2)
        if scale != 1:
            scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
        return torch.softmax(scores if bias is None else scores + bias, dim=-1) @ v
    if q.ndim == 4:
        return F.scaled_dot_product_attention(q, k, v, bias, scale=scale)
    # of more axes, whose bias is the same for all: (heads, N, N)
    mixed = F.scaled_dot_product_attention(q.flatten(0, -4), k.flatten(0, -4), v.flatten(0, -4), bias, scale=scale)
    return mixed.unflatten(0, q.shape[:-3])


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit` (at least 1)."""
    return next(d for d in range(max(1, limit), 0, -1) if number % d == 0)


def heads_of(channels: int) -> int:
    """The number of heads of about 64 channels."""
    return largest_divisor(channels, channels // 64)


def group_norm(channels: int, affine: bool = True) -> nn.GroupNorm:
    """Up to 32 groups of at least 16 channels: narrower ones are 5 to 10 times slower on a CPU in bf16."""
    return nn.GroupNorm(largest_divisor(channels, min(32, channels // 16)), channels, affine=affine)


def zeroed(layer: Layer) -> Layer:
    """The layer with zero weights and bias."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer

"""The blocks that all networks on images are made of: residual blocks, attention, their norms."""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


class Block(nn.Module):
    """Residual block: norm, SiLU, (halving), 3x3 convolution, norm, SiLU, 3x3 convolution.

    The second norm is modulated by an embedding (B, `embedding`); with `embedding` 0 it has its own scale and shift.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        down: bool = False,
        attention: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.down = down
        self.norm1 = group_norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * outputs) if embedding else None
        self.norm2 = group_norm(outputs, affine=not embedding)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.attention = Attention(outputs) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = F.silu(self.norm1(x))
        if self.down:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        h = self.norm2(self.conv1(h))
        if self.modulation is not None:
            scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        h = self.conv2(self.dropout(F.silu(h)))
        return self.attention(self.shortcut(x) + h)


class Stage(nn.ModuleList):
    """The blocks of one level, on one side."""

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        for block in self:
            x = block(x, embedding)
        return x


class Attention(nn.Module):
    """Self-attention over the pixels, added to its input (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = largest_divisor(channels, channels // 64)
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if x.device.type == "cpu":
            # torch's fused kernel is up to 8 times slower than two matrix products here (bf16, backward)
            mixed = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, x.shape[2:])


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit` (at least 1)."""
    return next(d for d in range(max(1, limit), 0, -1) if number % d == 0)


def group_norm(channels: int, affine: bool = True) -> nn.GroupNorm:
    """Up to 32 groups of at least 16 channels: narrower ones cost 5 to 10 times as much on a CPU in bf16."""
    return nn.GroupNorm(largest_divisor(channels, min(32, channels // 16)), channels, affine=affine)


def zeroed(layer: Layer) -> Layer:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer

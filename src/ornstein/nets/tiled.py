"""Networks on larger samples than they were trained at: in tiles that overlap, whose outputs are blended."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Tiled", "blended_tiles"]


class Tiled(nn.Module):
    """A network whose input (B, *, H, W), of any size, goes through it tile by tile.

    The tiles have one size, that of the training, and cover the sample; neighbours share at least `overlap` pixels,
    over which the weights of their outputs change linearly and sum to 1. x_0, eps, score and v are affine in one
    another at a time, so blending one blends all: every prediction is the mean of those of the tiles. Memory is that
    of one tile and of the sample. Known frames are cut as the sample is.

    It suits noise that no covariance over pixels holds together: white noise, and noise over frames.

    Args:
        net: the network.
        tile: (height, width) of the tiles.
        overlap: pixels that neighbours share, below the sides of the tiles.

    Raises:
        ValueError: an overlap that is no such number.

    Source: Bar-Tal et al. 2023, MultiDiffusion (arXiv:2302.08113).
    """

    def __init__(self, net: nn.Module, tile: tuple[int, int], overlap: int) -> None:
        super().__init__()
        if not 0 <= overlap < min(tile):
            raise ValueError(f"tiles of {tile[0]}x{tile[1]} share 0 to {min(tile) - 1} pixels, not {overlap}")
        self.net, self.tile, self.overlap = net, tile, overlap

        @functools.wraps(net.forward)  # a denoiser reads the names of the conditions there
        def forward(x: Tensor, *args: Any, **cond: Any) -> Tensor:
            return self._blended(x, *args, **cond)

        self.forward = forward

    def __getattr__(self, name: str) -> Any:
        """What is not of this module is that of the network, such as its `config`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "net":
                raise
            return getattr(self.net, name)

    def _blended(self, x: Tensor, *args: Any, **cond: Any) -> Tensor:
        # what lies on the pixels of x is cut with it: as further channels
        beside = {k: v for k, v in cond.items() if isinstance(v, Tensor) and v.shape[:1] + v.shape[2:] == _others(x)}
        shared = {k: v for k, v in cond.items() if k not in beside}
        widths = [x.shape[1], *(v.shape[1] for v in beside.values())]

        def of_tile(part: Tensor) -> Tensor:
            own, *rest = part.split(widths, 1)
            return self.net(own, *args, **dict(zip(beside, rest, strict=True)), **shared)

        return blended_tiles(of_tile, torch.cat([x, *(v.to(x) for v in beside.values())], 1), self.tile, self.overlap)


def _others(x: Tensor) -> tuple[int, ...]:
    """The shape of x without its channels."""
    return (*x.shape[:1], *x.shape[2:])


def blended_tiles(function: Callable[[Tensor], Tensor], x: Tensor, tile: tuple[int, int], overlap: int) -> Tensor:
    """function(x) for x (*, H, W) of any size, in tiles of at most (height, width) `tile`, to bound the memory.

    A tile may come out larger by a whole factor, as an image does from latents. Neighbouring tiles share `overlap`
    places, over which their blend weights change linearly.
    """
    height, width = x.shape[-2:]
    if height <= tile[0] and width <= tile[1]:
        return function(x)
    total = weight = torch.empty(0)
    for top in _starts(height, tile[0], overlap):
        for left in _starts(width, tile[1], overlap):
            part = function(x[..., top : top + tile[0], left : left + tile[1]])
            factor = part.shape[-1] // min(tile[1], width - left)
            if not total.numel():
                total = part.new_zeros(*part.shape[:-2], height * factor, width * factor)
                weight = total.new_zeros(total.shape[-2:])
            rows = slice(top * factor, top * factor + part.shape[-2])
            columns = slice(left * factor, left * factor + part.shape[-1])
            down, across = (_fade(n, overlap * factor, part) for n in part.shape[-2:])
            fade = down[:, None] * across
            total[..., rows, columns] += part * fade
            weight[rows, columns] += fade
    return total / weight


def _starts(n: int, tile: int, overlap: int) -> list[int]:
    if n <= tile:
        return [0]
    count = math.ceil((n - overlap) / (tile - overlap))
    return [round(i * (n - tile) / (count - 1)) for i in range(count)]


def _fade(n: int, overlap: int, like: Tensor) -> Tensor:
    """Blend weights (n,) that rise over the first `overlap` and fall over the last; positive at the rim too."""
    ramp = torch.arange(1, n + 1, device=like.device, dtype=like.dtype)
    return torch.minimum(ramp, ramp.flip(0)).clamp(max=overlap + 1) / (overlap + 1)

"""Token merging: alike patches of a transformer go through each block as one."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ornstein.compress.caching import with_net
from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.nets import DiT
from ornstein.nets.dit import DiTBlock, Rotation

__all__ = ["MOST", "Merged", "merged"]

MOST = 0.75
"""The largest share of the tokens that can be merged: a quarter of them are what others merge into."""


class Merged(nn.Module):
    """A diffusion transformer in whose blocks a share `ratio` of the patches of each image, or frame, is merged.

    In each square of two by two patches the first is a target. Of the others, the `ratio` that are most alike one of
    the targets, by the cosine of their features, are averaged into it. The block computes on the rest, with the places
    of the targets, and what it adds to a target it adds to all that were averaged. Scores of attention get the
    logarithm of how many tokens a token stands for, so tokens that are equal, and whose places are, merge without
    error. Registers and the tokens of a text are left alone.

    Source: Bolya et al. 2022 (arXiv:2210.09461) and Bolya & Hoffman 2023 (arXiv:2303.17604), token merging.
    """

    places_conditions = True

    def __init__(self, net: DiT, ratio: float) -> None:
        super().__init__()
        self.net = copy.copy(net)
        self.net.__dict__ = {**net.__dict__, "_modules": dict(net._modules)}
        self.net.blocks = nn.ModuleList(_MergedBlock(block, ratio) for block in net.blocks)  # pyright: ignore[reportArgumentType]

        @functools.wraps(net.forward)  # a denoiser reads the names of the conditions there
        def forward(x: Tensor, *args: Any, **cond: Any) -> Tensor:
            rows, columns = (-(-side // net.patch) for side in x.shape[-2:])
            for block in self.net.blocks:
                assert isinstance(block, _MergedBlock)
                frames = x.shape[2] if net.frames and not net.factorised else 1
                block.grid = (frames, rows, columns)
            return self.net(x, *args, **cond)

        self.forward = forward

    @property
    def without(self) -> tuple[str, ...]:
        """Conditions that the network was made without."""
        return self.net.without


class _MergedBlock(nn.Module):
    def __init__(self, block: DiTBlock, ratio: float) -> None:
        super().__init__()
        self.block, self.ratio = block, ratio
        self.grid: tuple[int, int, int] = (1, 1, 1)  # frames, rows and columns of the patches

    def forward(self, x: Tensor, embedding: Tensor, rotation: Rotation, bias: Tensor | None = None) -> Tensor:
        """As `DiTBlock.forward`."""
        frames, rows, columns = self.grid
        patches = frames * rows * columns
        first = x.shape[1] - patches  # what has no place comes before the patches
        place = torch.arange(patches, device=x.device)
        target = (place // columns % rows % 2 == 0) & (place % columns % 2 == 0)
        into, others = first + place[target], first + place[~target]
        count = min(int(self.ratio * patches), len(others))
        if not count:
            return self.block(x, embedding, rotation, bias)
        unit = F.normalize(x.detach(), dim=-1)
        alike, nearest = (unit[:, others] @ unit[:, into].mT).max(-1)
        order = alike.argsort(-1, descending=True)
        gone, stay = others[order[:, :count]], others[order[:, count:].sort(-1).values]  # (B, ...)
        beside = torch.arange(first, device=x.device)
        kept = torch.cat([torch.cat([beside, into]).expand(len(x), -1), stay], 1)
        to = first + nearest.gather(1, order[:, :count])  # where they go among the kept ones
        size = torch.ones_like(kept, dtype=x.dtype).scatter_add(1, to, torch.ones_like(to, dtype=x.dtype))
        small = _rows(x, kept).scatter_add(1, to[..., None].expand(-1, -1, x.shape[2]), _rows(x, gone))
        small = small / size[..., None]
        scores = size.log()[:, None, None]
        if bias is not None:
            scores = scores + bias.expand(len(x), 1, 1, -1).gather(-1, kept[:, None, None])
        turned = Rotation(rotation.cosine[kept][:, None], rotation.sine[kept][:, None])
        added = self.block(small, embedding, turned, scores) - small
        source = torch.empty_like(kept[:, :1]).expand(-1, x.shape[1]).clone()  # of each token, which one it went with
        source.scatter_(1, kept, torch.arange(kept.shape[1], device=x.device).expand(len(x), -1))
        source.scatter_(1, gone, to)
        return x + _rows(added, source)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """The tokens (B, M, D) of x (B, N, D) at the places (B, M)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def merged(denoiser: Denoiser, ratio: float) -> Denoiser:
    """A denoiser for sampling whose transformer merges a share `ratio` of its patches in each block; 0 is exact.

    Raises:
        UserError: another network, or a ratio that is not from 0 to 0.75.
    """
    net = denoiser.net
    if type(net) is not DiT:
        raise UserError(f"tokens of a transformer (--net dit) are merged, and this {type(net).__name__} has none")
    if not 0 <= ratio <= MOST:
        raise UserError(f"a share of 0 to {MOST:g} of the tokens is merged, not {ratio:g}")
    return with_net(denoiser, Merged(net, ratio))

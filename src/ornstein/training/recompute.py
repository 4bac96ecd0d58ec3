"""Activation checkpointing: the blocks of a network are computed again in the backward pass, to keep less in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from ornstein.errors import UserError
from ornstein.sharding import blocks_of

__all__ = ["recomputed"]


@contextmanager
def recomputed(module: nn.Module) -> Iterator[None]:
    """Within it the blocks of `module` keep their inputs alone for the backward pass, and compute the rest again.

    The gradients are the same numbers, dropout included.

    Raises:
        UserError: the module has no blocks.
    """
    blocks = blocks_of(module)
    if not blocks:
        raise UserError(f"{type(module).__name__} has no blocks to compute again: leave out --recompute")
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward

"""Multiply-adds of a network, and the widths that meet a budget of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from ornstein.compress.groups import Group
from ornstein.errors import UserError

__all__ = ["TOLERANCE", "Build", "multiply_adds", "network_macs", "pruned_widths", "widths_for"]

TOLERANCE = 0.03
"""A budget is met to this share of it."""

# A CPU's convolutions compute 16 channels at once, and a GPU's 8: widths of whole such blocks cost what they count.
_UNITS = (16, 8, 4, 2, 1)
_TURNS = 4  # choices of the points at which widths are rounded, for each size of blocks
_HALVINGS = 14
_SPARED = 0.25  # share of the channels within blocks that is to be left if the streams between them keep theirs
_SPREAD = (math.sqrt(5) - 1) / 2

Build = Callable[[Mapping[str, int]], nn.Module]
"""Makes the network of the given widths."""


class _Counter(TorchDispatchMode):
    """Adds up the floating point operations of PyTorch's own table."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if func._overloadpacket is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:  # not in the table
            self.total += sdpa_flop_count(*(each.shape for each in args[:3]))
        elif formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out


def multiply_adds(run: Callable[[], object]) -> int:
    """Multiply-adds of the convolutions, matrix products and attention that `run` computes."""
    with torch.no_grad(), _Counter() as counter:
        run()
    return counter.total // 2


def network_macs(net: nn.Module, shape: Sequence[int]) -> int:
    """Multiply-adds of one evaluation of a network, (x, log_snr), on one sample of `shape`; on its own device."""
    device = next(net.parameters()).device
    x, log_snr = torch.zeros(1, *shape, device=device), torch.zeros(1, device=device)
    return multiply_adds(lambda: net(x, log_snr))


def pruned_widths(groups: Sequence[Group], ratio: float, unit: int = 1, turn: int = 0) -> dict[str, int]:
    """The widths at a share `ratio` of the channels, in multiples of `unit` where a group is that wide.

    Each group rounds at another point, spread evenly, so that the multiply-adds rise in small steps with `ratio`; with
    another `turn` at others.
    """
    widths: dict[str, int] = {}
    for k, group in enumerate(groups):
        step = group.parts
        if group.kind != "heads" and group.size >= 2 * unit * group.parts:
            step = unit * group.parts
        shift = (0.5 + _SPREAD * (k + turn)) % 1
        width = step * math.floor(ratio * group.size / step + shift)
        widths[group.name] = group.size if ratio >= 1 else min(max(width, step), group.size)
    return widths


def widths_for(
    groups: Sequence[Group],
    build: Build,
    shape: Sequence[int],
    budget: float,
    unit: int | None = None,
    whole: int | None = None,
) -> tuple[dict[str, int], int, int]:
    """The widths whose measured multiply-adds are within 3 % of `budget` times those of all channels.

    Bisection on the share of channels, first in blocks of 16 channels and then in finer ones until the budget is met:
    narrower blocks save multiply-adds, and no time (a convolution to 40 channels takes longer than one to 48). The
    streams that blocks add to keep their channels where a quarter of those within the blocks would meet the budget: all
    blocks read a stream, and each of the others is read by one.

    Args:
        groups: of the network.
        build: makes the network of some widths; it is called with PyTorch's "meta" device, so without memory.
        shape: of one sample.
        budget: share of the multiply-adds, in (0, 1).
        unit: keep to multiples of so many channels.
        whole: multiply-adds that the budget is a share of, by default those of all channels.

    Returns:
        Widths, multiply-adds with them, and `whole`.

    Raises:
        UserError: the budget cannot be met; the least and the nearest share are named.
    """

    known: dict[tuple[tuple[str, int], ...], int] = {}

    def cost(widths: Mapping[str, int]) -> int:
        key = tuple(sorted(widths.items()))
        if key not in known:
            with torch.device("meta"):
                known[key] = network_macs(build(widths).eval(), shape)
        return known[key]

    whole = cost({}) if whole is None else whole
    target = budget * whole
    least = cost(pruned_widths(groups, 0.0))
    if least > target * (1 + TOLERANCE):
        raise UserError(f"a budget of {budget:g} cannot be met: the least of this network is {least / whole:.3f}")
    nearest: tuple[dict[str, int], int] | None = None
    whole_streams = {group.name: group.size for group in groups if group.kind == "stream"}
    inner = [group for group in groups if group.name not in whole_streams]
    spared = bool(whole_streams and inner) and cost(pruned_widths(inner, _SPARED)) <= target
    choices = ((inner, whole_streams), (groups, {})) if spared else ((groups, {}),)
    for cut, kept in choices:
        for each, turn in itertools.product(_UNITS if unit is None else (unit,), range(_TURNS)):
            low, high = 0.0, 1.0
            for _ in range(_HALVINGS):
                ratio = (low + high) / 2
                widths = kept | pruned_widths(cut, ratio, each, turn)
                macs = cost(widths)
                if nearest is None or abs(macs - target) < abs(nearest[1] - target):
                    nearest = widths, macs
                if abs(macs - target) <= TOLERANCE / 2 * target:
                    break
                low, high = (ratio, high) if macs < target else (low, ratio)
            if nearest is not None and abs(nearest[1] - target) <= TOLERANCE * target:
                return *nearest, whole
    assert nearest is not None
    raise UserError(
        f"a budget of {budget:g} cannot be met to {TOLERANCE:.0%}: the nearest widths of this network need "
        f"{nearest[1] / whole:.3f}"
    )

"""The detail pass: a painted face that is shown larger than the model paints, enlarged by a small network in tiles."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ornstein.faces.swap.finishing import DetailNet, load

__all__ = ["enlarged"]

_TILE = 128  # pixels a side that go through the network at once, without their surroundings


@torch.no_grad()
def enlarged(picture: Tensor, times: int, share: float, net: nn.Module | None = None) -> Tensor:
    """A picture (3, H, W) in [0, 1] `times` as large, a power of 2: (3, H times, W times) in [0, 1].

    Each doubling is bicubic plus `share` of the network's correction. The correction has no low frequencies: reduced to
    the old size again, the picture is nearly the old one; the network adds edges and no features of another face.

    Raises:
        ValueError: `times` is no power of 2.
    """
    if times < 1 or times & (times - 1):
        raise ValueError(f"times must be a power of 2, not {times}")
    net = net or load("detail") if share > 0 and times > 1 else None
    for _ in range(times.bit_length() - 1):
        plain = F.interpolate(picture[None], scale_factor=2.0, mode="bicubic")[0]
        if net is not None:
            fine = _tiled(net, picture) - plain
            low = F.interpolate(F.avg_pool2d(fine[None], 2), scale_factor=2.0, mode="bilinear")[0]
            plain = plain + share * (fine - low)
        picture = plain.clamp(0, 1)
    return picture


def _tiled(net: nn.Module, picture: Tensor) -> Tensor:
    """The network's answer, made of tiles with as much around each as the network sees: the same as in one go."""
    _, height, width = picture.shape
    reach = DetailNet.REACH
    out = picture.new_empty(3, 2 * height, 2 * width)
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            bottom, right = min(top + _TILE, height), min(left + _TILE, width)
            above, before = max(top - reach, 0), max(left - reach, 0)
            part = picture[:, above : bottom + reach, before : right + reach]
            made = net(part[None])[0]
            rows, columns = 2 * (top - above), 2 * (left - before)
            out[:, 2 * top : 2 * bottom, 2 * left : 2 * right] = made[
                :, rows : rows + 2 * (bottom - top), columns : columns + 2 * (right - left)
            ]
    return out

"""What stands before a face (a hand, glasses, a microphone) is kept: how much of the face each pixel shows."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ornstein.faces.swap.colour import to_lab
from ornstein.faces.swap.finishing import load

__all__ = ["Uncovered", "odd_colours"]

_SURE, _NONE = 0.7, 0.3  # of the network's probability: above the one it is a face, below the other it is none
_RANGE = 3.0  # standard deviations of the skin's colour
_PARTS = 4  # of the crop's side that the classical mask takes the skin's colour from


class Uncovered:
    """How much of the face itself is seen in each pixel of an aligned crop.

    Args:
        method: "net", the network of `finishing`; "colour", colours that the face's skin does not have.
        run: the directory of the model, which may have a network of its own.

    Raises:
        UserError: there is no such network.
    """

    def __init__(self, method: str, run: Path | None = None) -> None:
        self._net: nn.Module | None = load("occlusion", run) if method == "net" else None

    @torch.no_grad()
    def __call__(self, crops: Tensor, hulls: Tensor) -> Tensor:
        """(N, 1, SIDE, SIDE) in [0, 1] of crops uint8 (N, 3, SIDE, SIDE) and their masks (N, 1, SIDE, SIDE)."""
        pictures = crops.float() / 255
        if self._net is None:
            return torch.stack([odd_colours(each, hull) for each, hull in zip(pictures, hulls, strict=True)])
        seen = self._net(pictures).sigmoid()
        return ((seen - _NONE) / (_SURE - _NONE)).clamp(0, 1)


def odd_colours(picture: Tensor, hull: Tensor) -> Tensor:
    """1 where the colour (a*, b*) is one of the face's skin, (1, S, S) of a picture (3, S, S) in [0, 1].

    The skin's colour is the median of the cheeks and the nose, its range their deviation from it. Brows, eyes and lips
    have other colours, and are given back by filling small holes. The baseline of the network.
    """
    lab = to_lab(picture.double())[1:]
    size = picture.shape[-1]
    middle = slice(size * 2 // _PARTS - size // 8, size * 2 // _PARTS + size // 6)
    cheeks = lab[:, middle, size // 4 : 3 * size // 4].flatten(1)
    median = cheeks.median(1).values
    spread = (cheeks - median[:, None]).abs().median(1).values.clamp_min(1.5) * 1.4826
    off = ((lab - median[:, None, None]) / spread[:, None, None]).norm(dim=0)
    odd = (off > _RANGE).float()[None, None]
    odd = F.avg_pool2d(odd, 9, 1, 4)
    odd = F.max_pool2d((odd > 0.6).float(), 9, 1, 4)  # what is left after small spots are taken away
    return (1 - F.avg_pool2d(odd, 5, 1, 2)[0] * (hull > 0)).float()

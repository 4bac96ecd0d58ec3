"""Which part of a face is repainted: its features by name, and a mask that reaches further or less far."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.faces.align import mask
from ornstein.faces.settings import FACE, REGIONS

__all__ = ["head", "hull", "region_weights"]

# The hull of `align.mask` in a crop of a face seen from the front: left, top, right, bottom, in shares of the side.
_LEFT, _TOP, _RIGHT, _BOTTOM = 0.2, 0.19, 0.8, 0.92
_SOFT = 0.25  # of a region's half axes: where it fades out
# In the frame of the eyes (their middle is 0, x to the picture's right, y down), in units of their distance: the middle
# of the region, and its half axes. The mouth and the base of the nose hang on the landmark of the latter.
_EYE, _BROW = ((0.0, 0.0), (0.32, 0.2)), ((0.0, -0.29), (0.4, 0.15))
_NOSE, _NOSE_BELOW = (0.3, 0.47), 0.1  # half axes; how far it goes below the landmark
_MOUTH, _MOUTH_BELOW = (0.58, 0.34), 0.43
_HEAD = ((0.0, -0.55), (1.45, 1.15))


def hull(landmarks: Tensor, size: int, padding: tuple[float, float, float, float] = (0, 0, 0, 0)) -> Tensor:
    """The mask of faces (N, 1, S, S), its edges moved outwards by `padding`: top, right, bottom, left.

    Args:
        landmarks: (N, 5, 2) in pixels of the crops.
        size: of the crops.
        padding: in shares of the side; negative ones move an edge inwards.
    """
    plain = mask(landmarks, size)
    if not any(padding):
        return plain
    top, right, bottom, left = padding
    axes = []
    for low, high, before, after in ((_LEFT, _RIGHT, left, right), (_TOP, _BOTTOM, top, bottom)):
        along = (torch.arange(size) + 0.5) / size
        axes.append(2 * (low + (along - (low - before)) * (high - low) / (high - low + before + after)) - 1)
    y, x = torch.meshgrid(axes[1], axes[0], indexing="ij")
    grid = torch.stack([x, y], -1)[None].expand(len(plain), -1, -1, -1)
    return F.grid_sample(plain, grid, mode="bilinear", align_corners=False)


def region_weights(landmarks: Tensor, size: int, regions: Collection[str]) -> Tensor:
    """How much of each pixel belongs to the named regions: (N, 1, S, S) in [0, 1].

    The regions part the crop: with all of `FACE` the weight is 1 everywhere. "hair" is a part of the head beyond the
    hull, and is 1 there.

    Args:
        landmarks: (N, 5, 2) in pixels of the crops.
        size: of the crops.
        regions: some of `REGIONS`.

    Raises:
        ValueError: an unknown region.
    """
    if wrong := set(regions) - set(REGIONS):
        raise ValueError(f"unknown regions: {', '.join(sorted(wrong))}")
    if set(FACE) <= set(regions):
        return torch.ones(len(landmarks), 1, size, size)
    parts = _features(landmarks, size)
    total = sum(parts.values())
    assert isinstance(total, Tensor)
    scale = 1 / total.clamp_min(1)
    chosen = torch.zeros(len(landmarks), size, size)
    for name in set(regions) & parts.keys():
        chosen = chosen + parts[name] * scale
    if "skin" in regions:
        chosen = chosen + (1 - total).clamp_min(0)
    return chosen.clamp(0, 1)[:, None]


def head(landmarks: Tensor, size: int) -> Tensor:
    """The upper head with its hair, (N, 1, S, S) in [0, 1]: above the eyes, beyond the hull."""
    return _oval(*_frame(landmarks.double(), size), *_HEAD)[:, None] * (1 - mask(landmarks, size))


def _frame(points: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The coordinates of each pixel (N, S, S, 2) in the frame of the eyes, and the base of the nose in it, (N, 2)."""
    right, left = points[:, 0:2].mean(1), points[:, 2:4].mean(1)
    # in profile the eyes come near to each other: the nose says how large the face is
    across = right - left
    apart = across.norm(dim=1, keepdim=True).clamp_min(1e-6)
    across = across / apart
    down = torch.stack([-across[:, 1], across[:, 0]], 1)
    middle = (right + left) / 2
    tall = ((points[:, 4] - middle) * down).sum(1, keepdim=True) / 0.74  # in LFW's mean face it is 0.74 eyes below
    unit = torch.maximum(apart, tall)

    def within(at: Tensor) -> Tensor:
        offset = (at - middle[:, None]) / unit[:, None]
        return torch.stack([(offset * across[:, None]).sum(-1), (offset * down[:, None]).sum(-1)], -1)

    along = torch.arange(size, dtype=torch.float64)
    y, x = torch.meshgrid(along, along, indexing="ij")
    pixels = torch.stack([x, y], -1).flatten(0, 1)[None].expand(len(points), -1, -1)
    return within(pixels).unflatten(1, (size, size)), within(points)


def _features(landmarks: Tensor, size: int) -> dict[str, Tensor]:
    at, points = _frame(landmarks.double(), size)
    eyes = [points[:, 0:2].mean(1), points[:, 2:4].mean(1)]
    nose = points[:, 4]

    def both(place: tuple[tuple[float, float], tuple[float, float]]) -> Tensor:
        (x, y), half = place
        offset = torch.tensor([x, y], dtype=torch.float64)
        return torch.maximum(*(_around(at, eye + offset, half) for eye in eyes))

    middle = torch.stack([nose[:, 0] * 0.8, nose[:, 1] + _NOSE_BELOW - _NOSE[1]], 1)
    mouth = torch.stack([nose[:, 0] * 0.9, nose[:, 1] + _MOUTH_BELOW], 1)
    return {
        "eyes": both(_EYE),
        "brows": both(_BROW),
        "nose": _around(at, middle, _NOSE),
        "mouth": _around(at, mouth, _MOUTH),
    }


def _around(at: Tensor, middle: Tensor, half: tuple[float, float]) -> Tensor:
    """1 inside an ellipse around `middle` (N, 2), falling to 0 at its edge: float32 (N, S, S)."""
    offset = (at - middle[:, None, None]) / torch.tensor(half, dtype=torch.float64)
    x = ((1 - offset.norm(dim=-1)) / _SOFT).clamp(0, 1)
    return (x * x * (3 - 2 * x)).float()


def _oval(at: Tensor, points: Tensor, middle: tuple[float, float], half: tuple[float, float]) -> Tensor:
    return _around(at, torch.tensor(middle, dtype=torch.float64).expand(len(points), -1), half)

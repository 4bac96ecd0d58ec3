"""Blending of a face crop into its photograph: outside the mask not a bit changes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.faces.align import Similarity, warp
from ornstein.faces.swap.poisson import membrane

__all__ = ["METHODS", "feather", "laplacian", "paste", "poisson"]

# Below half a grey level of the largest difference a mask changes nothing.
_LEAST = 0.5 / 255
# The Laplacian blend is taken in full where the mask is above this, and fades out below.
_FULL = 0.25


def paste(image: Tensor, face: Tensor, mask: Tensor, transform: Similarity, method: str = "laplacian") -> Tensor:
    """The picture with the aligned face pasted where its crop was taken.

    Where the mask is 0, every method returns the picture's own pixels.

    Args:
        image: uint8 (3, H, W).
        face: (3, S, S), uint8 or float in [0, 1].
        mask: (1, S, S) in [0, 1].
        transform: from the picture to the crop.
        method: "feather" weights by the mask; "laplacian" does so for each frequency band, over a width of its own
            (Burt and Adelson, "A Multiresolution Spline", 1983); "poisson" keeps the face's gradients where the mask
            is above a half and meets the picture's values around it (Perez et al., "Poisson Image Editing", 2003).

    Raises:
        ValueError: another method.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown: one of {', '.join(METHODS)}")
    left, top, right, bottom = _box(image, transform, mask.shape[-1])
    out = image.clone()
    if right <= left or bottom <= top:
        return out
    place = transform.inverse().then(Similarity(1, complex(-left, -top)))
    size = (bottom - top, right - left)
    scaled = face.float() if face.is_floating_point() else face.float() / 255
    new = warp(scaled, place, size).clamp(0, 1)
    weight = warp(mask, place, size, border="zero").clamp(0, 1)
    weight = torch.where(weight > _LEAST, weight, 0)
    old = image[:, top:bottom, left:right]
    blended = METHODS[method](old.float() / 255, new, weight)
    pixels = (blended * 255).round().clamp(0, 255).to(torch.uint8)
    out[:, top:bottom, left:right] = torch.where(weight > 0, pixels, old)
    return out


def feather(old: Tensor, new: Tensor, weight: Tensor) -> Tensor:
    """(1 - w) old + w new, all (C, H, W)."""
    return torch.lerp(old, new, weight)


def laplacian(old: Tensor, new: Tensor, weight: Tensor) -> Tensor:
    """Each octave of the two pictures mixed by the weight blurred to that octave; `old` where the weight is 0."""
    levels = max(int(math.log2(min(old.shape[1:]))) - 2, 0)
    low_old, low_new, low_weight = old[None], new[None], weight[None]
    bands: list[Tensor] = []
    for _ in range(levels):
        next_old, next_new = _halve(low_old), _halve(low_new)
        size = low_old.shape[2:]
        bands.append(torch.lerp(low_old - _enlarge(next_old, size), low_new - _enlarge(next_new, size), low_weight))
        low_old, low_new, low_weight = next_old, next_new, _halve(low_weight)
    mixed = torch.lerp(low_old, low_new, low_weight)
    for band in reversed(bands):
        mixed = _enlarge(mixed, band.shape[2:]) + band
    # The low octaves reach beyond the mask; they fade out before its rim instead of ending there.
    return torch.lerp(old, mixed[0], (weight / _FULL).clamp(0, 1))


def poisson(old: Tensor, new: Tensor, weight: Tensor) -> Tensor:
    """The new picture plus the membrane to the old one around where the weight is above 1/2, all (C, H, W)."""
    inside = weight[0] > 0.5
    return torch.where(inside, new + membrane(old - new, inside), old)


METHODS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "feather": feather,
    "laplacian": laplacian,
    "poisson": poisson,
}


def _halve(x: Tensor) -> Tensor:
    rows, columns = x.shape[2:]
    return F.interpolate(x, (-(-rows // 2), -(-columns // 2)), mode="bicubic", antialias=True)


def _enlarge(x: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(x, size, mode="bilinear")


def _box(image: Tensor, transform: Similarity, size: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the part of the picture that a crop of `size` pixels can reach."""
    corners = transform.inverse()(torch.tensor([[0, 0], [size, 0], [0, size], [size, size]]) - 0.5)
    low, high = corners.amin(0), corners.amax(0)
    left, top = low.floor().long().clamp_min(0).tolist()
    right, bottom = (high.ceil().long() + 1).tolist()
    return left, top, min(right, image.shape[2]), min(bottom, image.shape[1])

"""Rendered faces in the framing of photographs, for a model of photographs to begin on: the true swaps are known."""

from __future__ import annotations

import torch
from torch import Tensor

from ornstein.data import to_uint8
from ornstein.faces.align import Similarity, alignment, mask, warp
from ornstein.faces.dlib_net import chips, dlib_net
from ornstein.faces.photos import Photos
from ornstein.faces.shape import shape_of
from ornstein.faces.world.dataset import drawn_blocks
from ornstein.faces.world.landmarks import LANDMARKS
from ornstein.faces.world.views import Rendered, rendered

__all__ = ["FIVE", "framed", "framed_photos"]

FIVE = tuple(
    LANDMARKS.index(name)
    for name in ("right_eye_outer", "right_eye_inner", "left_eye_outer", "left_eye_inner", "nose_base")
)
"""The landmarks of the face world that are those of `align`, in its order."""
_ROOM = 1.5  # pixels of the render for one of the crop: a crop shows two thirds of a render's side, about


def framed(picture: Tensor, points: Tensor, size: int) -> tuple[Tensor, Tensor, Similarity]:
    """The crop (3, size, size), its five landmarks (5, 2) and the transform, as `faces prepare` would make them.

    Args:
        picture: (3, H, W).
        points: (5, 2), the landmarks in its pixels.
        size: side of the crop.
    """
    transform = alignment(points, size)
    return warp(picture, transform, (size, size)), transform(points).float(), transform


def framed_photos(n: int, size: int, seed: int, first: int = 0, shaped: bool = True) -> Photos:
    """Photos of the face world as photographs are framed, with the masks of these and dlib's embeddings.

    Blocks of 8 people in the same 8 states, as those of `world_photos`: the true result of a swap of two people of a
    block is the picture of one in the state of the other.

    Args:
        n: number of photos, a multiple of 64.
        size: side of the crops in pixels.
        seed, first: block k is a function of (seed, first + k).
        shaped: find the points of their shape, for models that need them.

    Raises:
        ValueError: n is not a positive multiple of 64.
        UserError: dlib's recogniser is not installed.
    """
    drawn = drawn_blocks(n, seed, first)
    net = dlib_net()

    def crops(out: Rendered) -> tuple[Tensor, ...]:
        five = out.landmarks[:, FIVE]
        images, points, _ = zip(*(framed(*each, size) for each in zip(out.image, five, strict=True)), strict=True)
        with torch.no_grad():
            embeddings = net(127.5 * (chips(out.image, five) + 1))
        places = torch.stack(points)
        masks = (255 * mask(places, size)).round().to(torch.uint8)
        small = torch.stack(images)
        points = (shape_of(127.5 * (small + 1), places),) if shaped else ()
        return to_uint8(small), masks, places, embeddings, *points

    images, masks, places, embeddings, *points = rendered(*drawn.looks, round(_ROOM * size), crops)
    return Photos(images, masks, places, drawn.person, embeddings, drawn.state, points=points[0] if shaped else None)

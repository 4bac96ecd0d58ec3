"""Swaps in the procedural face world, where the true answer is a picture: photos to learn from, and cases to judge."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.data import to_uint8
from ornstein.data.faces import attributes, identities, render
from ornstein.faces.photos import Photos

POINTS = 5  # of the world's landmarks: those that dlib gives of a photograph
_BLOCK = 8  # people in the same 8 states: 64 pictures hold 8 * 7 * 8 * 7 swaps whose answer is among them
_MARGIN = 0.08  # share of the side by which a swap may reach beyond the target's face: the source's may be wider
_SOURCES = 10_000_019  # states of the source pictures of cases, far from those of their targets


def region(mask: Tensor) -> Tensor:
    """Where a swap may paint, (B, 1, H, W) in [0, 1], given the target's face `mask`: a margin around it, softened."""
    reach = round(_MARGIN * mask.shape[-1])
    wide = F.max_pool2d(mask, 2 * reach + 1, 1, reach)
    soft = max(1, reach // 2)
    return F.avg_pool2d(wide, 2 * soft + 1, 1, soft, count_include_pad=False)


def world_photos(n: int, size: int, seed: int, first: int = 0) -> Photos:
    """`n` photos of the procedural world in blocks of 8 people in the same 8 states; the embeddings are who they are.

    Block k is a function of (seed, first + k). Raises ValueError unless n is a positive multiple of 64.
    """
    if n < 1 or n % _BLOCK**2:
        raise ValueError(f"photos of the face world come in blocks of {_BLOCK**2}, not {n}")
    blocks = n // _BLOCK**2
    people = identities(blocks * _BLOCK, seed, first * _BLOCK)
    states = attributes(blocks * _BLOCK, seed, first * _BLOCK)
    at = torch.arange(n)
    block, person, state = at // _BLOCK**2, at // _BLOCK % _BLOCK, at % _BLOCK
    person, state = block * _BLOCK + person, block * _BLOCK + state
    images, masks, landmarks = [], [], []
    for rows in at.split(256):
        out = render(people[person[rows]], states[state[rows]], size)
        images.append(to_uint8(out.image))
        masks.append((255 * region(out.mask)).round().to(torch.uint8))
        landmarks.append(out.landmarks[:, :POINTS])
    return Photos(torch.cat(images), torch.cat(masks), torch.cat(landmarks), person, people[person], state)


@dataclass(frozen=True)
class Cases:
    """Swaps whose answer is known, of people that were not trained on: person i, photographed once, into picture i.

    source, target, truth (N, 3, H, W) in [-1, 1]; mask (N, 1, H, W) where a swap may paint, by the target's face, and
    face, where the truth's face is; landmarks and source_landmarks (N, P, 2) of target and source, true_landmarks of
    the truth; people (N, K) who the sources are, states (N, A) what the targets do.
    """

    source: Tensor
    target: Tensor
    truth: Tensor
    mask: Tensor
    face: Tensor
    landmarks: Tensor
    source_landmarks: Tensor
    people: Tensor
    states: Tensor
    targets: Tensor


def cases(n: int, size: int, seed: int) -> Cases:
    """`n` unseen people to be put into `n` unseen states of `n` others, seen each in one picture of another state."""
    # a seed of its own, and so people that no training with another seed can have met
    people, targets = identities(n, seed), identities(n, seed, n)
    states, elsewhere = attributes(n, seed), attributes(n, seed, _SOURCES)
    source, target = render(people, elsewhere, size), render(targets, states, size)
    truth = render(people, states, size)
    return Cases(
        source.image,
        target.image,
        truth.image,
        region(target.mask),
        truth.mask,
        target.landmarks,
        source.landmarks,
        people,
        states,
        targets,
    )

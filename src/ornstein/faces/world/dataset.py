"""Swaps in the face world, whose true result can be rendered: photos for training, and cases for evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.data import to_uint8
from ornstein.faces.photos import Photos
from ornstein.faces.world.landmarks import LANDMARKS, SURFACE
from ornstein.faces.world.parameters import ATTRIBUTES, attributes, identities
from ornstein.faces.world.views import Rendered, render, rendered

__all__ = [
    "Blocks",
    "Cases",
    "Looks",
    "cases",
    "drawn_blocks",
    "mirror_order",
    "paintable",
    "points",
    "region",
    "world_photos",
]

_BLOCK = 8  # people in the same 8 states: 64 pictures hold 8 * 7 * 8 * 7 swaps whose true result is among them
_MARGIN = 0.1  # share of the side by which a swap may reach beyond the target's face: the source's may be wider
_SOURCES = 10_000_019  # states of the source pictures of cases, far from those of their targets
_PORTRAIT = 32  # pixels a side of the portraits that embeddings are of
_NUMBERS = 64  # of an embedding
_NEUTRAL = {"scale": 1.0, "light_y": 0.4, "light_power": 1.0, "ambient": 0.35}


def region(mask: Tensor) -> Tensor:
    """Where a swap may paint, (B, 1, H, W) of 0 and 1: the target's face `mask` and a margin around it.

    The edge is hard: the truth is known beyond the face as well, and a half-transparent second one would be wrong.
    """
    reach = round(_MARGIN * mask.shape[-1])
    return (F.max_pool2d(mask, 2 * reach + 1, 1, reach) > 0).to(mask.dtype)


def points(picture: Rendered) -> Tensor:
    """All points of rendered faces that a swap is told, (B, K, 2): landmarks, and those of the surface."""
    return torch.cat([picture.landmarks, picture.surface], 1)


def paintable(picture: Rendered) -> Tensor:
    """The `region` of rendered targets (B, 1, H, W): the head, also under hair: a source may have less of it."""
    return region(torch.maximum(picture.mask, picture.head))


class Looks:
    """Embeddings of people, 64 numbers: principal components of their portraits, from the front in a soft light.

    A component is divided by the square root of its standard deviation, half way to equal spread: large visible
    differences weigh most, and small ones are not lost. The embedding is computed from the renderer's description of a
    person, and takes the place of dlib's for photographs: a recogniser learns it from pictures.

    Args:
        people: (N, len(IDENTITY)), from whose portraits the components are taken.
    """

    def __init__(self, people: Tensor) -> None:
        pictures = self._portraits(people)
        self.mean = pictures.mean(0)
        _, spread, basis = torch.linalg.svd(pictures - self.mean, full_matrices=False)
        numbers = min(_NUMBERS, len(spread))
        scale = (spread[:numbers] / len(people) ** 0.5).clamp(min=1e-6).sqrt()
        self.basis = basis[:numbers] / scale[:, None]

    def __call__(self, people: Tensor) -> Tensor:
        """The embeddings (B, 64) of people (B, K)."""
        return (self._portraits(people) - self.mean) @ self.basis.T

    def _portraits(self, people: Tensor) -> Tensor:
        neutral = torch.tensor([_NEUTRAL.get(name, 0.0) for name in ATTRIBUTES])
        (portraits,) = rendered(people, neutral.expand(len(people), -1), _PORTRAIT, lambda out: (out.image,))
        return portraits.flatten(1)


@dataclass(frozen=True)
class Blocks:
    """Blocks of 8 people in the same 8 states: a picture of each person in each state.

    people, states: (N / 8, K) and (N / 8, A). person, state: (N,), whose picture it is and in which state.
    """

    people: Tensor
    states: Tensor
    person: Tensor
    state: Tensor

    @property
    def looks(self) -> tuple[Tensor, Tensor]:
        """Identity and attributes of each picture."""
        return self.people[self.person], self.states[self.state]


def drawn_blocks(n: int, seed: int, first: int = 0) -> Blocks:
    """The people and states of n pictures, a multiple of 64; block k is a function of (seed, first + k).

    Raises:
        ValueError: n is not a positive multiple of 64.
    """
    if n < 1 or n % _BLOCK**2:
        raise ValueError(f"photos of the face world come in blocks of {_BLOCK**2}, not {n}")
    rows = n // _BLOCK
    at = torch.arange(n)
    block, person, state = at // _BLOCK**2 * _BLOCK, at // _BLOCK % _BLOCK, at % _BLOCK
    people, states = identities(rows, seed, first * _BLOCK), attributes(rows, seed, first * _BLOCK)
    return Blocks(people, states, block + person, block + state)


def world_photos(n: int, size: int, seed: int, first: int = 0, looks: Looks | None = None) -> Photos:
    """Photos of the face world, in blocks of 8 people in the same 8 states, with their `Looks` as embeddings.

    Args:
        n: number of photos, a multiple of 64.
        size: side in pixels.
        seed, first: block k is a function of (seed, first + k).
        looks: the embedding; by default its components are those of all people of the photos.

    Raises:
        ValueError: n is not a positive multiple of 64.
    """
    drawn = drawn_blocks(n, seed, first)

    def small(out: Rendered) -> tuple[Tensor, ...]:
        masks = ((255 * each).round().to(torch.uint8) for each in (paintable(out), out.mask))
        return to_uint8(out.image), *masks, points(out)

    images, masks, shown, landmarks = rendered(*drawn.looks, size, small)
    embeddings = (looks or Looks(drawn.people))(drawn.people)[drawn.person]
    more = {"mirrored": mirror_order((*LANDMARKS, *SURFACE)), "shown": shown}
    return Photos(images, masks, landmarks, drawn.person, embeddings, drawn.state, **more)


def mirror_order(every: tuple[str, ...] = LANDMARKS) -> Tensor:
    """The landmark of the face world that each one is in a mirror, (K,): left and right change places."""
    other = {"right": "left", "left": "right"}
    names = ["_".join(other.get(word, word) for word in name.split("_")) for name in every]
    return torch.tensor([every.index(name) for name in names])


@dataclass(frozen=True)
class Cases:
    """Swaps whose true result is known, of people that were not trained on: source i, one picture, into target i.

    source, target, truth: renders. mask: (N, 1, H, W), where a swap may paint, by the target's head. people, targets:
    identities (N, K) of the sources and of the targets. states: attributes (N, A) of the targets.
    """

    source: Rendered
    target: Rendered
    truth: Rendered
    mask: Tensor
    people: Tensor
    targets: Tensor
    states: Tensor


def cases(n: int, size: int, seed: int) -> Cases:
    """`n` people to be put into `n` states of `n` others; each source is seen in one picture of another state.

    With a seed of its own, neither people nor states are in a training with another seed.
    """
    people, targets = identities(n, seed), identities(n, seed, n)
    states, elsewhere = attributes(n, seed), attributes(n, seed, _SOURCES)
    source, target = render(people, elsewhere, size), render(targets, states, size)
    truth = render(people, states, size)
    return Cases(source, target, truth, paintable(target), people, targets, states)

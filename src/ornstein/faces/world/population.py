"""A population of rendered faces as a training set, and the identification of the person in a picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.faces.world.parameters import attributes_at, identities_at
from ornstein.faces.world.views import LARGEST, SMALLEST, render

__all__ = ["FaceWorld", "nearest_identity"]


@dataclass(frozen=True)
class FaceWorld:
    """A set of pictures that are rendered when they are read: picture i shows person i // photos.

    Person p and the state of picture i are rows p and i of `identities` and `attributes` with the same seed, so a world
    of more people begins with the same ones if `photos` is the same.

    Args:
        people: their number.
        photos: pictures of each person.
        size: side of the pictures in pixels.
        seed: of people and states.

    Raises:
        ValueError: fewer than 1 person or photo, or a size outside 16..1024.
    """

    people: int
    photos: int
    size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.people < 1 or self.photos < 1:
            raise ValueError(f"people and photos must be at least 1, not {self.people} and {self.photos}")
        if not SMALLEST <= self.size <= LARGEST:
            raise ValueError(f"faces are rendered at {SMALLEST} to {LARGEST} pixels a side, not {self.size}")

    def __len__(self) -> int:
        return self.people * self.photos

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of each image."""
        return 3, self.size, self.size

    def batch(self, indices: Tensor | Sequence[int]) -> tuple[Tensor, Tensor]:
        """The pictures at `indices`, float32 (B, 3, H, W) in [-1, 1], and the people in them, int64 (B,)."""
        images = render(self.identity(indices), self.attributes(indices), self.size).image
        return images, self._rows(indices) // self.photos

    def identity(self, indices: Tensor | Sequence[int]) -> Tensor:
        """The people in the pictures at `indices`: (B, len(IDENTITY))."""
        return identities_at(self._rows(indices) // self.photos, self.seed)

    def attributes(self, indices: Tensor | Sequence[int]) -> Tensor:
        """The states in the pictures at `indices`: (B, len(ATTRIBUTES))."""
        return attributes_at(self._rows(indices), self.seed)

    def _rows(self, indices: Tensor | Sequence[int]) -> Tensor:
        rows = torch.as_tensor(indices, dtype=torch.int64, device="cpu")
        if rows.dim() != 1 or not len(rows):
            raise ValueError(f"indices must be a list of at least one number, not of shape {tuple(rows.shape)}")
        if rows.min() < 0 or rows.max() >= len(self):
            raise ValueError(f"there are pictures 0 to {len(self) - 1}: not {int(rows.min())} to {int(rows.max())}")
        return rows


def nearest_identity(images: Tensor, attributes: Tensor, candidates: Tensor) -> Tensor:
    """The candidate that each image shows, int64 (B,).

    Every candidate is rendered in the image's state; the least mean squared error inside its own face mask wins. The
    time is that of B N renderings.

    Args:
        images: (B, 3, H, H) in [-1, 1].
        attributes: the states of the images, (B, len(ATTRIBUTES)).
        candidates: (N, len(IDENTITY)).

    Raises:
        ValueError: other shapes.
    """
    if images.dim() != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise ValueError(f"images must be (B, 3, H, H), not {tuple(images.shape)}")
    if len(images) != len(attributes):
        raise ValueError(f"there are {len(images)} images, but attributes has {len(attributes)} rows")
    images, attributes = images.cpu(), attributes.cpu()
    nearest = []
    for image, state in zip(images, attributes, strict=True):
        errors = []
        for some in candidates.split(64):
            truth = render(some, state.expand(len(some), -1), image.shape[-1])
            apart = (truth.image - image).square().mean(1, keepdim=True)
            errors.append((apart * truth.mask).sum((1, 2, 3)) / truth.mask.sum((1, 2, 3)).clamp(min=1e-6))
        nearest.append(torch.cat(errors).argmin())
    return torch.stack(nearest)

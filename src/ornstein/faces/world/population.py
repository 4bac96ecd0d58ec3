"""A population of procedural faces as a training set, and who is in a picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.faces.world.parameters import attributes_at, identities_at
from ornstein.faces.world.views import LARGEST, SMALLEST, render


@dataclass(frozen=True)
class FaceWorld:
    """`photos` pictures of each of `people` people, rendered when they are read: picture i shows person i // photos.

    Person p and the state of picture i are those of `identities` and `attributes` of the same seed, in rows p and i, so
    a world of more people begins with the same ones where `photos` is the same. Raises ValueError on fewer than 1
    person or photo, or a size outside 16..1024.
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
        """The pictures at `indices`, float32 (B, 3, H, W) in [-1, 1], and the people on them, int64 (B,)."""
        images = render(self.identity(indices), self.attributes(indices), self.size).image
        return images, self._rows(indices) // self.photos

    def identity(self, indices: Tensor | Sequence[int]) -> Tensor:
        """Who is on the pictures at `indices`: (B, len(IDENTITY))."""
        return identities_at(self._rows(indices) // self.photos, self.seed)

    def attributes(self, indices: Tensor | Sequence[int]) -> Tensor:
        """The states on the pictures at `indices`: (B, len(ATTRIBUTES))."""
        return attributes_at(self._rows(indices), self.seed)

    def _rows(self, indices: Tensor | Sequence[int]) -> Tensor:
        rows = torch.as_tensor(indices, dtype=torch.int64, device="cpu")
        if rows.dim() != 1 or not len(rows):
            raise ValueError(f"indices must be a list of at least one number, not of shape {tuple(rows.shape)}")
        if rows.min() < 0 or rows.max() >= len(self):
            raise ValueError(f"there are pictures 0 to {len(self) - 1}: not {int(rows.min())} to {int(rows.max())}")
        return rows


def nearest_identity(images: Tensor, attributes: Tensor, candidates: Tensor) -> Tensor:
    """Which of the `candidates` (N, len(IDENTITY)) each image (B, 3, H, H) in state `attributes` shows: int64 (B,).

    Every candidate is rendered in the image's state; the one with the least mean squared error inside its own face
    mask is taken. Time is that of B N renderings. Raises ValueError on other shapes.
    """
    if images.dim() != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise ValueError(f"images must be (B, 3, H, H), not {tuple(images.shape)}")
    if len(images) != len(attributes):
        raise ValueError(f"there are {len(images)} images, but attributes has {len(attributes)} rows")
    nearest = []
    for image, state in zip(images, attributes, strict=True):
        errors = []
        for some in candidates.split(64):
            truth = render(some, state.expand(len(some), -1), image.shape[-1])
            apart = (truth.image - image).square().mean(1, keepdim=True)
            errors.append((apart * truth.mask).sum((1, 2, 3)) / truth.mask.sum((1, 2, 3)).clamp(min=1e-6))
        nearest.append(torch.cat(errors).argmin())
    return torch.stack(nearest)

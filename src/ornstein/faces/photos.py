"""Aligned faces with their embeddings, and the pairs that a swap is learned from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.data import to_unit


@dataclass(frozen=True)
class Pairs:
    """What swaps are trained on: paint `identity` into `target`, and it should look as `truth`.

    truth, target (B, 3, H, W) in [-1, 1], mask (B, 1, H, W) of the target's face, landmarks (B, K, 2) of the target in
    pixels, identity (B, D).
    """

    truth: Tensor
    target: Tensor
    mask: Tensor
    landmarks: Tensor
    identity: Tensor

    def to(self, device: torch.device) -> Pairs:
        return Pairs(*(part.to(device, non_blocking=True) for part in self._parts))

    def select(self, rows: Tensor) -> Pairs:
        """These pairs alone."""
        return Pairs(*(part[rows] for part in self._parts))

    @property
    def _parts(self) -> tuple[Tensor, ...]:
        return self.truth, self.target, self.mask, self.landmarks, self.identity


class Photos:
    """Photographs by person, and by state where it is known which of them differ in nothing but the person.

    images uint8 (N, 3, H, W), masks uint8 (N, 1, H, W) with 255 for 1, landmarks (N, K, 2), person (N,), embeddings
    (N, D) of any recogniser. Where `state` (N,) is given, two photos of the same state are of two people in
    exactly the same pose, expression and light; then a target is another one of the truth's state. Without it the truth
    of a swap is known where source and target are one person: the target is the truth itself.

    `own` is the probability that the source is the truth itself and not another photo of that person, which is used
    where there is one. Raises ValueError where the numbers of rows differ.
    """

    def __init__(
        self,
        images: Tensor,
        masks: Tensor,
        landmarks: Tensor,
        person: Tensor,
        embeddings: Tensor,
        state: Tensor | None = None,
        own: float = 0.0,
    ) -> None:
        self.images, self.masks, self.landmarks, self.person = images, masks, landmarks.float(), person
        self.embeddings, self.state, self.own = embeddings.float(), state, own
        lengths = {len(part) for part in (images, masks, landmarks, person, embeddings)}
        if len(lengths) != 1 or not len(images):
            raise ValueError(f"photos, masks, landmarks, people and embeddings must be equally many, not {lengths}")
        self._same_person = _Groups(person)
        self._same_state = None if state is None else _Groups(state)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> int:
        return self.images.shape[-1]

    def batch(self, indices: Tensor | Sequence[int], /) -> tuple[Tensor, Tensor | None]:
        """Photos (B, 3, H, W) in [-1, 1] and their numbers (B,)."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return to_unit(self.images[rows]), rows

    def select(self, rows: Tensor) -> Photos:
        """These photos alone."""
        parts = (p[rows] for p in (self.images, self.masks, self.landmarks, self.person, self.embeddings))
        return Photos(*parts, state=None if self.state is None else self.state[rows], own=self.own)

    def known_as(self, embeddings: Tensor) -> Photos:
        """The same photos with other embeddings (N, D)."""
        parts = (self.images, self.masks, self.landmarks, self.person)
        return Photos(*parts, embeddings, state=self.state, own=self.own)

    def pairs(self, rows: Tensor, draw: torch.Generator) -> Pairs:
        """One pair for each truth in `rows` (B,): another photo of that person as the source; half of them mirrored."""
        u = torch.rand(4, len(rows), generator=draw, device=draw.device).cpu()
        source = torch.where(u[0] < self.own, rows, self._same_person.other(rows, u[1]))
        target = rows if self._same_state is None else self._same_state.other(rows, u[2])
        mirrored = u[3] < 0.5
        truth, picture = to_unit(self.images[rows]), to_unit(self.images[target])
        mask, landmarks = self.masks[target].float() / 255, self.landmarks[target].clone()
        landmarks[mirrored, :, 0] = self.size - 1 - landmarks[mirrored, :, 0]
        truth, picture, mask = (
            torch.where(mirrored[:, None, None, None], each.flip(3), each) for each in (truth, picture, mask)
        )
        return Pairs(truth, picture, mask, landmarks, self.embeddings[source])


class _Groups:
    """Rows with the same key, and a random other one of them."""

    def __init__(self, key: Tensor) -> None:
        values, inverse = torch.unique(key, return_inverse=True)
        self.count = torch.bincount(inverse, minlength=len(values))[inverse]
        self.order = inverse.argsort(stable=True)
        first = torch.zeros_like(values).index_add_(0, inverse, torch.ones_like(inverse)).cumsum(0)
        self.first = (first - torch.bincount(inverse, minlength=len(values)))[inverse]
        self.place = torch.empty_like(self.order)
        self.place[self.order] = torch.arange(len(key))

    def other(self, rows: Tensor, u: Tensor) -> Tensor:
        """For each of `rows` another row of its group by u in [0, 1); itself where it is alone."""
        count, first = self.count[rows], self.first[rows]
        step = 1 + (u * (count - 1)).long().clamp(max=(count - 2).clamp(min=0))
        return self.order[first + (self.place[rows] - first + torch.where(count > 1, step, 0)) % count]

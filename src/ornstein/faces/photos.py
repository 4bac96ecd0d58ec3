"""Aligned faces with their embeddings, and the pairs that a swap is trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.data import to_unit
from ornstein.faces.conditions import POINTS, appearance
from ornstein.faces.shape import MIRROR, pinned

__all__ = ["Pairs", "Photos", "SourceFaces", "mirror"]


@dataclass(frozen=True, eq=False, repr=False)
class SourceFaces:
    """The sources of swaps: an identity vector each, and a picture of the face.

    identity: (B, D). image: (B, 3, H, W) in [-1, 1]. mask: (B, 1, H, W) of its face. landmarks: (B, K, 2) in pixels.
    points: (B, shape.POINTS, 3), for a model that needs them.
    """

    identity: Tensor
    image: Tensor
    mask: Tensor
    landmarks: Tensor
    points: Tensor | None = None

    def __len__(self) -> int:
        return len(self.identity)

    @classmethod
    def cat(cls, faces: Sequence[SourceFaces]) -> SourceFaces:
        """The rows of all of them."""
        points = [each.points for each in faces if each.points is not None]
        return cls(
            *(torch.cat(parts) for parts in zip(*(each._parts for each in faces), strict=True)),
            points=torch.cat(points) if len(points) == len(faces) else None,
        )

    def to(self, device: torch.device) -> SourceFaces:
        return self._each(lambda part: part.to(device, non_blocking=True))

    def select(self, rows: Tensor | slice) -> SourceFaces:
        """These faces alone."""
        return self._each(lambda part: part[rows])

    def repeat(self, n: int) -> SourceFaces:
        """One face n times."""
        return self._each(lambda part: part.expand(n, *part.shape[1:]))

    def roll(self, n: int) -> SourceFaces:
        """Row i is row i - n."""
        return self._each(lambda part: part.roll(n, 0))

    def known(
        self, onto: Tensor, moved: bool = True, points: Tensor | None = None, within: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The conditions of the source for targets with the landmarks `onto` (B, K, 2).

        moved: move the face onto those landmarks, for `FaceUNet`; a `RelitUNet` moves it itself.
        points: (B, shape.POINTS, 3), where those of the face go, beside the first five landmarks.
        within: (B, 1, H, W), where the face must not fold when it is moved by `points`.
        """
        if moved:
            here, there = self.landmarks, onto
            if self.points is not None and points is not None:
                here, there = pinned(self.points, here), pinned(points, there.to(points))
            face = appearance(self.image, self.mask, here, there, within)
            return {"identity": self.identity, "appearance": face}
        face = torch.cat([self.image * self.mask, self.mask], 1)
        return {"identity": self.identity, "appearance": face, "points": torch.stack([self.landmarks, onto], 1)}

    @property
    def _parts(self) -> tuple[Tensor, ...]:
        return self.identity, self.image, self.mask, self.landmarks

    def _each(self, change: Callable[[Tensor], Tensor]) -> SourceFaces:
        return SourceFaces(*map(change, self._parts), points=None if self.points is None else change(self.points))


@dataclass(frozen=True)
class Pairs:
    """Training pairs of swaps: the face of `source` painted into `target` should look as `truth`.

    truth, target: (B, 3, H, W) in [-1, 1]. mask: (B, 1, H, W) of the target's face. landmarks: (B, K, 2) of the target
    in pixels. face: (B, 1, H, W) of the truth's, if it is known. points: (B, shape.POINTS, 3) of the truth, if
    they are known.
    """

    truth: Tensor
    target: Tensor
    mask: Tensor
    landmarks: Tensor
    source: SourceFaces
    points: Tensor | None = None
    face: Tensor | None = None

    def to(self, device: torch.device) -> Pairs:
        parts = (part.to(device, non_blocking=True) for part in self._parts)
        points, face = (None if each is None else each.to(device) for each in (self.points, self.face))
        return Pairs(*parts, source=self.source.to(device), points=points, face=face)

    def select(self, rows: Tensor) -> Pairs:
        """These pairs alone."""
        points, face = (None if each is None else each[rows] for each in (self.points, self.face))
        parts = (part[rows] for part in self._parts)
        return Pairs(*parts, source=self.source.select(rows), points=points, face=face)

    @property
    def _parts(self) -> tuple[Tensor, ...]:
        return self.truth, self.target, self.mask, self.landmarks


class Photos:
    """Photographs by person, and by state if it is known which of them differ in nothing but the person.

    The source of a pair is another photo of the truth's person, which cannot tell how the face is turned and lit; if
    there is no other one, the same in a mirror. With `state`, two photos of one state are of two people in exactly the
    same pose, expression and light: the target is another photo of the truth's state. Without it, the truth of a swap
    is known only if source and target are one person: the target is the truth itself.

    Everything is kept on the CPU; pairs are moved by whoever trains on them.

    Args:
        images: uint8 (N, 3, H, W).
        masks: uint8 (N, 1, H, W), 255 for 1.
        landmarks: (N, K, 2) in pixels.
        person: (N,).
        embeddings: (N, D) of any recogniser.
        state: (N,), or None.
        mirrored: (K,), which landmark each one is in a mirror. None: the first five change sides, the others stay.
        points: (N, shape.POINTS, 3), or None.
        shown: uint8 (N, 1, H, W), 255 where a picture shows the face itself, if the masks reach further; or None.

    Raises:
        ValueError: the numbers of rows differ.
    """

    def __init__(
        self,
        images: Tensor,
        masks: Tensor,
        landmarks: Tensor,
        person: Tensor,
        embeddings: Tensor,
        state: Tensor | None = None,
        mirrored: Tensor | None = None,
        points: Tensor | None = None,
        shown: Tensor | None = None,
    ) -> None:
        self.images, self.masks, self.landmarks = images.cpu(), masks.cpu(), landmarks.float().cpu()
        self.person, self.embeddings = person.cpu(), embeddings.float().cpu()
        self.state = None if state is None else state.cpu()
        self.mirrored = None if mirrored is None else mirrored.cpu()
        self.points = None if points is None else points.float().cpu()
        self.shown = None if shown is None else shown.cpu()
        parts = (images, masks, landmarks, person, embeddings, points, shown)
        lengths = {len(part) for part in parts if part is not None}
        if len(lengths) != 1 or not len(images):
            raise ValueError(f"photos, masks, landmarks, people and embeddings must be equally many, not {lengths}")
        self._same_person = _Groups(self.person)
        self._same_state = None if self.state is None else _Groups(self.state)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> int:
        return self.images.shape[-1]

    def batch(self, indices: Tensor | Sequence[int], /) -> tuple[Tensor, Tensor | None]:
        """Photos (B, 3, H, W) in [-1, 1] and their numbers (B,)."""
        rows = torch.as_tensor(indices, dtype=torch.int64).cpu()
        return to_unit(self.images[rows]), rows

    def select(self, rows: Tensor) -> Photos:
        """These photos alone."""
        rows = rows.cpu()
        parts = (p[rows] for p in (self.images, self.masks, self.landmarks, self.person, self.embeddings))
        more = (None if part is None else part[rows] for part in (self.state, self.points, self.shown))
        state, points, shown = more
        return Photos(*parts, state=state, mirrored=self.mirrored, points=points, shown=shown)

    def known_as(self, embeddings: Tensor) -> Photos:
        """The same photos with other embeddings (N, D)."""
        parts = (self.images, self.masks, self.landmarks, self.person)
        more = {"state": self.state, "mirrored": self.mirrored, "points": self.points, "shown": self.shown}
        return Photos(*parts, embeddings, **more)

    def faces(self, rows: Tensor, mirrored: Tensor | None = None) -> SourceFaces:
        """These photos as sources, in a mirror where `mirrored` (B,) is true."""
        rows = rows.cpu()
        image, mask, landmarks = self._seen(rows, mirrored)
        return SourceFaces(self.embeddings[rows], image, mask, landmarks, self._points(rows, mirrored))

    def pairs(self, rows: Tensor, draw: torch.Generator) -> Pairs:
        """One pair for each truth in `rows` (B,): another photo of that person as the source; half of them mirrored."""
        rows = rows.cpu()
        source, target, mirrored = self._drawn(rows, draw)
        truth = self._seen(rows, mirrored)[0]
        known = self.faces(source, mirrored ^ (source == rows))
        face = None
        if self.shown is not None:
            face = self.shown[rows].float() / 255
            face = torch.where(mirrored[:, None, None, None], face.flip(3), face)
        return Pairs(truth, *self._seen(target, mirrored), source=known, points=self._points(rows, mirrored), face=face)

    def places(self, n: int, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """The landmarks (n, K, 2) of sources, targets and truths of n pairs of any rows, in pixels."""
        rows = torch.randint(len(self), (n,), generator=draw, device=draw.device).cpu()
        source, target, mirrored = self._drawn(rows, draw)
        each = ((source, mirrored ^ (source == rows)), (target, mirrored), (rows, mirrored))
        one, two, three = (self._turned(self.landmarks[which], sides) for which, sides in each)
        return one, two, three

    def _drawn(self, rows: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """For truths `rows` (B,): the sources, the targets, and which pairs are seen in a mirror."""
        u = torch.rand(3, len(rows), generator=draw, device=draw.device).cpu()
        source = self._same_person.other(rows, u[0])
        target = rows if self._same_state is None else self._same_state.other(rows, u[1])
        return source, target, u[2] < 0.5

    def _seen(self, rows: Tensor, mirrored: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        image, mask, landmarks = to_unit(self.images[rows]), self.masks[rows].float() / 255, self.landmarks[rows]
        if mirrored is None:
            return image, mask, landmarks
        image, mask = (torch.where(mirrored[:, None, None, None], each.flip(3), each) for each in (image, mask))
        return image, mask, self._turned(landmarks, mirrored)

    def _points(self, rows: Tensor, mirrored: Tensor | None) -> Tensor | None:
        if self.points is None:
            return None
        points = self.points[rows]
        if mirrored is None:
            return points
        flipped = torch.cat([self.size - 1 - points[..., :1], points[..., 1:]], 2)[:, MIRROR]
        return torch.where(mirrored[:, None, None], flipped, points)

    def _turned(self, landmarks: Tensor, mirrored: Tensor) -> Tensor:
        return torch.where(mirrored[:, None, None], mirror(landmarks, self.size, self.mirrored), landmarks)


def mirror(landmarks: Tensor, size: int, order: Tensor | None = None) -> Tensor:
    """Landmarks (B, K, 2) of the mirrored picture: the k-th is where the mirror shows number `order`[k].

    Without `order` (K,) the first five change sides (two corners of each eye, the base of the nose), the others stay.
    """
    if order is None:
        order = torch.cat([torch.tensor([2, 3, 0, 1, 4]), torch.arange(POINTS, landmarks.shape[1])])
    return torch.stack([size - 1 - landmarks[..., 0], landmarks[..., 1]], -1)[:, order]


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

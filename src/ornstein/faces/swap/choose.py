"""Which faces of a target are replaced, and by whom: all, the largest, those of reference photos, or by order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.faces.detect import Face
from ornstein.faces.photos import SourceFaces
from ornstein.faces.recognise import SAME_PERSON

__all__ = ["ALL", "LARGEST", "Choice", "Source", "ordered"]

ALL, LARGEST = "all", "largest"

_ORDERS: dict[str, Callable[[Face], float]] = {
    "left-right": lambda face: face.centre[0],
    "right-left": lambda face: -face.centre[0],
    "top-bottom": lambda face: face.centre[1],
    "bottom-top": lambda face: -face.centre[1],
    "small-large": lambda face: face.side,
    "large-small": lambda face: -face.side,
    "worst-best": lambda face: face.score,
    "best-worst": lambda face: -face.score,
}


def ordered(faces: Sequence[Face], order: str) -> list[Face]:
    """The faces in an order of `settings.ORDERS`."""
    return sorted(faces, key=_ORDERS[order])


@dataclass(frozen=True, eq=False, repr=False)
class Source:
    """A person whose face is put in: the mean embedding (D,) of some photos, and the faces in them for the model.

    The identity of each face is that of all photos together.
    """

    names: tuple[str, ...]
    embedding: Tensor
    faces: SourceFaces

    def facing(self, landmarks: Tensor) -> SourceFaces:
        """The photo's face whose pose is nearest to that of an aligned crop with these landmarks (K, 2)."""
        nearest = (self.faces.landmarks - landmarks).square().sum((1, 2)).argmin()
        return self.faces.select(nearest[None])

    def __repr__(self) -> str:
        return f"Source({', '.join(self.names)})"  # embeddings of real people belong in no log


class Choice:
    """Which faces of a target are replaced, and by whom.

    Args:
        sources: the people whose faces are put in.
        every: "all" or "largest": these faces become `sources[0]`.
        references: embeddings (R, D), instead of `every`: the face most like reference r, within `distance`, becomes
            `sources[r]`.
        distance: what photos of one person have between them at most.
        order, indices: instead of both: the faces with these numbers, from 1 on, in an order of `settings.ORDERS`
            become `sources[0]`. In a video they are those of the first frame with so many faces.

    Raises:
        ValueError: the numbers of sources and references do not fit.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        every: str = ALL,
        references: Tensor | None = None,
        distance: float = SAME_PERSON,
        order: str = "left-right",
        indices: Sequence[int] = (),
    ) -> None:
        if references is None and (len(sources) != 1 or every not in (ALL, LARGEST)):
            raise ValueError(f"one source for the faces {ALL!r} or {LARGEST!r}, not {len(sources)} for {every!r}")
        if references is not None and (len(references) != len(sources) or indices):
            raise ValueError(f"{len(references)} references for {len(sources)} sources and {len(indices)} numbers")
        self.sources, self.every, self.references = list(sources), every, references
        self.distance, self.order, self.indices = distance, order, tuple(indices)

    def distances(self, embeddings: Tensor) -> Tensor:
        """The distances (N, R) of faces (N, D) from the references."""
        assert self.references is not None
        return torch.cdist(embeddings.double(), self.references.double())

    def who(self, embeddings: Tensor) -> list[int]:
        """The number of the source for each of the faces (N, D) by `references`, -1 for none; each is given once."""
        return assigned(self.distances(embeddings).tolist(), self.distance)

    def picked(self, faces: Sequence[Face]) -> list[Face] | None:
        """The faces with the numbers `indices`; None if there are not so many."""
        if not self.indices or max(self.indices) > len(faces):
            return None
        there = ordered(faces, self.order)
        return [there[number - 1] for number in self.indices]

    def of_these(self, embeddings: Tensor) -> Choice:
        """The choice of the people with these embeddings (N, D), for the frames of a video."""
        return Choice(self.sources * len(embeddings), ALL, embeddings, self.distance)


def assigned(distances: Sequence[Sequence[float]], limit: float) -> list[int]:
    """The column for each row, the nearest pairs first, each column once; -1 where none is nearer than `limit`."""
    out = [-1] * len(distances)
    pairs = sorted((value, i, j) for i, row in enumerate(distances) for j, value in enumerate(row))
    for value, i, j in pairs:
        if value < limit and out[i] < 0 and j not in out:
            out[i] = j
    return out

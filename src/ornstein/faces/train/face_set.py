"""A prepared set of aligned faces in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ornstein.data.names import natural_key
from ornstein.errors import UserError
from ornstein.faces.train.shards import PATTERN, read_header, read_shard, shard_name

__all__ = ["FaceSet", "open_faces"]


@dataclass(eq=False)
class FaceSet:
    """Aligned faces of known people: what `ornstein faces prepare` made.

    images: uint8 (N, 3, H, W), in natural order of `names`. embeddings: float32 (N, 128). landmarks: float32 (N, 5, 2),
    (x, y) in crop pixels. transforms: float64 (N, 2, 3), from photograph to crop pixels. scores: float32 (N,), the
    detector's. points: float32 (N, shape.POINTS, 3) in crop pixels, None in sets of older versions. person: int64 (N,)
    into `people`.
    """

    source: str
    images: Tensor
    embeddings: Tensor
    landmarks: Tensor
    transforms: Tensor
    scores: Tensor
    people: list[str]
    person: Tensor
    names: list[str]
    points: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        # Not the dataclass's own: embeddings of real people belong in no log.
        return (
            f"FaceSet({self.source!r}, {len(self)} faces of {len(self.people)} people, {self.images.shape[-1]} pixels)"
        )

    def split(self, fraction: float, seed: int) -> tuple[FaceSet, FaceSet]:
        """(train, held-out): `fraction` of the people, drawn by `seed` alone, are held out with all their photos.

        Nobody is in both.

        Raises:
            ValueError: `fraction` is not between 0 and 1.
            UserError: there are fewer than 2 people.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction must lie between 0 and 1, not {fraction}")
        count = len(self.people)
        if count < 2:
            raise UserError(f"{self.source} has {count} person: at least 2 are needed to hold some out")
        held_out = min(max(round(count * fraction), 1), count - 1)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        away = torch.zeros(count, dtype=torch.bool)
        away[order[:held_out]] = True
        return self._of(~away), self._of(away)

    def _of(self, kept: Tensor) -> FaceSet:
        rows = kept[self.person].nonzero()[:, 0]
        renumbered = torch.cumsum(kept.long(), 0) - 1
        return FaceSet(
            source=self.source,
            images=self.images[rows],
            embeddings=self.embeddings[rows],
            landmarks=self.landmarks[rows],
            transforms=self.transforms[rows],
            scores=self.scores[rows],
            people=[name for name, keep in zip(self.people, kept.tolist(), strict=True) if keep],
            person=renumbered[self.person[rows]],
            names=[self.names[row] for row in rows.tolist()],
            points=None if self.points is None else self.points[rows],
        )


def open_faces(path: str | Path) -> FaceSet:
    """Open the folder that `ornstein faces prepare` wrote; all of it is read into memory (64 pixels: 12 kB a face).

    Raises:
        UserError: the folder holds no set, or one that is incomplete, damaged or mixed from several.
    """
    folder = Path(path)
    found = sorted(folder.glob(PATTERN))
    if not found:
        raise UserError(
            f"{folder} holds no prepared faces: make them with `ornstein faces prepare DATA --out {folder}`"
        )
    total = int(found[0].stem.split("-of-")[1])
    missing = [shard for shard in range(total) if not (folder / shard_name(shard, total)).exists()]
    if missing:
        raise UserError(
            f"{folder} is incomplete, {len(missing)} of {total} shards are missing: prepare it with --resume"
        )
    if len(found) > total:
        raise UserError(f"{folder} holds shards of two sets ({found[0].name}, {found[-1].name}): keep those of one")
    headers = [read_header(file) for file in found]
    for file, header in zip(found, headers, strict=True):
        if header["plan"] != headers[0]["plan"]:
            raise UserError(f"{file} is of another set than {found[0].name}: keep the shards of one")
    count, size = sum(len(header["names"]) for header in headers), headers[0]["plan"]["size"]
    if not count:
        raise UserError(f"{folder} holds no face: none was found when it was prepared")
    if sum(file.stat().st_size for file in found) < count * 3 * size**2:
        raise UserError(f"{folder} is damaged: its files are smaller than the {count} faces that they name")
    images = torch.empty(count, 3, size, size, dtype=torch.uint8)
    rest: dict[str, list[Tensor]] = {"embeddings": [], "landmarks": [], "transforms": [], "scores": [], "points": []}
    start = 0
    for file, header in zip(found, headers, strict=True):
        tensors = read_shard(file, header)
        part = tensors["images"]
        images[start : start + len(part)] = part
        start += len(part)
        for name, parts in rest.items():
            if name in tensors:
                parts.append(tensors[name])
    owners = [person for header in headers for person in header["people"]]
    people = sorted(set(owners), key=natural_key)
    number = {name: i for i, name in enumerate(people)}
    return FaceSet(
        source=str(path),
        images=images,
        embeddings=torch.cat(rest["embeddings"]),
        landmarks=torch.cat(rest["landmarks"]),
        transforms=torch.cat(rest["transforms"]),
        scores=torch.cat(rest["scores"]),
        people=people,
        person=torch.tensor([number[owner] for owner in owners]),
        names=[name for header in headers for name in header["names"]],
        points=torch.cat(rest["points"]) if len(rest["points"]) == len(found) else None,
    )

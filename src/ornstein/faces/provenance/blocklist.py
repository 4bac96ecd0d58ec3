"""People whose faces are not to be swapped, by their embeddings."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ornstein.errors import UserError
from ornstein.faces.recognise import SAME_PERSON
from ornstein.store import atomic_write, read_json

__all__ = ["BlockList"]

_FORMAT = 1
_LARGEST = 2**28  # bytes of a list: some hundred thousand faces


@dataclass(frozen=True, eq=False, repr=False)
class BlockList:
    """Protected faces: embeddings float32 (N, D), and the distance within which a face counts as one of them.

    It is stored as a JSON file that only its owner can read: an embedding of a person is personal data.
    """

    embeddings: Tensor
    threshold: float = SAME_PERSON

    def __len__(self) -> int:
        return len(self.embeddings)

    def __repr__(self) -> str:
        return f"BlockList({len(self)} faces within {self.threshold})"

    @classmethod
    def load(cls, path: str | Path) -> BlockList:
        """The list in the file `path`. Raises UserError if it holds none."""
        stored = read_json(path, _LARGEST)
        try:
            if stored["format"] != _FORMAT:
                raise ValueError(f"format {stored['format']}")
            rows = torch.tensor(stored["embeddings"], dtype=torch.float32)
            threshold = float(stored["threshold"])
            if rows.ndim != 2 or not len(rows) or not bool(rows.isfinite().all()) or not threshold > 0:
                raise ValueError("no embeddings")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} is no list of protected faces ({error}): `ornstein faces protect` makes one"
            ) from None
        return cls(rows, threshold)

    def save(self, path: str | Path) -> None:
        """Write the list, readable by its owner alone. Raises RunError if it cannot be written."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = {"format": _FORMAT, "threshold": self.threshold, "embeddings": self.embeddings.tolist()}
        atomic_write(path, (json.dumps(stored) + "\n").encode(), mode=0o600)

    def with_faces(self, embeddings: Tensor) -> BlockList:
        """The list with more faces (N, D). Raises UserError if they are another recogniser's."""
        self._fits(embeddings)
        return BlockList(torch.cat([self.embeddings, embeddings]), self.threshold)

    def check(self, embeddings: Tensor, name: str) -> None:
        """Raises UserError, naming the file `name`, if one of the faces (N, D) is protected."""
        self._fits(embeddings)
        if len(embeddings) and float(torch.cdist(embeddings.double(), self.embeddings.double()).min()) < self.threshold:
            raise UserError(f"a face in {name} is on the list of protected faces: it is not swapped")

    def _fits(self, embeddings: Tensor) -> None:
        ours, theirs = self.embeddings.shape[1], embeddings.shape[1]
        if ours != theirs:
            raise UserError(f"the list of protected faces has {ours} numbers a face, this recogniser {theirs}")

"""Sets of clips: windows into the frames of whole videos."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from ornstein.data import sets
from ornstein.data.pixels import to_unit
from ornstein.errors import UserError

__all__ = ["ClipSet", "Clips"]


class Clips(Protocol):
    """What training and evaluation read: `ClipSet` and `MotionClips`."""

    source: str

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor | Sequence[int], /) -> tuple[Tensor, Tensor | None]: ...

    def split(self, fraction: float, seed: int, every_class: bool = False) -> "tuple[Clips, Clips]": ...

    @property
    def classes(self) -> list[str]: ...

    @property
    def skipped(self) -> list[tuple[str, str]]: ...

    @property
    def shape(self) -> tuple[int, int, int, int]: ...

    @property
    def summary(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def names_fingerprint(self) -> str: ...

    @property
    def rate(self) -> float | None: ...


@dataclass(eq=False, repr=False)
class ClipSet:
    """Clips of one size and length, decoded: windows into the frames of whole videos.

    pixels: uint8 (T, C, H, W), all videos one after the other. starts: int64 (N,), where each clip begins in it.
    videos: int64 (N,), the video each clip was cut from, into `names`, `file_sizes` (bytes) and `sums` (checksums).
    labels: int64 (N,) into `classes`, or None. skipped: (name, reason) of every video that could not be used.
    ignored: numbers of other files by suffix.
    """

    source: str
    frames: int
    pixels: Tensor
    starts: Tensor
    videos: Tensor
    names: list[str]
    file_sizes: list[int]
    sums: list[int]
    labels: Tensor | None = None
    classes: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    rate: float | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def __repr__(self) -> str:
        line = sets.read_line(len(self), "clip", self.classes, self.labels, Counter(), [])
        return f"ClipSet({self.source!r}: {line}, {'x'.join(map(str, self.shape))})"

    @property
    def summary(self) -> str:
        """One line: how many clips of how many videos and of which classes, and what was left out."""
        notes = [f"from {len(self.names):,} video{'' if len(self.names) == 1 else 's'}"]
        return sets.read_line(len(self), "clip", self.classes, self.labels, self.ignored, self.skipped, notes)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(C, F, H, W) of a clip."""
        _, c, h, w = self.pixels.shape
        return c, self.frames, h, w

    def batch(self, indices: Tensor | Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """The clips at `indices`, float32 (B, C, F, H, W) in [-1, 1], and their labels int64 (B,) or None."""
        rows = torch.as_tensor(indices, dtype=torch.int64, device="cpu")
        taken = self.starts[rows][:, None] + torch.arange(self.frames)
        clips = to_unit(self.pixels[taken]).transpose(1, 2).contiguous()
        return clips, None if self.labels is None else self.labels[rows]

    def split(self, fraction: float, seed: int, every_class: bool = False) -> tuple["ClipSet", "ClipSet"]:
        """(train, held-out): whole videos, drawn at random by `seed`, until `fraction` of the clips are held out.

        Clips of one video are never on both sides: neighbours in time are near copies. A single video is cut in two
        in time, its end held out, and a clip that crosses the cut is in neither part. The pixels are shared. With
        `every_class`, one video of each class is never held out.

        Raises:
            ValueError: unless 0 < fraction < 1.
            UserError: on fewer than 2 clips.
        """
        sets.check_fraction(fraction, len(self), self.source, "clip")
        wanted = min(max(round(len(self) * fraction), 1), len(self) - 1)
        present = self.videos.unique()
        if len(present) == 1:
            cut = self.starts[len(self) - wanted]
            train = self.starts + self.frames <= cut
            if not bool(train.any()):
                raise UserError(f"{self.source} is too short to hold clips out that do not overlap the others")
            return self._subset(train), self._subset(self.starts >= cut)
        order = present[torch.randperm(len(present), generator=torch.Generator().manual_seed(seed))]
        if every_class and self.labels is not None:
            label = {int(v): int(label) for v, label in zip(self.videos, self.labels, strict=True)}
            last = {label[v]: v for v in order.tolist()}
            free = torch.tensor([v for v in order.tolist() if last[label[v]] != v], dtype=torch.int64)
            if len(free):
                order = torch.cat([free, torch.tensor(list(last.values()))])
        counts = torch.bincount(self.videos, minlength=len(self.names))[order].cumsum(0)
        some = min(int((counts < wanted).sum()) + 1, len(present) - 1)
        held_out = torch.isin(self.videos, order[:some])
        return self._subset(~held_out), self._subset(held_out)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that tell whether two runs cut the same clips from the same videos.

        It is a hash of the clip length and of names, sizes, contents, labels and places of the clips.
        """
        classes = [] if self.labels is None else [f" {self.classes[i]}" for i in self.labels.tolist()]
        sums = [f" {self.sums[video]:08x}" for video in self.videos.tolist()]
        return self._hash([f"{a}{b}" for a, b in zip(sums, classes or [""] * len(self), strict=True)])

    @property
    def names_fingerprint(self) -> str:
        """The hash without contents and labels, by which runs of version 0.1 are recognised."""
        return self._hash([""] * len(self))

    def _hash(self, notes: Sequence[str]) -> str:
        digest = hashlib.sha256(f"{self.frames}\n".encode())
        offset = {int(v): int(self.starts[self.videos == v].min()) for v in self.videos.unique()}
        for start, video, note in zip(self.starts.tolist(), self.videos.tolist(), notes, strict=True):
            digest.update(f"{self.names[video]}\0{self.file_sizes[video]}\0{start - offset[video]}{note}\n".encode())
        return digest.hexdigest()[:16]

    def _subset(self, chosen: Tensor) -> "ClipSet":
        return replace(
            self,
            starts=self.starts[chosen],
            videos=self.videos[chosen],
            labels=None if self.labels is None else self.labels[chosen],
        )

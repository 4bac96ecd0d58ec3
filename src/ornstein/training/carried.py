"""Training with noise that the motion of each clip carries (E40)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ornstein.data import Clips
from ornstein.data.flow import FlowFile
from ornstein.errors import UserError
from ornstein.noise import Carried, carry
from ornstein.process import Prediction, Process
from ornstein.training.config import TrainConfig

__all__ = ["Rows", "check_carried", "noised", "rows_and_labels"]

_CLASSES = 2**20  # more than any set has


class Rows:
    """A set of clips whose labels carry the numbers of its rows too, by which a `FlowFile` finds the flows."""

    def __init__(self, clips: Clips) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getattr__(self, name: str) -> Any:
        if name == "clips":  # while it is being copied
            raise AttributeError(name)
        return getattr(self.clips, name)

    def batch(self, indices: Tensor | Sequence[int], /) -> tuple[Tensor, Tensor]:
        """Clips as those of the set, and their rows and labels in one number, int64 (B,)."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        clips, labels = self.clips.batch(rows)
        return clips, rows * _CLASSES + (0 if labels is None else labels + 1)


def rows_and_labels(numbers: Tensor) -> tuple[Tensor, Tensor | None]:
    """The rows and the labels in the numbers of `Rows`; no labels if the set has none."""
    labels = numbers % _CLASSES - 1
    return numbers // _CLASSES, None if bool((labels < 0).any()) else labels


def noised(
    process: Process, x0: Tensor, t: Tensor, flow: Tensor, whole: tuple[int, slice], draw: torch.Generator
) -> Prediction:
    """Clips x0 (B, C, F, H, W) at times t (B,), in noise that their flows (B, F - 1, 2, H, W) carry, and that noise.

    Args:
        process: with the noise `Carried`.
        x0, t, flow: rows of a batch.
        whole: the size of the batch, and which rows these are: each row has a seed of its own.
        draw: the source of the seeds.
    """
    noise = process.noise
    assert isinstance(noise, Carried)
    size, rows = whole
    seeds = torch.randint(2**62, (size,), generator=draw, device=draw.device)[rows].tolist()
    one: list[Tensor] = []
    for seed, f in zip(seeds, flow, strict=True):
        own = torch.Generator().manual_seed(seed)
        one.append(carry(f[None], x0.shape[1], lambda n, c, own=own: torch.randn(n, c, generator=own), noise.degrade))
    eps = torch.cat(one).to(x0)
    a, s = process.coefficients(t, x0)
    return Prediction(process, a * x0 + s * eps, t, x0, eps)


def check_carried(config: TrainConfig, flows: FlowFile | None) -> None:
    """Raise UserError for a training of carried noise that cannot be."""
    if flows is None:
        raise UserError("noise that is carried by motion is trained on clips, with their flows")
    if config.objective is not None:
        raise UserError(
            f"--noise warped is trained by the error of the network: leave out --objective {config.objective}"
        )
    if config.flip:
        raise UserError("--flip mirrors the clips and not their flow: leave it out with --noise warped")

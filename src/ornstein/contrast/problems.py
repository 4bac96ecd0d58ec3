"""The data that the models are compared on: mixtures in the plane, stacked digits, digits, and folders of images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ornstein.contrast.autoregressive import from_levels, to_levels
from ornstein.contrast.judges import Judge, NearestCentre, NearestScan
from ornstein.data import open_images
from ornstein.data.images import ImageSet
from ornstein.errors import UserError
from ornstein.likelihood import bits_per_dim
from ornstein.oracles import GaussianMixture
from ornstein.process import Process
from ornstein.randomness import generator
from ornstein.schedules import Cosine

__all__ = ["Problem", "mixture", "open_problem"]

_HELD_OUT = 0.2
_SCAN_LEVELS = 17  # the scans of digits have 17 grey levels
_REAL_STACKS = 10_000
_POINTS, _STACKS = 1000, 256  # held-out samples, whose bits/dim are measured
_LEVELS = 256
# centres and standard deviation in the papers' units, and the unit that puts the data into [-1, 1]
_RING = 2.0, 0.02, 2.2  # Metz et al. 2017, appendix A: eight on a circle of radius 2
_GRID = 2.0, 0.05, 4.4  # Lin et al. 2018 (PacGAN): five by five, two apart


@dataclass(frozen=True)
class Problem:
    """Data in [-1, 1] with its judge.

    Attributes:
        name: of the data.
        shape: of one sample: (2,) or (C, H, W).
        levels: equal bins of [-1, 1] of each number: an autoregressive model generates their indices, and bits/dim are
            those of the probability of a bin.
        draw: (n, generator) -> training samples (n, *).
        held_out: (N, *), none of them used in training.
        real: (M, *) held-out or fresh samples for the Frechet distance.
        judge: of samples; None without modes.
        probabilities: of the modes of the data, (K,).
        samples: how many a model is scored on by default.
        note: how the judge works, and how well.
        entropy: bits/dim of the held-out samples by the law that they are drawn from, where it is known.
    """

    name: str
    shape: tuple[int, ...]
    levels: int
    draw: Callable[[int, torch.Generator], Tensor]
    held_out: Tensor
    real: Tensor
    judge: Judge | None
    probabilities: Tensor | None
    samples: int
    note: str
    entropy: float | None = None

    @property
    def points(self) -> bool:
        """Whether samples are points in the plane, not images."""
        return len(self.shape) == 1

    def spread(self, x: Tensor, draw: torch.Generator) -> Tensor:
        """Samples spread evenly over their bins; points, which are continuous already, stay as they are."""
        if self.points:
            return x
        u = torch.rand(x.shape, generator=draw) - 0.5
        return from_levels(to_levels(x, self.levels), self.levels) + u * (2 / self.levels)


def open_problem(data: str, size: int | None = None) -> Problem:
    """The data by name, or the images of a folder or archive.

    Raises:
        UserError: there is no such source.
    """
    if data.startswith("gaussians-"):
        return _gaussians(data)
    if data in ("digits", "stacked-digits"):
        return _digits(stacked=data == "stacked-digits")
    return _folder(data, size or 8)


def mixture(data: str) -> GaussianMixture:
    """ "gaussians-8", a ring, or "gaussians-25", a grid, scaled into [-1, 1].

    Raises:
        UserError: another name.
    """
    if data == "gaussians-8":
        radius, std, unit = _RING
        angle = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8
        centres = radius * torch.stack([angle.cos(), angle.sin()], 1)
    elif data == "gaussians-25":
        step, std, unit = _GRID
        side = step * torch.arange(-2, 3, dtype=torch.float64)
        centres = torch.cartesian_prod(side, side)
    else:
        raise UserError(f"unknown data {data!r}; known: gaussians-8, gaussians-25, stacked-digits, digits, or a folder")
    count = len(centres)
    covs = (std / unit) ** 2 * torch.eye(2, dtype=torch.float64).expand(count, 2, 2)
    return GaussianMixture(torch.full((count,), 1 / count, dtype=torch.float64), centres / unit, covs)


def _gaussians(data: str) -> Problem:
    law = mixture(data)
    std = float(law.covs[0, 0, 0].sqrt())
    held_out = law.sample(_POINTS, generator(0, "contrast", "held-out")).float()
    nats = -law.log_prob(held_out, Process(Cosine()), 0.0).mean()
    return Problem(
        name=data,
        shape=(2,),
        levels=_LEVELS,
        draw=lambda n, draw: law.sample(n, draw).float(),
        held_out=held_out,
        real=law.sample(10_000, generator(0, "contrast", "real")).float(),
        judge=NearestCentre(law.means, std),
        probabilities=law.weights,
        samples=2500,
        note="A mode is one Gaussian. A sample is good within 3 standard deviations of its centre; of data 98.9 % are.",
        entropy=float(bits_per_dim(nats, (2,), _LEVELS)),
    )


def _split(images: ImageSet) -> tuple[ImageSet, ImageSet]:
    return images.split(_HELD_OUT, 0)


def _digits(stacked: bool) -> Problem:
    train, held_out = _split(open_images("digits"))
    a, b = (_scans(part) for part in (train, held_out))
    judge, note = _scan_judge(train, held_out, a, b)
    share = torch.bincount(train.require_labels(), minlength=10).double() / len(train)
    if not stacked:
        return Problem("digits", (1, 8, 8), _SCAN_LEVELS, _drawn(a), b, b, judge, share, 2000, note)
    draw = generator(0, "contrast", "stacks")
    real = _stacks(b, _REAL_STACKS, draw)
    every = torch.einsum("i,j,k->ijk", share, share, share).flatten()
    held, stack = real[:_STACKS], "A stack has three digits as its colour channels: 1000 modes. "
    training = partial(_stacks, a)
    return Problem("stacked-digits", (3, 8, 8), _SCAN_LEVELS, training, held, real, judge, every, 25_600, stack + note)


def _scans(images: ImageSet) -> Tensor:
    """Scans (N, 1, 8, 8) with their 17 grey levels at the centres of 17 bins of [-1, 1]."""
    level = (images.batch(range(len(images)))[0] + 1) * (_SCAN_LEVELS - 1) / 2
    return from_levels(level.round().long(), _SCAN_LEVELS)


def _drawn(images: Tensor) -> Callable[[int, torch.Generator], Tensor]:
    return lambda n, draw: images[torch.randint(len(images), (n,), generator=draw)]


def _stacks(scans: Tensor, n: int, draw: torch.Generator) -> Tensor:
    """n stacks (n, 3, H, W) of three scans, drawn independently."""
    return scans[torch.randint(len(scans), (n, 3), generator=draw)][:, :, 0]


def _scan_judge(train: ImageSet, held_out: ImageSet, a: Tensor, b: Tensor) -> tuple[NearestScan, str]:
    judge = NearestScan.fit(a, train.labels, b, max(1, len(train.classes)))
    if train.labels is None:
        return judge, "A sample is good if it is as near to a training image as 99 % of held-out images are."
    right = judge.accuracy(b, held_out.require_labels())
    return judge, (
        f"The class is that of the nearest training image, right for {right:.1%} of held-out images; a sample is good "
        "if it is as near to a training image as 99 % of those are."
    )


def _folder(data: str, size: int) -> Problem:
    images = open_images(data, size)
    train, held_out = _split(images)
    if len(held_out) < 4:
        raise UserError(
            f"{data} has {len(images)} images: too few to train on some and score on others; give 20 or more"
        )
    a, b = (part.batch(range(len(part)))[0] * (1 - 1 / _LEVELS) for part in (train, held_out))
    judge, note = _scan_judge(train, held_out, a, b)
    share = None
    if train.labels is not None:
        share = torch.bincount(train.labels, minlength=len(train.classes)).double() / len(train)
    return Problem(data, tuple(a.shape[1:]), _LEVELS, _drawn(a), b, b, judge, share, 2000, note)

"""Which mode a sample belongs to, whether it is a good one, and what the histogram of modes says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Judge", "NearestCentre", "NearestScan", "mode_counts", "modes_covered", "reverse_kl"]

_GOOD = 3.0  # standard deviations
_QUANTILE = 0.99
_CHUNK = 4096


class Judge(Protocol):
    """Says of samples (B, *) which mode each belongs to, (B,) int64, and whether it is good, (B,) bool."""

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class NearestCentre:
    """For mixtures of Gaussians of one standard deviation: the mode is the nearest centre, and a sample is good within
    three standard deviations of it (the protocol of VEEGAN and PacGAN).

    centres: (K, D).
    """

    centres: Tensor
    std: float

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        distance, mode = torch.cdist(x.double(), self.centres.double()).min(1)
        return mode, distance <= _GOOD * self.std


@dataclass(frozen=True)
class NearestScan:
    """For images: a classifier by the nearest training image, for each group of channels by itself.

    The classes of the groups are the digits of the mode's number. A sample is good if each group is as near to its
    training image as 99 of 100 held-out images are to theirs.

    scans: (M, D) flattened training images. labels: (M,). classes: their number. radius: of good samples.
    """

    scans: Tensor
    labels: Tensor
    classes: int
    radius: float

    @classmethod
    def fit(cls, train: Tensor, labels: Tensor | None, held_out: Tensor, classes: int) -> NearestScan:
        """From training images (M, *) and held-out images (N, *); labels None means one class."""
        scans = train.flatten(1).float()
        labels = torch.zeros(len(scans), dtype=torch.long) if labels is None else labels
        distances = _nearest(held_out.flatten(1).float(), scans)[0]
        return cls(scans, labels, classes, float(torch.quantile(distances, _QUANTILE)))

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = x.flatten(1).float().reshape(-1, self.scans.shape[1])
        distance, index = _nearest(parts, self.scans)
        digits = self.labels[index].reshape(len(x), -1)
        place = self.classes ** torch.arange(digits.shape[1] - 1, -1, -1)
        return (digits * place).sum(1), (distance.reshape(len(x), -1) <= self.radius).all(1)

    def accuracy(self, held_out: Tensor, labels: Tensor) -> float:
        """The share of held-out images whose class is right."""
        index = _nearest(held_out.flatten(1).float(), self.scans)[1]
        return float((self.labels[index] == labels).double().mean())


def _nearest(x: Tensor, scans: Tensor) -> tuple[Tensor, Tensor]:
    """Distance to the nearest row of `scans`, and its number."""
    parts = [torch.cdist(part, scans).min(1) for part in x.split(_CHUNK)]
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])


def mode_counts(mode: Tensor, modes: int) -> Tensor:
    """Samples of each mode, (modes,) int64."""
    return torch.bincount(mode, minlength=modes)


def modes_covered(counts: Tensor, probabilities: Tensor) -> int:
    """Modes of the data that have at least one sample."""
    return int(((counts > 0) & (probabilities > 0)).sum())


def reverse_kl(counts: Tensor, probabilities: Tensor) -> float:
    """KL(q || p) in nats of the histogram q of samples from the data's p: what a model puts where the data has less.

    It stays finite if modes are missing, and is log(K/k) for k of K equal modes. A perfect model of n samples has about
    (K - 1)/(2n). Infinite if there are samples of a mode that the data lacks.

    Source: Metz et al. 2017 (arXiv:1611.02163), section 3.3; PacGAN (arXiv:1712.04086), section 4.1.

    Raises:
        ValueError: the shapes differ.
    """
    if counts.shape != probabilities.shape:
        raise ValueError(f"{tuple(counts.shape)} counts need as many probabilities, got {tuple(probabilities.shape)}")
    q = counts.double() / counts.sum()
    p = probabilities.double()
    return float((torch.special.xlogy(q, q) - torch.special.xlogy(q, p)).sum())

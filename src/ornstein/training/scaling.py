"""How good a model of images is after so many of them, and which network and batch suit a time best. No torch.

The rule of docs/scaling.md, fitted by `benchmarks/scaling.py` to trainings on CIFAR-10 at 32x32: the held-out error of
v of a network of P parameters after S steps of batches of B images is

    L = L0 + a (P / 1e6)^-p + b (D / 1e4)^-q,    D = B (S - W/2) / (1 + B / B0),

where a warm-up of W steps costs W/2 of them (S^2 / 2W stands for S - W/2 within it), and B0 is the batch from which
larger ones stop being worth their images. Form of L: Hoffmann et al. 2022 (arXiv:2203.15556), eq. 2; of D: McCandlish
et al. 2018 (arXiv:1812.06162), eq. 2.11, solved for the images that the smallest batches would need.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

from ornstein.training.config import TrainConfig

__all__ = ["BATCHES", "RULE", "Choice", "Memory", "Rule", "Speed", "choose"]

BATCHES = (32, 64, 128, 256, 512)
"""Batches that are chosen from. By the loss alone the rule would often take 16, and no samples were compared for it."""

_WARMUP = TrainConfig().warmup
_LEAST_STEPS = 2 * _WARMUP  # of a training that is worth comparing


@dataclass(frozen=True)
class Rule:
    """The constants of the rule."""

    floor: float
    size: float
    size_power: float
    data: float
    data_power: float
    critical_batch: float

    def images(self, steps: float, batch: int) -> float:
        """D: the images of the smallest batches that so many steps are worth."""
        worth = steps - _WARMUP / 2 if steps > _WARMUP else steps**2 / (2 * _WARMUP)
        return batch * worth / (1 + batch / self.critical_batch)

    def loss(self, parameters: float, steps: float, batch: int) -> float:
        """The expected held-out error of v."""
        size = self.size * (parameters / 1e6) ** -self.size_power
        return self.floor + size + self.data * (self.images(steps, batch) / 1e4) ** -self.data_power


RULE = Rule(floor=0.0896, size=0.00967, size_power=0.347, data=0.0212, data_power=0.421, critical_batch=35.3)
"""CIFAR-10 without classes, U-Nets xs to l, Muon: the fit of docs/scaling.md."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a training: weights, their gradients, EMA weights, the optimizer's moments, and what the forward pass
    keeps for the backward pass."""

    weights: float
    gradients: float
    average: float
    optimizer: float
    activations: float


@dataclass(frozen=True)
class Speed:
    """What was measured of a network: its parameters, and the seconds of a step at one or two batches.

    activations: bytes that the forward pass keeps for the backward pass, for an image. optimizer: bytes of the
    optimizer's moments.
    """

    net: str
    parameters: int
    seconds: tuple[tuple[int, float], ...]
    activations: float
    optimizer: float

    def seconds_a_step(self, batch: int) -> float:
        """Seconds of a step: a line through the measured ones, of which no batch takes less than the smallest."""
        (small, first), (large, last) = self.seconds[0], self.seconds[-1]
        if small == large:
            return first
        slope = max(0.0, last - first) / (large - small)
        return first + slope * (max(batch, small) - small)

    def slowed(self, factor: float) -> Speed:
        """The same with steps that take `factor` times as long."""
        return replace(self, seconds=tuple((batch, factor * seconds) for batch, seconds in self.seconds))

    def memory_parts(self, batch: int) -> Memory:
        """Bytes of a training besides the data and PyTorch."""
        weights = 4.0 * self.parameters
        return Memory(weights, weights, weights, self.optimizer, batch * self.activations)

    def memory(self, batch: int) -> float:
        """The sum of `memory_parts`."""
        return sum(astuple(self.memory_parts(batch)))


@dataclass(frozen=True)
class Choice:
    """A network and a batch for a time: what they are expected to reach."""

    speed: Speed
    batch: int
    steps: int
    loss: float

    @property
    def images(self) -> int:
        """Images seen."""
        return self.batch * self.steps


def choose(speeds: Sequence[Speed], minutes: float, batches: Sequence[int], memory: float = math.inf) -> Choice:
    """The network and batch with the least expected loss after so many minutes; of equals the smallest.

    Left out is what does not fit in `memory` bytes, and what ends within twice its warm-up, unless all do.
    """
    choices = []
    for speed in speeds:
        for batch in batches:
            steps = max(1, round(60 * minutes / speed.seconds_a_step(batch)))
            choices.append(Choice(speed, batch, steps, RULE.loss(speed.parameters, steps, batch)))
    fitting = [c for c in choices if c.speed.memory(c.batch) <= memory] or choices[:1]
    long = [c for c in fitting if c.steps >= _LEAST_STEPS] or [max(fitting, key=lambda c: c.steps)]
    return min(long, key=lambda c: (c.loss, c.speed.parameters, c.batch))

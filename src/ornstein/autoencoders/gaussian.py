"""A Gaussian with a diagonal covariance: the output of encoders, and of the layers of a hierarchy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LOG_STD_RANGE", "Latents"]

LOG_STD_RANGE = (-10.0, 5.0)
"""Log standard deviations are clamped to this: beyond it the exponential, or its inverse square, loses its digits."""


@dataclass(frozen=True)
class Latents:
    """N(mean, diag(std^2)), both (B, *latent); std 0 if the encoder is deterministic."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, parameters: Tensor) -> Latents:
        """From a network's output (B, 2c, *): the mean, and the log standard deviation clamped to [-10, 5]."""
        mean, log_std = parameters.chunk(2, dim=1)
        return cls(mean, log_std.clamp(*LOG_STD_RANGE).exp())

    @classmethod
    def standard(cls, like: Tensor) -> Latents:
        """N(0, I) in the shape of `like` (B, *latent)."""
        return cls(torch.zeros_like(like), torch.ones_like(like))

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std noise, (B, *latent): differentiable in both (the reparameterisation trick, E27)."""
        return self.mean + self.std * noise.to(self.mean.device)

    def log_prob(self, z: Tensor) -> Tensor:
        """log N(z; mean, std^2) in nats, (B,)."""
        terms = ((z - self.mean) / self.std) ** 2 + 2 * self.std.log() + math.log(2 * math.pi)
        return -0.5 * terms.flatten(1).sum(1)

    def kl(self, other: Latents | None = None) -> Tensor:
        """KL(self || other) in nats, (B,) (E26); other is N(0, I) unless given. Infinite for std 0."""
        if other is None:
            terms = self.std**2 + self.mean**2 - 1 - 2 * self.std.log()
        else:
            ratio = self.std / other.std
            terms = ratio**2 + ((self.mean - other.mean) / other.std) ** 2 - 1 - 2 * ratio.log()
        return 0.5 * terms.flatten(1).sum(1)

    def entropy(self) -> Tensor:
        """-E[log N] = sum of log(std sqrt(2 pi e)) in nats, (B,); minus infinity for std 0."""
        return (self.std.log() + 0.5 * math.log(2 * math.pi * math.e)).flatten(1).sum(1)

"""Diffusion as a hierarchy: L layers of the data's own dimension, inference fixed and linear, z_L = noise (E29).

z_l is x_t at t = l/L: q(z_l|z_{l-1}) is the step of the forward process (E1), p(z_l|z_{l+1}) its posterior at the
denoiser's x0_hat (E6), p(z_L) = N(0, s_1^2 C), p(x|z_1) the decoder. The bound needs no code for diffusion: that of
`hierarchy` gives E11 and, along a path, E12 in expectation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ornstein.autoencoders.hierarchy import Elbo, Noise, matching_rates, path_rates
from ornstein.denoiser import Denoises
from ornstein.likelihood.decoders import DECODERS
from ornstein.process import Gaussian, Process

__all__ = ["DiffusionChain"]


@dataclass(frozen=True)
class DiffusionChain:
    """The chain of `layers` steps of a denoiser as a `LinearHierarchy` over x (B, *).

    Args:
        denoiser: E[x_0 | x_t].
        layers: L.
        variance: of the reverse steps, "upper" (beta) or "lower" (beta~) (E9).

    Raises:
        ValueError: fewer than 1 layer, or another variance.
    """

    denoiser: Denoises
    layers: int
    variance: Literal["upper", "lower"] = "upper"

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"a hierarchy has at least 1 layer, got {self.layers}")
        if self.variance not in ("upper", "lower"):
            raise ValueError(f'variance is "upper" (beta) or "lower" (beta~), got {self.variance!r}')

    @property
    def process(self) -> Process:
        return self.denoiser.process

    def time(self, layer: int) -> float:
        return layer / self.layers

    def infer(self, layer: int, below: Tensor) -> Gaussian:
        """q(z_l | z_{l-1}) (E1)."""
        return self.process.transition(below, self.time(layer - 1), self.time(layer))

    def generate(self, layer: int, above: Tensor) -> Gaussian:
        """p(z_l | z_{l+1}) = q(z_l | z_{l+1}, x0_hat(z_{l+1})), with the variance chosen."""
        s, t = self.time(layer), self.time(layer + 1)
        reverse = self.process.posterior(above, self.denoiser(above, t).x0, s, t)
        if self.variance == "lower":
            return reverse
        return Gaussian(reverse.mean, self.process.transition(above, s, t).std, self.process.noise)

    def top(self, like: Tensor) -> Gaussian:
        """p(z_L) = N(0, s_1^2 C)."""
        return self.process.marginal(torch.zeros_like(like), 1.0)

    def marginal(self, layer: int, x: Tensor) -> Gaussian:
        """q(z_l | x) (E2)."""
        return self.process.marginal(x, self.time(layer))

    def posterior(self, layer: int, above: Tensor, x: Tensor) -> Gaussian:
        """q(z_l | z_{l+1}, x) (E6)."""
        return self.process.posterior(above, x, self.time(layer), self.time(layer + 1))

    def bound(
        self,
        x: Tensor,
        noise: Noise,
        form: Literal["path", "matching"] = "matching",
        decoder: Literal["discrete", "vdm", "gaussian"] = "gaussian",
    ) -> Elbo:
        """-log p(x) <= total in expectation, x (B, *), nats; form and decoder as in `hierarchy` and `likelihood.vlb`.

        With the form "matching" it equals `vlb(d, x, layers, "matching", decoder)` on the same noise.

        Raises:
            ValueError: an unknown form or decoder.
        """
        forms = {"path": path_rates, "matching": matching_rates}
        if form not in forms or decoder not in DECODERS:
            raise ValueError(
                f"form is one of {', '.join(forms)} and decoder one of {', '.join(DECODERS)}, got {form!r}, {decoder!r}"
            )
        with torch.no_grad():
            z, rates = forms[form](self, x, noise)
            t = self.time(1)
            return Elbo(-DECODERS[decoder](self.denoiser(z, t), x, t), rates)

"""A Markov hierarchy of Gaussian latents x = z_0 - z_1 - ... - z_L and its bound, layer by layer (E28, E29).

Inference goes up, q(z_1|x) q(z_2|z_1) ... q(z_L|z_{L-1}); generation comes down, p(z_L) p(z_{L-1}|z_L) ... p(x|z_1):

    -log p(x) <= -E log p(x|z_1) + sum_{l<L} E[log q(z_l|z_{l-1}) - log p(z_l|z_{l+1})]
                 + E KL(q(z_L|z_{L-1}) || p(z_L)).

The terms of the sum are the rates. The rate of l < L is not KL(q(z_l|z_{l-1}) || p(z_l|z_{l+1})), as S3 writes it:
under q, z_{l+1} is drawn given z_l, so the two are not independent given z_{l-1}, and the divergence at an independent
z_l is a different, larger number. `path_rates` evaluates the log-ratio at the z_l from which z_{l+1} was drawn; for
q = p it is exactly 0. Only the top layer, which no other layer depends on, has a divergence in closed form.
If inference is linear with known q(z_l|x), as in diffusion, the sum regroups by Bayes' rule
q(z_l|z_{l-1}) = q(z_{l-1}|z_l, x) q(z_l|x)/q(z_{l-1}|x) into closed-form divergences: `matching_rates` (E11).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Conditional", "Elbo", "Hierarchy", "LinearHierarchy", "Noise", "matching_rates", "path_rates"]

Noise = Callable[[int, tuple[int, ...]], Tensor]
"""(layer, shape) -> white noise of that shape for that layer, 1 being the lowest: see `drawn` and `addressed`."""


class Conditional(Protocol):
    """A distribution of a layer given another: `Latents`, or a kernel of a `Process`."""

    @property
    def mean(self) -> Tensor: ...

    def sample(self, z: Tensor, /) -> Tensor: ...

    def log_prob(self, x: Tensor, /) -> Tensor: ...

    def kl(self, other: Any, /) -> Tensor: ...


class Hierarchy(Protocol):
    """Layers 1..L above x; their tensors are (B, *), with the shape of the layer."""

    @property
    def layers(self) -> int: ...

    def infer(self, layer: int, below: Tensor) -> Conditional:
        """q(z_l | z_{l-1}); below is x for layer 1."""
        ...

    def generate(self, layer: int, above: Tensor) -> Conditional:
        """p(z_l | z_{l+1}), l < L."""
        ...

    def top(self, like: Tensor) -> Conditional:
        """p(z_L), in the shape of `like`."""
        ...


class LinearHierarchy(Hierarchy, Protocol):
    """A hierarchy with fixed linear inference, whose distributions given x are known."""

    def marginal(self, layer: int, x: Tensor) -> Conditional:
        """q(z_l | x)."""
        ...

    def posterior(self, layer: int, above: Tensor, x: Tensor) -> Conditional:
        """q(z_l | z_{l+1}, x), l < L."""
        ...


@dataclass(frozen=True)
class Elbo:
    """-log p(x) <= total = reconstruction + the sum of the rates in expectation, nats a sample.

    Attributes:
        reconstruction: (B,) -log p(x | z_1).
        rates: (L, B) the cost of each layer, the lowest first.
    """

    reconstruction: Tensor
    rates: Tensor

    @property
    def total(self) -> Tensor:
        return self.reconstruction + self.rates.sum(0)


def path_rates(h: Hierarchy, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """z_1 (B, *) and the rates (L, B) in nats, of one path z_1, ..., z_L drawn from q given x (E29)."""
    below, path = x, []
    for layer in range(1, h.layers + 1):
        q = h.infer(layer, below)
        below = q.sample(noise(layer, tuple(q.mean.shape)))
        path.append((q, below))
    rates = []
    for layer in range(1, h.layers):
        q, z = path[layer - 1]
        rates.append(q.log_prob(z) - h.generate(layer, path[layer][1]).log_prob(z))
    q, z = path[-1]
    rates.append(q.kl(h.top(z)))
    return path[0][1], torch.stack(rates)


def matching_rates(h: LinearHierarchy, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """z_1 (B, *) and the rates (L, B) in nats, every z_l drawn independently from q(z_l | x) (E11).

    Layer l < L costs KL(q(z_l|z_{l+1}, x) || p(z_l|z_{l+1})), the top KL(q(z_L|x) || p(z_L)). In expectation their sum
    equals that of `path_rates`, with a smaller variance; the single rates differ.
    """
    latents = []
    for layer in range(1, h.layers + 1):
        q = h.marginal(layer, x)
        latents.append(q.sample(noise(layer, tuple(q.mean.shape))))
    rates = [h.posterior(l, latents[l], x).kl(h.generate(l, latents[l])) for l in range(1, h.layers)]
    rates.append(h.marginal(h.layers, x).kl(h.top(latents[-1])))
    return latents[0], torch.stack(rates)

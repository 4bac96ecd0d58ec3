"""Adversarial objectives and what keeps the critic smooth (E34).

A critic D gives one number a sample, a logit for the losses of Goodfellow et al. 2014. All losses are minimised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

__all__ = [
    "Loss",
    "clip_weights",
    "critic_loss",
    "dragan_points",
    "generator_loss",
    "gradient_norms",
    "gradient_penalty",
    "interpolated",
    "spectrally_normalised",
    "unrolled",
]

Loss = Literal["minimax", "non-saturating", "wasserstein", "hinge"]

_TINY = 1e-24  # keeps the derivative of a root at 0 finite


def critic_loss(loss: Loss, real: Tensor, fake: Tensor) -> Tensor:
    """The loss of the critic from its outputs on data and on generated samples, each (B,) or (B, 1).

    "minimax" and "non-saturating": -log sigmoid(D(x)) - log(1 - sigmoid(D(G(z)))) (Goodfellow et al. 2014, eq. 1);
    "wasserstein": D(G(z)) - D(x) (Arjovsky et al. 2017, arXiv:1701.07875); "hinge": max(0, 1 - D(x)) +
    max(0, 1 + D(G(z))) (Miyato et al. 2018, arXiv:1802.05957, eq. 16).
    """
    _check(loss)
    if loss == "wasserstein":
        return fake.mean() - real.mean()
    if loss == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(loss: Loss, fake: Tensor) -> Tensor:
    """The loss of the generator from the critic's output on its samples.

    "minimax": log(1 - sigmoid(D(G(z)))), whose gradient vanishes where the critic is sure; "non-saturating":
    -log sigmoid(D(G(z))); "wasserstein" and "hinge": -D(G(z)).
    """
    _check(loss)
    if loss == "minimax":
        return -F.softplus(fake).mean()
    return F.softplus(-fake).mean() if loss == "non-saturating" else -fake.mean()


def _check(loss: str) -> None:
    if loss not in get_args(Loss):
        raise ValueError(f"unknown loss {loss!r}; known: {', '.join(get_args(Loss))}")


def clip_weights(critic: nn.Module, bound: float) -> None:
    """Put every parameter into [-bound, bound]: the critic stays K-Lipschitz for some K (Arjovsky et al. 2017)."""
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.clamp_(-bound, bound)


def gradient_norms(critic: Callable[[Tensor], Tensor], x: Tensor, create_graph: bool = False) -> Tensor:
    """||grad_x D(x)|| of each sample, (B,)."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=create_graph)
    return gradient.flatten(1).square().sum(1).add(_TINY).sqrt()


def gradient_penalty(critic: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """mean (||grad D(x)|| - 1)^2 at the points x (B, *).

    The points are those of `interpolated` (Gulrajani et al. 2017, arXiv:1704.00028, eq. 3) or of `dragan_points`.
    """
    return (gradient_norms(critic, x, create_graph=True) - 1).square().mean()


def interpolated(real: Tensor, fake: Tensor, draw: torch.Generator | None = None) -> Tensor:
    """u x + (1 - u) G(z) with one u ~ U(0, 1) a pair: the points of WGAN's gradient penalty."""
    u = torch.rand(len(real), *[1] * (real.ndim - 1), generator=draw, dtype=real.dtype)
    return (u * real + (1 - u) * fake).detach()


def dragan_points(real: Tensor, scale: float = 0.5, draw: torch.Generator | None = None) -> Tensor:
    """x + delta around the data, delta ~ N(0, (scale std)^2) with the batch's own standard deviation.

    Source: Kodali et al. 2017 (arXiv:1705.07215), algorithm 1, with the scale of the noise in units of the data as in
    the authors' experiments.
    """
    noise = torch.randn(real.shape, generator=draw, dtype=real.dtype)
    return real + scale * real.std() * noise


def spectrally_normalised(critic: nn.Module) -> nn.Module:
    """The critic with W/sigma(W) in place of every weight W (Miyato et al. 2018, eq. 8 and algorithm 1).

    sigma(W) is estimated by one power iteration a training step from a vector that is kept; a convolution's weight is
    the matrix (out, in k k). It is PyTorch's parametrisation, and it changes `critic`.
    """
    for module in list(critic.modules()):
        if isinstance(module, nn.Linear | nn.Conv2d):
            parametrizations.spectral_norm(module, n_power_iterations=1)
    return critic


def unrolled(
    loss: Callable[[Mapping[str, Tensor]], Tensor],
    parameters: Mapping[str, Tensor],
    moments: Mapping[str, tuple[Tensor, Tensor]],
    count: int,
    steps: int,
    rate: float,
    betas: tuple[float, float],
    eps: float = 1e-8,
) -> dict[str, Tensor]:
    """The parameters after `steps` steps of Adam, as a differentiable function of what `loss` depends on.

    The gradient of the generator passes through these steps of the critic (Metz et al. 2017, arXiv:1611.02163, eq. 8).

    Args:
        loss: of the critic, as a function of its parameters by name.
        parameters: of the critic now.
        moments: Adam's mean and mean square of each gradient; empty before the first step.
        count: steps that Adam has taken.
        steps: K; 0 returns the parameters themselves.
        rate, betas, eps: of Adam.
    """
    now = dict(parameters)
    state = {name: moments.get(name, (torch.zeros_like(p), torch.zeros_like(p))) for name, p in now.items()}
    for step in range(count + 1, count + steps + 1):
        gradients = torch.autograd.grad(loss(now), list(now.values()), create_graph=True)
        for (name, p), g in zip(list(now.items()), gradients, strict=True):
            mean = betas[0] * state[name][0] + (1 - betas[0]) * g
            square = betas[1] * state[name][1] + (1 - betas[1]) * g * g
            state[name] = mean, square
            root = (square / (1 - betas[1] ** step)).add(_TINY).sqrt()
            now[name] = p - rate * mean / (1 - betas[0] ** step) / (root + eps)
    return now

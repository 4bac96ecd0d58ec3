"""Bits per dimension of held-out images, by each method that bounds or computes them, with its error bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ornstein import autoencoders, likelihood
from ornstein.autoencoders.latent import JointBound, LatentSpace, joint_bound
from ornstein.data import to_unit
from ornstein.denoiser import Denoiser

Form = Literal["matching", "consistency", "continuous"]

STEPS = 1000  # of the chain that the bounds are of, as published numbers have it
LEVELS = 100  # of noise, for each image
FLOW_STEPS = 32
_BATCH = 32

METHODS = {
    "vlb": f"bound E11, all terms of {STEPS} steps, discretised Gaussian decoder",
    "consistency": f"bound E12, all terms of {STEPS} steps, discretised Gaussian decoder",
    "continuous": f"bound E17 down to t = 1/{STEPS}, {LEVELS} noise levels an image, discretised Gaussian decoder",
    "ode": f"flow E21, {FLOW_STEPS} steps of RK4, one Hutchinson probe, uniform dequantisation",
    "ode-variational": f"flow E21, {FLOW_STEPS} steps of RK4, one Hutchinson probe, dequantisation fitted to training "
    "images",
}

_LATENT = {
    "vlb": f"bound E11, all terms of {STEPS} steps",
    "consistency": f"bound E12, all terms of {STEPS} steps",
    "continuous": f"bound E17 down to t = 1/{STEPS}, {LEVELS} noise levels an image",
    "ode": f"flow E21, {FLOW_STEPS} steps of RK4, one Hutchinson probe",
}

_FORMS: dict[str, Form] = {"vlb": "matching", "consistency": "consistency", "continuous": "continuous"}

# Calls of the network for each image; of the flow's, four a step, the backward pass counts as two more.
_FLOW_CALLS = 12 * FLOW_STEPS
CALLS = {
    "vlb": STEPS,
    "consistency": STEPS,
    "continuous": LEVELS + 1,
    "ode": _FLOW_CALLS,
    "ode-variational": _FLOW_CALLS,
}


@dataclass(frozen=True)
class Bits:
    """Mean bits/dim over `count` images and its standard error, which holds the spread of images and of draws.

    parts: mean bits/dim of prior, diffusion and reconstruction, for a bound.
    """

    method: str
    meaning: str
    mean: float
    error: float
    count: int
    parts: dict[str, float]


def bits_of_images(
    d: Denoiser,
    images: Tensor,
    method: str,
    labels: Tensor | None = None,
    seed: int = 0,
    advance: Callable[[int], object] = lambda done: None,
    dequantiser: likelihood.Dequantiser | None = None,
) -> Bits:
    """Bits/dim of 8-bit images (N, C, H, W), uint8, of classes `labels` (N,) where the model has them.

    A latent model has the joint bound: the decoder's reconstruction, the encoder's entropy, and of the latents, which
    have a density, the same bound or flow.

    The images go through in batches: at most 256 rows of (image, draw) are in the network and in float64 at once,
    however many images there are, and of each only its numbers are kept. Noise is addressed by (seed, image), so that
    the number does not depend on the batch. advance(done) is told the number of images that are done. The error of a
    single image is NaN. Raises ValueError for an unknown method, images the model was not made for, and
    "ode-variational" without a dequantiser.
    """
    if method not in METHODS:
        raise ValueError(f"unknown likelihood {method!r}; known: {', '.join(METHODS)}")
    dequantisation = dequantiser if method == "ode-variational" else "uniform"
    if dequantisation is None:
        raise ValueError("ode-variational needs a dequantiser; likelihood.fit_dequantiser makes it")
    if method == "ode-variational" and isinstance(d.space, LatentSpace):
        raise ValueError("latents are continuous and need no dequantisation: use ode in place of ode-variational")
    values, parts = [], []
    for first in range(0, len(images), _BATCH):
        rows = slice(first, first + _BATCH)
        x0 = to_unit(images[rows])
        cond = None if labels is None else {"label": labels[rows]}
        if isinstance(d.space, LatentSpace):
            joint = _joint(d, d.space, x0, method, cond, seed, first)
            values.append(likelihood.bits_per_dim(joint.total, x0.shape, None))
            split = (joint.reconstruction, -joint.entropy, joint.prior)
            parts.append(torch.stack([likelihood.bits_per_dim(part, x0.shape, None) for part in split]))
        elif method not in _FORMS:
            found = likelihood.ode(
                d,
                x0,
                "hutchinson",
                steps=FLOW_STEPS,
                probes=1,
                dequantisation=dequantisation,
                seed=seed,
                first=first,
                batch=_BATCH,
                cond=cond,
            )
            values.append(likelihood.bits_per_dim(-found.value, x0.shape, 256))
        else:
            form = _FORMS[method]
            terms = LEVELS if method == "continuous" else None
            bound = likelihood.vlb(d, x0, STEPS, form, "discrete", terms=terms, seed=seed, first=first, cond=cond)
            values.append(likelihood.bits_per_dim(bound.total, x0.shape, None))
            split = (bound.prior, bound.diffusion, bound.reconstruction)
            parts.append(torch.stack([likelihood.bits_per_dim(part, x0.shape, None) for part in split]))
        advance(min(first + _BATCH, len(images)))
    latent = d.space is not None
    names = ("reconstruction", "minus entropy", "prior") if latent else ("prior", "diffusion", "reconstruction")
    meaning = f"joint bound, latents by {_LATENT[method]}" if latent else METHODS[method]
    return _summary(
        method, meaning, torch.cat(values), dict(zip(names, torch.cat(parts, 1), strict=True)) if parts else {}
    )


def bits_by_own_prior(space: LatentSpace, images: Tensor, seed: int = 0) -> Bits:
    """Bits/dim of 8-bit images (N, C, H, W), uint8, by the autoencoder alone: with its own prior, E27 to E29."""
    parts = []
    for first in range(0, len(images), _BATCH):
        x0 = to_unit(images[first : first + _BATCH])
        elbo = space.autoencoder.bound(x0, autoencoders.addressed(seed, torch.arange(first, first + len(x0))))
        split = (elbo.reconstruction, elbo.rates.sum(0))
        parts.append(torch.stack([likelihood.bits_per_dim(part, x0.shape, None) for part in split]))
    both = torch.cat(parts, 1)
    named = {"reconstruction": both[0], "rate": both[1]}
    return _summary("own prior", "the autoencoder without the diffusion model, one draw", both.sum(0), named)


def _summary(method: str, meaning: str, value: Tensor, parts: dict[str, Tensor]) -> Bits:
    error = float(value.std() / len(value) ** 0.5) if len(value) > 1 else float("nan")
    means = {name: float(part.mean()) for name, part in parts.items()}
    return Bits(method, meaning, float(value.mean()), error, len(value), means)


def _joint(
    d: Denoiser, space: LatentSpace, x0: Tensor, method: str, cond: dict[str, Tensor] | None, seed: int, first: int
) -> JointBound:
    def prior(y: Tensor, first: int) -> Tensor:
        if method == "ode":
            found = likelihood.ode(
                d, y, "hutchinson", steps=FLOW_STEPS, probes=1, seed=seed, first=first, batch=_BATCH, cond=cond
            )
            return -found.value
        terms = LEVELS if method == "continuous" else None
        return likelihood.vlb(
            d, y, STEPS, _FORMS[method], "gaussian", terms=terms, seed=seed, first=first, cond=cond
        ).total

    return joint_bound(space, x0, prior, seed=seed, first=first, batch=len(x0))

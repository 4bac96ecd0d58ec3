"""Bits per dimension of held-out images, by each method that bounds or computes them, with its error bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ornstein import likelihood
from ornstein.data import to_unit
from ornstein.denoiser import Denoises

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
}

_FORMS: dict[str, Form] = {"vlb": "matching", "consistency": "consistency", "continuous": "continuous"}

# Calls of the network for each image; of the flow's, four a step, the backward pass counts as two more.
CALLS = {"vlb": STEPS, "consistency": STEPS, "continuous": LEVELS + 1, "ode": 12 * FLOW_STEPS}


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
    d: Denoises,
    images: Tensor,
    method: str,
    labels: Tensor | None = None,
    seed: int = 0,
    advance: Callable[[int], object] = lambda done: None,
) -> Bits:
    """Bits/dim of 8-bit images (N, C, H, W), uint8, of classes `labels` (N,) where the model has them.

    The images go through in batches: at most 256 rows of (image, draw) are in the network and in float64 at once,
    however many images there are, and of each only its numbers are kept. Noise is addressed by (seed, image), so that
    the number does not depend on the batch. advance(done) is told the number of images that are done. The error of a
    single image is NaN. Raises ValueError for an unknown method or images the model was not made for.
    """
    if method not in METHODS:
        raise ValueError(f"unknown likelihood {method!r}; known: {', '.join(METHODS)}")
    values, parts = [], []
    for first in range(0, len(images), _BATCH):
        rows = slice(first, first + _BATCH)
        x0 = to_unit(images[rows])
        cond = None if labels is None else {"label": labels[rows]}
        if method == "ode":
            found = likelihood.ode(
                d,
                x0,
                "hutchinson",
                steps=FLOW_STEPS,
                probes=1,
                dequantisation="uniform",
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
    value = torch.cat(values)
    names = ("prior", "diffusion", "reconstruction")
    return Bits(
        method,
        METHODS[method],
        float(value.mean()),
        float(value.std() / len(value) ** 0.5) if len(value) > 1 else float("nan"),
        len(value),
        dict(zip(names, torch.cat(parts, 1).mean(1).tolist(), strict=True)) if parts else {},
    )

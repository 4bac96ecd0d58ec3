"""Bits per dimension of held-out images, by each method that bounds or computes them, with its error bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from ornstein import autoencoders, likelihood, processes
from ornstein.autoencoders.latent import JointBound, LatentSpace, joint_bound
from ornstein.data import to_unit
from ornstein.denoiser import Denoiser
from ornstein.likelihood.dequantise import Dequantisation
from ornstein.process import Prediction
from ornstein.schedules import Times
from ornstein.wrapper import Wrapper, device_of

__all__ = ["CALLS", "METHODS", "Bits", "bits_by_own_prior", "bits_of_images"]

T = TypeVar("T")
Form = Literal["matching", "consistency", "continuous"]

STEPS = 1000  # of the chain that the bounds are of, as published numbers have it
LEVELS = 100  # of noise, for each image
# Of the flow's log-density, in nats a dimension: a bound, far above the error. A tenth of it takes ten times as many
# evaluations, and the spread over images is much larger.
TOLERANCE = 1e-2
_BATCH = 32
_MOST_CALLS = 1000  # of the network for one batch of the flow; most take some 50

_CHAIN = f"all terms of {STEPS} steps"
_CONTINUOUS = f"bound E17 down to t = 1/{STEPS}, {LEVELS} noise levels an image"
_FLOW = f"flow E21, steps chosen to {TOLERANCE:g} nats a dimension, one Hutchinson probe"
_PIXELS = "discretised Gaussian decoder"

METHODS = {
    "vlb": f"bound E11, {_CHAIN}, {_PIXELS}",
    "consistency": f"bound E12, {_CHAIN}, {_PIXELS}",
    "continuous": f"{_CONTINUOUS}, {_PIXELS}",
    "ode": f"{_FLOW}, uniform dequantisation",
    "ode-variational": f"{_FLOW}, dequantisation fitted to training images",
    "few": "flow map and density E32 in few evaluations, one Hutchinson probe, uniform dequantisation",
}

_LATENT = {
    "vlb": f"bound E11, {_CHAIN}",
    "consistency": f"bound E12, {_CHAIN}",
    "continuous": _CONTINUOUS,
    "ode": _FLOW,
}

_FORMS: dict[str, Form] = {"vlb": "matching", "consistency": "consistency", "continuous": "continuous"}

# Network evaluations for each image; those of the flow vary, and their backward pass counts as two more.
_FLOW_CALLS = 3 * 50
CALLS = {
    "vlb": STEPS,
    "consistency": STEPS,
    "continuous": LEVELS + 1,
    "ode": _FLOW_CALLS,
    "ode-variational": _FLOW_CALLS,
    "few": 3 * 8,
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
    stop: Callable[[], bool] = lambda: False,
    few: likelihood.FewSteps | None = None,
) -> Bits:
    """Bits/dim of 8-bit images.

    Of a latent model it is the joint bound: the decoder's reconstruction, the encoder's entropy, and the same bound or
    flow of the latents, which have a density.

    The images go through in batches: at most 256 rows of (image, draw) are in the network and in float64 at once. Noise
    is addressed by (seed, image), so that the result does not depend on the batch. The processes of a launch take turns
    with the batches, and all have the result.

    Args:
        d: the model; everything runs on its device.
        images: uint8 (N, C, H, W), on any device.
        method: a name of `METHODS`.
        labels: classes (N,) of a model with classes.
        seed: of noise, dequantisation and probes.
        advance: called with the number of images that are done.
        dequantiser: for "ode-variational", by `likelihood.fit_dequantiser`.
        stop: asked after each batch; True ends with the images that are done.
        few: for "few", by `likelihood.fit_few`.

    Returns:
        The mean over the images; its error is NaN for a single image.

    Raises:
        ValueError: an unknown method, images that the model was not made for, "ode-variational" without a
            dequantiser, or "few" without what was learned.
    """
    if method not in METHODS:
        raise ValueError(f"unknown likelihood {method!r}; known: {', '.join(METHODS)}")
    dequantisation = dequantiser if method == "ode-variational" else "uniform"
    if dequantisation is None:
        raise ValueError("ode-variational needs a dequantiser; likelihood.fit_dequantiser makes it")
    if method == "ode-variational" and isinstance(d.space, LatentSpace):
        raise ValueError("latents are continuous and need no dequantisation: use ode in place of ode-variational")
    if method == "few" and (few is None or isinstance(d.space, LatentSpace)):
        raise ValueError("few needs what `ornstein tune --likelihood` learns, of a model of pixels")
    values, parts = [], []
    device = device_of(d)

    def measure(first: int) -> tuple[Tensor, Tensor | None]:
        """Bits/dim of the images of a batch, and of their parts if there are any."""
        rows = slice(first, first + _BATCH)
        x0 = to_unit(images[rows].to(device))
        cond = None if labels is None else {"label": labels[rows].to(device)}
        if isinstance(d.space, LatentSpace):
            joint = _joint(d, d.space, x0, method, cond, seed, first)
            total, split = joint.total, (joint.reconstruction, -joint.entropy, joint.prior)
        elif method == "few":
            assert few is not None
            found = few(d, x0, dequantisation="uniform", seed=seed, first=first, batch=_BATCH, cond=cond)
            total, split = -found.value, ()
        elif method not in _FORMS:
            total, split = -_flow(d, x0, cond, seed, first, dequantisation), ()
        else:
            form = _FORMS[method]
            terms = LEVELS if method == "continuous" else None
            bound = likelihood.vlb(d, x0, STEPS, form, "discrete", terms=terms, seed=seed, first=first, cond=cond)
            total, split = bound.total, (bound.prior, bound.diffusion, bound.reconstruction)
        # the flow has a density of pixels in [-1, 1], the bounds have the probability of the 8-bit image
        bins = 256 if not split else None
        value = likelihood.bits_per_dim(total, x0.shape, bins).cpu()
        each = [likelihood.bits_per_dim(part, x0.shape, None).cpu() for part in split]
        return value, torch.stack(each) if each else None

    for done, batches in _in_turns(measure, range(0, len(images), _BATCH)):
        values += [value for value, _ in batches]
        parts += [part for _, part in batches if part is not None]
        advance(min(done * _BATCH, len(images)))
        if stop():
            break
    latent = d.space is not None
    names = ("reconstruction", "minus entropy", "prior") if latent else ("prior", "diffusion", "reconstruction")
    meaning = f"joint bound, latents by {_LATENT[method]}" if latent else METHODS[method]
    named: dict[str, Tensor] = dict(zip(names, torch.cat(parts, 1), strict=True)) if parts else {}
    if few is not None and method == "few":
        off = float(likelihood.bits_per_dim(torch.tensor(few.spread), images.shape, None))
        meaning = f"{meaning}; {few.evaluations} evaluations, {off:.3f} bits/dim from the fine solution an image"
    return _summary(method, meaning, torch.cat(values), named)


def _in_turns(measure: Callable[[int], T], batches: Sequence[int]) -> Iterator[tuple[int, list[T]]]:
    """Results of batches, computed in turns by the processes of a launch: how many are done, and the new ones.

    A ValueError in one process is raised in all.
    """
    group = processes.current()
    for done in range(0, len(batches), group.world):
        mine: list[T] = []
        failed: list[str] = []
        try:
            mine = [measure(first) for first in batches[done + group.rank : done + group.rank + 1]]
        except ValueError as error:
            if group.world == 1:
                raise
            failed.append(str(error))
        reasons = group.collected(failed)
        if reasons:
            raise ValueError(reasons[0])
        yield min(done + group.world, len(batches)), group.collected(mine)


def _flow(
    d: Denoiser,
    x0: Tensor,
    cond: dict[str, Tensor] | None,
    seed: int,
    first: int,
    dequantisation: Dequantisation = "none",
) -> Tensor:
    """log p(x_0) along the flow, (N,)."""
    return likelihood.ode(
        _Limited(d),
        x0,
        "hutchinson",
        tolerance=TOLERANCE,
        probes=1,
        dequantisation=dequantisation,
        seed=seed,
        first=first,
        batch=_BATCH,
        cond=cond,
    ).value


class _Limited(Wrapper):
    """A denoiser that ends a flow which takes too long: that of a model whose density has directions without width."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.calls = 0

    def __call__(self, x_t: Tensor, t: Times, /, **cond: Any) -> Prediction:
        self.calls += 1
        if self.calls > _MOST_CALLS:
            raise ValueError(
                f"the flow took more than {_MOST_CALLS} evaluations of the network; its density may be infinite or zero"
            )
        return self.denoiser(x_t, t, **cond)


def bits_by_own_prior(space: LatentSpace, images: Tensor, seed: int = 0) -> Bits:
    """Bits/dim of 8-bit images (N, C, H, W), uint8, of the autoencoder alone: with its own prior, E27 to E29."""
    parts = []
    device = next(space.autoencoder.parameters()).device
    for first in range(0, len(images), _BATCH):
        x0 = to_unit(images[first : first + _BATCH].to(device))
        index = torch.arange(first, first + len(x0))
        elbo = space.autoencoder.bound(x0, autoencoders.addressed(seed, index, device=device))
        split = (elbo.reconstruction, elbo.rates.sum(0))
        parts.append(torch.stack([likelihood.bits_per_dim(part, x0.shape, None).cpu() for part in split]))
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
            return -_flow(d, y, cond, seed, first)
        terms = LEVELS if method == "continuous" else None
        form = _FORMS[method]
        return likelihood.vlb(d, y, STEPS, form, "gaussian", terms=terms, seed=seed, first=first, cond=cond).total

    return joint_bound(space, x0, prior, seed=seed, first=first, batch=len(x0))

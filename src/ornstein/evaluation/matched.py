"""Which images a model is judged by, and of which classes its samples are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ornstein.data import ImageSet, batch_indices
from ornstein.denoiser import Denoiser, SampleSpec
from ornstein.errors import UserError


def image_shape(d: Denoiser) -> tuple[int, ...]:
    """(C, H, W) of the images that the model makes. Raises UserError where it makes something else."""
    if d.shape is None or len(d.shape) != 3:
        made = "samples it does not describe" if d.shape is None else f"clips {_by(d.shape)}"
        raise UserError(f"only models of images can be judged: this one makes {made}")
    return d.shape


def check_images(own: tuple[int, ...], images: ImageSet) -> None:
    """Raise UserError unless the images are of the model's own (C, H, W); it says both."""
    shape = tuple(images.images.shape[1:])
    if shape != own:
        raise UserError(
            f"{images.source} has images of {_by(shape)} (channels x height x width), but the model makes "
            f"{_by(own)}: give it images like those it was trained on"
        )


def class_numbers(images: ImageSet, data: SampleSpec) -> Tensor | None:
    """The model's number (N,) of each image's class, by name; None where either has none, or the model lacks one."""
    if images.labels is None or not set(images.classes) <= set(data.classes):
        return None
    return torch.tensor([data.classes.index(name) for name in images.classes])[images.labels]


def _by(shape: Sequence[int]) -> str:
    return "x".join(str(n) for n in shape)


def choose(images: ImageSet, count: int) -> Tensor:
    """`count` of the images at most, always the same ones, in their order."""
    return batch_indices(len(images), min(count, len(images)), step=0, seed=0).sort().values


def sample_labels(data: SampleSpec, real: Tensor | None, count: int) -> Tensor | None:
    """The classes to sample: those of the real images over and over, or each in turn."""
    if real is None:
        return data.labels(count)
    # A stride through them, so that a part of the samples has all the classes too.
    return real[(torch.arange(count) * _stride(len(real))) % len(real)]


def _stride(n: int) -> int:
    """A number without a common divisor with n, about 0.618 n."""
    return next(k for k in range(max(1, round(0.618 * n)), n + 2) if math.gcd(k, n) == 1)

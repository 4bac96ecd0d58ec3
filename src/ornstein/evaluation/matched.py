"""Which images a model is evaluated on, and the classes of its samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ornstein.data import ImageSet, batch_indices
from ornstein.denoiser import Denoiser, SampleSpec
from ornstein.errors import UserError

__all__ = ["check_images", "choose", "class_numbers", "image_shape", "sample_labels"]


def image_shape(d: Denoiser) -> tuple[int, ...]:
    """(C, H, W) of the images that the model makes. Raises UserError if it makes anything else."""
    if d.shape is None or len(d.shape) != 3:
        made = "samples that it does not describe" if d.shape is None else f"clips {_by(d.shape)}"
        raise UserError(f"only models of images can be evaluated: this one makes {made}")
    return d.shape


def check_images(made: tuple[int, ...], images: ImageSet) -> None:
    """Raise UserError unless the images have the shape (C, H, W) of those that the model makes; it names both."""
    shape = tuple(images.images.shape[1:])
    if shape != made:
        raise UserError(
            f"{images.source} has images of {_by(shape)} (channels x height x width), but the model makes "
            f"{_by(made)}: give it images like those it was trained on"
        )


def class_numbers(images: ImageSet, data: SampleSpec) -> Tensor | None:
    """The model's number of each image's class, (N,), by name; None if either has no classes or the model lacks one."""
    if images.labels is None or not set(images.classes) <= set(data.classes):
        return None
    return torch.tensor([data.classes.index(name) for name in images.classes])[images.labels]


def _by(shape: Sequence[int]) -> str:
    return "x".join(str(n) for n in shape)


def choose(images: ImageSet, count: int) -> Tensor:
    """The indices of at most `count` of the images, always the same ones, in their order."""
    return batch_indices(len(images), min(count, len(images)), step=0, seed=0).sort().values


def sample_labels(data: SampleSpec, real: Tensor | None, count: int) -> Tensor | None:
    """The classes to sample: those of the real images over and over, or each of the model's in turn."""
    if real is None:
        return data.labels(count)
    # in strides, so that a part of the samples has all classes too
    return real[(torch.arange(count) * _stride(len(real))) % len(real)]


def _stride(n: int) -> int:
    """A number without a common divisor with n, about 0.618 n."""
    return next(k for k in range(max(1, round(0.618 * n)), n + 2) if math.gcd(k, n) == 1)

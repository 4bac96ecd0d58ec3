"""The images that `ornstein tune` learns from besides the model's own trajectories."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ornstein.data import ImageSet, StreamedSet, to_unit
from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.training.recipe import in_memory, open_data
from ornstein.training.settings import SETTINGS, Settings

__all__ = ["REAL", "training_images", "unit_images"]

REAL = 2048  # images that samples as a set are compared with, at most


def training_images(run: Path, model: Denoiser, data: str | None) -> ImageSet:
    """The training images of a run, or those of `data` at the size of the model.

    Raises:
        UserError: the model does not make images of pixels, or its training images are not known or no longer there.
    """
    if model.space is not None or model.data is None or len(model.data.shape) != 3:
        raise UserError(f"{run} does not make images of pixels, which this learns from")
    channels, height, width = model.data.shape
    if data is not None:
        settings = Settings(data=data, size=f"{width}x{height}", channels=channels)
    elif (run / SETTINGS).is_file():
        settings = Settings.stored(run / SETTINGS)
    else:
        raise UserError(f"{run} does not say which images it was trained on: give --data")
    train = open_data(settings).train
    if not isinstance(train, ImageSet | StreamedSet):
        raise UserError(f"{settings.data} holds no images of one size, which this learns from")
    images = in_memory(train)
    if tuple(images.images.shape[1:]) != tuple(model.data.shape):
        raise UserError(f"the images are {tuple(images.images.shape[1:])}, the model makes {tuple(model.data.shape)}")
    return images


def unit_images(run: Path, model: Denoiser, data: str | None) -> Tensor:
    """Images (M, C, H, W) as the model makes them, evenly spread over `training_images`.

    Raises:
        UserError: as `training_images`.
    """
    images = training_images(run, model, data).images
    return to_unit(images[:: max(1, len(images) // REAL)][:REAL])

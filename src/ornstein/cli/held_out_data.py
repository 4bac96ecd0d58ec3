"""The images that `ornstein evaluate` uses: those that the run held out, or others without its training images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ornstein.data import BucketSet, ImageSet, StreamedSet, open_images
from ornstein.errors import UserError
from ornstein.evaluation.matched import check_images
from ornstein.evaluation.plan import ENOUGH
from ornstein.progress import plain, progress, say
from ornstein.training.recipe import Settings, in_memory, open_data
from ornstein.training.settings import SETTINGS

__all__ = ["Material", "open_material", "pixel_digest", "places"]


@dataclass(frozen=True)
class Material:
    """The images to evaluate on, the training images if they were found, and a sentence that says which they are."""

    held_out: ImageSet
    train: ImageSet | None
    about: str


def open_material(run: Path, shape: tuple[int, ...], data: str | None, share: float | None) -> Material:
    """Open the images to evaluate a run on.

    Data are recognised by their fingerprint, wherever they are now: if they are those of the run, the part that it held
    out is used. Of other data all images are used that are not among the training images.

    Args:
        run: the run directory.
        shape: (C, H, W) of the images that the model makes.
        data: where to look; None for the data of the run.
        share: use this share only, drawn by the run's seed.

    Raises:
        UserError: the held-out part is unknown, or the images do not fit the model.
    """
    settings = Settings.stored(run / SETTINGS) if (run / SETTINGS).is_file() else None
    if settings is None:
        if data is None:
            raise UserError(f"{run} does not say which images it was trained on (it has no {SETTINGS}): give --data")
        settings, stored = Settings(data=data), None
    else:
        stored = settings.fingerprint
    own = _own(settings, run, data) if data is None or stored is not None else None
    if own is not None:
        return _held_out(own, shape, share)
    if data is None:
        raise UserError(
            f"held-out part unknown: the data of {run}, {settings.data}, are not there any more or have changed; "
            "give --data with the same data in another place, or with other images"
        )
    return _others(settings, run, stored is not None, data, shape, share)


@dataclass(frozen=True)
class _Own:
    """The data of a run: its settings with the place where they are, and both parts."""

    settings: Settings
    train: ImageSet
    held_out: ImageSet


def _own(settings: Settings, run: Path, data: str | None) -> _Own | None:
    """The data of the run from the first place that has them, at `data` or where the run says; None if none has."""
    for place in places(settings.data, run) if data is None else [data]:
        here = replace(settings, data=place)
        try:
            train, held_out, _, _ = open_data(here)
        except UserError:
            continue
        assert isinstance(train, ImageSet | StreamedSet | BucketSet) and isinstance(held_out, ImageSet)
        return _Own(here, in_memory(train), held_out)
    return None


def places(data: str, run: Path) -> list[str]:
    """Where data may be: as the run says it, or relative to the folders that the run lies in."""
    path = Path(data)
    if path.is_absolute():
        return [data]
    return [data, *(str(parent / path) for parent in run.resolve().parents)]


def _held_out(own: _Own, shape: tuple[int, ...], share: float | None) -> Material:
    check_images(shape, own.held_out)
    settings, held_out = own.settings, own.held_out
    if share is not None:
        if share > settings.held_out:
            raise UserError(
                f"--held-out {share} would use images the model was trained on: it held out {settings.held_out}"
            )
        # The same order of the same images: a smaller share is a part of the larger one.
        held_out = open_data(replace(settings, held_out=share)).held_out
        assert isinstance(held_out, ImageSet)
    return Material(held_out, own.train, f"{len(held_out)} images of {plain(settings.data)} that the run held out")


def _others(
    settings: Settings, run: Path, known: bool, data: str, shape: tuple[int, ...], share: float | None
) -> Material:
    """Images of another source, in the sizes and colours of the training."""
    with progress("files", transient=True) as bar:
        task = bar.add_task("reading", total=None, note="")

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        size = (shape[1], shape[2]) if settings.aspect == "buckets" else settings.extent
        crop = "none" if settings.crop == "none" else "centre"
        images = open_images(data, size, settings.channels, crop=crop, progress=advance)
    check_images(shape, images)
    about = f"all {len(images)} images of {plain(data)}"
    if share is not None:
        _, images = images.split(share, settings.seed)
        about = f"{len(images)} images of {plain(data)}, drawn by seed {settings.seed}"
    if settings.size is not None:
        about += f", brought to {shape[2]}x{shape[1]} pixels as in the training"
    own = _own(settings, run, None) if known else None
    if own is None:
        about += "; held-out part unknown: the training images were not found, and may be among these"
        say("held-out part unknown: the training images were not found; no copies are looked for")
        return Material(images, None, about)
    seen = set(_digests(own.train.images))
    fresh = torch.tensor([digest not in seen for digest in _digests(images.images)])
    if not bool(fresh.all()):
        count = int((~fresh).sum())
        if len(images) - count < ENOUGH:
            raise UserError(f"{count} of {len(images)} images of {data} are training images of {run}: give others")
        images = images._subset(torch.nonzero(fresh)[:, 0])
        about += f", without {count} that are training images"
        say(f"{count} images are left out, for they are training images")
    return Material(images, own.train, about)


def _digests(images: Tensor) -> list[bytes]:
    return [hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in images]


def pixel_digest(images: Tensor) -> str:
    """A hash of the pixels of images, 16 hex digits."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(image.numpy().tobytes())
    return digest.hexdigest()[:16]

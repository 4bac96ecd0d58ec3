"""Training on a prepared set of photographs: the recogniser first, then the swap, which the recogniser scores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from ornstein.denoiser import Denoiser
from ornstein.devices import choose_device
from ornstein.errors import UserError
from ornstein.faces.identity import MODEL, Distillation, IdentityNet
from ornstein.faces.train.evaluate import photos_of
from ornstein.faces.train.face_set import FaceSet
from ornstein.faces.train.objective import FaceSettings, FaceTask, face_denoiser
from ornstein.training import TrainConfig, TrainState, run_task

__all__ = ["HELD_OUT", "RECOGNISER", "people_split", "train_recogniser", "train_swap"]

RECOGNISER = "recogniser"
"""The run directory of the recogniser, inside that of the swap."""
HELD_OUT, _SPLIT_SEED = 0.1, 0


def people_split(faces: FaceSet) -> tuple[FaceSet, FaceSet]:
    """(train, held out) by person, the same each time: a share of `HELD_OUT` of the people is never trained on."""
    return faces.split(HELD_OUT, _SPLIT_SEED)


def train_recogniser(
    faces: FaceSet, out: str | Path, config: TrainConfig, width: int = 32, device: str | torch.device = "auto"
) -> Iterator[TrainState[IdentityNet]]:
    """Distil dlib's embeddings of `faces` into a recogniser, in `out`/recogniser; a run that is there is resumed.

    Args:
        faces: the people to train on.
        out: the run directory of the swap.
        config: the trainer's settings.
        width: channels of the network's first level.
        device: see `choose_device`.

    Returns:
        One state a step.

    Raises:
        UserError, RunError: as `run_task`.
    """
    folder = Path(out) / RECOGNISER
    torch.manual_seed(config.seed)
    photos = photos_of(faces)
    net = IdentityNet(photos.embeddings.shape[1], width=width).to(choose_device(device))
    return run_task(Distillation(net, photos), photos, config, folder, resume=folder.is_dir())


def train_swap(
    faces: FaceSet,
    out: str | Path,
    config: TrainConfig,
    settings: FaceSettings | None = None,
    preset: str = "s",
    resume: bool = False,
    device: str | torch.device = "auto",
) -> Iterator[TrainState[Denoiser]]:
    """Train a swap on `faces` in the run directory `out`, whose recogniser is trained.

    Args:
        faces: the people to train on.
        out: the run directory.
        config: the trainer's settings.
        settings: those of the objective.
        preset: the size of the network, one of `nets.face.PRESETS`.
        resume: go on with the run in `out`.
        device: see `choose_device`.

    Returns:
        One state a step.

    Raises:
        UserError: there is no recogniser, and as `run_task`.
        RunError: as `run_task`.
    """
    if not (Path(out) / RECOGNISER / MODEL).exists():
        raise UserError(f"{out} has no recogniser yet: train it first, train_recogniser does")
    where = choose_device(device)
    recogniser = IdentityNet.load(Path(out) / RECOGNISER)
    photos = photos_of(faces)
    photos = photos.known_as(recogniser.normalised(photos.embeddings))
    torch.manual_seed(config.seed)
    denoiser = face_denoiser(photos.size, photos.embeddings.shape[1], preset)
    task = FaceTask(denoiser.to(where), recogniser.to(where), photos, settings or FaceSettings())
    return run_task(task, photos, config, out, resume)

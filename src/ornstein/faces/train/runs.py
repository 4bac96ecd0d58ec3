"""Training on a prepared set of photographs: the recogniser first, then the swap that it judges."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.faces.identity import MODEL, Distillation, IdentityNet
from ornstein.faces.train.evaluate import photos_of
from ornstein.faces.train.face_set import FaceSet
from ornstein.faces.train.objective import FaceSettings, FaceTask, face_denoiser
from ornstein.training import TrainConfig, TrainState, run_task

RECOGNISER = "recogniser"  # the run folder of the recogniser, inside the swap's
HELD_OUT, SPLIT_SEED = 0.1, 0  # of the people, who are never trained on


def people_split(faces: FaceSet) -> tuple[FaceSet, FaceSet]:
    """(train, held out) by person, the same each time."""
    return faces.split(HELD_OUT, SPLIT_SEED)


def train_recogniser(
    faces: FaceSet, out: str | Path, config: TrainConfig, width: int = 32
) -> Iterator[TrainState[IdentityNet]]:
    """Teach a recogniser dlib's embeddings of `faces`, in `out`/recogniser, one state a step; goes on where it was.

    Raises what `run_task` raises.
    """
    folder = Path(out) / RECOGNISER
    torch.manual_seed(config.seed)
    photos = photos_of(faces)
    task = Distillation(IdentityNet(photos.embeddings.shape[1], width=width), photos)
    return run_task(task, photos, config, folder, resume=folder.is_dir())


def train_swap(
    faces: FaceSet,
    out: str | Path,
    config: TrainConfig,
    settings: FaceSettings | None = None,
    preset: str = "s",
    resume: bool = False,
) -> Iterator[TrainState[Denoiser]]:
    """Train a swap on `faces` in the run folder `out`, whose recogniser is trained, one state a step.

    Raises UserError where there is no recogniser, and what `run_task` raises.
    """
    if not (Path(out) / RECOGNISER / MODEL).exists():
        raise UserError(f"{out} has no recogniser yet: train it first, train_recogniser does")
    recogniser = IdentityNet.load(Path(out) / RECOGNISER)
    photos = photos_of(faces)
    photos = photos.known_as(recogniser.normalised(photos.embeddings))
    torch.manual_seed(config.seed)
    denoiser = face_denoiser(photos.size, photos.embeddings.shape[1], preset)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = FaceTask(denoiser.to(device), recogniser.to(device), photos, settings or FaceSettings())
    return run_task(task, photos, config, out, resume)

"""Training of a swap: on rendered faces first, then on a prepared set of photographs, scored by a recogniser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ornstein import checkpoint
from ornstein.denoiser import Denoiser
from ornstein.devices import choose_device
from ornstein.errors import UserError
from ornstein.faces.conditions import CHANNELS
from ornstein.faces.identity import MODEL, Distillation, ExactIdentity, IdentityNet, Recognises
from ornstein.faces.photos import Photos
from ornstein.faces.train.evaluate import photos_of
from ornstein.faces.train.face_set import FaceSet
from ornstein.faces.train.objective import FaceSettings, FaceTask, face_denoiser
from ornstein.faces.world.framed import framed_photos
from ornstein.training import TrainConfig, TrainState, run_task

__all__ = ["HELD_OUT", "RECOGNISER", "WORLD", "people_split", "pretrain_swap", "train_recogniser", "train_swap"]

RECOGNISER = "recogniser"
"""The run directory of a distilled recogniser, inside that of the swap."""
WORLD = "world"
"""The run directory of the training on rendered faces, inside that of the swap."""
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
    photos = photos_of(faces)
    with torch.random.fork_rng([]):
        torch.manual_seed(config.seed)
        net = IdentityNet(photos.embeddings.shape[1], width=width).to(choose_device(device))
    return run_task(Distillation(net, photos), photos, config, folder, resume=folder.is_dir())


def pretrain_swap(
    faces: FaceSet,
    out: str | Path,
    config: TrainConfig,
    preset: str = "s",
    photos: int = 1024,
    device: str | torch.device = "auto",
) -> Iterator[TrainState[Denoiser]]:
    """Train a swap on rendered faces, whose true swaps are known, in `out`/world; a run that is there is resumed.

    The faces are framed as the photographs are, and known to the network by the same recogniser's embeddings: what it
    learns of pose, light and the source's face goes on in `train_swap`.

    Args:
        faces: the photographs of the training to come, for their size and the scale of their embeddings.
        out: the run directory of the swap.
        config: the trainer's settings.
        preset: the size of the network, one of `nets.face.PRESETS`.
        photos: rendered faces, a multiple of 64.
        device: see `choose_device`.

    Returns:
        One state a step.

    Raises:
        UserError, RunError: as `run_task`.
    """
    folder = Path(out) / WORLD
    recogniser = _recogniser(out, faces.embeddings)
    rendered = framed_photos(photos, faces.images.shape[-1], config.seed, shaped=faces.points is not None)
    # nobody is scored here: the truth of every swap is known
    task = _task(rendered, recogniser, FaceSettings(begins=1.0), config, preset, device, folder)
    return run_task(task, task.photos, config, folder, resume=folder.is_dir())


def train_swap(
    faces: FaceSet,
    out: str | Path,
    config: TrainConfig,
    settings: FaceSettings | None = None,
    preset: str = "s",
    resume: bool = False,
    device: str | torch.device = "auto",
) -> Iterator[TrainState[Denoiser]]:
    """Train a swap on `faces` in the run directory `out`; it begins with the weights of `out`/world, if they are there.

    The recogniser is dlib's, with a gradient, unless `out` has a distilled one.

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
        UserError, RunError: as `run_task`.
    """
    recogniser = _recogniser(out, faces.embeddings)
    task = _task(photos_of(faces), recogniser, settings or FaceSettings(), config, preset, device, Path(out))
    if (Path(out) / WORLD / checkpoint.MODEL).exists():
        task.model.load_state_dict(checkpoint.load(Path(out) / WORLD).state_dict())
    return run_task(task, task.photos, config, out, resume)


def _recogniser(out: str | Path, embeddings: Tensor) -> Recognises:
    """The distilled recogniser of the run directory, or else dlib's, normalised by these embeddings."""
    if (Path(out) / RECOGNISER / MODEL).exists():
        return IdentityNet.load(Path(out) / RECOGNISER)
    exact = ExactIdentity()
    if embeddings.shape[1] != exact.net.dimension:
        raise UserError(f"embeddings of {embeddings.shape[1]} numbers are not dlib's: call train_recogniser first")
    exact.fit_scale(embeddings)
    return exact


def _task(
    photos: Photos,
    recogniser: Recognises,
    settings: FaceSettings,
    config: TrainConfig,
    preset: str,
    device: str | torch.device,
    run: Path,
) -> FaceTask:
    where = choose_device(device)
    photos = photos.known_as(recogniser.normalised(photos.embeddings))
    shaped = photos.points is not None
    if (run / checkpoint.CONFIG).exists():  # a run of an older version goes on as it began
        shaped = shaped and checkpoint.read_config(run)["net"].get("scene") != CHANNELS
    with torch.random.fork_rng([]):
        torch.manual_seed(config.seed)
        denoiser = face_denoiser(photos.size, photos.embeddings.shape[1], preset, shaped)
    return FaceTask(denoiser.to(where), recogniser.to(where), photos, settings)

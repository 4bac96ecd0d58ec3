"""The kinds of a run: a diffusion model of images or clips or of their latents, or an autoencoder."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor, nn

from ornstein import processes
from ornstein.autoencoders import AutoencoderLoss
from ornstein.autoencoders.latent import LatentSpace
from ornstein.data import BucketSet, Clips, ImageSet, StreamedSet, save_grid, save_sheet
from ornstein.data.flow import FlowFile, flow_of
from ornstein.data.frames import frames_of
from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.evaluation import Score
from ornstein.evaluation.run import Advance, draw, write_run_report
from ornstein.evaluation.run_autoencoder import reconstruct, write_autoencoder_report
from ornstein.evaluation.run_clips import write_clip_report
from ornstein.objectives import Objective
from ornstein.progress import progress, say, warn
from ornstein.store import CONFIG, read_config
from ornstein.training import TrainState, run_task
from ornstein.training.autoencoder import Autoencoding
from ornstein.training.captions import Captioned, CaptionTable, captions_of, encoder_of, tabled
from ornstein.training.carried import Rows
from ornstein.training.latents import LatentDiffusion, LatentSet, encode_images
from ornstein.training.models import new_autoencoder, new_denoiser
from ornstein.training.settings import DIFFUSION, Settings
from ornstein.training.state import check_new
from ornstein.training.task import Diffusion, M

__all__ = ["Job", "ReportPlan", "encode", "new_job", "preview", "size_of"]

# A preview is worth fewer samples and steps than a result.
_PREVIEW_IMAGES, _PREVIEW_CLIPS, _PREVIEW_STEPS, _PREVIEW_PAIRS = 64, 4, 10, 8
_FLOW = "flow"  # the folder of a run with the flows of its clips
_EXAMPLES = 64  # captions of held-out images that previews and the report are made with
_MEASURED = 8  # samples that the time of a sample is measured with


@dataclass(frozen=True)
class ReportPlan:
    """What a report is given besides model and data: its title, the settings that it lists, samples to score at most,
    numbers of solver steps to compare, seconds that it may take, and advance(what, done, total)."""

    title: str
    shown: Mapping[str, Any]
    judged: int
    quality_steps: Sequence[int]
    budget: float
    advance: Advance


@dataclass(frozen=True)
class Job(Generic[M]):
    """A training that is about to begin.

    about: the model in words. states: the training. preview: writes a picture of the model as it is. report: evaluates
    the model by a plan and writes the report.
    """

    about: str
    model: nn.Module
    states: Iterator[TrainState[M]]
    preview: Callable[[M, Path], None]
    report: Callable[[ReportPlan], list[Score]]


def new_job(
    settings: Settings,
    train_set: ImageSet | StreamedSet | BucketSet | Clips,
    held_out: ImageSet | Clips,
    out: Path,
    resume: bool,
    device: torch.device,
    denoiser: Denoiser | None = None,
    objective: Objective | None = None,
) -> Job[Any]:
    """The training that settled settings describe; takes the run directory.

    With `denoiser` that model is trained on, instead of a new one, and with `objective` by that loss.
    """
    if settings.model != DIFFUSION:
        if not isinstance(held_out, ImageSet):
            held_out = frames_of(held_out)
        if not isinstance(train_set, ImageSet | StreamedSet):
            assert not isinstance(train_set, BucketSet)
            train_set = frames_of(train_set)
        return _autoencoder(settings, train_set, held_out, out, resume, device)
    return _diffusion(settings, train_set, held_out, out, resume, device, denoiser, objective)


def _diffusion(
    settings: Settings,
    train_set: ImageSet | StreamedSet | BucketSet | Clips,
    held_out: ImageSet | Clips,
    out: Path,
    resume: bool,
    device: torch.device,
    made: Denoiser | None,
    objective: Objective | None,
) -> Job[Denoiser]:
    config = settings.config()
    captions, texts = None, {}
    if settings.captions is not None:
        captions, texts = _captions(settings, train_set, held_out, out, resume, device)
    images: Any = train_set
    if settings.latent is not None and not isinstance(train_set, BucketSet):
        images = encode(Path(settings.latent), train_set, out, resume, device)
        denoiser = made or new_denoiser(settings, train_set, images.space, device, **texts)
        task = LatentDiffusion(denoiser, config, captions)
    else:
        denoiser = made or new_denoiser(settings, train_set, None, device, **texts)
        flows = None
        if settings.carried and not isinstance(train_set, ImageSet | StreamedSet | BucketSet):
            if not resume:
                processes.current().agreed(lambda: check_new(out))  # before files are written
            images, flows = Rows(train_set), FlowFile(train_set, settings.flow_by, out / _FLOW)
        task = Diffusion(denoiser, config, captions, flows)
    task.objective = objective or task.objective
    states = run_task(task, images if captions is None else Captioned(images), config, out, resume)

    def moves(count: int) -> Tensor | None:
        """The motion of held-out clips in turn, which samples follow; None for noise that follows none."""
        if not settings.carried or isinstance(held_out, ImageSet):
            return None
        return flow_of(held_out, torch.arange(count) % len(held_out), settings.flow_by)

    def show(model: Denoiser, path: Path) -> None:
        preview(model, path, moves)

    def report(plan: ReportPlan) -> list[Score]:
        if isinstance(train_set, ImageSet | StreamedSet | BucketSet):
            assert isinstance(held_out, ImageSet)
            seen = train_set.main if isinstance(train_set, BucketSet) else train_set
            seen = seen.drawn() if isinstance(seen, StreamedSet) else seen
            return write_run_report(
                out, denoiser, seen, held_out, plan.title, plan.shown, plan.judged, plan.quality_steps, plan.advance,
                seconds=plan.budget,
            )  # fmt: skip
        assert not isinstance(held_out, ImageSet)
        return write_clip_report(
            out, denoiser, train_set, held_out, plan.title, plan.shown, plan.advance, plan.judged, plan.budget, moves
        )

    about = size_of(denoiser)
    if denoiser.space is not None and denoiser.data is not None:
        about += f", on latents of {tuple(denoiser.data.shape)}"
    return Job(about, denoiser, states, show, report)


def _autoencoder(
    settings: Settings,
    train_set: ImageSet | StreamedSet,
    held_out: ImageSet,
    out: Path,
    resume: bool,
    device: torch.device,
) -> Job[AutoencoderLoss]:
    loss = new_autoencoder(settings, train_set, device)

    def report(plan: ReportPlan) -> list[Score]:
        seen = train_set.drawn() if isinstance(train_set, StreamedSet) else train_set
        began = time.monotonic()
        reconstruct(loss.model, held_out.images[:_MEASURED])
        count = (
            math.inf
            if math.isinf(plan.budget)
            else int(plan.budget * min(_MEASURED, len(held_out)) / (time.monotonic() - began))
        )
        part = held_out if count >= len(held_out) else held_out.split(max(count, 2) / len(held_out), 0)[1]
        scores, warnings = write_autoencoder_report(out, loss.model, seen, part, plan.title, plan.shown, plan.advance)
        for warning in warnings:
            warn(warning)
        return scores

    def show(loss: AutoencoderLoss, path: Path) -> None:
        pixels = held_out.images[:_PREVIEW_PAIRS]
        path.parent.mkdir(parents=True, exist_ok=True)
        pairs = torch.stack([pixels, reconstruct(loss.model, pixels)]).flatten(0, 1)
        save_grid(pairs, path, columns=len(pixels), upscale=max(1, 64 // pixels.shape[-1]), gap=1)

    about = f"{size_of(loss.model)}, latents of {tuple(loss.model.latent_shape)}"
    states = run_task(Autoencoding(loss), train_set, settings.config(), out, resume)
    return Job(about, loss.model, states, show, report)


def encode(
    path: Path, images: ImageSet | StreamedSet | Clips, out: Path, resume: bool, device: torch.device
) -> LatentSet:
    """The latents that a run in `out` is trained on, with a progress bar."""
    group = processes.current()
    if not resume:
        group.agreed(lambda: check_new(out))  # before minutes of encoding
    elif (out / CONFIG).is_file():
        config = read_config(out)
        if "latent" not in config:
            raise UserError(f"{out} is a run on pixels: it cannot be resumed on latents")
        LatentSpace.from_config(config["latent"], out)  # refuses another autoencoder
    with progress("images" if isinstance(images, ImageSet | StreamedSet) else "clips", transient=True) as bar:
        task = bar.add_task("encoding", total=len(images), note="")
        return encode_images(path, images, out, lambda done, _: bar.update(task, completed=done), device)


def _captions(
    settings: Settings,
    train_set: ImageSet | StreamedSet | BucketSet | Clips,
    held_out: ImageSet | Clips,
    out: Path,
    resume: bool,
    device: torch.device,
) -> tuple[CaptionTable, dict[str, Any]]:
    """The captions of the images to train on, and what `new_denoiser` is told of them."""
    if not resume:
        processes.current().agreed(lambda: check_new(out))  # before minutes of encoding
    captions = captions_of(settings, train_set)
    encoder = encoder_of(settings, captions)
    with progress("captions", transient=True) as bar:
        task = bar.add_task("encoding", total=None, note="", visible=settings.text_encoder not in (None, encoder.kind))
        table, line = tabled(
            captions, encoder, out, device, lambda done, total: bar.update(task, completed=done, total=total)
        )
    say(f"{captions.summary}; {line}")
    if settings.flip:
        warn("--flip mirrors the images and not their captions: left and right will be learned as one")
    unseen = captions_of(settings, held_out).texts
    examples = list(dict.fromkeys(text for texts in unseen for text in texts[:1] if text)) or captions.different
    return table, {"encoder": encoder, "examples": tuple(examples[:_EXAMPLES])}


def size_of(model: nn.Module) -> str:
    """The number of parameters in words."""
    return f"{sum(p.numel() for p in model.parameters()):,} parameters"


def preview(denoiser: Denoiser, path: Path, moves: Callable[[int], Tensor | None] = lambda count: None) -> None:
    """Write a grid of samples of the model, or a sheet of clips that follow the flows `moves(count)`, as a PNG."""
    assert denoiser.data is not None
    clips = len(denoiser.data.shape) == 4
    classes = len(denoiser.data.classes)
    count = _PREVIEW_CLIPS if clips else _PREVIEW_IMAGES
    columns = classes if 1 < classes <= 16 and not clips else None
    if columns is not None:
        count = columns * max(1, count // columns)
    samples = draw(denoiser, denoiser.data.labels(count), count, steps=_PREVIEW_STEPS, flow=moves(count))
    path.parent.mkdir(parents=True, exist_ok=True)
    upscale = max(1, 64 // samples.shape[-1])
    comment = json.dumps({"preview": path.stem, "steps": _PREVIEW_STEPS, "seed": 0})
    if clips:
        save_sheet(samples, path, upscale=upscale, comment=comment)
    else:
        save_grid(samples, path, columns=columns, upscale=upscale, gap=1, comment=comment)

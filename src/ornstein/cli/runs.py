"""A training run from settings to report: of a diffusion model, on pixels or latents, or of an autoencoder."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic

import torch
from torch import nn

from ornstein import autoencoders
from ornstein.autoencoders import AutoencoderLoss
from ornstein.autoencoders.latent import LatentSpace
from ornstein.checkpoint import CONFIG, read_config
from ornstein.cli.command import console, progress
from ornstein.cli.setup import Settings, new_denoiser, open_data
from ornstein.cli.setup_autoencoder import DIFFUSION, check_model, new_autoencoder
from ornstein.data import Clips, ImageSet, StreamedSet, save_grid, save_sheet
from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.evaluation import Score
from ornstein.evaluation.run import Advance, draw, write_run_report
from ornstein.evaluation.run_autoencoder import reconstruct, write_autoencoder_report
from ornstein.evaluation.run_clips import write_clip_report
from ornstein.store import atomic_write
from ornstein.training import TrainConfig, TrainState, processes, run_task, train
from ornstein.training.autoencoder import Autoencoding
from ornstein.training.latents import LatentDiffusion, LatentSet, encode_images
from ornstein.training.state import check_new
from ornstein.training.task import M

SETTINGS = "train.json"
DISTIL = "distil.json"  # what a student was asked for, beside its teacher's own

# A look on the way is worth fewer samples and steps than a result.
_LOOK_IMAGES = 64
_LOOK_CLIPS = 4
_LOOK_STEPS = 10
_LOOK_PAIRS = 8


@dataclass(frozen=True)
class Finished:
    """The data a model saw and did not see, and its scores."""

    train_set: ImageSet | StreamedSet | Clips
    held_out: ImageSet | Clips
    scores: list[Score]


def run(
    settings: Settings,
    out: Path,
    resume: bool = False,
    title: str | None = None,
    judged: int = 256,
    quality_steps: Sequence[int] = (),
) -> Finished:
    """Train as told with a progress bar, then sample, judge and write the run's report.

    Of several processes all train; the first alone looks, writes and judges, and the others have no scores.
    """
    check_model(settings)
    group = processes.current()  # before anything goes to a GPU: each process has its own
    if settings.latent is not None:
        settings = _sized(settings)
    config = settings.config()  # wrong numbers are told before the data are read
    train_set, held_out, fingerprint, stream = open_data(settings)
    # kept with what was left open: a resumption on another machine is the same run
    settings = replace(settings, fingerprint=fingerprint, stream=stream).settled(train_set.shape[-1])
    config = settings.config()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        job = _job(settings, config, train_set, held_out, out, resume)
    for warning in told:
        console.print(f"warning: {warning.message}", style="yellow")
    if group.main:
        atomic_write(out / SETTINGS, (json.dumps(asdict(settings), indent=1) + "\n").encode())
    kind = "images" if settings.frames is None else "clips"
    about = f"{len(train_set)} {kind} of {tuple(train_set.shape)}, {job.about}"
    if stream:
        about += ", decoded as they are needed"
    if train_set.skipped:
        about += f", {len(train_set.skipped)} bad files skipped (listed in the report)"
    if group.world > 1:
        about += f", {group.world} processes"
    console.print(about)
    total = config.steps if config.minutes is None else 60 * config.minutes
    with progress("steps" if config.minutes is None else "s") as bar:
        task = bar.add_task("training", total=total, note="")
        for state in job.states:
            done = state.step if config.minutes is None else state.elapsed
            note = f"loss {state.loss:.4f}  {state.images_per_second:,.0f} {kind}/s"
            bar.update(task, completed=min(done, total or done), note=note)
            if state.sample_due and group.main:
                job.look(state.model, out / "progress" / f"step-{state.step:06d}.png")
    if isinstance(train_set, StreamedSet):
        train_set.damaged.update(group.collected(list(train_set.damaged.items())))  # each has read its own part
    group.end()
    if not group.main:
        return Finished(train_set, held_out, [])
    with progress("parts") as bar:
        task = bar.add_task("judging", total=1, note="")

        def advance(what: str, done: int, parts: int) -> None:
            bar.update(task, completed=done, total=parts, note=what)

        shown = {k: v for k, v in asdict(settings).items() if v is not None}
        scores = job.report(title or f"Run {out.name}", shown, judged, quality_steps, advance)
    return Finished(train_set, held_out, scores)


@dataclass(frozen=True)
class _Job(Generic[M]):
    """A training about to begin, how to look at it on its way, and the report at its end."""

    about: str
    states: Iterator[TrainState[M]]
    look: Callable[[M, Path], None]
    report: Callable[[str, dict[str, Any], int, Sequence[int], Advance], list[Score]]


def _job(
    settings: Settings,
    config: TrainConfig,
    train_set: ImageSet | StreamedSet | Clips,
    held_out: ImageSet | Clips,
    out: Path,
    resume: bool,
) -> _Job[Any]:
    if not isinstance(train_set, ImageSet | StreamedSet):
        assert not isinstance(held_out, ImageSet)
        return _clips(settings, config, train_set, held_out, out, resume)
    assert isinstance(held_out, ImageSet)
    if settings.model != DIFFUSION:
        return _autoencoder(settings, config, train_set, held_out, out, resume)
    return _images(settings, config, train_set, held_out, out, resume)


def _clips(
    settings: Settings, config: TrainConfig, train_set: Clips, held_out: Clips, out: Path, resume: bool
) -> _Job[Denoiser]:
    denoiser = new_denoiser(settings, train_set)

    def report(title: str, shown: dict[str, Any], judged: int, steps: Sequence[int], advance: Advance) -> list[Score]:
        return write_clip_report(out, denoiser, train_set, held_out, title, shown, advance)

    return _Job(_size(denoiser), train(denoiser, train_set, config, out, resume), look, report)


def _images(
    settings: Settings,
    config: TrainConfig,
    train_set: ImageSet | StreamedSet,
    held_out: ImageSet,
    out: Path,
    resume: bool,
) -> _Job[Denoiser]:
    latents = None if settings.latent is None else _encode(Path(settings.latent), train_set, out, resume)
    denoiser = new_denoiser(settings, train_set, None if latents is None else latents.space)
    if latents is None:
        states = train(denoiser, train_set, config, out, resume)
    else:
        states = run_task(LatentDiffusion(denoiser, config), latents, config, out, resume)

    def report(title: str, shown: dict[str, Any], judged: int, steps: Sequence[int], advance: Advance) -> list[Score]:
        seen = in_memory(train_set)
        return write_run_report(out, denoiser, seen, held_out, title, shown, judged, steps, advance)

    about = _size(denoiser)
    if denoiser.space is not None and denoiser.data is not None:
        about += f", on latents of {tuple(denoiser.data.shape)}"
    return _Job(about, states, look, report)


def _autoencoder(
    settings: Settings,
    config: TrainConfig,
    train_set: ImageSet | StreamedSet,
    held_out: ImageSet,
    out: Path,
    resume: bool,
) -> _Job[AutoencoderLoss]:
    loss = new_autoencoder(settings, train_set)

    def report(title: str, shown: dict[str, Any], judged: int, steps: Sequence[int], advance: Advance) -> list[Score]:
        seen = in_memory(train_set)
        scores, warnings = write_autoencoder_report(out, loss.model, seen, held_out, title, shown, advance)
        for warning in warnings:
            console.print(f"warning: {warning}", style="yellow")
        return scores

    def show(loss: AutoencoderLoss, path: Path) -> None:
        pixels = held_out.images[:_LOOK_PAIRS]
        path.parent.mkdir(parents=True, exist_ok=True)
        pairs = torch.stack([pixels, reconstruct(loss.model, pixels)]).flatten(0, 1)
        save_grid(pairs, path, columns=len(pixels), upscale=max(1, 64 // pixels.shape[-1]), gap=1)

    about = f"{_size(loss.model)}, latents of {tuple(loss.model.latent_shape)}"
    return _Job(about, run_task(Autoencoding(loss), train_set, config, out, resume), show, report)


def _sized(settings: Settings) -> Settings:
    """The settings with the size and channels of the autoencoder's images, where these were not asked for."""
    assert settings.latent is not None
    shape = autoencoders.load(settings.latent).shape
    asked = (settings.channels or shape[0], settings.size or shape[1])
    if asked != shape[:2]:
        raise UserError(
            f"{settings.latent} encodes images of {shape[0]} channels and {shape[1]} pixels a side, not {asked[0]} and "
            f"{asked[1]}: leave out --size and --channels"
        )
    if settings.frames is not None:
        raise UserError("--latent is for images: leave out --frames")
    return replace(settings, channels=shape[0], size=shape[1])


def in_memory(images: ImageSet | StreamedSet) -> ImageSet:
    """The images, or those drawn from them that stand for them."""
    return images.drawn() if isinstance(images, StreamedSet) else images


def _encode(path: Path, images: ImageSet | StreamedSet, out: Path, resume: bool) -> LatentSet:
    if not resume:
        processes.current().agreed(lambda: check_new(out))  # before minutes of encoding
    elif (out / CONFIG).is_file():
        config = read_config(out)
        if "latent" not in config:
            raise UserError(f"{out} is a run on pixels: it cannot go on with latents")
        LatentSpace.from_config(config["latent"], out)  # refuses where the autoencoder is another
    with progress("images", transient=True) as bar:
        task = bar.add_task("encoding", total=len(images), note="")
        # one process encodes, the others find the latents there
        group = processes.current()
        group.agreed(
            lambda: encode_images(path, images, out, lambda done, _: bar.update(task, completed=done)) and None
        )
        return encode_images(path, images, out)


def _size(model: nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()):,} parameters"


def look(denoiser: Denoiser, path: Path) -> None:
    """A grid of samples of the model, or a sheet of clips, as a PNG at `path`."""
    assert denoiser.data is not None
    clips = len(denoiser.data.shape) == 4
    count = _LOOK_CLIPS if clips else _LOOK_IMAGES
    samples = draw(denoiser, denoiser.data.labels(count), count, steps=_LOOK_STEPS)
    path.parent.mkdir(parents=True, exist_ok=True)
    upscale = max(1, 64 // samples.shape[-1])
    if clips:
        save_sheet(samples, path, upscale=upscale)
    else:
        save_grid(samples, path, upscale=upscale, gap=1)

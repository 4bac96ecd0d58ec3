"""`ornstein train`: a folder or archive of images in, a run folder out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ornstein import noise as noises
from ornstein import schedules
from ornstein.cli.command import console, progress
from ornstein.data import ImageSet, open_images, save_grid
from ornstein.denoiser import Data, Denoiser
from ornstein.errors import UserError
from ornstein.evaluation import Score
from ornstein.evaluation.run import draw, write_run_report
from ornstein.files import atomic_write, read_json, write_error
from ornstein.nets import UNet
from ornstein.process import Process
from ornstein.training import TrainConfig
from ornstein.training import train as training

SETTINGS = "train.json"

# With fewer images a class than this the class is left out, unless it is asked for: a name is not a kind.
_IMAGES_PER_CLASS = 10

# A look on the way is worth fewer steps than a result.
_GRID_STEPS = 10


@dataclass(frozen=True)
class Settings:
    """What a run was asked for; kept in its folder, so that a resumption needs no options."""

    data: str
    size: int | None = None
    channels: int | None = None
    net: str = "auto"
    noise: str = "white"
    conditional: bool | None = None
    held_out: float = 0.1
    steps: int | None = None
    minutes: float | None = None
    batch: int = 128
    learning_rate: float = 1e-3
    precision: str = "auto"
    seed: int = 0
    checkpoint_every: int = 500
    sample_every: int = 1000

    def config(self) -> TrainConfig:
        names = {f.name for f in fields(TrainConfig)} & {f.name for f in fields(self)}
        return TrainConfig(**{name: getattr(self, name) for name in names})


def train(
    out: Annotated[Path, typer.Option(help="The run folder to write.")],
    data: Annotated[
        str | None, typer.Option(help="A folder or zip of images (a sub-folder a class), or `digits`.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Side of the square images in pixels; their own if all agree.")
    ] = None,
    channels: Annotated[int | None, typer.Option(help="3 for colour, 1 for grey.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps in all.  [default: 20000]")] = None,
    minutes: Annotated[float | None, typer.Option(help="Minutes in all, instead of steps.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images a step.  [default: 128]")] = None,
    net: Annotated[str | None, typer.Option(help="xs, s, m or l.  [default: by size and device]")] = None,
    conditional: Annotated[
        bool | None, typer.Option(help="Learn the classes.  [default: where there are images enough a class]")
    ] = None,
    held_out: Annotated[
        float | None, typer.Option(help="Share of the images kept for judging.  [default: 0.1]")
    ] = None,
    noise: Annotated[str | None, typer.Option(help="white, or a covariance.  [default: white]")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="AdamW's.  [default: 0.001]")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, float32 or bf16.  [default: auto]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.  [default: 0]")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.  [default: 500]")] = None,
    sample_every: Annotated[
        int | None, typer.Option(help="Steps between sample grids, 0 for none.  [default: 1000]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT, with its own settings.")] = False,
) -> None:
    """Train a diffusion model on your images.

    Example: ornstein train --data photos.zip --size 32 --minutes 30 --out runs/photos
    """
    given = {k: v for k, v in locals().items() if k not in ("out", "resume") and v is not None}
    settings = _settings(out, given, resume)
    run(settings, out, resume)
    console.print(f"done: {out / 'report.html'}; more samples with `ornstein sample {out} -n 64`")


def _settings(out: Path, given: dict[str, Any], resume: bool) -> Settings:
    if resume and (out / SETTINGS).is_file():
        try:
            stored = Settings(**read_json(out / SETTINGS))
        except TypeError as error:
            raise UserError(f"{out / SETTINGS} is not of this version: {error}") from error
        if "steps" in given:
            stored = replace(stored, minutes=None)
        if "minutes" in given:
            stored = replace(stored, steps=None)
        return replace(stored, **given)
    if "data" not in given:
        raise UserError("give --data: a folder or zip of images, or `digits`")
    return Settings(**given)


@dataclass(frozen=True)
class Finished:
    """A trained model, the images it saw and did not see, and its scores."""

    denoiser: Denoiser
    train_set: ImageSet
    held_out: ImageSet
    scores: list[Score]


def run(
    settings: Settings,
    out: Path,
    resume: bool = False,
    title: str | None = None,
    judged: int = 256,
    quality_steps: Sequence[int] = (),
) -> Finished:
    """Train as told with a progress bar, then sample, judge and write the run's report."""
    config = settings.config()  # wrong numbers are told before the data are read
    train_set, held_out = open_data(settings)
    denoiser = new_denoiser(settings, train_set)
    states = training(denoiser, train_set, config, out, resume=resume)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(out, error) from error
    atomic_write(out / SETTINGS, (json.dumps(asdict(settings), indent=1) + "\n").encode())
    parameters = sum(p.numel() for p in denoiser.parameters())
    about = f"{len(train_set)} images of {tuple(train_set.images.shape[1:])}, {parameters:,} parameters"
    if train_set.skipped:
        about += f", {len(train_set.skipped)} bad files skipped (listed in the report)"
    console.print(about)
    total = config.steps if config.minutes is None else 60 * config.minutes
    with progress("steps" if config.minutes is None else "s") as bar:
        task = bar.add_task("training", total=total, note="")
        for state in states:
            done = state.step if config.minutes is None else state.elapsed
            note = f"loss {state.loss:.4f}  {state.images_per_second:,.0f} images/s"
            bar.update(task, completed=min(done, total or done), note=note)
            if state.sample_due:
                _sample_grid(state.denoiser, out / "progress" / f"step-{state.step:06d}.png")
    with progress("parts") as bar:
        task = bar.add_task("judging", total=1, note="")

        def advance(what: str, done: int, parts: int) -> None:
            bar.update(task, completed=done, total=parts, note=what)

        about_run = {k: v for k, v in asdict(settings).items() if v is not None}
        scores = write_run_report(
            out, denoiser, train_set, held_out, title or f"Run {out.name}", about_run, judged, quality_steps, advance
        )
    return Finished(denoiser, train_set, held_out, scores)


def open_data(settings: Settings) -> tuple[ImageSet, ImageSet]:
    """The images to train on and those held out, by the run's seed."""
    with progress("files") as bar:
        task = bar.add_task("reading", total=None, note="")
        images = open_images(
            settings.data,
            settings.size,
            settings.channels,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if settings.conditional:
        images.require_labels()
    if not 0 < settings.held_out < 1:
        raise UserError(f"--held-out is a share between 0 and 1, not {settings.held_out}")
    return images.split(settings.held_out, settings.seed)


def new_denoiser(settings: Settings, images: ImageSet) -> Denoiser:
    """The untrained model that fits the images: cosine schedule, v-prediction."""
    _, channels, height, _ = images.images.shape
    conditional = settings.conditional
    if conditional is None:
        conditional = 1 < len(images.classes) <= len(images) / _IMAGES_PER_CLASS
    classes = images.classes if conditional else []
    preset = settings.net
    if preset == "auto":
        preset = "xs" if height <= 16 else "m" if torch.cuda.is_available() else "s"
    torch.manual_seed(settings.seed)
    net = UNet.preset(preset, channels=channels, size=height, classes=len(classes))
    process = Process(schedules.Cosine(), noises.parse(settings.noise, height))
    denoiser = Denoiser(net, process, "v", data=Data((channels, height, height), tuple(classes)))
    return denoiser.to("cuda") if torch.cuda.is_available() else denoiser


def _sample_grid(denoiser: Denoiser, path: Path) -> None:
    assert denoiser.data is not None
    images = draw(denoiser, denoiser.data.labels(64), 64, steps=_GRID_STEPS)
    save_grid(images, path, upscale=max(1, 64 // images.shape[-1]))

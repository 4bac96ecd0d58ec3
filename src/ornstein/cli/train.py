"""`ornstein train`: a folder or archive of images or videos in, a run folder out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ornstein.cli.command import console, progress
from ornstein.cli.setup import Settings, new_denoiser, open_data
from ornstein.data import Clips, ImageSet, save_grid, save_sheet
from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.evaluation import Score
from ornstein.evaluation.run import draw, write_run_report
from ornstein.evaluation.run_clips import write_clip_report
from ornstein.files import atomic_write, read_json, write_error
from ornstein.objectives import OBJECTIVES
from ornstein.training import train as training

SETTINGS = "train.json"

# A look on the way is worth fewer samples and steps than a result.
_LOOK_IMAGES = 64
_LOOK_CLIPS = 4
_LOOK_STEPS = 10


def train(
    out: Annotated[Path, typer.Option(help="The run folder to write.")],
    data: Annotated[
        str | None,
        typer.Option(help="A folder or zip of images or videos (a sub-folder a class), or a bundled set: digits."),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Side of the square images in pixels; their own if all agree.")
    ] = None,
    channels: Annotated[int | None, typer.Option(help="3 for colour, 1 for grey.")] = None,
    frames: Annotated[int | None, typer.Option(help="Train on clips of so many frames.")] = None,
    stride: Annotated[int | None, typer.Option(help="Take every STRIDE-th frame of a video. (default: 1)")] = None,
    noise: Annotated[
        str | None, typer.Option(help="white, ar1:0.9, or a FILE.json of `fit-noise`. (default: white)")
    ] = None,
    data_noise: Annotated[
        str | None, typer.Option(help="The data's own covariance over frames, written as --noise: preconditions by it.")
    ] = None,
    centre: Annotated[
        bool | None,
        typer.Option("--centre", help="Shift the schedule so that logdet(C^-1 Sigma) = 0; needs --data-noise."),
    ] = None,
    given_frames: Annotated[
        bool | None, typer.Option("--given-frames", help="Also learn to go on from frames that are given.")
    ] = None,
    init: Annotated[str | None, typer.Option(help="A run of images to start a model of clips from.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps in all. (default: 20000)")] = None,
    minutes: Annotated[float | None, typer.Option(help="Minutes in all, instead of steps.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images or clips a step. (default: 128 images, 16 clips)")] = None,
    net: Annotated[str | None, typer.Option(help="xs, s, m or l. (default: by size and device)")] = None,
    conditional: Annotated[
        bool | None, typer.Option(help="Learn the classes. (default: where there are images enough a class)")
    ] = None,
    held_out: Annotated[float | None, typer.Option(help="Share of the data kept for judging. (default: 0.1)")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="AdamW's. (default: 0.001)")] = None,
    objective: Annotated[
        str | None, typer.Option(help=f"Of {', '.join(OBJECTIVES)}. (default: error of the network's output)")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="auto, float32 or bf16. (default: auto)")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random. (default: 0)")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints. (default: 500)")] = None,
    sample_every: Annotated[
        int | None, typer.Option(help="Steps between looks at samples, 0 for none. (default: 1000)")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT, with its own settings.")] = False,
) -> None:
    """Train a diffusion model on your images or videos.

    Example: ornstein train --data photos.zip --size 32 --minutes 30 --out runs/photos
    """
    given = {k: v for k, v in locals().items() if k not in ("out", "resume") and v is not None}
    run(_settings(out, given, resume), out, resume)
    console.print(f"done: {out / 'report.html'}; more samples with `ornstein sample {out}`")


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
        raise UserError("give --data: a folder or zip of images or videos, or `digits`")
    return Settings(**given)


@dataclass(frozen=True)
class Finished:
    """A trained model, the data it saw and did not see, and its scores."""

    denoiser: Denoiser
    train_set: ImageSet | Clips
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
    """Train as told with a progress bar, then sample, judge and write the run's report."""
    config = settings.config()  # wrong numbers are told before the data are read
    train_set, held_out, fingerprint = open_data(settings)
    settings = replace(settings, fingerprint=fingerprint)
    denoiser = new_denoiser(settings, train_set)
    states = training(denoiser, train_set, config, out, resume=resume)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(out, error) from error
    atomic_write(out / SETTINGS, (json.dumps(asdict(settings), indent=1) + "\n").encode())
    parameters = sum(p.numel() for p in denoiser.parameters())
    kind = "images" if isinstance(train_set, ImageSet) else "clips"
    about = f"{len(train_set)} {kind} of {tuple(train_set.shape)}, {parameters:,} parameters"
    if train_set.skipped:
        about += f", {len(train_set.skipped)} bad files skipped (listed in the report)"
    console.print(about)
    total = config.steps if config.minutes is None else 60 * config.minutes
    with progress("steps" if config.minutes is None else "s") as bar:
        task = bar.add_task("training", total=total, note="")
        for state in states:
            done = state.step if config.minutes is None else state.elapsed
            note = f"loss {state.loss:.4f}  {state.images_per_second:,.0f} {kind}/s"
            bar.update(task, completed=min(done, total or done), note=note)
            if state.sample_due:
                _look(state.model, out / "progress" / f"step-{state.step:06d}.png")
    with progress("parts") as bar:
        task = bar.add_task("judging", total=1, note="")

        def advance(what: str, done: int, parts: int) -> None:
            bar.update(task, completed=done, total=parts, note=what)

        title = title or f"Run {out.name}"
        about_run = {k: v for k, v in asdict(settings).items() if v is not None}
        if isinstance(train_set, ImageSet):
            assert isinstance(held_out, ImageSet)
            scores = write_run_report(
                out, denoiser, train_set, held_out, title, about_run, judged, quality_steps, advance
            )
        else:
            assert not isinstance(held_out, ImageSet)
            scores = write_clip_report(out, denoiser, train_set, held_out, title, about_run, advance)
    return Finished(denoiser, train_set, held_out, scores)


def _look(denoiser: Denoiser, path: Path) -> None:
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

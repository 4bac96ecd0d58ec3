"""`orn.train`: from settings to a run directory with a trained model, previews on the way, and a report."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ornstein import autoencoders, checkpoint, processes
from ornstein.data import (
    BucketSet,
    Clips,
    ImageSet,
    StreamedSet,
    open_buckets,
    open_clips,
    open_images,
    open_streamed,
    same_data,
)  # fmt: skip
from ornstein.data.bundled import CAPTIONED
from ornstein.data.images import MEMORY_BUDGET
from ornstein.data.sets import few_images
from ornstein.denoiser import Denoiser
from ornstein.devices import choose_device, choose_precision
from ornstein.errors import UserError
from ornstein.evaluation import Score
from ornstein.evaluation.run import affordable
from ornstein.few_steps.choice import COUNTS, SCALES, choose
from ornstein.noise import Carried
from ornstein.progress import progress, say, warn
from ornstein.settings import to_json
from ornstein.store import atomic_write
from ornstein.training.diffusion import check_diffusion
from ornstein.training.folder import check_folder
from ornstein.training.jobs import Job, ReportPlan, new_job
from ornstein.training.models import learns_classes, new_autoencoder, new_denoiser
from ornstein.training.plan import Likeness, by_rule, planned
from ornstein.training.settings import COMPRESS, DISTIL, SETTINGS, DataSettings, Settings, resumed
from ornstein.training.state import read_record
from ornstein.wrapper import device_of, evaluation_mode, network_precision

__all__ = [
    "REPORT", "DataSettings", "Run", "Settings", "Split", "follow", "in_memory", "new_autoencoder", "new_denoiser",
    "open_data", "report_of", "report_seconds", "train",
]  # fmt: skip

_JUDGED = 256  # samples that a report scores
_REPORT_SECONDS, _REPORT_SHARE = 60.0, 0.1  # a report takes the larger of a minute and a tenth of the training
REPORT = "report.html"
# What a choice of a solver takes: trajectories, and evaluations of each for one scale of guidance.
_CHOSEN_ON, _CHOICE = 8, 720
# Bundled sets, which are no paths.
_BUNDLED = ("digits", *CAPTIONED, "moving-digits", "bouncing-balls", "drifting-textures")


@dataclass(frozen=True)
class Run:
    """A finished training.

    path: the run directory. settings: as stored in it. model: the trained one, with the averaged weights. train_set
    and held_out: the data. scores: those of the report; none without one, and in all processes but the first.
    """

    path: Path
    settings: Settings
    scores: list[Score]
    model: nn.Module = field(repr=False)
    train_set: ImageSet | StreamedSet | BucketSet | Clips = field(repr=False)
    held_out: ImageSet | Clips = field(repr=False)


class Split(NamedTuple):
    """Data to train on, data held out, the fingerprint of the whole, and whether images are decoded as needed."""

    train: ImageSet | StreamedSet | BucketSet | Clips
    held_out: ImageSet | Clips
    fingerprint: str
    stream: bool


def train(
    data: str | Path | None,
    out: str | Path,
    *,
    resume: bool = False,
    report: bool = True,
    choose_solver: bool = True,
    device: str = "auto",
    title: str | None = None,
    judged: int | None = None,
    quality_steps: Sequence[int] = (),
    **settings: Any,
) -> Run:
    """Train a model on your data into a run directory: what `ornstein train` does.

    Of several processes (`torchrun`) all train; the first one alone writes previews, the report and the console.

    Args:
        data: a folder, an archive or a file of images or videos, or a bundled set; None with `resume` for that of the
            run.
        out: the run directory.
        resume: continue the run in `out` with its stored settings; `settings` may extend it (steps, minutes).
        report: evaluate the model at the end and write report.html. It takes at most a tenth of the training or a
            minute, whichever is longer: of a slow model fewer samples are scored.
        choose_solver: with a report, first choose solver, order and time schedule from a few trajectories of the model
            (`few_steps.choice`): they are the default of `ornstein sample`. Left out, and said so, if it would take
            longer than a report.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        title: of the report.
        judged: samples that the report scores, however long that takes; None: up to 256 within the time of a report.
        quality_steps: numbers of solver steps that the report compares.
        **settings: the fields of `ornstein.training.recipe.Settings`: size, steps, minutes, batch, frames, ...

    Returns:
        The run, with the model in memory.

    Raises:
        UserError: the settings are wrong or do not fit the data, or `out` holds another run.
        RunError: the training failed (not finite, out of memory, a full disk); the last checkpoint is intact.
        KeyboardInterrupt: after SIGINT or SIGTERM, with a checkpoint saved.
    """
    out = Path(out)
    check_folder(out)
    asked = _asked(data, out, resume, settings)
    asked.validate()
    check_diffusion(asked)
    group = processes.current()  # before anything goes to a GPU: each process has its own
    where = choose_device(device)
    if asked.latent is not None:
        asked = _sized(asked)
    split = open_data(asked, show=True)
    likeness = Likeness.of(split.train)
    if by_rule(asked, likeness):
        asked = _planned(asked, likeness, where)
    asked = replace(
        asked,
        data=_absolute(asked.data),
        fingerprint=split.fingerprint,
        stream=split.stream,
        fps=getattr(split.train, "rate", None),  # of clips
    )
    side, cpu = round(math.sqrt(split.train.shape[-2] * split.train.shape[-1])), where.type == "cpu"
    asked = asked.settled(side, cpu)
    asked = replace(asked, net=asked.preset(side, asked.latent is not None, cpu))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        job = new_job(asked, split.train, split.held_out, out, resume, where)
    for warning in caught:
        warn(str(warning.message))
    if group.main:
        atomic_write(out / SETTINGS, (json.dumps(to_json(asked), indent=1) + "\n").encode())
    _say_what(job, split, asked)
    steps, seconds = follow(job, asked, out, resume)
    if isinstance(split.train, StreamedSet):
        split.train.damaged.update(group.collected(list(split.train.damaged.items())))  # each has read its own part
    group.end()
    scores: list[Score] = []
    if group.main and resume and not steps:
        say(f"{out} is finished already: {_length(out, asked)}; give more --steps or --minutes to train on")
        report = report and not (out / REPORT).is_file()
    if group.main and report:
        budget = report_seconds(seconds) if judged is None else math.inf
        if choose_solver:
            _choose(job.model, out, budget)
        plan = {"shown": asked.shown(), "judged": judged or _JUDGED, "quality_steps": quality_steps, "budget": budget}
        scores = report_of(job, title=title or f"Run {out.name}", **plan)
    return Run(out, asked, scores, job.model, split.train, split.held_out)


def _choose(model: nn.Module, out: Path, budget: float) -> None:
    """Store the best untuned solver of the model in its run; of one whose noise follows a motion, none."""
    if not isinstance(model, Denoiser) or model.data is None or getattr(model, "takes_text", False):
        return
    if isinstance(model.process.noise, Carried):
        return
    scales = SCALES if model.data.classes else SCALES[:1]
    each = _CHOICE * sum(1 if scale == 1 else 2 for scale in scales)
    with torch.no_grad(), evaluation_mode(model), progress("choices", transient=True) as bar:
        task = bar.add_task("choosing a solver", total=len(COUNTS) * len(scales), note="")
        if affordable(model, budget, _CHOSEN_ON, each) < _CHOSEN_ON:
            say("no solver chosen for this model, which is slow here: `ornstein tune` does so in its own time")
            return
        with network_precision(model, choose_precision("auto", device_of(model)), fixed=True):
            choices = choose(model, scales=scales, progress=lambda done, total: bar.update(task, completed=done))
    checkpoint.save_chosen(out, choices)
    plain = [f"{c.error / c.untuned:.0%} at {c.steps}" for c in choices if c.guidance == 1]
    say(f"chose a solver for this model: error of the default's by steps {', '.join(plain)}")


def _planned(settings: Settings, data: Likeness, device: torch.device) -> Settings:
    """The settings with network and batch for their minutes; a resumed run has both, and is not measured again."""
    choice = planned(settings, data, device)
    say(
        f"measured this machine: network {choice.speed.net}, batches of {choice.batch}; about {choice.steps:,} steps, "
        f"{choice.images:,} images, loss {choice.loss:.3f}"
    )
    return replace(settings, net=choice.speed.net, batch=choice.batch)  # pyright: ignore[reportArgumentType]


def _asked(data: str | Path | None, out: Path, resume: bool, given: dict[str, Any]) -> Settings:
    """The settings of this call: those stored in `out` for a resumption, with what is given."""
    if data is not None:
        given = given | {"data": str(data)}
    if resume and (out / DISTIL).is_file():
        raise UserError(f"{out} is a distilled model: go on with `ornstein distil TEACHER --out {out} --resume`")
    if resume and (out / COMPRESS).is_file():
        raise UserError(f"{out} is a compressed model: go on with `ornstein compress TEACHER --out {out} --resume`")
    unknown = given.keys() - Settings.__dataclass_fields__.keys()
    if unknown:
        raise UserError(f"train has no setting {min(unknown)!r}; known: {', '.join(Settings.__dataclass_fields__)}")
    if resume and (out / SETTINGS).is_file():
        return resumed(Settings.stored(out / SETTINGS), given)
    if "data" not in given:
        raise UserError("give --data: a folder or archive of images or videos, or a bundled set such as `digits`")
    return Settings(**given)


def _absolute(data: str) -> str:
    """A path of data as an absolute one, so that the run finds it from another working directory."""
    return data if data in _BUNDLED or not Path(data).exists() else str(Path(data).resolve())


def _sized(settings: Settings) -> Settings:
    """The settings with the size and channels of the images of the autoencoder, if these were not given."""
    assert settings.latent is not None
    channels, size, _ = autoencoders.load(settings.latent).shape
    given = (settings.channels or channels, (settings.extent or (size, size))[0])  # validated to be square
    if given != (channels, size):
        raise UserError(
            f"{settings.latent} encodes images of {channels} channels and {size} pixels a side, not {given[0]} and "
            f"{given[1]}: leave out --size and --channels"
        )
    return replace(settings, channels=channels, size=size)


def open_data(settings: Settings, show: bool = False) -> Split:
    """The images or clips of a run: those to train on, and those held out by its seed.

    With `show`, a line says what was read, and a warning if it is too little.

    Raises:
        UserError: the data cannot be used, or are not those of the fingerprint in the settings: the held-out part
            would be another.
    """
    with progress("files", transient=True) as bar:
        task = bar.add_task("reading", total=None, note="")
        opened = _open(settings, lambda done, total: bar.update(task, completed=done, total=total))
    if show:
        say(opened.summary)
        few = few_images(len(opened), "image" if settings.frames is None else "clip")
        if few is not None:
            warn(few)
    if settings.conditional and not opened.classes:
        if isinstance(opened, ImageSet | StreamedSet | BucketSet):
            opened.require_labels()
        raise UserError(f"{settings.data} has no classes: put the videos of each class in a folder named after it")
    if not same_data(opened, settings.fingerprint):
        raise UserError(
            f"{settings.data} has changed since this run began: put the files back as they were, or train another run"
        )
    # A run keeps the fingerprint that it began with: those of version 0.1 know names only, and split without classes.
    fingerprint = settings.fingerprint or opened.fingerprint
    every_class = learns_classes(settings, opened) and fingerprint != opened.names_fingerprint
    parts = opened.split(settings.held_out, settings.seed, every_class)
    unused = len(opened.classes) > 1 and settings.conditional is None and not learns_classes(settings, parts[0])
    if show and unused and settings.model == "diffusion" and settings.captions is None:
        say("too few images per class: training without classes; --conditional uses them")
    return Split(*parts, fingerprint, isinstance(opened, StreamedSet))


def _open(settings: Settings, advance: Callable[[int, int], None]) -> ImageSet | StreamedSet | BucketSet | Clips:
    data, size, channels, crop = settings.data, settings.extent, settings.channels, settings.crop
    if settings.frames is not None:
        return open_clips(data, settings.frames, size, channels, stride=settings.stride, crop=crop, progress=advance)
    if settings.aspect == "buckets":
        assert size is not None  # validated
        return open_buckets(data, size[0], channels, crop=crop, progress=advance)
    streamed = _streamed(settings)
    return open_images(data, size, channels, crop=crop, progress=advance) if streamed is None else streamed


def _streamed(settings: Settings) -> StreamedSet | None:
    """Images that are decoded as needed: if that is asked for, or if they would not fit in the memory budget."""
    always = settings.stream or settings.crop == "random"
    if settings.stream is False and not always:
        return None
    streamed = open_streamed(
        settings.data, settings.extent, settings.channels, crop=settings.crop, above=0 if always else MEMORY_BUDGET
    )
    if always and streamed is None:
        option = "--stream" if settings.stream else "--crop random"
        raise UserError(f"{settings.data} holds arrays, which are not decoded: leave out {option}")
    return streamed


def _say_what(job: Job[Any], split: Split, settings: Settings) -> None:
    kind = "images" if settings.frames is None else "clips"
    about = f"{len(split.train)} {kind} of {tuple(split.train.shape)}, {job.about}"
    if split.train.skipped:
        about += f", {len(split.train.skipped)} bad files skipped (listed in the report)"
    if processes.current().world > 1:
        about += f", {processes.current().world} processes"
    say(about)


def follow(job: Job[Any], settings: Settings, out: Path, resume: bool) -> tuple[int, float]:
    """Train to the end with a progress bar; the steps made here, and the seconds of training over all resumptions."""
    group, config = processes.current(), settings.config()
    kind = "images" if settings.frames is None else "clips"
    timed = config.minutes is not None
    total = 60 * config.minutes if config.minutes is not None else config.steps
    began, steps, seconds = time.monotonic(), 0, 0.0
    with progress("s" if timed else "steps") as bar:
        task = bar.add_task("training", total=total, note="", visible=not resume)  # a finished run makes no step
        for state in job.states:
            steps, seconds = steps + 1, state.elapsed
            done = state.elapsed if timed else state.step
            note = f"loss {state.loss:.4f}  {state.images_per_second:,.0f} {kind}/s"
            bar.update(task, completed=min(done, total or done), note=note, visible=True)
            if state.sample_due and group.main:
                job.preview(state.model, out / "progress" / f"step-{state.step:06d}.png")
    return steps, seconds or time.monotonic() - began


def _length(out: Path, settings: Settings) -> str:
    step = read_record(out)["step"]
    return f"{step} steps" if settings.minutes is None else f"{step} steps in {settings.minutes:g} minutes"


def report_seconds(training: float) -> float:
    """How long a report may take after so many seconds of training."""
    return max(_REPORT_SECONDS, _REPORT_SHARE * training)


def report_of(job: Job[Any], **plan: Any) -> list[Score]:
    """The scores of the report, which is written with a progress bar."""
    with progress("parts") as bar:
        task = bar.add_task("evaluating", total=1, note="")
        advance = lambda what, done, total: bar.update(task, completed=done, total=total, note=what)  # noqa: E731
        return job.report(ReportPlan(advance=advance, **plan))


def in_memory(images: ImageSet | StreamedSet | BucketSet) -> ImageSet:
    """The images; of a streamed set a random part that stands for it, of buckets the main one."""
    if isinstance(images, BucketSet):
        return images.main
    return images.drawn() if isinstance(images, StreamedSet) else images

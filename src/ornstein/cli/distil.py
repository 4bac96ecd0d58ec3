"""`ornstein distil`: a student of few steps from a trained model."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from ornstein import checkpoint, processes
from ornstein.autoencoders.perceptual import octave_statistics
from ornstein.cli.commands import Distil
from ornstein.data import BucketSet, ImageSet, StreamedSet, to_unit
from ornstein.denoiser import Denoiser
from ornstein.devices import choose_device, choose_precision
from ornstein.errors import UserError
from ornstein.evaluation.features import open_features
from ornstein.evaluation.few_steps import FRECHET, KERNEL, RMSE, Way, mean_over_seeds, quality_by_steps
from ornstein.evaluation.matched import choose
from ornstein.evaluation.run import affordable, write_run_report
from ornstein.evaluation.run_clips import write_clip_report
from ornstein.few_steps.consistency import Consistency
from ornstein.few_steps.distillation import check_teacher
from ornstein.few_steps.matching import KernelDistance
from ornstein.few_steps.mean_flow import MeanFlow
from ornstein.progress import cell, console, progress, say
from ornstein.request import SOLVER, STEPS
from ornstein.settings import read, read_file, settings_of, to_json
from ornstein.store import CONFIG, atomic_write, read_config
from ornstein.text import TextDenoiser
from ornstein.training import TrainConfig, TrainState, run_task
from ornstein.training.distil import Distillation, TrajectorySet, follow_teacher, new_student
from ornstein.training.folder import check_folder
from ornstein.training.jobs import new_job, preview, size_of
from ornstein.training.recipe import REPORT, Split, in_memory, open_data, report_seconds
from ornstein.training.settings import DISTIL, SETTINGS, DistilSettings, Settings, resumed
from ornstein.training.state import check_new, check_resumable
from ornstein.wrapper import device_of

__all__ = ["distil", "quality_table", "ways_of"]

_TEACHER_STEPS = (1, 2, 4, 8, STEPS)  # at which the report compares the teacher
_FINE_STEPS = 60  # of the teacher's own samples that the others are compared with
_JUDGED, _FEWEST = 500, 24
_COMPARING = 0.6  # of the time of a report, for the comparison with the teacher; the rest is for the student's own
_MATCHED = 2048  # images that the samples are brought near
_FIXED = ("to", "method", "match", "guidance", "trajectories", "precision", "seed")  # the trajectories depend on these


def distil(asked: Distil, given: frozenset[str]) -> None:
    """Follow the teacher, train the student on the trajectories, and report its quality beside the teacher's."""
    run, out = asked.run, asked.out
    settings = _settings(asked, given)
    config = settings.config()
    group = processes.current()
    device = choose_device(asked.device)
    teacher = checkpoint.load(run, trust_sizes=asked.trust_sizes).to(device)
    consistent = settings.method != "trajectories"
    if consistent and "trajectories" in given:
        raise UserError(f"--trajectories is of another method: leave it out with --method {settings.method}")
    try:
        check_teacher(teacher, settings.guidance, text=consistent)
        student = new_student(teacher, settings.to, settings.guidance)
    except UserError as error:
        raise UserError(f"{run} cannot be distilled: {error}") from None
    material = _material(run) if consistent else None
    group.agreed(lambda: _claim(settings, run, out, asked.resume))
    began = time.monotonic()
    if material is not None:
        states = _consistent(settings, run, teacher, student, out, asked.resume, *material)
        source = f"{len(material[1].train)} {'images' if material[0].frames is None else 'clips'}"
    else:
        followed = _followed(settings, run, teacher, out, config)
        states = run_task(Distillation(student, checkpoint.fingerprint(run)), followed, config, out, asked.resume)
        source = f"{len(followed)} trajectories"
    if group.main:
        _remember(settings, out)
        if (run / SETTINGS).is_file():
            # which data the model knows, for `evaluate`
            atomic_write(out / SETTINGS, (run / SETTINGS).read_bytes())
    say(f"{source} of {run}, {size_of(student)}, to {_steps(settings.to)}")
    steps = _train(states, config)
    group.end()
    if not group.main:
        return
    page = out / REPORT
    if asked.resume and not steps:
        say(f"{out} is finished already; give more --steps or --minutes to train on")
    if asked.report and not (asked.resume and not steps and page.is_file()):
        _report(settings, run, teacher, student, out, report_seconds(time.monotonic() - began))
    say(f"done: {page if page.is_file() else out}; more samples with `ornstein sample {out}`")


def _steps(n: int) -> str:
    return f"{n} step{'s' * (n > 1)}"


def _settings(asked: Distil, given: frozenset[str]) -> DistilSettings:
    """The settings of this call: those stored in --out for a resumption, with what is given."""
    out, teacher = asked.out, str(asked.run)
    if not (asked.resume and (out / DISTIL).is_file()):
        return settings_of(DistilSettings, asked, teacher=teacher)
    stored = read(DistilSettings, read_file(out / DISTIL), out / DISTIL)
    chosen = {name: getattr(asked, name) for name in given & DistilSettings.__dataclass_fields__.keys()}
    for name in _FIXED:
        if name in chosen and chosen[name] != getattr(stored, name):
            raise UserError(
                f"{out} was distilled with --{name} {getattr(stored, name)}, and {chosen[name]} is asked for: "
                "resume with the same, or distil into another folder"
            )
    return replace(resumed(stored, chosen), teacher=teacher)


def _claim(settings: DistilSettings, run: Path, out: Path, resume: bool) -> None:
    """Refuse what cannot be begun or resumed, before minutes of trajectories."""
    check_folder(out)
    if not resume:
        check_new(out)
        out.mkdir(parents=True, exist_ok=True)
        _remember(settings, out)
        return
    check_resumable(out)
    if (out / CONFIG).is_file() and read_config(out).get("teacher") != checkpoint.fingerprint(run):
        raise UserError(f"{out} is no student of {run} as it is now: resume with its own teacher, or distil anew")


def _remember(settings: DistilSettings, out: Path) -> None:
    atomic_write(out / DISTIL, (json.dumps(to_json(settings), indent=1) + "\n").encode())


def _followed(settings: DistilSettings, run: Path, teacher: Denoiser, out: Path, config: TrainConfig) -> TrajectorySet:
    """The trajectories, followed by all processes."""
    dtype = choose_precision(config.precision, device_of(teacher))
    kept = (settings.to, settings.trajectories, settings.guidance, settings.seed)
    with progress("trajectories", transient=True) as bar:
        task = bar.add_task("following", total=settings.trajectories, note="")
        return follow_teacher(run, teacher, out, *kept, dtype, lambda done, _: bar.update(task, completed=done))


def _material(run: Path) -> tuple[Settings, Split]:
    """The settings of the teacher's training, and its data."""
    if not (run / SETTINGS).is_file():
        raise UserError(
            f"{run} does not say what data it was trained on, which --method consistency and meanflow learn from"
        )
    own = Settings.stored(run / SETTINGS)
    return own, open_data(own)


def _consistent(
    settings: DistilSettings, run: Path, teacher: Denoiser, student: Denoiser, out: Path, resume: bool,
    own: Settings, split: Split,
) -> Iterator[TrainState[Denoiser]]:  # fmt: skip
    """The training by consistency or MeanFlow on the teacher's own training data."""
    device, config = device_of(teacher), settings.config()
    tuning = replace(
        own, steps=config.steps, minutes=config.minutes, batch=config.batch, optimizer=config.optimizer,
        learning_rate=config.learning_rate, precision=config.precision, seed=config.seed, ema=config.ema,
        checkpoint_every=config.checkpoint_every, warmup=config.warmup, accumulate=1, sample_every=0, dropout=0.0,
        objective=None, time_sampling="uniform", loss_space="pixel", init=None, track=None, compile=False,
    )  # fmt: skip
    dtype, match = choose_precision(config.precision, device), _match(settings, teacher, split)
    kind = MeanFlow if settings.method == "meanflow" else Consistency
    objective = kind(teacher, settings.to, settings.guidance, dtype, match=match)
    objective.about = {"teacher": checkpoint.fingerprint(run)}
    return new_job(tuning, split.train, split.held_out, out, resume, device, student, objective).states


def _match(settings: DistilSettings, teacher: Denoiser, split: Split) -> KernelDistance | None:
    """The distance of samples from the training images, if it is to be learned from."""
    images = split.train
    if teacher.space is not None or not isinstance(images, ImageSet | StreamedSet):
        if settings.match == "data":
            raise UserError("--match data is for models of images of pixels and of one size: leave it out")
        return None
    if settings.match == "none" or (settings.match is None and settings.guidance != 1):
        return None
    real = in_memory(images)
    return KernelDistance(to_unit(real.images[choose(real, _MATCHED)]).to(device_of(teacher)), octave_statistics)


def _train(states: Iterator[TrainState[Denoiser]], config: TrainConfig) -> int:
    """Train to the end with a progress bar; the number of steps made here."""
    total = config.steps if config.minutes is None else 60 * config.minutes
    steps = 0
    with progress("steps" if config.minutes is None else "s") as bar:
        task = bar.add_task("distilling", total=total, note="")
        for state in states:
            steps += 1
            done = state.step if config.minutes is None else state.elapsed
            note = f"loss {state.loss:.4f}  {state.images_per_second:,.0f}/s"
            bar.update(task, completed=min(done, total or done), note=note)
    return steps


def _report(
    settings: DistilSettings, run: Path, teacher: Denoiser, student: Denoiser, out: Path, budget: float
) -> None:
    """Report the student's quality beside the teacher's; its samples alone if the data are not there."""
    end = time.monotonic() + budget
    data = _data(run)
    if data is None:
        preview(student, out / "samples.png")
        return
    shown = {name: value for name, value in to_json(settings).items() if value is not None}
    title = f"{out.name}: {run.name} in {_steps(settings.to)}"
    with progress("parts") as bar:
        task = bar.add_task("evaluating", total=1, note="")

        def advance(what: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, note=what)

        if not isinstance(data.train, ImageSet | StreamedSet | BucketSet):
            assert not isinstance(data.held_out, ImageSet)
            left = max(0.0, end - time.monotonic())
            write_clip_report(out, student, data.train, data.held_out, title, shown, advance, seconds=left)
            return
        assert isinstance(data.held_out, ImageSet)
        teacher, asked = _prompted(teacher), _prompted(student)
        ways = ways_of(run, teacher, asked, settings.guidance)
        evaluations = (_FINE_STEPS + sum(way.steps for way in ways)) * (1 if settings.guidance == 1 else 2)
        judged = max(_FEWEST, affordable(teacher, _COMPARING * budget, _JUDGED, evaluations))
        real = data.held_out.images
        features = open_features("conv")(real)
        rows = mean_over_seeds(
            quality_by_steps(teacher, ways, real, features, judged, guidance=settings.guidance, advance=advance)
        )
        seen, left = in_memory(data.train), max(0.0, end - time.monotonic())
        write_run_report(out, student, seen, data.held_out, title, shown, quality=rows, advance=advance, seconds=left)
    console.print(quality_table(rows))


def _prompted(model: Denoiser) -> Denoiser:
    """A model of text with examples of its captions for classes; any other as it is."""
    return model.prompted(model.examples) if isinstance(model, TextDenoiser) and model.examples else model


def ways_of(run: Path, teacher: Denoiser, student: Denoiser, guidance: float) -> list[Way]:
    """The teacher at a few steps, the solvers tuned for it, and the student."""
    ways = [Way(SOLVER, teacher, n, SOLVER, guidance) for n in _TEACHER_STEPS]
    for tuned in checkpoint.load_tuned(run):
        if tuned.serves(guidance) and len(tuned.steps) <= STEPS:
            ways.append(Way("tuned", teacher, len(tuned.steps), tuned, guidance))
    assert student.distilled is not None
    return [*ways, Way("distilled", student, student.distilled.steps)]


def quality_table(rows: list[dict[str, Any]]) -> Table:
    """The rows for the terminal."""
    table = Table("solver", "steps", FRECHET, KERNEL, RMSE, title="Quality against steps", title_justify="left")
    for row in rows:
        figures = (f"{row[FRECHET]:.3g}", f"{row[KERNEL]:.3g}", f"{row[RMSE]:.4f}")
        table.add_row(cell(row["solver"]), str(row["steps"]), *figures)
    return table


def _data(run: Path) -> Split | None:
    """What the teacher was trained on and held out; None, and said so, if that is not known or no longer there."""
    try:
        return open_data(Settings.stored(run / SETTINGS))
    except UserError as error:
        say(f"no scores: {error}")
        return None

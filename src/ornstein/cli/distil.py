"""`ornstein distil`: a trained model made over to one of few steps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from ornstein import checkpoint
from ornstein.cli.command import console, progress
from ornstein.cli.runs import DISTIL, SETTINGS, in_memory, look
from ornstein.cli.setup import Settings, Split, open_data
from ornstein.data import ImageSet, StreamedSet
from ornstein.denoiser import Denoiser
from ornstein.devices import choose_precision
from ornstein.errors import UserError
from ornstein.evaluation.features import open_features
from ornstein.evaluation.few_steps import FRECHET, KERNEL, RMSE, Way, mean_over_seeds, quality_by_steps
from ornstein.evaluation.run import SOLVER, STEPS, write_run_report
from ornstein.evaluation.run_clips import write_clip_report
from ornstein.few_steps.distillation import check_teacher
from ornstein.store import atomic_write, read_json
from ornstein.training import TrainConfig, TrainState, processes, run_task
from ornstein.training.distil import Distillation, TrajectorySet, follow_teacher, new_student
from ornstein.training.state import check_new, check_resumable
from ornstein.wrapper import device_of

_TEACHER_STEPS = (1, 2, 4, 8, STEPS)  # at which the report has the teacher, beside the student
_JUDGED = 500
_FIXED = ("to", "guidance", "trajectories", "precision", "seed")  # what the trajectories are


@dataclass(frozen=True)
class Asked:
    """What a distillation was asked for; kept in its folder, so that a resumption needs no options."""

    teacher: str
    to: int = 4
    guidance: float = 1.0
    trajectories: int = 10_000
    steps: int | None = None
    minutes: float | None = None
    batch: int = 128
    learning_rate: float = 1e-3
    precision: str = "auto"
    seed: int = 0
    checkpoint_every: int = 500

    def config(self) -> TrainConfig:
        steps = 1500 if self.steps is None and self.minutes is None else self.steps
        return TrainConfig(
            steps=steps,
            minutes=self.minutes,
            batch=self.batch,
            learning_rate=self.learning_rate,
            condition_dropout=0.0,  # trajectories without a class are among them
            precision=self.precision,  # pyright: ignore[reportArgumentType]  (it checks)
            seed=self.seed,
            checkpoint_every=self.checkpoint_every,
        )


def distil(
    run: Annotated[Path, typer.Argument(help="The run folder of the teacher, a trained diffusion model.")],
    out: Annotated[Path, typer.Option(help="The run folder of the student to write.")],
    to: Annotated[int | None, typer.Option(help="Steps that the student takes, 1 to 10. (default: 4)")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Scale of the teacher's guidance, which the student has built in. (default: 1)")
    ] = None,
    trajectories: Annotated[
        int | None, typer.Option(help="Of the teacher, to learn from. (default: 10000)", min=1)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps in all. (default: 1500)")] = None,
    minutes: Annotated[float | None, typer.Option(help="Minutes of training in all, instead of steps.")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples a step. (default: 128)")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="AdamW's. (default: 0.001)")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, float32 or bf16. (default: auto)")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random. (default: 0)")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints. (default: 500)")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the student in OUT, as it was asked for.")
    ] = False,
) -> None:
    """Distil a trained model to a few steps: a student that ends in 1 to 10 steps where the model's own flow does.

    It follows trajectories of the model from noise, which needs no data, and trains a copy of it on them. The student
    is a run like any other; `ornstein sample` and `evaluate` take its own steps. Its report has the teacher at 1 to 20
    steps beside it, and the tuned solver where `ornstein tune` made one.

    Example: ornstein distil runs/photos --out runs/photos-4 --to 4
    """
    given = {k: v for k, v in locals().items() if k not in ("run", "out", "resume") and v is not None}
    asked = _asked(run, out, given, resume)
    config = asked.config()
    group = processes.current()
    teacher = checkpoint.load(run)
    try:
        check_teacher(teacher, asked.guidance)
        student = new_student(teacher, asked.to, asked.guidance)
    except UserError as error:
        raise UserError(f"{run} cannot be distilled: {error}") from None
    group.agreed(lambda: _claim(asked, run, out, resume))
    if torch.cuda.is_available():
        teacher, student = teacher.to("cuda"), student.to("cuda")
    followed = _followed(asked, run, teacher, out, config)
    task = Distillation(student, checkpoint.fingerprint(run))
    states = run_task(task, followed, config, out, resume)
    if group.main:
        _remember(asked, out)
        if (run / SETTINGS).is_file():
            # which data the model knows, for `evaluate`
            atomic_write(out / SETTINGS, (run / SETTINGS).read_bytes())
    size = sum(p.numel() for p in student.parameters())
    console.print(f"{len(followed)} trajectories of {run}, {size:,} parameters, to {_steps(asked.to)}")
    _train(states, config)
    group.end()
    if group.main:
        _report(asked, run, teacher, student, out)
        console.print(f"done: {out / 'report.html'}; more samples with `ornstein sample {out}`")


def _steps(n: int) -> str:
    return f"{n} step{'s' * (n > 1)}"


def _asked(run: Path, out: Path, given: dict[str, Any], resume: bool) -> Asked:
    if resume and (out / DISTIL).is_file():
        try:
            stored = Asked(**read_json(out / DISTIL))
        except TypeError as error:
            raise UserError(f"{out / DISTIL} is not of this version: {error}") from error
        if "steps" in given:
            stored = replace(stored, minutes=None)
        if "minutes" in given:
            stored = replace(stored, steps=None)
        for name in _FIXED:
            if name in given and given[name] != getattr(stored, name):
                told = f"{out} was distilled with --{name} {getattr(stored, name)}, and {given[name]} is asked for"
                raise UserError(f"{told}: resume with the same, or distil into another folder")
        return replace(stored, teacher=str(run), **given)
    return Asked(str(run), **given)


def _claim(asked: Asked, run: Path, out: Path, resume: bool) -> None:
    """Refuse what cannot be begun or gone on with, before minutes of trajectories."""
    if not resume:
        check_new(out)
        out.mkdir(parents=True, exist_ok=True)
        _remember(asked, out)
        return
    check_resumable(out)
    if (out / checkpoint.CONFIG).is_file() and checkpoint.read_config(out).get("teacher") != checkpoint.fingerprint(
        run
    ):
        raise UserError(f"{out} is no student of {run} as it is now: resume with its own teacher, or distil anew")


def _remember(asked: Asked, out: Path) -> None:
    atomic_write(out / DISTIL, (json.dumps(asdict(asked), indent=1) + "\n").encode())


def _followed(asked: Asked, run: Path, teacher: Denoiser, out: Path, config: TrainConfig) -> TrajectorySet:
    """The trajectories; the first process follows them, the others find them there."""
    dtype = choose_precision(config.precision, device_of(teacher))

    def follow(advance: Any) -> TrajectorySet:
        return follow_teacher(
            run, teacher, out, asked.to, asked.trajectories, asked.guidance, asked.seed, dtype, advance
        )

    with progress("trajectories", transient=True) as bar:
        task = bar.add_task("following", total=asked.trajectories, note="")
        processes.current().agreed(lambda: follow(lambda done, _: bar.update(task, completed=done)) and None)
        return follow(lambda done, total: None)


def _train(states: Iterator[TrainState[Denoiser]], config: TrainConfig) -> None:
    total = config.steps if config.minutes is None else 60 * config.minutes
    with progress("steps" if config.minutes is None else "s") as bar:
        task = bar.add_task("distilling", total=total, note="")
        for state in states:
            done = state.step if config.minutes is None else state.elapsed
            note = f"loss {state.loss:.4f}  {state.images_per_second:,.0f}/s"
            bar.update(task, completed=min(done, total or done), note=note)


def _report(asked: Asked, run: Path, teacher: Denoiser, student: Denoiser, out: Path) -> None:
    """The student's report, with its quality beside the teacher's; its samples alone where the data are not there."""
    data = _data(run)
    if data is None:
        look(student, out / "samples.png")
        return
    shown = {k: v for k, v in asdict(asked).items() if v is not None}
    title = f"{out.name}: {run.name} in {_steps(asked.to)}"
    with progress("parts") as bar:
        task = bar.add_task("judging", total=1, note="")

        def advance(what: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, note=what)

        if not isinstance(data.train, ImageSet | StreamedSet):
            assert not isinstance(data.held_out, ImageSet)
            write_clip_report(out, student, data.train, data.held_out, title, shown, advance)
            return
        assert isinstance(data.held_out, ImageSet)
        seen = in_memory(data.train)
        real = data.held_out.images
        ways = ways_of(run, teacher, student, asked.guidance)
        rows = quality_by_steps(
            teacher, ways, real, open_features("conv")(real), _JUDGED, guidance=asked.guidance, advance=advance
        )
        rows = mean_over_seeds(rows)
        write_run_report(out, student, seen, data.held_out, title, shown, quality=rows, advance=advance)
    console.print(quality_table(rows))


def ways_of(run: Path, teacher: Denoiser, student: Denoiser, guidance: float) -> list[Way]:
    """The teacher at a few steps, the solvers tuned for it, and the student."""
    ways = [Way(SOLVER, teacher, n, SOLVER, guidance) for n in _TEACHER_STEPS]
    for tuned in checkpoint.load_tuned(run):
        if tuned.guidance == guidance and len(tuned.steps) <= STEPS:
            ways.append(Way("tuned", teacher, len(tuned.steps), tuned, guidance))
    assert student.distilled is not None
    return [*ways, Way("distilled", student, student.distilled.steps)]


def quality_table(rows: list[dict[str, Any]]) -> Table:
    """The rows for the terminal."""
    table = Table("solver", "steps", FRECHET, KERNEL, RMSE, title="Quality against steps", title_justify="left")
    for row in rows:
        figures = (f"{row[FRECHET]:.3g}", f"{row[KERNEL]:.3g}", f"{row[RMSE]:.4f}")
        table.add_row(row["solver"], str(row["steps"]), *figures)
    return table


def _data(run: Path) -> Split | None:
    """What the teacher was trained on and held out; None, and said so, where that is not known or no longer there."""
    try:
        return open_data(Settings.stored(run / SETTINGS))
    except UserError as error:
        console.print(f"no scores: {error}", style="yellow")
        return None

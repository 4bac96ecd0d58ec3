"""`ornstein evaluate`: bits/dim, distances, precision and recall of a trained model, as tables, a report and JSON."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table as RichTable

from ornstein import autoencoders, checkpoint
from ornstein.cli.command import console, progress
from ornstein.data import ImageSet, StreamedSet, open_images
from ornstein.errors import UserError
from ornstein.evaluation.features import open_features
from ornstein.evaluation.findings import tables, write_findings
from ornstein.evaluation.held_out import METHODS
from ornstein.evaluation.judge import Plan, judge
from ornstein.evaluation.matched import check_images, image_shape
from ornstein.evaluation.pieces import FILE as PIECES
from ornstein.evaluation.pieces import Pieces
from ornstein.evaluation.run_autoencoder import write_autoencoder_report
from ornstein.solvers import SOLVER, SOLVERS
from ornstein.store import atomic_write, write_error
from ornstein.training import processes
from ornstein.training.recipe import Settings, in_memory, open_data
from ornstein.training.settings import SETTINGS

JSON = "evaluation.json"
REPORT = "report.html"


def evaluate(
    run: Annotated[Path, typer.Argument(help="The run folder of a trained model.")],
    data: Annotated[
        str | None,
        typer.Option(help="Images to judge by, as for `train`. (default: those the run held out)"),
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Samples for each seed, and real images at most.")] = 2000,
    solvers: Annotated[
        str | None, typer.Option(help=f"Of {', '.join(SOLVERS)}. (default: {SOLVER},ddim; a distilled model's own)")
    ] = None,
    steps: Annotated[
        str | None, typer.Option(help="Numbers of solver steps. (default: 5,10,20,50; a distilled model's own)")
    ] = None,
    features: Annotated[str, typer.Option(help="pixels, conv, or a TorchScript file.")] = "conv",
    seeds: Annotated[int, typer.Option(help="Sets of samples, for the spread of every figure.")] = 3,
    likelihood: Annotated[
        str | None,
        typer.Option(help=f"Of {', '.join(METHODS)}; or none. (default: vlb,ode; none of a distilled model)"),
    ] = None,
    images: Annotated[int, typer.Option(help="Held-out images for the likelihood.")] = 256,
    held_out: Annotated[
        float | None, typer.Option(help="Judge by this share of the data only, drawn by the run's seed.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Samples through the network at once.")] = 128,
    out: Annotated[Path | None, typer.Option(help="Folder to write to. (default: RUN/evaluation)")] = None,
) -> None:
    """Judge a model by images it was not trained on; of an autoencoder, its reconstructions and rates.

    `torchrun --nproc-per-node 8 -m ornstein evaluate ...` shares the samples out among processes. Started again with
    the same model, data and numbers of images it measures what is missing.

    Example: ornstein evaluate runs/photos -n 1000 --steps 10,50 --seeds 2
    """
    denoiser = None if "autoencoder" in checkpoint.read_config(run) else checkpoint.load(run)
    few = None if denoiser is None else denoiser.distilled
    own = (f"{SOLVER},ddim", "5,10,20,50", "vlb,ode")
    if few is not None:
        own = (few.solver, str(few.steps), "none")
        if likelihood not in (None, "none"):
            raise UserError(
                f"{run} is distilled: what it says is no E[x0 | x_t], and has no likelihood; judge its teacher"
            )
    solvers, steps, likelihood = (b if a is None else a for a, b in zip((solvers, steps, likelihood), own, strict=True))
    plan = Plan(
        count=n,
        solvers=_names(solvers),
        steps=_numbers(steps),
        seeds=seeds,
        methods=() if likelihood.strip() == "none" else _names(likelihood),
        images=images,
        batch=batch,
    )
    folder = run / "evaluation" if out is None else out
    if denoiser is None:
        if processes.launched() > 1:
            raise UserError("autoencoders are judged by one process: leave out the launcher")
        _evaluate_autoencoder(run, data, held_out, folder)
        return
    group = processes.current()
    shape = image_shape(denoiser)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    denoiser.to(device)
    extractor = open_features(features, device)
    material = _open_material(run, shape, data, held_out)
    _make(folder)  # told now, not after an hour
    pieces = Pieces(folder, _key(run, plan, material, features, device))
    if pieces.found:
        console.print(f"{pieces.found} parts of this are in {folder / PIECES} already", soft_wrap=True)
    with progress("calls") as bar:
        task = bar.add_task("judging", total=None, note="")
        found = judge(
            denoiser,
            plan,
            material.held_out,
            material.train,
            extractor,
            lambda what, done, total: bar.update(task, completed=done, total=total, note=what),
            pieces,
        )
    group.end()
    if not group.main:
        return  # it has made its share of the samples
    command = _command(run, data, plan, features, held_out)
    for table in tables(found, material.about):
        rich = RichTable(*table.columns, title=table.title, title_justify="left", title_style="bold", show_edge=False)
        for row in table.rows:
            rich.add_row(*(str(value) for value in row))
        console.print()
        console.print(rich)
        console.print(table.header, style="dim")
    settings = {"command": command, "model": str(run), "data": material.held_out.source}
    record = {"format": 1, **settings, "data_fingerprint": material.fingerprint, "about": material.about}
    text = json.dumps(record | found.to_json(), indent=1, allow_nan=False)
    atomic_write(folder / JSON, (text + "\n").encode())
    assert denoiser.data is not None
    write_findings(
        folder / REPORT,
        found,
        f"Evaluation of {run.name}",
        material.about,
        material.held_out,
        denoiser.data.classes,
        material.train is not None,
        settings,
    )
    console.print(f"\nthe report: {folder / REPORT}; the figures: {folder / JSON}; again: {command}", soft_wrap=True)


@dataclass(frozen=True)
class _Material:
    """What to judge by: images the model has not seen, those it was trained on where they are at hand, and which."""

    held_out: ImageSet
    train: ImageSet | None
    fingerprint: str
    about: str


def _key(run: Path, plan: Plan, material: _Material, features: str, device: str) -> dict[str, Any]:
    """What all figures depend on: model, images and settings, but for which solvers, steps and seeds are asked for."""
    files = [run / checkpoint.MODEL, run / checkpoint.CONFIG, *([Path(features)] if Path(features).is_file() else [])]
    train = material.train
    return {
        "files": [hashlib.sha256(file.read_bytes()).hexdigest() for file in files],
        "held_out": [material.fingerprint, *material.held_out.shape],
        "train": None if train is None else [train.fingerprint, *train.shape],
        "features": features,
        "device": device,
        "n": plan.count,
        "images": plan.images,
        "batch": plan.batch,
    }


def _evaluate_autoencoder(run: Path, data: str | None, held_out: float | None, folder: Path) -> None:
    """Distortion and rate, and the report of reconstructions; the options of samples have no part in it."""
    model = autoencoders.load(run)
    material = _open_material(run, model.shape, data, held_out)
    _make(folder)
    with progress("parts") as bar:
        task = bar.add_task("judging", total=None, note="")
        scores, warnings = write_autoencoder_report(
            folder,
            model,
            material.train or material.held_out,
            material.held_out,
            f"Evaluation of {run.name}",
            {"model": str(run), "data": material.about},
            lambda what, done, total: bar.update(task, completed=done, total=total, note=what),
        )
    rich = RichTable("score", "value", title=material.about, title_justify="left", show_edge=False)
    for score in scores:
        rich.add_row(score.name, str(score.value))
    console.print(rich)
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow")
    console.print(f"the report: {folder / REPORT}", soft_wrap=True)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error


def _open_material(run: Path, shape: tuple[int, ...], data: str | None, share: float | None) -> _Material:
    if share is not None and not 0 < share < 1:
        raise UserError(f"--held-out is a share between 0 and 1, not {share}")
    own = _settings(run)
    if own is None and data is None:
        raise UserError(f"{run} does not say which images it was trained on (it has no {SETTINGS}): give --data")
    if own is not None and (data is None or _same_source(data, own.data)):
        if share is not None and share > own.held_out:
            raise UserError(
                f"--held-out {share} would judge by images the model was trained on: it held out {own.held_out}"
            )
        train, held_out = _split(own)
        check_images(shape, held_out)
        if share is not None:
            # The same order of the same images: a smaller share is a part of the larger one.
            held_out = _split(replace(own, held_out=share))[1]
        about = f"{len(held_out)} images of {own.data} that the run held out"
        return _Material(held_out, train, held_out.fingerprint, about)
    assert data is not None
    # Sizes and colours as in the training, so that these images are seen as those were.
    settings = Settings(data=data) if own is None else replace(own, data=data, conditional=None)
    images = _read(settings)
    check_images(shape, images)
    about = f"all {len(images)} images of {data}"
    if share is not None:
        _, images = images.split(share, settings.seed)
        about = f"{len(images)} images of {data}, drawn by seed {settings.seed}"
    if settings.size is not None:
        about += f", brought to {settings.size}x{settings.size} pixels as in the training"
    train = None
    if own is not None:
        try:
            train, _ = _split(own)
        except UserError as error:
            console.print(f"without the training images no copies are looked for: {error}", soft_wrap=True)
    return _Material(images, train, images.fingerprint, about)


def _settings(run: Path) -> Settings | None:
    return Settings.stored(run / SETTINGS) if (run / SETTINGS).is_file() else None


def _same_source(a: str, b: str) -> bool:
    if "digits" in (a, b):
        return a == b
    return Path(a).resolve() == Path(b).resolve()


def _read(settings: Settings) -> ImageSet:
    with progress("files", transient=True) as bar:
        task = bar.add_task("reading", total=None, note="")

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return open_images(settings.data, settings.size, settings.channels, progress=advance)


def _split(own: Settings) -> tuple[ImageSet, ImageSet]:
    """The images that the run was trained on, and those it held out."""
    train, held_out, _, _ = open_data(own)
    assert isinstance(train, ImageSet | StreamedSet) and isinstance(held_out, ImageSet)  # the model makes images
    return in_memory(train), held_out


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(number) for number in _names(text)))
    except ValueError:
        raise UserError(f"--steps are whole numbers with commas between them, such as 5,10,20, not {text!r}") from None


def _command(run: Path, data: str | None, plan: Plan, features: str, share: float | None) -> str:
    options: dict[str, Any] = {
        "--data": data,
        "-n": plan.count,
        "--solvers": ",".join(plan.solvers),
        "--steps": ",".join(map(str, plan.steps)),
        "--features": features,
        "--seeds": plan.seeds,
        "--likelihood": ",".join(plan.methods) or "none",
        "--images": plan.images,
        "--held-out": share,
        "--batch": plan.batch,
    }
    words = [word for option, value in options.items() if value is not None for word in (option, str(value))]
    return shlex.join(["ornstein", "evaluate", str(run), *words])

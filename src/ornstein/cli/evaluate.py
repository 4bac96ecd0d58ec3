"""`ornstein evaluate`: bits/dim, distances, precision and recall of a trained model, as tables, a report and JSON."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape
from rich.table import Table as RichTable

from ornstein import autoencoders, checkpoint, processes
from ornstein.autoencoders.latent import LatentSpace
from ornstein.cli.evaluate_clips import evaluate_clips
from ornstein.cli.evaluated import command_of, print_tables, record_of
from ornstein.cli.held_out_data import Material, open_material, pixel_digest
from ornstein.cli.models import open_model
from ornstein.cli.options import refuse
from ornstein.denoiser import Denoiser
from ornstein.devices import choose_device, choose_precision
from ornstein.errors import UserError
from ornstein.evaluation.facts import run_facts, seconds_text
from ornstein.evaluation.features import open_features
from ornstein.evaluation.markup import plain
from ornstein.evaluation.matched import image_shape
from ornstein.evaluation.measure import evaluate_model
from ornstein.evaluation.owned import JSON, REPORT, check_replaceable
from ornstein.evaluation.pieces import FILE as PIECES
from ornstein.evaluation.pieces import Pieces
from ornstein.evaluation.plan import Costs, Plan, measure_costs, sized
from ornstein.evaluation.run_autoencoder import write_autoencoder_report
from ornstein.evaluation.settings import MINUTES, Evaluate
from ornstein.evaluation.summary import tables, write_evaluation_report
from ornstein.likelihood import FewSteps
from ornstein.progress import console, progress, say, silenced, warn
from ornstein.store import CONFIG, MODEL, atomic_write, json_bytes, make_folder

__all__ = ["evaluate"]

_REPORT = 0.95  # of the time, after which nothing is started: the rest is for the report
_SIZES = ("num", "solvers", "steps", "seeds", "likelihood", "images")
_OF_SAMPLES = (*_SIZES, "minutes", "full", "features", "batch", "precision")


def evaluate(asked: Evaluate, given: frozenset[str]) -> None:
    """Evaluate a run as `asked`."""
    if asked.full and asked.minutes is not None:
        raise UserError("--full takes as long as it takes: leave out --minutes")
    asked = replace(asked, run=checkpoint.locate(asked.run))
    with silenced(asked.json):
        if checkpoint.is_autoencoder(asked.run):
            refuse(Evaluate, given, _OF_SAMPLES, f"{asked.run} is an autoencoder")
            record = _evaluate_autoencoder(asked)
        else:
            denoiser = open_model(asked, own=True)[0]
            if denoiser.shape is not None and len(denoiser.shape) == 4:
                record = evaluate_clips(asked, given, denoiser, _settled(asked, denoiser))
            else:
                record = _evaluate_model(asked, given, denoiser)
    if asked.json and record is not None:
        typer.echo(json.dumps(record, indent=1))


def _evaluate_model(asked: Evaluate, given: frozenset[str], denoiser: Denoiser) -> dict[str, Any] | None:
    """Likelihoods and scores of samples of a diffusion model, as --json prints them; None in all processes but one."""
    began = time.monotonic()
    settled = _settled(asked, denoiser)
    Plan(**settled)  # wrong sizes are refused before anything is read
    group = processes.current()
    device = choose_device(asked.device)
    dtype = choose_precision(asked.precision, device)
    shape = image_shape(denoiser)
    denoiser.to(device)
    features = open_features(asked.features, device)
    folder = checkpoint.run_folder(asked.run) / "evaluation" if asked.out is None else asked.out
    check_replaceable(folder, asked.overwrite)
    material = open_material(asked.run, shape, asked.data, asked.held_out)
    few = None
    if "few" in settled.get("methods", ()):
        few = FewSteps.load(checkpoint.run_folder(asked.run), checkpoint.fingerprint(asked.run))
    group.agreed(lambda: make_folder(folder) and None)  # a folder that cannot be written is refused now
    key = _key(asked, material, str(device))
    plan, costs = group.agreed(lambda: _plan(asked, given, settled, denoiser, material, features, folder, key))
    say(plan.line(len(material.held_out), costs))
    pieces = Pieces(folder, key | {"n": plan.count, "images": plan.images})
    if len(pieces):
        say(f"{len(pieces)} parts of this are in {folder / PIECES} already")
    seconds = _limit(asked, given)
    with progress("calls") as bar:
        task = bar.add_task("evaluating", total=None, note="")
        result = evaluate_model(
            denoiser,
            plan,
            material.held_out,
            material.train,
            features,
            lambda what, done, total: bar.update(task, completed=done, total=total, note=what),
            pieces,
            deadline=None if seconds is None else began + _REPORT * seconds,
            precision=dtype,
            few=few,
        )
    group.end()
    if not group.main:
        return None  # this process has made its share of the samples
    command = command_of(asked, plan)
    shown = tables(result, material.about)
    print_tables(shown)
    facts = {"model": str(asked.run), "command": command, "evaluation took": seconds_text(time.monotonic() - began)}
    record = record_of(command, asked, material.held_out, material.about) | result.to_json()
    atomic_write(folder / JSON, json_bytes(record))
    assert denoiser.data is not None
    write_evaluation_report(
        folder / REPORT,
        result,
        f"Evaluation of {asked.run.name}",
        material.about,
        material.held_out,
        denoiser.data.classes,
        material.train is not None,
        facts | _without(run_facts(asked.run, denoiser, material.train or material.held_out, material.held_out), facts),
    )
    if result.left_out:
        say(f"not measured: {'; '.join(result.left_out)}; more fits into more --minutes, or --full")
    console.print()
    say(f"report: {folder / REPORT}")
    say(f"figures: {folder / JSON}")
    say(f"again: {command}")
    return record


def _without(facts: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in others}


def _settled(asked: Evaluate, denoiser: Denoiser) -> dict[str, Any]:
    """The fields of the plan that are given, or that follow from a distilled model."""
    methods = asked.likelihood
    if methods is not None and "none" in methods:
        if len(methods) > 1:
            raise UserError("--likelihood none stands alone")
        methods = ()
    fields = {
        "count": asked.num,
        "solvers": asked.solvers,
        "steps": asked.steps,
        "seeds": asked.seeds,
        "methods": methods,
        "images": asked.images,
        "batch": asked.batch,
    }
    if denoiser.space is not None and not isinstance(denoiser.space, LatentSpace):
        if methods:
            raise UserError(
                f"{asked.run} is a pipeline, whose decoder has no likelihood of pixels: leave out --likelihood; "
                "`ornstein.likelihood.ode` measures its latents"
            )
        fields["methods"] = ()
    few = denoiser.distilled
    if few is not None:
        if methods:
            raise UserError(
                f"{asked.run} is distilled: its output is not E[x0 | x_t] and has no likelihood; evaluate its teacher"
            )
        own = {"solvers": (few.solver,), "steps": (few.steps,), "methods": ()}
        fields |= {name: value for name, value in own.items() if fields[name] is None}
    return {name: value for name, value in fields.items() if value is not None}


def _limit(asked: Evaluate, given: frozenset[str]) -> float | None:
    """Seconds that the evaluation may take: sizes that are given are measured in full, unless --minutes is too."""
    if asked.full or (asked.minutes is None and given & set(_SIZES)):
        return None
    return 60 * (MINUTES if asked.minutes is None else asked.minutes)


def _plan(
    asked: Evaluate,
    given: frozenset[str],
    settled: dict[str, Any],
    denoiser: Denoiser,
    material: Material,
    features: Any,
    folder: Path,
    key: dict[str, Any],
) -> tuple[Plan, Costs]:
    """The plan, sized to the time by costs that are measured now; an interrupted evaluation keeps its own."""
    held_out = material.held_out
    batch = min(asked.batch, settled.get("count", asked.batch))
    extract = features(held_out.images[: max(2, min(batch, len(held_out)))])
    costs = measure_costs(denoiser, batch, extract)
    if not asked.full and "minutes" not in given:
        sizes = Pieces.sizes(folder, key)
        settled = {name: sizes[name] for name in ("count", "images") if name in sizes} | settled
    seconds = None if asked.full else 60 * (MINUTES if asked.minutes is None else asked.minutes)
    return sized(settled, len(held_out), costs, seconds), costs


def _key(asked: Evaluate, material: Material, device: str) -> dict[str, Any]:
    """What all results depend on, except for the sizes: model, images, features and precision."""
    pipeline = checkpoint.is_pipeline(asked.run)
    files = [] if pipeline else [asked.run / MODEL, asked.run / CONFIG]
    files += [Path(asked.features)] if Path(asked.features).is_file() else []
    model = [checkpoint.fingerprint(asked.run), asked.prompt, str(asked.prompts), asked.negative] if pipeline else []
    train = material.train
    return {
        "files": [*model, *(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)],
        "held_out": [material.held_out.fingerprint, pixel_digest(material.held_out.images)],
        "train": None if train is None else [train.fingerprint, *train.shape],
        "features": asked.features,
        "device": device,
        "precision": asked.precision,
        "batch": asked.batch,
    }


def _evaluate_autoencoder(asked: Evaluate) -> dict[str, Any]:
    """Reconstructions and rates of an autoencoder."""
    if processes.launched() > 1:
        raise UserError("autoencoders are evaluated by one process: leave out the launcher")
    run, folder = asked.run, asked.run / "evaluation" if asked.out is None else asked.out
    pictures = ("reconstructions.png", "samples.png")
    check_replaceable(folder, asked.overwrite, pictures)
    model = autoencoders.load(run, asked.trust_sizes).to(choose_device(asked.device))
    material = open_material(run, tuple(model.shape), asked.data, asked.held_out)
    make_folder(folder)
    with progress("parts", transient=True) as bar:
        task = bar.add_task("evaluating", total=2, note="")
        scores, warnings = write_autoencoder_report(
            folder,
            model,
            material.held_out if material.train is None else material.train,
            material.held_out,
            f"Evaluation of {run.name}",
            {"model": str(run), "data": material.about},
            lambda what, done, total: bar.update(task, completed=done, total=total, note=what),
        )
    rich = RichTable("score", "value", title=escape(plain(material.about)), title_justify="left", show_edge=False)
    for score in scores:
        rich.add_row(score.name, str(score.value))
    console.print(rich)
    for warning in warnings:
        warn(warning)
    say(f"report: {folder / REPORT}")
    return {
        "model": str(run),
        "about": material.about,
        "scores": {score.name: score.value for score in scores},
        "warnings": warnings,
    }

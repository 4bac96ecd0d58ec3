"""`ornstein evaluate` of a model of clips: distance, flicker, correlation and motion of samples, and bits/dim."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from ornstein import checkpoint, processes
from ornstein.cli.evaluated import command_of, print_tables, record_of
from ornstein.cli.held_out_data import places
from ornstein.cli.options import refuse
from ornstein.data import BucketSet, Clips, ImageSet, StreamedSet, open_clips
from ornstein.data.flow import flow_of
from ornstein.denoiser import Denoiser
from ornstein.devices import choose_device, choose_precision
from ornstein.errors import UserError
from ornstein.evaluation.facts import run_facts, seconds_text
from ornstein.evaluation.measure_clips import clip_tables, measure_clips
from ornstein.evaluation.owned import JSON, REPORT, check_replaceable
from ornstein.evaluation.plan import ENOUGH, Plan
from ornstein.evaluation.report import Clips as PlayingClips
from ornstein.evaluation.report import Report, write_report
from ornstein.evaluation.run import affordable
from ornstein.evaluation.settings import MINUTES, Evaluate
from ornstein.noise import Carried
from ornstein.progress import console, plain, progress, say
from ornstein.request import SOLVER
from ornstein.store import atomic_write, json_bytes, make_folder
from ornstein.training.recipe import Settings, Split, open_data
from ornstein.training.settings import SETTINGS
from ornstein.wrapper import network_precision

__all__ = ["evaluate_clips"]

_USUAL: dict[str, Any] = {
    "solvers": (SOLVER,),
    "steps": (4, 8, 20),
    "seeds": 1,
    "methods": ("vlb",),
    "images": 16,
    "batch": 32,
}
_FULL: dict[str, Any] = {"count": 512, "steps": (4, 8, 20, 50), "seeds": 3, "images": 64}
_MOST = 256  # clips a seed
_OF_SAMPLES = 0.6  # of the time, what samples are planned for; the rest is for figures and the likelihood
_FPS = 8.0


def evaluate_clips(
    asked: Evaluate, given: frozenset[str], denoiser: Denoiser, settled: dict[str, Any]
) -> dict[str, Any]:
    """Evaluate a model of clips as `asked`, with the sizes that are given or follow from the model; the JSON record."""
    began = time.monotonic()
    if processes.launched() > 1:
        raise UserError("clips are evaluated by one process: leave out the launcher")
    refuse(Evaluate, given, ("features",), "clips are compared in pixels and their differences over frames")
    if "few" in settled.get("methods", ()):
        raise UserError("--likelihood few is for models of images")
    device = choose_device(asked.device)
    folder = checkpoint.run_folder(asked.run) / "evaluation" if asked.out is None else asked.out
    check_replaceable(folder, asked.overwrite)
    material = _material(asked, denoiser)
    make_folder(folder)
    carried = isinstance(denoiser.process.noise, Carried)
    sizes: dict[str, Any] = _USUAL | ({"methods": ()} if carried else {}) | (_FULL if asked.full else {}) | settled
    sizes["batch"] = asked.batch if "batch" in given else _USUAL["batch"]
    plan = Plan(**sizes)
    with network_precision(denoiser.to(device), choose_precision(asked.precision, device)):
        if not asked.full and asked.num is None:
            plan = replace(plan, count=_affordable(asked, denoiser, plan, material))
        say(f"{plan.count} clips in each of {plan.sets()} sets, against {len(material.held_out)} held out")
        with progress("sets") as bar:
            task = bar.add_task("evaluating", total=None, note="")
            result = measure_clips(
                denoiser, plan, material.held_out, material.train, material.flow_by,
                lambda what, done, total: bar.update(task, completed=done, total=total, note=what),
            )  # fmt: skip
    command, shown = command_of(asked, plan), clip_tables(result, material.about)
    print_tables(shown)
    record = record_of(command, asked, material.held_out, material.about) | result.to_json()
    atomic_write(folder / JSON, json_bytes(record))
    facts = run_facts(asked.run, denoiser, material.train or material.held_out, material.held_out)
    names = {"frechet": "Fréchet distance", "flicker": "Flicker over that of the data"}
    write_report(
        folder / REPORT,
        Report(
            title=f"Evaluation of {asked.run.name}",
            lead=material.about[:1].upper() + material.about[1:] + ".",
            warnings=[f"Not measured: {'; '.join(result.left_out)}."] if result.left_out else [],
            tables=shown,
            clips=PlayingClips(result.samples, result.real, material.held_out.rate or _FPS),
            quality=[
                {
                    "solver": row.solver,
                    "steps": row.steps,
                    **{names[k]: row.figures[k].mean for k in names if k in row.figures},
                }
                for row in result.rows
            ],
            quality_note=f"{plan.count} clips; {material.about}.",
            facts={"command": command, "evaluation took": seconds_text(time.monotonic() - began)} | facts,
        ),
    )
    if result.left_out:
        say(f"not measured: {'; '.join(result.left_out)}")
    console.print()
    say(f"report: {folder / REPORT}")
    say(f"figures: {folder / JSON}")
    say(f"again: {command}")
    return record


@dataclass(frozen=True)
class _Material:
    """Held-out clips, training clips if they were found, a sentence that says which, and how their flow is found."""

    held_out: Clips
    train: Clips | None
    about: str
    flow_by: str | None


def _material(asked: Evaluate, denoiser: Denoiser) -> _Material:
    """The clips that the run held out, wherever its data are now; else all clips of --data."""
    run, data = asked.run, asked.data
    shape = denoiser.shape
    assert shape is not None
    settings = Settings.stored(run / SETTINGS) if (run / SETTINGS).is_file() else None
    if settings is not None:
        for place in places(settings.data, run) if data is None else [data]:
            try:
                split = open_data(replace(settings, data=place))
            except UserError:
                continue
            if tuple(split.held_out.shape) == shape:
                return _checked(_own(asked, replace(settings, data=place), split))
    if data is None:
        raise UserError(f"the clips that {run} held out are unknown, or not there any more: give --data")
    clips = open_clips(
        data, shape[1], (shape[2], shape[3]), shape[0], stride=1 if settings is None else settings.stride
    )
    if asked.held_out is not None:
        clips = clips.split(asked.held_out, 0)[1]
    about = f"{len(clips)} clips of {plain(data)}; whether the model was trained on them is not known"
    return _checked(_Material(clips, None, about, None))


def _own(asked: Evaluate, settings: Settings, split: Split) -> _Material:
    """The clips that the run held out, or the share of them that is asked for."""
    held_out, share = split.held_out, asked.held_out
    if share is not None:
        if share > settings.held_out:
            raise UserError(
                f"--held-out {share} would use clips the model was trained on: it held out {settings.held_out}"
            )
        held_out = open_data(replace(settings, held_out=share)).held_out
    assert not isinstance(held_out, ImageSet) and not isinstance(split.train, ImageSet | StreamedSet | BucketSet)
    about = f"{len(held_out)} clips of {plain(settings.data)} that the run held out"
    return _Material(held_out, split.train, about, settings.flow_by)


def _checked(material: _Material) -> _Material:
    if len(material.held_out) < ENOUGH:
        raise UserError(f"{len(material.held_out)} held-out clips say nothing: give --data with at least {ENOUGH}")
    return material


def _affordable(asked: Evaluate, denoiser: Denoiser, plan: Plan, material: _Material) -> int:
    """Clips a seed that the time allows, at least 8."""
    seconds = 60 * (MINUTES if asked.minutes is None else asked.minutes)

    def moves(count: int) -> Any:
        if not isinstance(denoiser.process.noise, Carried):
            return None
        rows = torch.arange(count) % len(material.held_out)
        return flow_of(material.held_out, rows, material.flow_by)

    most = min(_MOST, len(material.held_out))
    steps = plan.calls_a_sample()
    return max(ENOUGH, affordable(denoiser, _OF_SAMPLES * seconds, most, steps=steps, batch=plan.batch, moves=moves))

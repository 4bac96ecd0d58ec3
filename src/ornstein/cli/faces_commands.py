"""What the commands of `ornstein faces` do; see `ornstein.cli.faces` for the list."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from ornstein import checkpoint
from ornstein.checkpoint import read_config
from ornstein.cli.swap import tell_idle
from ornstein.devices import choose_device, choose_precision
from ornstein.errors import UserError
from ornstein.faces import provenance
from ornstein.faces.commands import (
    AdaptCommand,
    CardCommand,
    DemoCommand,
    EvaluateCommand,
    PrepareCommand,
    ProtectCommand,
    TrainCommand,
    VerifyCommand,
)
from ornstein.faces.detect import Detector, find_faces, subject
from ornstein.faces.provenance.blocklist import BlockList
from ornstein.faces.provenance.card import ModelCard, read_card, write_card
from ornstein.faces.read import read_photo
from ornstein.faces.recognise import Recogniser
from ornstein.faces.swap.sampling import ONSET, FaceModel
from ornstein.faces.train.adapt import Check, adapt_swap
from ornstein.faces.train.evaluate import Held, score_swaps, swap_held
from ornstein.faces.train.face_set import FaceSet, open_faces
from ornstein.faces.train.prepare import NO_FACE, SIZES
from ornstein.faces.train.prepare import prepare as prepare_photos
from ornstein.faces.train.runs import people_split, pretrain_swap, train_recogniser, train_swap
from ornstein.faces.train.shards import PATTERN, complete_shard, is_complete
from ornstein.faces.world.demo import demo as run_demo
from ornstein.progress import cell, console, progress, say
from ornstein.store import atomic_write
from ornstein.training import TrainConfig, TrainState
from ornstein.training.state import check_new

__all__ = ["SCORES", "adapt", "card", "demo", "evaluate", "prepare", "protect", "train", "verify"]

SCORES = "scores.json"
PREPARED = "prepared"
"""The folder of the prepared faces, inside the run directory of a swap that was trained on photographs."""
_NAMED = 8  # names of skipped files that are printed


def prepare(asked: PrepareCommand, given: frozenset[str]) -> None:
    _prepared(asked.data, asked.out, asked.size, asked.resume, asked.workers, _part(asked.shard))


def _prepared(
    data: Path, out: Path, size: int, resume: bool, workers: int | None = None, part: tuple[int, int] = (1, 1)
) -> None:
    """Prepare photographs with a progress bar, and say what was skipped."""
    with progress("photos") as bar:
        task = bar.add_task("preparing", total=None, note="")
        began: list[tuple[int, float]] = []  # the files that were done before, and the time

        def advance(done: int, total: int) -> None:
            if not began:
                began.append((done, time.monotonic()))
            count, seconds = done - began[0][0], time.monotonic() - began[0][1]
            note = f"{count / seconds:.1f}/s" if count and seconds > 0 else ""
            bar.update(task, completed=done, total=total, note=note)

        summary = prepare_photos(data, out, size, part=part, workers=workers, resume=resume, progress=advance)
    skipped = [(name, reason) for name, reason in summary.skipped if reason != NO_FACE]
    for name, reason in skipped[:_NAMED]:
        say(f"skipped {name}: {reason}")
    if len(skipped) > _NAMED:
        say(f"and {len(skipped) - _NAMED} more files skipped")
    if summary.without_face:
        first = next(name for name, reason in summary.skipped if reason == NO_FACE)
        say(f"{NO_FACE} in {summary.without_face} of {summary.files} photos, the first {first}")
    if summary.missing:
        rest = f"{summary.missing} shards of other parts are not in {out} yet"
        say(f"{summary.faces} faces in this part; {rest}")
    else:
        say(f"wrote {out}: {summary.faces} faces of {summary.people} people")


def _part(text: str) -> tuple[int, int]:
    """(I, N) of "I/N"."""
    index, _, parts = text.partition("/")
    if not (index.isdecimal() and parts.isdecimal()):
        raise UserError(f"--shard {text!r}: write I/N, for example 1/4")
    return int(index), int(parts)


def train(asked: TrainCommand, given: frozenset[str]) -> None:
    out, device = asked.out, choose_device(asked.device)
    shared = {"seed": asked.seed, "checkpoint_every": 200, "precision": asked.precision}
    if not asked.resume:
        check_new(out)
    faces, folder = _faces_of(asked)
    ours, held = people_split(faces)
    say(f"{len(ours)} faces of {len(ours.people)} people; {len(held.people)} people held out; on {device}")
    stages: list[tuple[str, float, Callable[[TrainConfig], Iterator[TrainState[Any]]]]] = [
        (
            "photographs",
            asked.minutes * (1 - asked.world),
            lambda config: train_swap(ours, out, config, None, asked.net, resume=True, device=device),
        )
    ]
    if asked.world and not (out / checkpoint.CONFIG).exists():  # else the photographs have begun
        stages.insert(
            0,
            (
                "rendered faces",
                asked.minutes * asked.world,
                lambda config: pretrain_swap(ours, out, config, asked.net, device=device),
            ),
        )
    if asked.recogniser is not None:
        stages.insert(
            0,
            (
                "recogniser",
                asked.recogniser,
                lambda config: train_recogniser(
                    ours, out, replace(config, batch=2 * asked.batch, learning_rate=2e-3), device=device
                ),
            ),
        )
    out.mkdir(parents=True, exist_ok=True)
    with progress("s") as bar:
        for name, minutes, states in stages:
            task = bar.add_task(name, total=60 * minutes, note="")
            for state in states(TrainConfig(minutes=minutes, batch=asked.batch, **shared)):
                note = f"loss {state.loss:.4f}  {state.images_per_second:,.0f} faces/s"
                bar.update(task, completed=min(state.elapsed, 60 * minutes), note=note)
    data = f"{len(ours)} photographs of {asked.data}"
    write_card(out, ModelCard(asked.licence or ModelCard.licence, data, asked.research_only))
    evaluate = f"ornstein faces evaluate {out} --data {folder}"
    say(f"done: swap with `ornstein swap SOURCE TARGET --model {out}`, evaluate with `{evaluate}`")


def _faces_of(asked: TrainCommand) -> tuple[FaceSet, Path]:
    """The prepared faces and their folder: those given, or the photographs given, prepared in the run directory."""
    folder = asked.data
    if not any(folder.glob(PATTERN)):
        folder = asked.out / PREPARED
        _prepared(asked.data, folder, asked.size or SIZES[0], resume=True)
    _completed(folder)
    faces = open_faces(folder)
    size = faces.images.shape[-1]
    if asked.size not in (None, size):
        raise UserError(f"{folder} was prepared with --size {size}, not {asked.size}: leave out --size")
    return faces, folder


def adapt(asked: AdaptCommand, given: frozenset[str]) -> None:
    choose_precision(asked.precision, choose_device(asked.device))  # before anything is read
    with progress("of the time") as bar:
        task = bar.add_task("held-out photos", total=1.0, note="")

        def tell(done: float, check: Check) -> None:
            bar.update(task, completed=min(done, 1.0), note=f"step {check.step}  error {check.error:.4f}")

        settings = {each.name: getattr(asked, each.name) for each in fields(asked)}
        made = adapt_swap(**settings, tell=tell)
    for name, why in made.skipped:
        say(f"skipped {name}: {why}")
    best, first = made.best, made.checks[0]
    say(f"{made.photos} photos, {made.held_out} of them held out")
    say(f"error of these {first.error:.4f} before, {best.error:.4f} after {best.step} steps")
    paints = " --onset 0.5" if made.shaped else ""  # what is laid on at 0 no network paints
    say(f"done: swap with `ornstein swap SOURCE TARGET --model {asked.out}{paints}`")


def _completed(folder: Path) -> None:
    """Give prepared faces of an older version the points of their shape."""
    shards = [path for path in sorted(folder.glob(PATTERN)) if not is_complete(path)]
    if shards:
        with progress("shards") as bar:
            task = bar.add_task("points of the faces", total=len(shards), note="")
            for path in shards:
                complete_shard(path)
                bar.advance(task)


def evaluate(asked: EvaluateCommand, given: frozenset[str]) -> None:
    device = choose_device(asked.device)
    model = FaceModel.load(asked.run, device)
    held = Held.of(people_split(open_faces(asked.data))[1], asked.num)
    guidance = model.guidance if asked.guidance is None else asked.guidance
    settings = {
        "steps": asked.steps,
        "guidance": guidance,
        "strength": asked.strength,
        "towards": asked.towards,
    }
    if model.shaped:
        settings |= {"onset": ONSET if asked.onset is None else asked.onset, "shape": asked.shape}
    elif given & {"onset", "shape"}:
        raise UserError(f"--onset and --shape need a model that sees the shape of a face, and {asked.run} does not")
    tell_idle(model, asked.onset, given)
    swaps, seconds = swap_held(model, held, choose_precision(asked.precision, device), **settings)
    row = score_swaps(held, swaps, seconds, Recogniser(), Detector(thorough=False), **settings).as_row()
    table = Table("score", "value", title=f"{len(swaps)} swaps of held-out people", title_justify="left")
    for name, value in row.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else cell(value))
    console.print(table)
    # infinity and NaN are no JSON
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    atomic_write(asked.run / SCORES, (json.dumps(finite, indent=1) + "\n").encode())
    say(f"the figures: {asked.run / SCORES}")


def demo(asked: DemoCommand, given: frozenset[str]) -> None:
    began = time.monotonic()
    with progress("parts", transient=True) as bar:
        task = bar.add_task("", total=1, note="")
        finished = run_demo(
            asked.out,
            asked.minutes,
            device=asked.device,
            precision=asked.precision,
            tell=lambda stage, done: bar.update(task, description=stage, completed=done),
        )
    table = Table("method", "PSNR, dB", "SSIM", "top-1", "pose error", "expression error")
    for name, score in finished.scores.items():
        table.add_row(name, *(f"{value:.3g}" for value in asdict(score).values()))
    console.print(table)
    seconds = time.monotonic() - began
    say(f"{seconds:.0f} s; look at {finished.report} and {asked.out / 'swaps.png'}")


def verify(asked: VerifyCommand, given: frozenset[str]) -> None:
    found = provenance.read(asked.file)
    if found.state == provenance.UNSIGNED:
        say(f"{asked.file}: no manifest. Nothing is known of it: it never had one, or it was stripped")
        raise typer.Exit(1)
    rows: list[tuple[str, object]] = []
    if found.signer is not None:
        whose = "by this machine's key" if found.ours else "by a key that this machine does not know"
        rows.append(("signed", f"{whose} ({found.signer})"))
    intact = found.state == provenance.INTACT
    state = "intact: not changed since it was signed" if intact else "CHANGED since it was signed"
    rows += [("state", state), *(("", reason) for reason in found.reasons)]
    if found.source_type:
        rows.append(("kind", found.source_type.rpartition("/")[2]))
    rows += [("swap", "the manifest says nothing of one")] if found.swap is None else _stated(found.swap).items()
    for name, value in rows:
        say(f"{name:<12}{value}")
    if not intact:
        raise typer.Exit(1)


def _stated(swap: dict[str, object]) -> dict[str, object]:
    """What the manifest states about a swap, in rows."""
    model, settings = (part if isinstance(part, dict) else {} for part in (swap.get("model"), swap.get("settings")))
    return {
        "consent": swap.get("consent"),
        "model": f"{model.get('sha256')}, licence {model.get('licence')}",
        "label": "shown" if swap.get("label") else "REMOVED when it was made",
        "settings": ", ".join(f"{key} {value}" for key, value in settings.items()),
        "target": swap.get("target"),
        "made": swap.get("time"),
    }


def protect(asked: ProtectCommand, given: frozenset[str]) -> None:
    import torch

    before = BlockList.load(asked.out) if asked.out.exists() else None
    detector, recogniser = Detector(), Recogniser()
    rows = []
    for path in asked.photos:
        image = read_photo(path)
        rows.append(recogniser(image, [subject(find_faces(detector, image, str(path)), image)]))
    found = torch.cat(rows)
    everyone = BlockList(found) if before is None else before.with_faces(found)
    everyone.save(asked.out)
    say(f"wrote {asked.out}: {len(everyone)} protected faces")


def card(asked: CardCommand, given: frozenset[str]) -> None:
    read_config(asked.run)
    new = {name: getattr(asked, name) for name in ("licence", "data", "research_only") if name in given}
    if new:
        write_card(asked.run, replace(read_card(asked.run), **new))
    say(f"{asked.run}: {read_card(asked.run)}")

"""`ornstein faces costs | finish | benchmark`: what belongs to the swap's tool."""

from __future__ import annotations

import json
from pathlib import Path

from rich.table import Table
from torch import nn

from ornstein.checkpoint import CONFIG
from ornstein.cli.swap import detectors, tell_idle
from ornstein.devices import choose_device, choose_precision
from ornstein.errors import UserError
from ornstein.extras import require
from ornstein.faces.commands import BenchmarkCommand, CostsCommand, FinishCommand
from ornstein.faces.settings import MAX_TURN, SwapSettings
from ornstein.faces.swap import Swapper, finishing, load_model
from ornstein.faces.swap import benchmark as protocols
from ornstein.faces.swap.costs import costs as measured
from ornstein.progress import console, progress, say
from ornstein.store import atomic_write

__all__ = ["benchmark", "costs", "finish"]

_SHARES = {"occlusion": 0.65, "detail": 0.35}  # of --minutes
_SCORES = "scores.json"


def costs(asked: CostsCommand, given: frozenset[str]) -> None:
    device = choose_device(asked.device)
    choose_precision(asked.precision, device)
    model = load_model(asked.run, device)
    detector, scanner = detectors(asked.detector, None)
    settings = SwapSettings(steps=asked.steps, precision=asked.precision)
    idle = tell_idle(model.model, settings.onset, given)
    swapper = Swapper(model.model, settings, detector, run=asked.run, scanner=scanner)
    how = "laid on" if idle else f"{asked.steps} steps"
    table = Table(title=f"one face, {how}, {asked.detector}, {device}; seconds")
    for name in ("picture", "source", "find", "paint", "paste", "a photo", "processor", "a frame"):
        table.add_column(name, justify="right")
    rows = 0
    for cost in measured(swapper, asked.repeats):
        parts = (cost.source, cost.find, cost.paint, cost.paste, cost.photo, cost.processor, cost.frame)
        table.add_row(f"{cost.name} {cost.width}x{cost.height}", *(f"{each:.2f}" for each in parts))
        rows += 1
    if not rows:
        raise UserError(f"{asked.detector} finds no face in the rendered pictures: try the other --detector")
    console.print(table)


def finish(asked: FinishCommand, given: frozenset[str]) -> None:
    if not (asked.run / CONFIG).is_file():
        raise UserError(f"{asked.run} holds no trained model: `ornstein faces train` makes one")
    for name, share in _SHARES.items():
        if asked.only not in (None, name):
            continue
        minutes = asked.minutes if asked.only else share * asked.minutes
        net = _trained(name, minutes, asked)
        path = asked.run / finishing.FOLDER / f"{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        finishing.save(net, path)
        say(f"wrote {path}")


def _trained(name: str, minutes: float, asked: FinishCommand) -> nn.Module:
    with progress("of the time") as bar:
        task = bar.add_task(name, total=1.0, note="")

        def tell(step: int, loss: float, done: float) -> None:
            bar.update(task, completed=min(done, 1.0), note=f"step {step}, loss {loss:.4f}")

        if name == "occlusion":
            return finishing.train_occlusion(minutes, seed=asked.seed, tell=tell)
        return finishing.train_detail(minutes, seed=asked.seed, tell=tell)


def benchmark(asked: BenchmarkCommand, given: frozenset[str]) -> None:
    device = choose_device(asked.device)
    choose_precision(asked.precision, device)
    pairs = protocols.read_protocols(asked.folder, asked.num)
    require("c2pa", "faces", "a signature")
    model = load_model(asked.run, device)
    say(f"model {asked.run}: {model.card}")
    out = asked.out or asked.run / "benchmark"
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is no folder")
    if out.is_dir() and any(out.iterdir()) and not asked.resume:
        raise UserError(f"{out} is not empty: go on with --resume, or give another --out")
    limit = 180.0 if model.model.shaped else MAX_TURN  # the protocol wants all pairs
    settings = SwapSettings(steps=asked.steps, precision=asked.precision, label=False, max_turn=limit)
    swapper = Swapper(model.model, settings, run=asked.run)
    scores = {}
    for name, listed in pairs.items():
        with progress("pairs") as bar:
            task = bar.add_task(f"swapping, {name}", total=len(listed), note="")
            made, seconds = protocols.swap_protocol(
                swapper, model, asked.folder, listed, out / protocols.PROTOCOLS[name], asked.resume, _told(bar, task)
            )
            task = bar.add_task(f"evaluating, {name}", total=None, note="")
            scores[name] = protocols.evaluate_protocol(swapper, asked.folder, listed, made, seconds, _told(bar, task))
    _store(out / _SCORES, scores, asked)
    table = Table(title=f"CASIA FaceSwapping, {asked.steps} steps; networks of ours behind the metrics")
    for column in ("protocol", "swapped", "retrieval", "still target", "similarity", "pose", "SSIM", "Fréchet", "s"):
        table.add_column(column, justify="right")
    for name, s in scores.items():
        shares = (f"{s.retrieval:.1%}", f"{s.still_target:.1%}", f"{s.similarity:.3f}", f"{s.pose:.3f}")
        table.add_row(
            name, f"{s.swapped} of {s.pairs}", *shares, f"{s.ssim:.3f}", f"{s.frechet:.1f}", f"{s.seconds:.2f}"
        )
    console.print(table)
    say(f"wrote {out / _SCORES}; the authors' own evaluation reads the pictures beside it")


def _told(bar: object, task: object) -> protocols.Advance:
    def tell(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)  # pyright: ignore[reportAttributeAccessIssue]

    return tell


def _store(path: Path, scores: dict[str, protocols.ProtocolScores], asked: BenchmarkCommand) -> None:
    stored = {"steps": asked.steps, "protocols": {name: each.as_row() for name, each in scores.items()}}
    atomic_write(path, json.dumps(stored, indent=1).encode())

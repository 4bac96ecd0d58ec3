"""`ornstein plan`: what a training of so many minutes would choose on this machine, and how far it would come."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, replace
from typing import Any

from ornstein.cli.commands import Plan
from ornstein.cli.options import refuse
from ornstein.devices import choose_device
from ornstein.errors import UserError
from ornstein.progress import console, say
from ornstein.settings import settings_of
from ornstein.store import atomic_write
from ornstein.training.plan import Likeness, by_rule, fitted, planned
from ornstein.training.recipe import Split, open_data
from ornstein.training.scaling import Choice
from ornstein.training.settings import Settings

__all__ = ["plan"]


def plan(asked: Plan, given: frozenset[str]) -> None:
    """Measure the machine, choose a network and a batch, and print what a training with them would be."""
    refuse(Plan, given, ("stream", "no_stream"), "a plan is measured on random pixels")
    device = choose_device(asked.device)
    settings = settings_of(Settings, asked)
    settings.validate()
    split = _opened(settings)
    likeness = Likeness.of(split.train)
    if not by_rule(settings, likeness):  # what `train` takes then
        side, cpu = likeness.shape[-1], device.type == "cpu"
        settings = replace(settings.settled(side, cpu), net=settings.preset(side, False, cpu))
    choice = planned(settings, likeness, device)
    chosen = {name: getattr(asked, name) for name in sorted(given & Settings.__dataclass_fields__.keys())}
    chosen |= {"minutes": asked.minutes, "net": choice.speed.net, "batch": choice.batch}
    if asked.save is not None:
        atomic_write(asked.save, (json.dumps(chosen, indent=1) + "\n").encode())
    facts = _facts(choice, likeness, fitted(settings, likeness))
    if asked.json:
        console.print_json(json.dumps(facts | {"train": chosen}))
        return
    for name, text in _lines(facts).items():
        say(f"{name:16} {text}")
    say(f"train it with    ornstein train {_options(chosen)} --out RUN")


def _opened(settings: Settings) -> Split:
    """The data, whose images are not all decoded if they can be decoded as needed."""
    if settings.frames is None:
        try:
            return open_data(replace(settings, stream=True))
        except UserError:  # arrays and bundled sets are in memory at once; any other error comes again
            pass
    return open_data(settings)


def _facts(choice: Choice, likeness: Likeness, known: bool) -> dict[str, Any]:
    """What is printed, in JSON types and SI units; the loss only where the rule was fitted."""
    speed = choice.speed
    return {
        "net": speed.net,
        "batch": choice.batch,
        "parameters": speed.parameters,
        "seconds_a_step": speed.seconds_a_step(choice.batch),
        "steps": choice.steps,
        "images_seen": choice.images,
        "passes": choice.images / len(likeness),
        "expected_loss": choice.loss if known else None,
        "memory": asdict(speed.memory_parts(choice.batch)),
        "memory_total": speed.memory(choice.batch),
    }


def _lines(facts: dict[str, Any]) -> dict[str, str]:
    parts = ", ".join(f"{name} {_size(value)}" for name, value in facts["memory"].items())
    loss = facts["expected_loss"]
    return {
        "network": f"{facts['net']}, {facts['parameters']:,} parameters",
        "batch": str(facts["batch"]),
        "steps": f"{facts['steps']:,} of {facts['seconds_a_step']:.3g} s",
        "images seen": f"{facts['images_seen']:,}, {facts['passes']:.3g} times the training data",
        "expected loss": "not known: the rule was fitted on images" if loss is None else f"{loss:.3f}",
        "memory": f"{_size(facts['memory_total'])} besides the data: {parts}",
    }


def _size(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def _options(chosen: dict[str, Any]) -> str:
    words = []
    for name, value in chosen.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-", 1))
        else:
            words.append(f"{option} {shlex.quote(f'{value:g}' if isinstance(value, float) else str(value))}")
    return " ".join(words)

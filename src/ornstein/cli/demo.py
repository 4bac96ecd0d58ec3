"""`ornstein demo`: from nothing to a trained, sampled and evaluated model of the bundled digits."""

from __future__ import annotations

import time

from rich.table import Table

from ornstein.cli.commands import Demo
from ornstein.progress import cell, console, say
from ornstein.training import recipe

__all__ = ["demo"]


def demo(asked: Demo, given: frozenset[str]) -> None:
    """Train on digits, and print the scores."""
    began = time.monotonic()
    run = recipe.train(
        "digits",
        asked.out,
        resume=asked.resume,
        device=asked.device,
        precision=asked.precision,
        title="Digits, made by a diffusion model",
        judged=200 if asked.quick else 1000,
        quality_steps=(5, 20) if asked.quick else (2, 5, 10, 20, 50),
        held_out=0.2,
        steps=300 if asked.quick else 1500,
        optimizer="adamw",
        learning_rate=2e-3,
        sample_every=0,
    )
    table = Table("score", "value", "real images", show_edge=False)
    for score in run.scores:
        figures = (v if isinstance(v, str) else "" if v is None else f"{v:.4g}" for v in (score.value, score.reference))
        table.add_row(cell(score.name), *map(cell, figures))
    console.print(table)
    say(f"{time.monotonic() - began:.0f} s; look at {asked.out / recipe.REPORT} and {asked.out / 'samples.png'}")

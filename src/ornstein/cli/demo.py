"""`ornstein demo`: from nothing to a trained, sampled and judged model on the bundled digits."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ornstein.cli.command import console
from ornstein.cli.runs import run
from ornstein.cli.setup import Settings


def demo(
    out: Annotated[Path, typer.Option(help="The run folder to write.")] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="A short training, to see that all works.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted demo.")] = False,
) -> None:
    """Train on 1,797 scanned digits, sample them by class, score them and write a report; under 3 minutes on 2 cores.

    Example: ornstein demo && open runs/demo/report.html
    """
    began = time.monotonic()
    settings = Settings(
        data="digits",
        held_out=0.2,
        steps=300 if quick else 1500,
        optimizer="adamw",
        learning_rate=2e-3,
        sample_every=0,
    )
    finished = run(
        settings,
        out,
        resume,
        title="Digits, made by a diffusion model",
        judged=200 if quick else 1000,
        quality_steps=(5, 20) if quick else (2, 5, 10, 20, 50),
    )
    table = Table("score", "value", "real images", show_edge=False)
    for score in finished.scores:
        value = score.value if isinstance(score.value, str) else f"{score.value:.4g}"
        reference = score.reference if isinstance(score.reference, str | None) else f"{score.reference:.4g}"
        table.add_row(score.name, value, reference)
    console.print(table)
    console.print(f"{time.monotonic() - began:.0f} s; look at {out / 'report.html'} and {out / 'samples.png'}")

"""`ornstein contrast`: GANs, an autoregressive model and a diffusion model on the same data for the same time."""

from __future__ import annotations

from rich.table import Table

from ornstein.contrast.report import columns, rows, write
from ornstein.contrast.run import contrast as run
from ornstein.contrast.settings import Contrast
from ornstein.progress import cell, console, progress, say

__all__ = ["contrast"]

_IN_THE_REPORT = ("Fréchet distance", "evaluations a sample", "steps", "parameters")  # a terminal has no room for them


def contrast(asked: Contrast, given: frozenset[str]) -> None:
    """Train what is missing, and write the report."""
    with progress("trainings", transient=True) as bar:
        task = bar.add_task("contrast", total=len(asked.models) * asked.seeds, note="")

        def advance(line: str, done: int, total: int) -> None:
            say(line)
            bar.update(task, completed=done)

        results = run(asked, advance)
    report = write(asked, results)
    heads = columns(results)
    shown = [i for i, head in enumerate(heads) if head not in _IN_THE_REPORT]
    table = Table(*(heads[i] for i in shown), show_edge=False)
    for row in rows(results, ends=False):
        table.add_row(*(cell(row[i]) for i in shown))
    console.print(table)
    say(f"look at {report} and {asked.out / 'collapse.gif'}")

"""What long work shows: lines on the console, and progress bars with a rate and the remaining time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ornstein.launch import rank

__all__ = ["cell", "console", "errors", "plain", "progress", "say", "silenced", "warn"]

# Lines are not wrapped, so that a path can be copied. Of several processes the first one alone prints.
console = Console(highlight=False, soft_wrap=True, quiet=rank() > 0)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print a line as it is: names of files and classes may hold what looks like markup or terminal codes."""
    console.print(plain(text), markup=False)


@contextmanager
def silenced(silent: bool = True) -> Iterator[None]:
    """Print no lines and bars within it, for a command that prints JSON."""
    before = console.quiet
    console.quiet = silent or before
    try:
        yield
    finally:
        console.quiet = before


def warn(text: str) -> None:
    """Print a line that begins with "warning:", in yellow."""
    console.print(f"warning: {plain(text)}", style="yellow", markup=False)


def plain(text: str) -> str:
    """The text in one line without control characters."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)


def cell(value: object) -> str:
    """A value for a cell of a rich table, without markup."""
    return escape(plain(str(value)))


def progress(unit: str, transient: bool = False) -> Progress:
    """A bar with the rate in `unit`, the time so far and the time that is left; a transient one goes when done."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn(unit, markup=False),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=transient,
    )

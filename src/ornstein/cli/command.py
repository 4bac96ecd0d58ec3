"""What commands share: errors in one line with an exit code, and progress bars. It does not import torch."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ornstein.errors import RunError, UserError
from ornstein.training.launch import launched, rank

# A path is one line, to be copied. Of several processes the first one speaks, and all of them say why they end.
console = Console(highlight=False, soft_wrap=True, quiet=rank() > 0)
errors = Console(stderr=True, highlight=False)


def run(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a user's mistakes told in one line: exit code 2 for input, 1 for the run, 130 for Ctrl-C.

    ORNSTEIN_TRACEBACK=1 in the environment lets the exception through.
    """

    @functools.wraps(command)
    def wrapped(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except KeyboardInterrupt:
            errors.print("stopped; go on with --resume where the command has it")
            raise typer.Exit(130) from None
        except (UserError, RunError, ValueError, OSError, MemoryError) as error:
            if os.environ.get("ORNSTEIN_TRACEBACK") == "1":
                raise
            code = 2 if isinstance(error, ValueError) else getattr(error, "exit_code", 1)
            who = f"process {rank()} of {launched()}: " if launched() > 1 else ""
            errors.print(f"[bold red]error:[/] {who}{_one_line(error)}", markup=True, soft_wrap=True)
            raise typer.Exit(code) from None

    return wrapped


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.replace("[", r"\[")


def progress(unit: str, transient: bool = False) -> Progress:
    """A bar with the rate in `unit`, the time so far and the time that is left; a transient one goes when done."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=transient,
    )

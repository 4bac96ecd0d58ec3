"""What commands share: a user's mistakes in one line with an exit code. It does not import torch."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection
from typing import Any

import typer
from rich.markup import escape

from ornstein.errors import RunError, UserError
from ornstein.launch import launched, rank
from ornstein.progress import console, errors, plain, progress

__all__ = ["console", "fail", "progress", "run"]

_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")  # as PyTorch says it


def run(command: Callable[..., None]) -> Callable[..., None]:
    """The command with errors in one line: exit code 2 for input, 1 for the run, 130 for Ctrl-C.

    ORNSTEIN_TRACEBACK=1 in the environment lets the exception through.
    """

    @functools.wraps(command)
    def wrapped(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except KeyboardInterrupt:
            errors.print("stopped; continue with --resume where the command has it")
            raise typer.Exit(130) from None
        except (UserError, RunError, ValueError, OSError, MemoryError) as error:
            if os.environ.get("ORNSTEIN_TRACEBACK") == "1":
                raise
            who = f"process {rank()} of {launched()}: " if launched() > 1 else ""
            fail(who + (str(error) or type(error).__name__))
            raise typer.Exit(2 if isinstance(error, ValueError) else getattr(error, "exit_code", 1)) from None
        except RuntimeError as error:
            text = str(error).lower()
            if os.environ.get("ORNSTEIN_TRACEBACK") == "1" or not any(words in text for words in _NO_MEMORY):
                raise
            fail(f"out of memory: {_halve(options)}")
            raise typer.Exit(1) from None

    return wrapped


def _halve(options: Collection[str]) -> str:
    """Which of the options of a command make it take less memory."""
    ways = [f"halve --{name}" for name in ("batch", "size") if name in options]
    ways += ["take --precision bf16"] if "precision" in options else []
    return ", or ".join([*ways, "take --device cpu"])


def fail(message: str) -> None:
    """Print an error in one line on stderr."""
    errors.print(f"[bold red]error:[/] {escape(' '.join(plain(message).split()))}")

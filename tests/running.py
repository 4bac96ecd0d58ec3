"""Commands as a user types them, run in this process: starting another takes longer than most of them do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from click.testing import Result
from typer.testing import CliRunner

from ornstein.cli import app
from ornstein.denoiser import Denoiser
from ornstein.few_steps import choice, tuning
from ornstein.training import recipe

__all__ = ["ENVIRONMENT", "done", "few_choices", "ornstein", "refused", "torchrun"]

ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")} | {"OMP_NUM_THREADS": "1"}


def ornstein(*arguments: object, width: int = 200) -> Result:
    """The result of a command."""
    return CliRunner(env={"COLUMNS": str(width)}).invoke(app, [str(a) for a in arguments])


def done(*arguments: object) -> str:
    """The output of a command that succeeds, its words one space apart."""
    result = ornstein(*arguments)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def refused(result: Result, *words: object, code: int = 2) -> None:
    """Check for one line on stderr that has all the words, the exit code, and no traceback."""
    if words and isinstance(words[0], int):
        code, words = words[0], words[1:]
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert str(word) in lines[0], lines[0]


def _choose(model: Denoiser, **how: Any) -> list[choice.Choice]:
    fine = tuning.fine
    with (
        patch.object(tuning, "_GRIDS", tuning._GRIDS[:1]),
        patch.object(tuning, "fine", lambda d, x: fine(d, x, 10)),
    ):
        return choice.choose(model, **how, counts=(5,))


@contextmanager
def few_choices() -> Iterator[None]:
    """At the end of a training, choose among few solvers, for 5 steps, on a coarse solution.

    The 3,000 evaluations of a whole choice take longer than the training of a test; test_choice.py is about them.
    """
    with patch.object(recipe, "choose", _choose):
        yield


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A command on two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ornstein"]
    return subprocess.run(
        [*command, *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )

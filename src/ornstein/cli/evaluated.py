"""What an evaluation says: its tables, and the command that gives the same figures again."""

from __future__ import annotations

import shlex
from typing import Any

from rich.markup import escape
from rich.table import Table as RichTable

from ornstein.data import Clips, ImageSet
from ornstein.evaluation.markup import Table, plain
from ornstein.evaluation.plan import Plan
from ornstein.evaluation.settings import Evaluate
from ornstein.progress import console

__all__ = ["command_of", "print_tables", "record_of"]


def command_of(asked: Evaluate, plan: Plan) -> str:
    """The command that gives the same figures again."""
    options: dict[str, Any] = {
        "--data": asked.data,
        "-n": plan.count,
        "--solvers": ",".join(plan.solvers),
        "--steps": ",".join(map(str, plan.steps)),
        "--features": None if asked.features == "conv" else asked.features,
        "--seeds": plan.seeds,
        "--likelihood": ",".join(plan.methods) or "none",
        "--images": plan.images,
        "--held-out": asked.held_out,
        "--batch": plan.batch,
        "--prompt": asked.prompt,
        "--prompts": asked.prompts,
        "--negative": asked.negative,
        "--precision": None if asked.precision == "float32" else asked.precision,
    }
    words = [word for option, value in options.items() if value is not None for word in (option, str(value))]
    words += ["--trust-sizes"] * asked.trust_sizes
    return shlex.join(["ornstein", "evaluate", str(asked.run), *words])


def record_of(command: str, asked: Evaluate, data: ImageSet | Clips, about: str) -> dict[str, Any]:
    """How the record of an evaluation begins: the command, the model, and the data it was evaluated on."""
    return {
        "format": 2,
        "command": command,
        "model": str(asked.run),
        "data": data.source,
        "data_fingerprint": data.fingerprint,
        "about": about,
    }


def print_tables(shown: list[Table]) -> None:
    """Print the tables of an evaluation, each with what its figures are of."""
    for table in shown:
        columns = [escape(plain(name)) for name in table.columns]
        rich = RichTable(*columns, title=table.title, title_justify="left", title_style="bold", show_edge=False)
        for row in table.rows:
            rich.add_row(*(escape(plain(value)) for value in row))
        console.print()
        console.print(rich)
        console.print(plain(table.header), style="dim", markup=False)

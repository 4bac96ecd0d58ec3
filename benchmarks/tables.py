"""A table that a benchmark returns: shown while it runs, kept as JSON, and written into docs/benchmarks.md."""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as Shown


@dataclass
class Table:
    """Rows of text under a title; `note` says what is measured and what to read off."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""

    def add(self, *cells: object) -> None:
        self.rows.append([number(c) if isinstance(c, float) else str(c) for c in cells])

    def show(self) -> None:
        shown = Shown(title=self.title)
        for i, name in enumerate(self.columns):
            shown.add_column(name, justify="right" if i and all(_numeric(r[i]) for r in self.rows) else "left")
        for row in self.rows:
            shown.add_row(*row)
        Console(width=180).print(shown)

    def markdown(self) -> str:
        lines = [f"### {self.title}", "", *([self.note, ""] if self.note else [])]
        lines += ["| " + " | ".join(self.columns) + " |", "|" + "---|" * len(self.columns)]
        return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in self.rows), ""])

    def to_config(self) -> dict[str, Any]:
        return asdict(self)


def number(value: float) -> str:
    """Three digits that count."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _numeric(text: str) -> bool:
    return text[:1].isdigit() or text[:1] in "-+"


def machine(threads: int) -> str:
    """The processor, in a line."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        name = next((r.split(":")[1].strip() for r in info.read_text().splitlines() if "model name" in r), name)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{name}, {os.cpu_count()} cores, {threads} threads used, {gpu}"


def versions(*names: str) -> str:
    """Of libraries that are installed; those that are not are named as such."""
    import importlib
    from importlib import metadata

    found = []
    for name in names:
        try:
            module = importlib.import_module(name)
            found.append(f"{name} {getattr(module, '__version__', None) or metadata.version(name)}")
        except ImportError:
            found.append(f"{name} not installed")
    return ", ".join(found)


def turns(
    functions: Sequence[Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> list[list[float]]:
    """Seconds of each function in each of `repeats` turns, one after the other so that a busy machine slows all."""
    for f in functions:
        f()  # what is made once
    return [[_seconds(f, clock) for f in functions] for _ in range(repeats)]


def ratio(times: list[list[float]], of: int, to: int) -> float:
    """The median over the turns of one function's time by another's."""
    return statistics.median(turn[of] / turn[to] for turn in times)


def median(times: list[list[float]], of: int) -> float:
    return statistics.median(turn[of] for turn in times)


def _seconds(f: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = clock()
    f()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start

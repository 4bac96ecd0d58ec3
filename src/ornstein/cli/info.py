"""`ornstein info`, `ornstein ls` and `ornstein env`: what a run is, which runs there are, and what they run on."""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.table import Table

import ornstein
from ornstein.cli.commands import Env, Info, Ls
from ornstein.errors import UserError
from ornstein.progress import cell, console, say
from ornstein.runs import RunInfo, describe, find
from ornstein.settings import about
from ornstein.training.settings import Settings

__all__ = ["env", "info", "ls"]

_CLASSES = 12  # names that are shown
_PICTURES = ("report.html", "samples.png", "samples.mp4", "samples", "evaluation")
_PACKAGES = (
    "torch", "numpy", "safetensors", "pillow", "typer", "rich", "scikit-learn", "accelerate", "diffusers",
    "transformers", "peft", "gradio", "av", "matplotlib", "dlib-bin", "c2pa-python", "onnx", "onnxruntime",
)  # fmt: skip


def info(asked: Info, given: frozenset[str]) -> None:
    """Show one run."""
    run = describe(asked.run)
    if asked.json:
        _print_json(asdict(run))
        return
    names = ", ".join(run.classes[:_CLASSES]) + (", ..." if len(run.classes) > _CLASSES else "")
    rows = {
        "run": str(run.path),
        "kind": run.kind,
        "samples": " x ".join(map(str, run.shape)),
        "classes": f"{len(run.classes)}: {names}" if run.classes else "",
        "network": run.network + ("" if run.parameters is None else f", {run.parameters:,} parameters"),
        "noise": "white" if run.noise == "Identity" else run.noise,
        "data": str(run.settings.get("data", "")),
        "training": _training(run),
        "distilled to": run.distilled or "",
        "tuned solvers": ", ".join(f"{n} steps" for n in run.tuned),
        "pictures": ", ".join(
            n for n in ("report.html", "samples.png", "samples", "evaluation") if (run.path / n).exists()
        ),
        "settings": ", ".join(f"{name} {value}" for name, value in _chosen(run.settings).items()),
    }
    table = Table(show_header=False, show_edge=False, box=None, pad_edge=False)
    for name, value in rows.items():
        if value:
            table.add_row(cell(name), cell(value))
    console.print(table)


def ls(asked: Ls, given: frozenset[str]) -> None:
    """List the runs in a folder."""
    if not asked.folder.is_dir():
        raise UserError(f"there is no folder {asked.folder}")
    runs: list[RunInfo] = []
    for path in find(asked.folder):
        try:
            runs.append(describe(path))
        except UserError as error:
            say(f"skipped: {error}")
    if asked.json:
        _print_json([asdict(run) for run in runs])
        return
    if not runs:
        say(f"no runs in {asked.folder}")
        return
    table = Table("run", "kind", "samples", "steps", "loss", "written", show_edge=False, box=None, pad_edge=False)
    for run in runs:
        loss = "" if run.loss is None else f"{run.loss:.4g}"
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.written))
        shape = "x".join(map(str, run.shape))
        table.add_row(*map(cell, (run.path, run.kind, shape, _steps(run), loss, written)))
    console.print(table)


def env(asked: Env, given: frozenset[str]) -> None:
    """Show versions and devices."""
    about = {
        "ornstein": ornstein.__version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": f"{platform.platform()}, {os.cpu_count()} cores",
        **{name: found for name in _PACKAGES if (found := _version(name)) is not None},
        "devices": ", ".join(_devices()),
        "missing": ", ".join(name for name in _PACKAGES if _version(name) is None),
    }
    if asked.json:
        _print_json(about)
        return
    for name, value in about.items():
        if value:
            say(f"{name:14} {value}")


def _chosen(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that differ from their defaults."""
    plain = json.loads(json.dumps({f.name: f.default for f in fields(Settings) if not about(f).stored}, default=str))
    return {k: v for k, v in settings.items() if k in plain and k != "data" and v not in (None, plain[k])}


def _training(run: RunInfo) -> str:
    if run.step is None:
        return ""
    parts = [f"{_steps(run)} steps", "finished" if run.finished else "not finished"]
    if run.elapsed is not None:
        parts.append(f"{run.elapsed / 60:.1f} minutes")
    if run.loss is not None:
        parts.append(f"loss {run.loss:.4g}")
    return ", ".join(parts)


def _steps(run: RunInfo) -> str:
    if run.step is None:
        return ""
    return f"{run.step:,}" if run.total is None else f"{run.step:,} of {run.total:,}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> list[str]:
    """The devices that PyTorch can use, with their names."""
    torch = ornstein.devices.torch
    names = [f"cpu ({torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()})"]
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        memory = torch.cuda.get_device_properties(i).total_memory / 2**30
        names.append(f"cuda:{i} ({torch.cuda.get_device_name(i)}, {memory:.0f} GB)")
    return [*names, "mps"] if torch.backends.mps.is_available() else names


def _print_json(value: Any) -> None:
    console.print(json.dumps(value, indent=1, default=str), markup=False)

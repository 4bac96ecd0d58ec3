"""What a run directory is, read from its small files: no model is loaded and no torch imported."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ornstein.errors import UserError
from ornstein.settings import read_file

__all__ = ["RunInfo", "describe", "find"]

_LARGEST_HEADER = 2**26  # bytes of a safetensors header
_TAIL = 2**16  # bytes of metrics.jsonl that hold its last line
_DEEPEST = 4  # folders below the one that is searched


@dataclass(frozen=True)
class RunInfo:
    """A run directory, or the folder of a pipeline.

    kind: "diffusion", "latent diffusion", "distilled", "personalised by lora", "autoencoder" or the type of another
    network. shape: of a sample, (C, H, W) or (C, F, H, W). step, loss, elapsed (seconds): of the last logged step.
    total: steps, None if it is trained by the clock. settings: train.json. written: seconds since 1970.
    """

    path: Path
    kind: str
    shape: tuple[int, ...]
    classes: list[str]
    network: str
    parameters: int | None
    noise: str
    step: int | None
    total: int | None
    loss: float | None
    elapsed: float | None
    finished: bool
    written: float
    settings: dict[str, Any] = field(default_factory=dict)
    tuned: list[int] = field(default_factory=list)
    distilled: str | None = None


def describe(run: str | Path) -> RunInfo:
    """The run in a directory.

    Raises:
        UserError: it is no run, or its config.json cannot be read.
    """
    run = Path(run)
    if run.suffix == ".safetensors" and run.is_file():
        return _one_file(run)
    if not run.is_dir():
        raise UserError(f"{run} is no run: there is no such folder")
    if not (run / "config.json").is_file() and (run / "model_index.json").is_file():
        return _pipeline(run)
    if not (run / "config.json").is_file():
        raise UserError(f"{run} is no run: it has no config.json")
    config, settings = read_file(run / "config.json"), _optional(run / "train.json")
    last, training = _last_line(run / "metrics.jsonl"), _mapping(config.get("training"))
    minutes, total = _number(training.get("minutes")), _number(training.get("steps"))
    step = _number(last.get("step", training.get("step")))
    elapsed = _number(last.get("elapsed"))
    done = step is not None and total is not None and step >= total
    timed = minutes is not None and elapsed is not None and elapsed >= 60 * minutes
    few = _mapping(config.get("distilled"))
    return RunInfo(
        path=run,
        kind=_kind(config),
        shape=_shape(config),
        classes=[str(c) for c in _list(_mapping(config.get("data")).get("classes"))],
        network=str(_mapping(config.get("net") or config.get("autoencoder")).get("type", "?")),
        parameters=_parameters(run / "model.safetensors"),
        noise=str(_mapping(config.get("noise")).get("type", "-")),
        step=None if step is None else int(step),
        total=None if total is None else int(total),
        loss=_number(last.get("loss")),
        elapsed=elapsed,
        finished=done or timed,
        written=(run / "config.json").stat().st_mtime,
        settings=settings,
        tuned=_tuned(run),
        distilled=f"{max(0, len(_list(few.get('times'))) - 1)} steps" if few else None,
    )


def _pipeline(folder: Path) -> RunInfo:
    """The folder of a diffusers pipeline; what it says of its decoder is left out."""
    index = read_file(folder / "model_index.json")
    part = next((p for p in ("unet", "transformer") if isinstance(index.get(p), list)), "unet")
    config = _optional(folder / part / "config.json")
    size = config.get("sample_size")
    sides = size if isinstance(size, list) else [size, size]
    counts = [_parameters(file) for file in sorted((folder / part).glob("*.safetensors"))]
    beside = folder.resolve().with_name(f"{folder.resolve().name}.ornstein")
    return RunInfo(
        path=folder,
        kind=f"pipeline of diffusers, {index.get('_class_name', '?')}",
        shape=tuple(side for side in [config.get("in_channels"), *sides] if isinstance(side, int)),
        classes=[],
        network=str(config.get("_class_name", "?")),
        parameters=sum(c for c in counts if c) or None,
        noise="Identity",
        step=None,
        total=None,
        loss=None,
        elapsed=None,
        finished=True,
        written=(folder / "model_index.json").stat().st_mtime,
        tuned=_tuned(beside),
    )


def _one_file(file: Path) -> RunInfo:
    """A pipeline in one file, whose configs are in the folder of the same name."""
    configs = file.with_suffix("")
    if not (configs / "model_index.json").is_file():
        raise UserError(
            f"{file} has weights alone: put the configs of its base model, a pipeline folder, in {configs}/"
        )
    beside = file.resolve().with_name(f"{file.name}.ornstein")
    # its tensors are those of all parts, so that how many the network has is not known
    return replace(_pipeline(configs), path=file, parameters=None, written=file.stat().st_mtime, tuned=_tuned(beside))


def _tuned(folder: Path) -> list[int]:
    """The numbers of steps of the tuned solvers in a folder."""
    return [len(_list(_mapping(s).get("steps"))) for s in _list(_optional(folder / "tuned.json").get("solvers"))]


def find(folder: str | Path, depth: int = _DEEPEST) -> Iterator[Path]:
    """The run directories in a folder, itself among them, in order of their names; links are not followed."""
    folder = Path(folder)
    if (folder / "config.json").is_file():
        yield folder
        return
    if depth:
        for inner in sorted(p for p in folder.iterdir() if p.is_dir() and not p.is_symlink()):
            yield from find(inner, depth - 1)


def _kind(config: dict[str, Any]) -> str:
    if "autoencoder" in config:
        return "autoencoder"
    if "distilled" in config:
        return "distilled"
    if "personal" in config:
        return f"personalised by {_mapping(config['personal']).get('method', '?')}"
    if "prediction" not in config:
        return "other"
    return "latent diffusion" if "latent" in config else "diffusion"


def _shape(config: dict[str, Any]) -> tuple[int, ...]:
    if "autoencoder" in config:
        about = _mapping(config["autoencoder"])
        sides = [about.get("channels"), about.get("size"), about.get("size")]
    else:
        sides = _list(_mapping(config.get("data")).get("shape"))
    return tuple(side for side in sides if isinstance(side, int))


def _parameters(file: Path) -> int | None:
    """The number of values in a safetensors file, from its header; None if it has none to read."""
    try:
        if not file.is_file():  # opening a FIFO would wait for a writer
            return None
        with file.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            if length > _LARGEST_HEADER:
                return None
            header = json.loads(f.read(length))
        return sum(math.prod(value["shape"]) for name, value in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error):
        return None


def _last_line(file: Path) -> dict[str, Any]:
    """The last whole line of metrics.jsonl; {} if there is none."""
    try:
        if not file.is_file():
            return {}
        with file.open("rb") as f:
            f.seek(max(0, file.stat().st_size - _TAIL))
            lines = f.read().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            return _mapping(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return {}


def _optional(file: Path) -> dict[str, Any]:
    try:
        return read_file(file)
    except UserError:
        return {}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None

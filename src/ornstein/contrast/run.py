"""The runner: every model and seed is trained and scored once, finished ones are kept, and all go into one report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ornstein.contrast.models import build, describe
from ornstein.contrast.problems import Problem, open_problem
from ornstein.contrast.settings import Contrast
from ornstein.contrast.training import check_budget, evaluate, train
from ornstein.errors import RunError, UserError
from ornstein.settings import read, to_json
from ornstein.store import atomic_save_tensors, atomic_write, json_bytes, load_tensors, make_folder, read_json
from ornstein.training.lock import hold, release

__all__ = ["RESULTS", "Result", "contrast", "load_results", "run_model", "worker"]

RESULTS = "contrast.json"
SETTINGS = "settings.json"
MODELS = "models"
_VERSION = 1  # of how results are made: others are made again
_POLL = 0.5  # seconds


@dataclass(frozen=True)
class Result:
    """One model and seed: its record in JSON types, and its frames."""

    model: str
    seed: int
    record: dict[str, Any]
    frames: Tensor

    @property
    def scores(self) -> dict[str, Any]:
        return self.record["scores"]


def contrast(
    settings: Contrast, advance: Callable[[str, int, int], object] = lambda said, done, total: None
) -> list[Result]:
    """Train and score what `settings` asks for and is not there yet.

    Args:
        settings: of the command.
        advance: called with a line on what finished, the number of finished trainings, and all.

    Returns:
        The results, model by model.

    Raises:
        UserError: the data cannot be opened, the folder holds other files, or the time is too short for one step.
        RunError: a process that trained a model has died.
    """
    problem = open_problem(settings.data, settings.size)
    out = _prepare(settings)
    missing = [model for model in settings.models if _missing(settings, model)]
    for model in missing:
        check_budget(model, build(model, problem, 0), settings.seconds)
    unsaid = _every(settings)
    total = len(unsaid)

    def tell() -> None:
        for each in list(unsaid):
            if (result := _load(settings, *each)) is not None:
                unsaid.remove(each)
                advance(_line(result), total - len(unsaid), total)

    tell()
    held = hold(out)
    try:
        if settings.jobs == 1 or len(missing) == 1:
            for model in missing:
                run_model(settings, model, problem, lambda result: tell())
        else:
            _in_processes(settings, missing, tell)
    finally:
        if held:
            release(out)
    results = load_results(settings)
    atomic_write(out / RESULTS, json_bytes({"settings": to_json(settings), "results": [r.record for r in results]}))
    return results


def _prepare(settings: Contrast) -> Path:
    """The folder of results, with the settings in it for the processes."""
    out = settings.out
    if not (out / SETTINGS).is_file():
        for name in ("report.html", RESULTS, SETTINGS, "collapse.gif", MODELS):
            if (out / name).exists() or (out / name).is_symlink():
                raise UserError(
                    f"{out / name} is not of a contrast, and would be replaced: give another folder for --out"
                )
    make_folder(out / MODELS)
    atomic_write(out / SETTINGS, json_bytes(to_json(settings)))
    return out


def run_model(
    settings: Contrast, model: str, problem: Problem, finished: Callable[[Result], object] = lambda result: None
) -> None:
    """Train and score the seeds of one model that are missing, on one thread, and store each result."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for seed in _missing(settings, model):
            finished(_run(settings, model, seed, problem))
    finally:
        torch.set_num_threads(threads)


def _run(settings: Contrast, model: str, seed: int, problem: Problem) -> Result:
    start = time.process_time()
    built = build(model, problem, seed)
    trained = train(built, problem, settings.seconds)
    scored = evaluate(built, problem, settings.num or problem.samples, seed, settings.measured(model))
    record = {
        "model": model,
        "seed": seed,
        "key": _key(settings, model),
        "parameters": built.parameters,
        "networks": describe(built),
        "evaluations": built.evaluations,
        "steps": trained.steps,
        "seconds": trained.seconds,
        "all_seconds": time.process_time() - start,
        "ended": trained.ended,
        "curves": trained.curves,
        "modes": trained.modes,
        **scored,
    }
    atomic_save_tensors(_file(settings, model, seed, "safetensors"), {"frames": trained.frames}, {})
    atomic_write(_file(settings, model, seed, "json"), json_bytes(record))  # last: a result without it is missing
    return Result(model, seed, record, trained.frames)


def _file(settings: Contrast, model: str, seed: int, suffix: str) -> Path:
    return settings.out / MODELS / f"{model}-seed{seed}.{suffix}"


def _key(settings: Contrast, model: str) -> dict[str, Any]:
    """What a result depends on, besides model and seed."""
    return {
        "version": _VERSION,
        "data": settings.data,
        "size": settings.size,
        "seconds": settings.seconds,
        "num": settings.num,
        "likelihood": settings.measured(model),
    }


def _load(settings: Contrast, model: str, seed: int) -> Result | None:
    """The stored result; None if there is none of these settings."""
    with suppress(UserError, KeyError, ValueError, TypeError):
        record = read_json(_file(settings, model, seed, "json"))
        if record["key"] == json.loads(json.dumps(_key(settings, model))):
            frames = load_tensors(_file(settings, model, seed, "safetensors"))[0]["frames"]
            return Result(model, seed, record, frames)
    return None


def load_results(settings: Contrast) -> list[Result]:
    """The results that are stored in the folder of `settings`, model by model."""
    return [result for each in _every(settings) if (result := _load(settings, *each)) is not None]


def _every(settings: Contrast) -> list[tuple[str, int]]:
    return [(model, seed) for model in settings.models for seed in range(settings.seeds)]


def _missing(settings: Contrast, model: str) -> list[int]:
    return [seed for seed in range(settings.seeds) if _load(settings, model, seed) is None]


def _line(result: Result) -> str:
    record, scores = result.record, result.scores
    line = f"{result.model}, seed {result.seed}: {record['steps']} steps in {record['seconds']:.0f} s"
    if scores["reverse_kl"] is not None:
        line += f", {scores['modes']} modes, reverse KL {scores['reverse_kl']:.3g}"
    return line if record["ended"] is None else f"{line}; {record['ended']}, so its training ended"


def _in_processes(settings: Contrast, models: list[str], tell: Callable[[], object]) -> None:
    """A process for each model, `jobs` at a time; `tell` is called while they run."""
    waiting, running = list(models), {}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    code = "import sys; from ornstein.contrast.run import worker; worker(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(settings.out)]
    try:
        while waiting or running:
            while waiting and len(running) < settings.jobs:
                model = waiting.pop(0)
                child = subprocess.Popen(
                    [*command, model], env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
                )
                running[model] = child
            time.sleep(_POLL)
            for model, child in list(running.items()):
                if child.poll() is not None:
                    del running[model]
                    _check(model, child)
            tell()
    finally:
        for child in running.values():
            child.terminate()
            child.wait()


def _check(model: str, child: subprocess.Popen[str]) -> None:
    """Raise what the process of a model said, if it failed."""
    assert child.stderr is not None
    said = child.stderr.read().strip()
    if child.returncode:
        last = said.splitlines()[-1] if said else f"exit code {child.returncode}"
        raise RunError(
            f"the process that trained {model} has failed: {last}; start again to go on with what is missing"
        )


def _settings_of(out: Path) -> Contrast:
    stored: Mapping[str, Any] = read_json(out / SETTINGS)
    return read(Contrast, {k: v for k, v in stored.items() if v is not None} | {"out": str(out)}, out / SETTINGS)


def worker(out: str, model: str) -> None:
    """What a process of `contrast` does: the missing seeds of one model of the settings in a folder."""
    asked = _settings_of(Path(out))
    run_model(asked, model, open_problem(asked.data, asked.size))

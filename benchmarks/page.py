"""All benchmarks in one process, and docs/benchmarks.md written from what they measured.

    python benchmarks/page.py [--out docs/benchmarks.md] [--model RUN ...] [--only noise,solvers,...] [--quick]

Each part is kept as runs/bench/PART-PROBLEM.json, with its date, when it is done: what is measured again replaces it,
--resume measures what is missing, and the page is made of all that are there. A model of digits is trained for it
(runs/bench/digits, two minutes); further runs, with the data that they were trained on, are given by --model, and are
tuned where they have not been. --quick runs all of it on little, to see that it works; its figures say nothing, and its
page goes beside the parts.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from tables import Table, machine, versions

from ornstein import checkpoint
from ornstein.solvers import SOLVER
from ornstein.store import atomic_write

COUNTS = [5, 8, 10]
HEADINGS = {
    "solvers": (
        "The distance to the fine solution",
        "Every deterministic sampler of diffusers and of azula, on every grid that it has, and those of skrample on "
        "diffusers' grids, against ours at equal evaluations (`benchmarks/peers.py` says how each is asked). All ask "
        "the same denoiser, from the same noise, at exactly the level that each of their steps names. The error is "
        "the root mean square distance at t = 0 to the fine solution of the probability-flow ODE from there; a tuned "
        "solver has learned from other noise.",
    ),
    "distances": (
        "Fréchet distances of few evaluations",
        "Samples from the same noise against real images, in the features of `ornstein evaluate`, with the network in "
        "the precision of `ornstein sample`. A difference below zero says that the tuned solver is nearer. Its second "
        "stage has seen training images, in features of other filters (`ornstein tune`).",
    ),
    "sampling": (
        "Time",
        "The same weights in diffusers' pipeline and here, in turns in one process: the ratio of each turn is taken, "
        "and the median of these is told.",
    ),
    "bench": (
        "Where the time goes",
        "`ornstein bench RUN`: images a second, and the share of the time that is not the network's (aim: at most 2 % "
        "at 32×32 pixels in batches of 32).",
    ),
    "noise": ("Correlated noise against white", "`benchmarks/noise.py`; the first table's aim is a ratio of 1.3."),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the page (default: docs/benchmarks.md, beside the parts if quick)")
    parser.add_argument("--work", type=Path, default=Path("runs/bench"), help="where parts and the digits are kept")
    parser.add_argument("--model", type=Path, action="append", default=[], help="a further run to measure on")
    parser.add_argument("--only", default=",".join(HEADINGS), help=f"of {', '.join(HEADINGS)}; none: write the page")
    parser.add_argument("--resume", action="store_true", help="measure what is missing alone")
    parser.add_argument("--trajectories", type=int, default=64, help="that end-point errors are measured on")
    parser.add_argument("-n", type=int, default=1000, help="samples a seed of Fréchet distances")
    parser.add_argument("--seeds", type=int, default=3, help="of Fréchet distances")
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled network of the times")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    only = [name for name in arguments.only.split(",") if name and name != "none"]
    for name in only:
        if name not in HEADINGS:
            parser.error(f"--only {name!r}: there are {', '.join(HEADINGS)}")
    torch.set_num_threads(arguments.threads)
    work = arguments.work / "quick" if arguments.quick else arguments.work
    work.mkdir(parents=True, exist_ok=True)
    runs = [_digits(work, arguments.quick), *arguments.model] if set(only) - {"noise"} else []
    for run in runs:
        if set(only) & {"solvers", "distances", "sampling"}:
            _tuned(run, arguments.quick)
    for name, measured in _parts(runs, only, arguments):
        if arguments.resume and (work / f"{name}.json").is_file():
            continue
        tables = measured()
        for table in tables:
            table.show()
        record = {
            "date": datetime.date.today().isoformat(),
            "machine": machine(arguments.threads),
            "versions": f"torch {torch.__version__}, " + versions("diffusers", "azula", "skrample"),
            "tables": [t.to_config() for t in tables],
        }
        atomic_write(work / f"{name}.json", (json.dumps(record, indent=1) + "\n").encode())
    out = arguments.out or (work / "benchmarks.md" if arguments.quick else Path("docs/benchmarks.md"))
    atomic_write(out, page(work).encode())
    Console().print(f"{out}: {', '.join(f.stem for n in HEADINGS for f in _kept(work, n))}")


def _parts(runs: list[Path], only: list[str], given: argparse.Namespace) -> list[tuple[str, Callable[[], list[Table]]]]:
    """Name and measurement of each part; what measures it is imported when it is."""
    quick, few = given.quick, 8 if given.quick else given.trajectories
    counts = COUNTS[:1] if quick else [*COUNTS, 20]

    def mixtures() -> list[Table]:
        from solvers import mixtures

        return mixtures(counts, 8 * few, 5 if quick else 100)

    def solvers(run: Path) -> list[Table]:
        from solvers import of_model

        return of_model(run, counts, few)

    def distances(run: Path) -> list[Table]:
        from distances import of_model

        return [of_model(run, COUNTS[:1] if quick else COUNTS, *((32, 2) if quick else (given.n, given.seeds)))]

    def steps() -> list[Table]:
        from sampling import equal_steps

        size = (16, 16, 2, 2, 1) if quick else (64, 32, 8, 10, 3)
        return [equal_steps(*size, compiled=not quick and not given.no_compile)]

    def quality(run: Path) -> list[Table]:
        from sampling import equal_quality

        return [equal_quality(run, *((16, 1, 2, 1) if quick else (given.n, min(2, given.seeds), 16, 5)))]

    def noise() -> list[Table]:
        from noise import costs

        return costs(3 if quick else 41, torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    of_run = {"solvers": solvers, "distances": distances, "sampling": quality, "bench": _benches(1 if quick else 5)}
    parts: list[tuple[str, Callable[[], list[Table]]]] = []
    for name in only:
        whole = {"solvers": mixtures, "sampling": steps, "noise": noise}.get(name)
        parts += [(f"{name}-whole", whole)] if whole else []
        measured = of_run.get(name)
        if measured is not None:
            parts += [(f"{name}-run-{run.name}", partial(measured, run)) for run in runs]
    return parts


def _kept(work: Path, name: str) -> list[Path]:
    """The records of a part, what is of no run first."""
    whole = work / f"{name}-whole.json"
    return [*([whole] if whole.is_file() else []), *sorted(work.glob(f"{name}-run-*.json"))]


def page(work: Path) -> str:
    """docs/benchmarks.md from the parts that are kept in `work`."""
    lines = [
        "# Benchmarks: beside diffusers, azula and skrample",
        "",
        "Written by `make bench` (`benchmarks/page.py`), not by hand. Ratios, from one process and the same tensors; "
        "times in seconds are of a machine that other work may share.",
    ]
    for name, (heading, text) in HEADINGS.items():
        kept = _kept(work, name)
        lines += ["", f"## {heading}", "", text] if kept else []
        for file in kept:
            record = json.loads(file.read_text(encoding="utf-8"))
            lines += ["", "\n".join(Table(**t).markdown() for t in record["tables"]).rstrip()]
            lines += ["", f"Measured on {record['date']}: {record['machine']}; {record['versions']}."]
    return "\n".join(lines) + "\n"


def _digits(work: Path, quick: bool) -> Path:
    run = work / "digits"
    if not (run / checkpoint.CONFIG).is_file():
        _ornstein("train", "--data", "digits", "--net", "xs", "--steps", 20 if quick else 1000, "--batch", 128,
                  "--sample-every", 0, "--out", run)  # fmt: skip
    return run


def _tuned(run: Path, quick: bool) -> None:
    missing = [n for n in (COUNTS[:1] if quick else COUNTS) if not checkpoint.load_tuned(run, n)]
    if missing:
        little = ["--trajectories", 4, "--iterations", 3] if quick else []
        _ornstein("tune", run, "--steps", ",".join(map(str, missing)), *little)


def _benches(repeats: int) -> Callable[[Path], list[Table]]:
    """The results of `ornstein bench` as a table."""

    def measured_on(run: Path) -> list[Table]:
        from ornstein.cli.bench import COLUMNS, Case, measured

        table = Table(f"The model {run.name}", list(COLUMNS))
        cases = [Case(n, 10, b, p) for n in ("ddim", SOLVER) for b in (1, 32) for p in ("float32", "auto")]
        for result in measured(checkpoint.load(run), cases, repeats):
            table.add(*result.row())
        return [table]

    return measured_on


def _ornstein(*arguments: object) -> None:
    """A command in a process of its own: its threads and its memory end with it."""
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run([sys.executable, "-m", "ornstein", *map(str, arguments)], check=True, env={**os.environ, **threads})


if __name__ == "__main__":
    main()

"""Quality against steps of a model and of its students: the table of docs/solvers.md, "Distilled models".

Trains the teacher on digits with `ornstein train`, tunes its solver to 5 and 8 steps, distils it to 4, 2 and 1 with
`ornstein distil`, and holds all of them against the digits: Frechet and kernel distance in random convolutions, and the
distance from the teacher's own samples of the same noise. What is there already is kept: stopped, it goes on.

    python evidence/distil.py --out runs/evidence-distil
    python evidence/distil.py --out runs/cifar-distil --teacher runs/cifar --data cifar10-train.zip --size 32
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import ornstein as orn
from ornstein import checkpoint
from ornstein.cli.distil import ways_of
from ornstein.data import open_images, save_grid, to_uint8
from ornstein.evaluation import open_features
from ornstein.evaluation.few_steps import FRECHET, KERNEL, RMSE, Way, quality_by_steps
from ornstein.few_steps.distillation import TEACHER_STEPS
from ornstein.store import atomic_write
from ornstein.training.state import read_record

SHOWN = 10


def ornstein(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "ornstein", *map(str, words)], check=True)


def made(run: Path, steps: int) -> bool:
    """Whether the run is there, with as many steps."""
    return (run / "report.html").is_file() and read_record(run)["step"] >= steps


def cost(run: Path) -> int:
    """What the run took, in evaluations of the network: a step of training is three an image, its backward pass two."""
    record = read_record(run)
    trained = 3 * record["step"] * record["run"]["training"]["batch"]
    return trained + (0 if record["run"].get("distilled") is None else record["run"]["images"] * evaluations(run))


def evaluations(student: Path) -> int:
    """Of the teacher, in a trajectory."""
    steps = checkpoint.read_config(student)["distilled"]["times"][1:]
    return len(steps) * -(-TEACHER_STEPS // len(steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/evidence-distil"))
    parser.add_argument("--teacher", type=Path, help="a run that is there already")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--size", type=int)
    parser.add_argument("--to", default="4,2,1")
    parser.add_argument("--train-steps", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--trajectories", type=int, default=10000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    teacher, counts = asked.teacher or asked.out / "teacher", [int(n) for n in asked.to.split(",")]
    size = ("--size", asked.size) if asked.size else ()
    if asked.teacher is None and not made(teacher, asked.train_steps):
        go_on = ("--resume",) if (teacher / "state").is_dir() else ()
        rate = ("--steps", asked.train_steps, "--optimizer", "adamw", "--learning-rate", 0.002, "--held-out", 0.2)
        ornstein("train", "--data", asked.data, *size, *rate, "--out", teacher, *go_on)
    if asked.teacher is None and not checkpoint.load_tuned(teacher):
        ornstein("tune", teacher, "--steps", "5,8")
    students = {n: asked.out / f"student-{n}" for n in counts}
    for n, student in students.items():
        if not made(student, asked.steps):
            go_on = ("--resume",) if student.is_dir() else ()
            options = ("--steps", asked.steps, "--trajectories", asked.trajectories, "--batch", asked.batch)
            ornstein("distil", teacher, "--out", student, "--to", n, *options, *go_on)

    d = orn.load(teacher)
    loaded = {n: orn.load(student) for n, student in students.items()}
    ways = ways_of(teacher, d, next(iter(loaded.values())), 1.0)[:-1]
    ways += [Way("distilled", student, n) for n, student in loaded.items()]
    real = open_images(asked.data, asked.size).images
    real = real[:: max(1, len(real) // 5000)]
    rows = quality_by_steps(
        d,
        ways,
        real,
        open_features("conv")(real),
        asked.samples,
        range(asked.seeds),
        advance=lambda what, done, total: print(f"\r{what}: {done}/{total}   ", end="", file=sys.stderr, flush=True),
    )
    print(file=sys.stderr)
    atomic_write(asked.out / "quality.json", json.dumps(rows, indent=1).encode())
    print(f"| solver | evaluations | {FRECHET} | {KERNEL} | {RMSE} |\n|---|---|---|---|---|")
    for way in ways:
        own = [row for row in rows if (row["solver"], row["steps"]) == (way.name, way.steps)]
        cells = []
        for measure in (FRECHET, KERNEL, RMSE):
            values = [row[measure] for row in own]
            spread = f" ± {statistics.stdev(values):.1g}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3g}{spread}")
        print(f"| {way.name} | {way.steps} | " + " | ".join(cells) + " |")
    shares = ", ".join(f"{cost(student) / cost(teacher):.0%} to {n}" for n, student in students.items())
    print(f"cost of distillation, trajectories included, as a share of the teacher's training: {shares}")
    for way in ways:
        labels = d.data.labels(2 * SHOWN) if d.data is not None else None
        pictures = to_uint8(way.denoiser.decode(way.draw(labels, 2 * SHOWN, seed=0)))
        path = asked.out / f"{way.name}-{way.steps}.png"
        save_grid(pictures, path, columns=SHOWN, upscale=max(1, 64 // pictures.shape[-1]), gap=1)


if __name__ == "__main__":
    main()

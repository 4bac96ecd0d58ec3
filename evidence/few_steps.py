"""Students beside their teacher, the likelihood in 8 evaluations beside Runge-Kutta, and two evaluations side by side.

    python evidence/few_steps.py students runs/cifar10 runs/cifar10-2 runs/cifar10-4 -n 1000 --seeds 2
    python evidence/few_steps.py likelihood runs/digits --images 96 --probes 4
    python evidence/few_steps.py churn runs/digits --steps 10 20 50
    python evidence/few_steps.py depth runs/digits

`students` makes samples of the teacher by the solver that was chosen for it at 20 steps and of each student by its own
steps, from the same noise and of the same classes, and holds both against the images that the teacher's training held
out: Fréchet distances in random convolutions and in pixels, and their ratios to the teacher's, means and deviations
over sets of samples. What has been measured is kept in --out and not measured again. A student takes `:N` behind its
name for N steps in place of its own.

`likelihood` needs `ornstein tune RUN --likelihood 8`. On held-out images of one dequantisation it takes the difference
of each image's bits/dim, which has a far smaller error than the two means. With several numbers of --rk4 they show
whether Runge-Kutta has converged: it has the same probes at each.

`churn` makes samples of `sa-3m` with several amounts of fresh noise, with none, and by the solver that was chosen for
the model, and holds them against the images in the spaces of `students`: distances, and the means and standard errors
over seeds of what each amount changes. Beside them is what `ornstein tune RUN --churn` found, if it was run.

`depth` compares `side-by-side` with `flow-3m` at equal numbers of calls one after the other, where the first evaluates
two states in each but its first call: root mean square distances at t = 0 to the fine solution.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

import ornstein as orn
from ornstein import checkpoint
from ornstein.data import ImageSet, save_grid, to_uint8, to_unit
from ornstein.evaluation import open_features
from ornstein.evaluation.frechet import frechet_distance
from ornstein.evaluation.matched import choose, class_numbers
from ornstein.few_steps.tuning import trajectories
from ornstein.likelihood import FewSteps, bits_per_dim, ode
from ornstein.solvers import SOLVERS, grids
from ornstein.store import atomic_write
from ornstein.training.recipe import open_data
from ornstein.training.settings import SETTINGS, Settings

SPACES = ("conv", "pixels")
STEPS = 20
SHOWN = 40


def images_of(run: Path, part: str = "held_out") -> ImageSet:
    images = getattr(open_data(Settings.stored(run / SETTINGS)), part)
    assert isinstance(images, ImageSet)
    return images


def students(asked: argparse.Namespace) -> None:
    teacher: Path = asked.teacher
    real = images_of(teacher, "train" if asked.train else "held_out").images
    features = {space: open_features(space)(real) for space in SPACES}
    known = {space: found(real) for space, found in features.items()}
    out: Path = asked.out or teacher / "students.json"
    done = json.loads(out.read_text()) if out.is_file() else {}
    names, rows = [f"{teacher}:{STEPS}", *asked.students], {}
    for name in names:
        path, _, steps = name.partition(":")
        for seed in range(asked.seeds):
            key = f"{name} {checkpoint.fingerprint(path)[:16]} {asked.n} {seed}{' train' * asked.train}"
            if key not in done:
                x = drawn(path, int(steps) if steps else None, asked.n, seed)
                done[key] = {s: frechet_distance(features[s](x), known[s]) for s in SPACES}
                atomic_write(out, (json.dumps(done, indent=1) + "\n").encode())
                save_grid(x[:SHOWN], out.with_name(f"{Path(path).name}-{steps or 'own'}.png"), columns=10, gap=1)
            rows.setdefault(name, []).append(done[key])
    first = rows[names[0]]
    print(f"| model | {' | '.join(f'Fréchet, {s} | of the teacher' for s in SPACES)} |\n|---|---|---|---|---|")
    for name, found in rows.items():
        cells = []
        for s in SPACES:
            values = [row[s] for row in found]
            shares = [a[s] / b[s] for a, b in zip(found, first, strict=True)]  # seed by seed, from the same noise
            cells += [spread(values, ".1f"), spread(shares, ".2f")]
        print(f"| {name} | {' | '.join(cells)} |")


def churn(asked: argparse.Namespace) -> None:
    run: Path = asked.run
    real = images_of(run, "train" if asked.train else "held_out").images
    features = {space: open_features(space)(real) for space in SPACES}
    known = {space: found(real) for space, found in features.items()}
    out: Path = asked.out or run / "churn.json"
    done = json.loads(out.read_text()) if out.is_file() else {}
    tuned = {c.steps: c for c in checkpoint.load_churn(run) if c.guidance == 1}
    others = {f"{tau:g}": f"sa-3m:{tau:g}" for tau in asked.taus}
    heads = [
        f"{s}: {way}" for s in SPACES for way in ("chosen solver", "none", *(f"{tau} less none" for tau in others))
    ]
    print(f"| steps | tuned | gain in tuning | {' | '.join(heads)} |\n|---|---|---|{'---|' * len(heads)}")
    for steps in asked.steps:
        rows: dict[str, list[dict[str, float]]] = {}
        for way, solver in {"none": "sa-3m:0", "chosen": None, **others}.items():
            for seed in range(1, 1 + asked.seeds):
                key = f"{checkpoint.fingerprint(run)[:16]} {solver} {steps} {asked.n} {seed}{' train' * asked.train}"
                if key not in done:
                    x = drawn(str(run), steps, asked.n, seed, solver)
                    done[key] = {s: frechet_distance(features[s](x), known[s]) for s in SPACES}
                    atomic_write(out, (json.dumps(done, indent=1) + "\n").encode())
                rows.setdefault(way, []).append(done[key])
        c = tuned.get(steps)
        cells = ["-", "-"] if c is None else [f"{c.tau:g}", f"{c.gain:.3g} ± {c.error:.1g}"]
        for s in SPACES:
            cells += [f"{statistics.fmean(row[s] for row in rows[way]):.3g}" for way in ("chosen", "none")]
            for way in others:
                off = [a[s] - b[s] for a, b in zip(rows[way], rows["none"], strict=True)]  # from the same noise
                error = f" ± {statistics.stdev(off) / len(off) ** 0.5:.1g}" if len(off) > 1 else ""
                cells.append(f"{statistics.fmean(off):+.2g}{error}")
        print(f"| {steps} | {' | '.join(cells)} |", flush=True)


def drawn(run: str, steps: int | None, count: int, seed: int, solver: str | None = None) -> Tensor:
    """uint8 samples (N, C, H, W) of a run, by its own solver or a named one, in the precision of `ornstein sample`."""
    d = orn.load(run)
    assert d.data is not None
    labels = d.data.labels(count)
    cond = {} if labels is None else {"label": labels}
    shape = (count, *d.data.shape)
    x = orn.sample(d, shape, solver, steps, seed=seed, cond=cond, batch=125, precision="auto")
    return to_uint8(d.decode(x))


def spread(values: list[float], form: str) -> str:
    return f"{statistics.fmean(values):{form}}" + (f" ± {statistics.stdev(values):.1g}" if len(values) > 1 else "")


def likelihood(asked: argparse.Namespace) -> None:
    run: Path = asked.run
    d, images = orn.load(run), images_of(run)
    assert d.data is not None
    rows, classes = choose(images, asked.images), class_numbers(images, d.data)
    x, cond = to_unit(images.images[rows]), None if classes is None else {"label": classes[rows]}
    few = FewSteps.load(checkpoint.run_folder(run), checkpoint.fingerprint(run))
    print("| way | evaluations | bits/dim | its own error | processor seconds |\n|---|---|---|---|---|")
    values: dict[str, Tensor] = {}
    for steps in (0, *asked.rk4):
        name, began = f"RK4, {steps} steps" if steps else "few", time.process_time()
        if steps:
            found = ode(d, x, "hutchinson", steps=steps, probes=asked.probes, dequantisation="uniform", cond=cond)
        else:
            found = few(d, x, probes=asked.probes, dequantisation="uniform", cond=cond)
        took = time.process_time() - began
        bits = bits_per_dim(-found.value, x.shape)
        own = float((bits_per_dim(found.error - found.value, x.shape) - bits).mean())
        mean = f"{float(bits.mean()):.3f} ± {float(bits.std()) / len(x) ** 0.5:.3f}"
        print(f"| {name} | {int(found.evaluations.max())} | {mean} | {own:.3f} | {took:.1f} |", flush=True)
        values[name] = bits
    *others, last = values
    print()
    for name in others:
        off = values[name] - values[last]
        mean = f"{float(off.mean()):.4f} ± {float(off.std()) / len(x) ** 0.5:.4f}"
        apart = float(off.square().mean().sqrt())
        print(
            f"{name} less {last}: {mean} bits/dim in the mean of {len(x)} images, {apart:.3f} root mean square an image"
        )


def depth(asked: argparse.Namespace) -> None:
    model = orn.load(asked.run)
    ((d, x, end),) = trajectories(model, asked.count, 1 << 20, batch=asked.count)
    print("| calls in turn | `flow-3m` | `side-by-side` | ratio |\n|---|---|---|---|")
    for calls in (5, 8, 10, 20):
        errors = []
        for solver, steps in (("flow-3m", calls), ("side-by-side", calls - 1)):
            with torch.no_grad():
                times = grids.make(grids.GRID, model.process.schedule, (1.0, 0.0), steps)
                *_, found = SOLVERS[solver](d, x, times, no_noise)
            errors.append(float((found - end).double().square().mean().sqrt()))
        print(f"| {calls} | {errors[0]:.4f} | {errors[1]:.4f} | {errors[1] / errors[0]:.2f} |")


def no_noise(step: int, draw: int = 0) -> Tensor:
    raise AssertionError("these solvers are deterministic")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = parser.add_subparsers(required=True)
    of = ways.add_parser("students")
    of.add_argument("teacher", type=Path)
    of.add_argument("students", nargs="+")
    of.add_argument("-n", type=int, default=1000, help="samples of a set")
    of.add_argument("--seeds", type=int, default=2, help="sets of samples")
    of.add_argument("--train", action="store_true", help="against the training images, where few are held out")
    of.add_argument("--out", type=Path, help="the figures that are kept (default: students.json in the teacher's run)")
    of.set_defaults(do=students)
    of = ways.add_parser("likelihood")
    of.add_argument("run", type=Path)
    of.add_argument("--images", type=int, default=96)
    of.add_argument("--probes", type=int, default=4)
    of.add_argument("--rk4", type=int, nargs="+", default=[128], help="steps of Runge-Kutta; the last is the reference")
    of.set_defaults(do=likelihood)
    of = ways.add_parser("churn")
    of.add_argument("run", type=Path)
    of.add_argument("--steps", type=int, nargs="+", default=[10, 20, 50])
    of.add_argument("--taus", type=float, nargs="+", default=[0.25, 0.5, 1.0], help="amounts of fresh noise")
    of.add_argument("-n", type=int, default=1000, help="samples of a set")
    of.add_argument("--seeds", type=int, default=3, help="sets of samples")
    of.add_argument("--train", action="store_true", help="against the training images, where few are held out")
    of.add_argument("--out", type=Path, help="the figures that are kept (default: churn.json in the run)")
    of.set_defaults(do=churn)
    of = ways.add_parser("depth")
    of.add_argument("run", type=Path)
    of.add_argument("--count", type=int, default=64, help="trajectories")
    of.set_defaults(do=depth)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.do(asked)


if __name__ == "__main__":
    main()

"""Held-out loss against compute: four networks, each at three budgets of processor time, and other batches.

    python benchmarks/scaling.py --data train.zip --size 32 [--nets xs,s,m,l] [--batches 32] [--budgets 1,2.3,5]
        [--seed 0]

One thread, no classes, the settings of `ornstein train`. Until the learning rate decays a run does not depend on its
length (`TrainConfig.learning_rate_at`), so that the budgets of a network share one trunk: from a copy of its checkpoint
at 70 % of each budget the rest is trained with the decay. The step's processor time is measured first and decides the
numbers of steps. The loss is the squared error of v on the first 1000 held-out images, at 1000 fixed times and fixed
noise, of the averaged weights. With --count N the Fréchet distance of N samples too. Finished points are kept in --out
and not repeated. Trainings of another --seed take as many steps and are judged on the same images.

    python benchmarks/scaling.py --out runs/scaling --points benchmarks/scaling.json     # collect the points there
    python benchmarks/scaling.py --report docs/scaling.md --points benchmarks/scaling.json

The report fits the rule of `ornstein.training.scaling` to the points by least squares of log L. It writes the table
between the marks in FILE and the plot beside it, and prints the constants, which are copied into RULE by hand. Their
errors are the deviations of 200 fits to points that are moved by the spread among the seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import least_squares
from torch.utils.flop_counter import FlopCounterMode

from ornstein.data import ImageSet
from ornstein.denoiser import Denoiser
from ornstein.evaluation.features import random_convolutions
from ornstein.evaluation.frechet import frechet_distance
from ornstein.store import atomic_write
from ornstein.training import TrainConfig, train
from ornstein.training.config import DECAY
from ornstein.training.recipe import Settings, new_denoiser, open_data
from ornstein.training.scaling import Rule
from training import ours

LOSS_IMAGES = 1000
MARKS = ("<!-- scaling -->", "<!-- /scaling -->")
# Where the constants are looked for, and how strongly each is held there, in the order of `Rule`.
PRIOR = {"floor": 0.09, "size": 0.01, "size_power": 0.35, "data": 0.035, "data_power": 0.6, "critical_batch": 40.0}
PULL = (0.01, 0.002, 0.05, 0.0, 0.01, 0.02)


@dataclass(frozen=True)
class Case:
    """A network at a batch size, and its data."""

    net: str
    settings: Settings
    images: ImageSet
    kept: ImageSet

    def denoiser(self) -> Denoiser:
        return new_denoiser(self.settings, self.images)

    def config(self, steps: int, checkpoint: int = 10**9) -> TrainConfig:
        return replace(self.settings.config(), steps=steps, checkpoint_every=checkpoint)


def seconds_a_step(case: Case) -> float:
    """Processor seconds of a training step: the median of some after two that warm up."""
    with tempfile.TemporaryDirectory() as folder:
        states = train(case.denoiser(), case.images, case.config(1000), folder)
        each = list(_timed(islice(states, 7)))[2:]
        states.close()
    return statistics.median(each)


def _timed(states: Iterator[Any]) -> Iterator[float]:
    began = time.process_time()
    for _ in states:
        yield time.process_time() - began
        began = time.process_time()


def held_out_loss(d: Denoiser, kept: ImageSet) -> float:
    """Mean squared error of v of the first held-out images, at fixed times and noise."""
    x0 = kept.batch(torch.arange(min(LOSS_IMAGES, len(kept))))[0]
    draw = torch.Generator().manual_seed(0)
    n = len(x0)
    t = ((torch.randperm(n, generator=draw) + 0.5) / n).float()
    z = torch.randn(x0.shape, generator=draw)
    with torch.no_grad():
        losses = [d.loss(x0[i : i + 100], t[i : i + 100], z[i : i + 100]) for i in range(0, n, 100)]
    return float(torch.cat(losses).mean())


def flops_an_image(case: Case) -> float:
    """Floating-point operations of the loss and its gradient for one image."""
    d, x0 = case.denoiser(), case.images.batch([0])[0]
    with FlopCounterMode(display=False) as counter:
        d.loss(x0, torch.full((1,), 0.5), torch.randn_like(x0)).mean().backward()
    return float(counter.get_total_flops())


def measure(case: Case, budgets: list[float], out: Path, count: int) -> None:
    """The points of a case at every budget, into files of `out`."""
    name = f"{case.net}-{case.settings.batch}"
    about_file = out / f"{name}.json"  # of all seeds, so that their points have equal steps
    if not about_file.is_file():
        model = case.denoiser()
        about = {
            "net": case.net,
            "batch": case.settings.batch,
            "parameters": sum(p.numel() for p in model.parameters()),
            "flops_an_image": flops_an_image(case),
            "seconds_a_step": seconds_a_step(case),
        }
        atomic_write(about_file, json.dumps(about).encode())
    about = json.loads(about_file.read_text(encoding="utf-8"))
    name += f"-seed{case.settings.seed}" if case.settings.seed else ""
    trunk = out / name
    for budget in budgets:
        file = out / f"{name}-{budget:g}.json"
        if file.is_file():
            continue
        steps = round(60 * budget / about["seconds_a_step"])
        fork = int((1 - DECAY) * steps)
        if not _at(trunk, fork):
            states = train(case.denoiser(), case.images, case.config(10**6, fork), trunk, trunk.is_dir())
            next(state for state in states if state.step == fork)
            states.close()
        branch = out / f"{name}-{budget:g}"
        if not branch.is_dir():
            shutil.copytree(trunk, out / "partial", dirs_exist_ok=True)
            (out / "partial").rename(branch)
        d = case.denoiser()
        each = list(_timed(train(d, case.images, case.config(steps, 500), branch, True)))
        point = about | {
            "budget": budget,
            "steps": steps,
            "seed": case.settings.seed,
            "loss": held_out_loss(d, case.kept),
        }
        point["seconds_a_step_later"] = statistics.median(each or [about["seconds_a_step"]])
        if count:
            features = random_convolutions(case.kept.images)
            samples = ours(branch, 20, count)[1]
            point["frechet"] = frechet_distance(features(samples), features(case.kept.images))
        atomic_write(file, json.dumps(point).encode())
        print(point, flush=True)


def _at(trunk: Path, step: int) -> bool:
    """Whether the last checkpoint of the trunk is that of a step."""
    config = trunk / "config.json"
    return config.is_file() and json.loads(config.read_text(encoding="utf-8"))["training"]["step"] == step


def averaged(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A point for each network, batch and number of steps: the mean loss over its seeds, and the losses."""
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for p in points:
        cells.setdefault((p["net"], p["batch"], p["steps"]), []).append(p)
    each = [[p["loss"] for p in cell] for cell in cells.values()]
    return [cell[0] | {"loss": statistics.fmean(x), "losses": x} for cell, x in zip(cells.values(), each, strict=True)]


def spread(points: list[dict[str, Any]]) -> float:
    """The standard deviation of log L among seeds, pooled over the averaged points; 0 where each has one seed."""
    several = [[math.log(x) for x in p["losses"]] for p in points if len(p["losses"]) > 1]
    free = sum(len(x) - 1 for x in several)
    return math.sqrt(sum((len(x) - 1) * statistics.variance(x) for x in several) / free) if free else 0.0


def errors_of(points: list[dict[str, Any]], draws: int = 200) -> dict[str, float]:
    """The standard deviations of the constants, over fits to losses moved by the spread among seeds."""
    wide, draw = spread(points), np.random.default_rng(0)

    def moved(p: dict[str, Any]) -> dict[str, Any]:
        return p | {"loss": p["loss"] * math.exp(wide * draw.standard_normal() / math.sqrt(len(p["losses"])))}

    rules = [asdict(fitted([moved(p) for p in points])) for _ in range(draws)]
    return {name: statistics.stdev(rule[name] for rule in rules) for name in rules[0]}


def fitted(points: list[dict[str, Any]]) -> Rule:
    """The rule whose logarithm is nearest to that of the points past their warm-up, by least squares."""
    points = [p for p in points if p["steps"] > TrainConfig().warmup]
    names = [f.name for f in fields(Rule)]

    def off(logarithms: np.ndarray) -> np.ndarray:
        rule = Rule(**dict(zip(names, np.exp(logarithms).tolist(), strict=True)))
        errors = [math.log(rule.loss(p["parameters"], p["steps"], p["batch"]) / p["loss"]) for p in points]
        # so few points leave some constants open: a weak pull to where they were found elsewhere
        pull = [weight * (x - math.log(PRIOR[name])) for name, x, weight in zip(names, logarithms, PULL, strict=True)]
        return np.array(errors + pull)

    start = np.log([PRIOR[name] for name in names])
    found = np.exp(least_squares(off, start).x)
    return Rule(**{name: float(f"{value:.3g}") for name, value in zip(names, found, strict=True)})


def report(points: list[dict[str, Any]], file: Path) -> None:
    """Write the table between the marks of the page and the plot beside it, and print the fitted constants."""
    points = averaged(points)
    rule, off = fitted(points), errors_of(points)
    columns = ("net", "parameters", "batch", "steps", "images", "PFLOP", "processor minutes", "loss", "seeds", "rule")
    rows = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for p in points:
        images = p["batch"] * p["steps"]
        expected = rule.loss(p["parameters"], p["steps"], p["batch"])
        work = images * p["flops_an_image"] / 1e15
        rows.append(
            f"| {p['net']} | {p['parameters']:,} | {p['batch']} | {p['steps']:,} | {images:,} | {work:.3g} "
            f"| {p['budget']:g} | {p['loss']:.4f} | {len(p['losses'])} | {expected:.4f} |"
        )
    past = [p for p in points if p["steps"] > TrainConfig().warmup]
    errors = [abs(rule.loss(p["parameters"], p["steps"], p["batch"]) / p["loss"] - 1) for p in past]
    constants = ", ".join(f"{name} {value:g} ± {off[name]:.1g}" for name, value in asdict(rule).items())
    rows += [
        "",
        f"Constants: {constants}. The deviation among seeds is {100 * spread(points):.1f} % of a loss, and the rule is "
        f"{100 * statistics.fmean(errors):.1f} % from the {len(past)} points that it was fitted to, on average: those "
        "past their warm-up.",
    ]
    head, rest = file.read_text(encoding="utf-8").split(MARKS[0])
    text = "\n".join([head + MARKS[0], "", *rows, "", MARKS[1] + rest.split(MARKS[1])[1]])
    file.write_text(text, encoding="utf-8")
    plot(points, rule, file.with_suffix(".png"))
    print(rule)


def plot(points: list[dict[str, Any]], rule: Rule, file: Path) -> None:
    """Loss over compute: a line of the rule for each network, and the points."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for net in dict.fromkeys(p["net"] for p in points):
        own = [p for p in points if p["net"] == net and p["batch"] == 32]
        work = [p["batch"] * p["steps"] * p["flops_an_image"] / 1e15 for p in own]
        line = axes.plot(work, [p["loss"] for p in own], "o", label=f"{net}, {own[0]['parameters'] / 1e6:.2g} M")[0]
        steps = np.geomspace(0.8 * own[0]["steps"], 6 * own[-1]["steps"], 60)
        losses = [rule.loss(own[0]["parameters"], n, 32) for n in steps]
        axes.plot(steps * 32 * own[0]["flops_an_image"] / 1e15, losses, color=line.get_color(), linewidth=1)
    axes.set(xscale="log", xlabel="training compute, PFLOP", ylabel="held-out error of v")
    axes.set_title("CIFAR-10, batches of 32; lines: the rule", fontsize=10)
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--size", type=int)
    parser.add_argument("--nets", default="xs,s,m,l")
    parser.add_argument("--batches", default="32")
    parser.add_argument("--budgets", default="1,2.3,5", help="processor minutes")
    parser.add_argument("--seed", type=int, default=0, help="of the training; the held-out images stay those of 0")
    parser.add_argument("--count", type=int, default=0, help="samples that are scored")
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"))
    parser.add_argument("--points", type=Path, help="the points of --out, or those to report on")
    parser.add_argument("--report", type=Path, help="a page with the marks")
    arguments = parser.parse_args()
    if arguments.report:
        report(json.loads(arguments.points.read_text(encoding="utf-8")), arguments.report)
        return
    if arguments.points:
        found = (json.loads(file.read_text(encoding="utf-8")) for file in sorted(arguments.out.glob("*.json")))
        points = sorted(
            (p for p in found if "loss" in p), key=lambda p: (p["parameters"], p["batch"], p["steps"], p.get("seed", 0))
        )
        atomic_write(arguments.points, ("[\n" + ",\n".join(map(json.dumps, points)) + "\n]\n").encode())
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    asked = Settings(arguments.data, arguments.size, conditional=False, sample_every=0)
    images, kept, _, _ = open_data(asked)
    assert isinstance(images, ImageSet) and isinstance(kept, ImageSet)
    for batch in map(int, arguments.batches.split(",")):
        for net in arguments.nets.split(","):
            settings = replace(asked, net=net, batch=batch).settled(images.shape[-1], not torch.cuda.is_available())
            settings = replace(settings, seed=arguments.seed)
            budgets = sorted(map(float, arguments.budgets.split(",")))
            measure(Case(net, settings, images, kept), budgets, arguments.out, arguments.count)


if __name__ == "__main__":
    main()

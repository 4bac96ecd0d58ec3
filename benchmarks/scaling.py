"""Held-out loss against compute: four networks, each at three budgets of processor time, and other batches.

    python benchmarks/scaling.py --data train.zip --size 32 [--nets xs,s,m,l] [--batches 32] [--budgets 1,2.3,5]

One thread, no classes, the settings of `ornstein train`. Until the learning rate decays a run does not depend on its
length (`TrainConfig.learning_rate_at`), so that the budgets of a network share one trunk: from a copy of its checkpoint
at 70 % of each budget the rest is trained with the decay. The step's processor time is measured first and decides the
numbers of steps. The loss is the squared error of v on the first 1000 held-out images, at 1000 fixed times and fixed
noise, of the averaged weights. With --count N the Fréchet distance of N samples too. Finished points are kept in --out
and not repeated. With --report FILE the points there are fitted, and the table and the plot written.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ornstein.data import ImageSet
from ornstein.denoiser import Denoiser
from ornstein.evaluation.features import random_convolutions
from ornstein.evaluation.frechet import frechet_distance
from ornstein.store import atomic_write
from ornstein.training import TrainConfig, train
from ornstein.training.config import DECAY
from ornstein.training.recipe import Settings, new_denoiser, open_data
from training import ours

LOSS_IMAGES = 1000


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
    about_file = out / f"{name}.json"
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
        point = about | {"budget": budget, "steps": steps, "loss": held_out_loss(d, case.kept)}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--size", type=int)
    parser.add_argument("--nets", default="xs,s,m,l")
    parser.add_argument("--batches", default="32")
    parser.add_argument("--budgets", default="1,2.3,5", help="processor minutes")
    parser.add_argument("--count", type=int, default=0, help="samples that are scored")
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    asked = Settings(arguments.data, arguments.size, conditional=False, sample_every=0)
    images, kept, _, _ = open_data(asked)
    assert isinstance(images, ImageSet) and isinstance(kept, ImageSet)
    for batch in map(int, arguments.batches.split(",")):
        for net in arguments.nets.split(","):
            settings = replace(asked, net=net, batch=batch).settled(images.shape[-1], not torch.cuda.is_available())
            budgets = sorted(map(float, arguments.budgets.split(",")))
            measure(Case(net, settings, images, kept), budgets, arguments.out, arguments.count)


if __name__ == "__main__":
    main()

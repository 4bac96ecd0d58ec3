"""What each setting of the training recipe is worth: the default of `ornstein train` with one of them changed.

    python benchmarks/levers.py --data train.zip --size 32 [--steps 600] [--seeds 2] [--only default,"net m"]

`--steps` is the number of steps of the default. A row whose steps cost more or less has fewer or more, by the factors
below; the processor seconds of its training are shown. One thread, no classes. The score is the Fréchet distance of
samples at 20 evaluations from the held-out images, in the features of `ornstein evaluate`; beside it stands the loss on
held-out images of benchmarks/scaling.py. Finished trainings and scores are kept in --out and not repeated.

SOAP (Vyas et al. 2024, arXiv:2409.11321) and schedule-free AdamW (Defazio et al. 2024, arXiv:2405.15682) are those of
`pip install --no-deps pytorch-optimizer`. The latter has no decay of the learning rate and no EMA: it averages itself.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from scaling import held_out_loss
from tables import Table
from torch import nn

from ornstein.data import ImageSet, save_grid
from ornstein.evaluation.features import random_convolutions
from ornstein.evaluation.frechet import frechet_distance
from ornstein.store import atomic_write
from ornstein.training import TrainConfig, loop, train
from ornstein.training.recipe import Settings, new_denoiser, open_data
from training import ours

EVALUATIONS = 20
ROWS: dict[str, tuple[dict[str, Any], float]] = {  # of `Settings` and `TrainConfig`, steps as a factor
    "default": ({}, 1.0),
    "AdamW at 0.002": ({"optimizer": "adamw", "learning_rate": 0.002}, 1.2),
    "Muon at 0.002": ({"learning_rate": 0.002}, 1.0),
    "Muon at 0.008": ({"learning_rate": 0.008}, 1.0),
    "SOAP at 0.002": ({"learning_rate": 0.002, "optimizer": "soap"}, 0.8),
    "schedule-free AdamW at 0.002": ({"learning_rate": 0.002, "optimizer": "schedule-free", "ema": 0.0}, 1.2),
    "batches of 16": ({"batch": 16}, 1.6),
    "batches of 128": ({"batch": 128}, 0.3),
    "average of 5 %": ({"ema": 0.05}, 1.0),
    "average of 1 %": ({"ema": 0.01}, 1.0),
    "flip": ({"flip": True}, 1.0),
    "float32": ({"precision": "float32"}, 0.7),
    "net xs": ({"net": "xs"}, 2.5),
    "net m": ({"net": "m"}, 0.35),
    "net dit:xs": ({"net": "dit:xs"}, 0.45),
    "net dit:xs with AdamW at 0.001": ({"net": "dit:xs", "optimizer": "adamw", "learning_rate": 0.001}, 0.45),
    "net dit:s": ({"net": "dit:s"}, 0.21),
    "objective simple": ({"objective": "simple"}, 1.0),
    "objective continuous": ({"objective": "continuous"}, 1.0),
    "objective min-snr": ({"objective": "min-snr"}, 1.0),
    "objective soft-min-snr": ({"objective": "soft-min-snr"}, 1.0),
    "objective sigmoid": ({"objective": "sigmoid"}, 1.0),
    "objective edm": ({"objective": "edm"}, 1.0),
}


def soap(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    from pytorch_optimizer import SOAP  # pyright: ignore[reportMissingImports]

    return SOAP(
        model.parameters(), config.learning_rate, (0.95, 0.95), weight_decay=config.weight_decay,
        precondition_frequency=10, max_precondition_dim=1024,
    )  # fmt: skip


def schedule_free(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    from pytorch_optimizer import ScheduleFreeAdamW  # pyright: ignore[reportMissingImports]

    class ToTheEnd(ScheduleFreeAdamW):
        """Leaves its own average in the weights after the last step."""

        left = config.steps

        def step(self, closure: Any = None) -> Any:
            loss = super().step(closure)
            self.left -= 1
            if not self.left:
                self.eval()
            return loss

    optimizer = ToTheEnd(model.parameters(), config.learning_rate, (0.9, 0.99), weight_decay=config.weight_decay)
    optimizer.train()
    return optimizer


FOREIGN = {"soap": soap, "schedule-free": schedule_free}


@contextmanager
def foreign_optimizer(name: str) -> Iterator[None]:
    """Within it the trainer takes an optimizer that `ornstein train` has not."""
    with ExitStack() as stack:
        if name in FOREIGN:
            stack.enter_context(patch.object(loop, "optimizer_of", FOREIGN[name]))
        if name == "schedule-free":
            constant = lambda self, step, progress: self.learning_rate * min(1.0, (step + 1) / self.warmup)  # noqa: E731
            stack.enter_context(patch.object(TrainConfig, "learning_rate_at", constant))
        yield


def row(name: str, arguments: argparse.Namespace, seed: int) -> dict[str, float]:
    """The scores of the run `name` of a seed; it is trained if they are not there yet."""
    run = arguments.out / f"{name.replace(' ', '-')}-{seed}"
    file = run / "lever.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    changed, factor = ROWS[name]
    changed = dict(changed)
    foreign = changed.pop("optimizer") if changed.get("optimizer") in FOREIGN else ""
    if foreign and run.is_dir():
        shutil.rmtree(run)  # the trainer does not keep the state of these
    asked = Settings(arguments.data, arguments.size, conditional=False, sample_every=0, seed=seed)
    asked = replace(asked, steps=max(1, round(factor * arguments.steps)))
    asked = replace(asked, **{key: value for key, value in changed.items() if key != "ema"})
    images, kept, _, _ = open_data(asked)
    assert isinstance(kept, ImageSet)
    settings = asked.settled(images.shape[-1], not torch.cuda.is_available())
    config = replace(settings.config(), **{key: value for key, value in changed.items() if key == "ema"})
    d = new_denoiser(settings, images)
    began = time.process_time()
    with foreign_optimizer(foreign):
        steps = sum(1 for _ in train(d, images, config, run, run.is_dir()))
    scores = {"steps": steps, "seconds": time.process_time() - began, "loss": held_out_loss(d, kept)}
    features = random_convolutions(kept.images)
    samples = ours(run, EVALUATIONS, arguments.count)[1]
    save_grid(samples[:64], arguments.out / f"{run.name}.png", upscale=2)
    scores["frechet"] = frechet_distance(features(samples), features(kept.images))
    atomic_write(file, json.dumps(scores).encode())
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--size", type=int)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--count", type=int, default=1000, help="samples that are scored")
    parser.add_argument("--only", default=",".join(ROWS), help="rows, with commas between them")
    parser.add_argument("--out", type=Path, default=Path("runs/levers"))
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    for name in names:
        if name not in ROWS:
            parser.error(f"--only {name!r}: there are {', '.join(ROWS)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    table = Table(f"{Path(arguments.data).name}", ["what", "steps", "processor seconds", "loss", "Fréchet", "by seed"])
    for name in names:
        found = []
        for seed in range(arguments.seeds):
            found.append(row(name, arguments, seed))
            Console(stderr=True).print(name, seed, found[-1])
        means = {key: statistics.fmean(each[key] for each in found) for key in found[0]}
        by_seed = ", ".join(f"{each['frechet']:.1f}" for each in found)
        table.add(name, round(means["steps"]), means["seconds"], means["loss"], means["frechet"], by_seed)
    table.show()


if __name__ == "__main__":
    main()

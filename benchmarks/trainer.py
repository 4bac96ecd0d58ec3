"""What the trainer costs beside a plain loop over the same network, in processor time.

    python benchmarks/trainer.py [--cases digits,colour] [--turns 9] [--threads 1]

Both train the same net with the same optimizer on the same data, batches, autocast and loss, in one process and in
turns of a few steps; compared are processor seconds of all threads, so the trainer's loading ahead counts. The plain
loop draws a batch, times and noise, and does loss, backward, the step; "with average" it also clips the gradient and
averages the weights, as the trainer does, in the same calls. All else, addressed randomness, checks for what is not
finite, signals, the curve, several parts and processes, is the trainer's alone. Printed are the medians, and the median
of the ratios of each pair of turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from torch.optim.swa_utils import get_ema_multi_avg_fn

import ornstein as orn
from ornstein.data import batch_indices, open_images
from ornstein.nets import UNet
from ornstein.objectives import low_discrepancy
from ornstein.training import TrainConfig
from ornstein.training.config import ema_decay
from ornstein.training.loader import Images
from ornstein.training.loop import _Run
from ornstein.training.task import Diffusion

# net, side, channels, classes, batch, steps a turn
CASES = {"digits": ("xs", 8, 1, 10, 128, 6), "colour": ("s", 32, 3, 0, 32, 2)}


class Noise:
    """Images that are as large as those of a set and cost as much to gather."""

    def __init__(self, side: int, channels: int) -> None:
        self.pixels = torch.randint(0, 256, (2000, channels, side, side), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, None]:
        return orn.data.to_unit(self.pixels[indices]), None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console(width=140)
    for name in arguments.cases.split(","):
        preset, side, channels, classes, batch, steps = CASES[name]
        images: Images = open_images("digits") if name == "digits" else Noise(side, channels)
        config = TrainConfig(steps=10**6, batch=batch, optimizer="muon", learning_rate=4e-3, checkpoint_every=10**6)
        with tempfile.TemporaryDirectory() as folder:

            def run(
                out: str, data: Images = images, config: TrainConfig = config, folder: str = folder
            ) -> _Run[orn.Denoiser]:
                torch.manual_seed(0)
                net = UNet.preset(preset, channels=channels, size=side, classes=classes)  # noqa: B023
                denoiser = orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), prediction="v")
                return _Run(Diffusion(denoiser, config), data, config, Path(folder) / out)

            ours = run("ours")
            ours.begin(resume=False)
            states = ours.steps()
            loops = {"ours": lambda states=states: next(states)}
            loops |= {
                f"plain, {what}": plain(run(what), average)
                for what, average in (("with average", True), ("bare", False))
            }
            seconds: dict[str, list[float]] = {key: [] for key in loops}
            for turn in range(arguments.turns + 1):
                for key, step in loops.items():
                    began = time.process_time()
                    for _ in range(steps):
                        step()
                    if turn:  # the first warms up
                        seconds[key].append((time.process_time() - began) / steps)
            states.close()
        size = sum(p.numel() for p in ours.parameters)
        console.print(
            f"{name}: {size:,} parameters, {batch} images of {channels}x{side}x{side}, {ours.dtype or 'float32'}"
        )
        for key, own in seconds.items():
            ratio = statistics.median(a / b for a, b in zip(seconds["ours"], own, strict=True))
            console.print(f"  {key:20} {1000 * statistics.median(own):7.1f} ms a step   ours / this {ratio:.3f}")


def plain(run: _Run[orn.Denoiser], average: bool) -> Callable[[], None]:
    """A step of the loop that one would write oneself, on the model and the optimizer of `run`."""
    d, config, step = run.model.train(), run.config, iter(range(10**9))
    classes = getattr(d.net, "config", {})["classes"]

    def once() -> None:
        k = next(step)
        x0, labels = run.images.batch(batch_indices(len(run.images), config.batch, k, 0))
        t, z = low_discrepancy(len(x0)).float(), torch.randn_like(x0)
        cond = {}
        if classes and labels is not None:
            cond["label"] = labels.masked_fill(torch.rand(len(x0)) < config.condition_dropout, -1)
        with torch.autocast("cpu", run.dtype or torch.bfloat16, enabled=run.dtype is not None):
            loss = d.loss(x0, t, z, **cond).mean()
        loss.backward()
        if average:
            torch.nn.utils.clip_grad_norm_(run.parameters, config.clip)
        run.optimizer.step()
        run.optimizer.zero_grad()
        if average:
            get_ema_multi_avg_fn(ema_decay(run.exponent, k + 1))(run.averages, run.parameters, k)

    return once


if __name__ == "__main__":
    main()

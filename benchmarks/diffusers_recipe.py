"""Unconditional training as diffusers' own example does it, for so many minutes: the peer of benchmarks/training.py.

    python benchmarks/diffusers_recipe.py --data DATA --size 32 --minutes 10 --parameters 3900000 --seed 0 --out DIR

The network is that of its DDPM for CIFAR-10 (two blocks a level, widths 1, 2, 2, 2, attention at the second), as wide
as comes nearest to `--parameters`; on smaller images with fewer levels. The settings are the example's defaults: noise
prediction on 1000 linear steps of DDPM, batches of 16, AdamW at 1e-4 (0.95, 0.999; decay 1e-6), warm-up over 500 steps
and a cosine to 0, gradients clipped at 1, an average of the weights of up to 0.9999 by (1 + step)^-3/4, float32. The
length of the cosine is what fits into the minutes, by the first steps' pace. Written is a pipeline of the average.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from ornstein.data import open_images
from ornstein.store import atomic_write

BATCH, RATE, WARMUP, PACED = 16, 1e-4, 500, 20
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.monotonic, "processor": time.process_time}
_HELD_OUT = 0.1  # `ornstein train` holds out as much: both train on the same images


def network(size: int, channels: int, parameters: int) -> Any:
    """The UNet2DModel whose number of parameters is nearest."""
    import diffusers

    levels = next(n for n in (4, 3, 2) if size % 2 ** (n - 1) == 0 and (size >> (n - 1) >= 4 or n == 2))
    sizes = []
    for width in range(16, 257, 8):
        down, up = ["DownBlock2D"] * levels, ["UpBlock2D"] * levels
        down[1], up[-2] = "AttnDownBlock2D", "AttnUpBlock2D"
        settings = {
            "sample_size": size,
            "in_channels": channels,
            "out_channels": channels,
            "layers_per_block": 2,
            "block_out_channels": (width, *[2 * width] * (levels - 1)),
            "norm_num_groups": 8,
            "down_block_types": tuple(down),
            "up_block_types": tuple(up),
        }
        with torch.device("meta"):
            count = sum(p.numel() for p in diffusers.UNet2DModel(**settings).parameters())
        sizes.append((abs(count - parameters), settings))
        if count > parameters:
            break
    return diffusers.UNet2DModel(**min(sizes, key=lambda pair: pair[0])[1])


def warmed_cosine(step: int, length: int) -> float:
    """The share of the learning rate at a step: it rises over the warm-up, and falls on half a cosine."""
    if step < WARMUP:
        return step / WARMUP
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - WARMUP) / (length - WARMUP))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--size", type=int)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="processor: seconds of each thread")
    parser.add_argument("--parameters", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--beta-schedule", default="linear", help="linear, or squaredcos_cap_v2 for the cosine one")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    import diffusers
    from diffusers.training_utils import EMAModel

    images = open_images(arguments.data, arguments.size).split(_HELD_OUT, arguments.seed)[0]
    torch.manual_seed(arguments.seed)
    model = network(images.shape[-1], images.shape[0], arguments.parameters)
    scheduler = diffusers.DDPMScheduler(1000, beta_schedule=arguments.beta_schedule)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, (0.95, 0.999), 1e-8, 1e-6)
    average = EMAModel(model.parameters(), 0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    draw = torch.Generator().manual_seed(arguments.seed)
    order = torch.empty(0, dtype=torch.int64)
    step, length, seconds, losses = 0, WARMUP + 1, 60 * arguments.minutes, []
    clock, threads = CLOCKS[arguments.clock], torch.get_num_threads() if arguments.clock == "processor" else 1
    seconds, start = seconds * threads, clock()
    while (elapsed := clock() - start) < seconds:
        if step == PACED:
            length = max(round(PACED * seconds / elapsed), WARMUP + 1)
        optimizer.param_groups[0]["lr"] = RATE * warmed_cosine(step, length)
        if len(order) < BATCH:
            order = torch.randperm(len(images), generator=draw)
        rows, order = order[:BATCH], order[BATCH:]
        x0 = images.batch(rows)[0]
        z = torch.randn(x0.shape, generator=draw)
        k = torch.randint(0, 1000, (len(x0),), generator=draw)
        loss = F.mse_loss(model(scheduler.add_noise(x0, z, k), k).sample, z)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(model.parameters())
        step += 1
        losses.append(loss.detach())
    average.copy_to(model.parameters())
    diffusers.DDPMPipeline(model, scheduler).save_pretrained(arguments.out)
    record = {
        "steps": step,
        "images": BATCH * step,
        "images_per_second": BATCH * step / elapsed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": float(torch.stack(losses[-100:]).mean()),
    }
    atomic_write(arguments.out / "recipe.json", json.dumps(record, indent=1).encode())


if __name__ == "__main__":
    main()

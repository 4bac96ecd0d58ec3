"""How much of a training's time its data take: digits, CIFAR-10, and photographs in memory and streamed.

    python benchmarks/loader.py [--cifar ZIP] [--lfw ZIP] [--steps 20] [--threads 1]

Each trains the default net of its size for some steps with the trainer as it is. Printed are the share of the steps'
time in which they waited for their batch, and the processor time that making the batches took, as a share of all. An
archive that is not given is left out. Streamed photographs are decoded anew each time they are read.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ornstein.data import ImageSet, StreamedSet, open_images, open_streamed
from ornstein.training import train
from ornstein.training.loader import Images
from ornstein.training.recipe import Settings, new_denoiser


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--lfw", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table = Table("data", "net", "batch", "s a step", "waiting", "processor time of the data")
    cases = [("digits", "digits", None, False)]
    if arguments.cifar:
        cases += [("CIFAR-10", arguments.cifar, 32, False)]
    if arguments.lfw:
        cases += [("LFW at 64, in memory", arguments.lfw, 64, False), ("LFW at 64, streamed", arguments.lfw, 64, True)]
    for name, source, size, stream in cases:
        images = open_streamed(source, size) if stream else open_images(source, size)
        assert images is not None
        table.add_row(name, *measured(images, str(source), arguments.steps, arguments.batch))
    Console(width=110).print(table)


def measured(images: ImageSet | StreamedSet, source: str, steps: int, batch: int) -> list[str]:
    """Net, batch, seconds a step, share of waiting, share of processor time for the data."""
    settings = Settings(data=source, steps=steps, batch=batch, conditional=False, checkpoint_every=10**6)
    denoiser = new_denoiser(settings, images)
    counted = _Counted(images)
    with tempfile.TemporaryDirectory() as folder:
        began, clock = time.process_time(), time.perf_counter()
        for _ in train(denoiser, counted, settings.config(), folder):
            pass
        spent, seconds = time.process_time() - began, (time.perf_counter() - clock) / steps
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    ends = [0, *(line["step"] for line in lines)]
    waiting = sum(line["data_wait"] * (b - a) for line, a, b in zip(lines, ends, ends[1:], strict=False)) / steps
    made = counted.made
    began = time.process_time()
    for i in range(5):
        images.batch(range(i * batch, (i + 1) * batch))
    data = (time.process_time() - began) / 5 * made
    size = sum(p.numel() for p in denoiser.parameters())
    return [f"{size / 1e6:.1f}M", str(batch), f"{seconds:.2f}", f"{waiting:.1%}", f"{data / spent:.1%}"]


class _Counted:
    """The images, and how many batches were asked of them."""

    def __init__(self, images: Images) -> None:
        self.images, self.made = images, 0
        if hasattr(images, "order"):
            self.order = images.order  # pyright: ignore[reportAttributeAccessIssue]

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        self.made += 1
        return self.images.batch(indices)


if __name__ == "__main__":
    main()

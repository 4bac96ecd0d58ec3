"""What a GPU does with Ornstein: the tests, training, sampling and memory on it, and the table of docs/gpu.md.

    python benchmarks/gpu.py                                # all parts but cifar
    python benchmarks/gpu.py --data train.zip               # the CIFAR-10 training images as a zip of pictures: all
    python benchmarks/gpu.py --parts training,sampling --write docs/gpu.md

Parts, each kept as PART.json in --out when it is done and not repeated, so that the command can be cut off and go on:
tests (the quick suite, whose commands take the GPU by themselves), training (images a second, peak memory, with and
without `--compile`), sampling (the same, by precision), cifar (`ornstein train` for 10 minutes and resumed to 20, with
the Frechet distance at both), processes (two GPUs beside one). Every ratio is of two figures of one process, in turns.
On a machine without a GPU it measures the CPU, to see that it works.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tables import Table, machine, versions

import ornstein as orn
from ornstein.cli.bench import timed
from ornstein.compiling import compile_network
from ornstein.data import open_images
from ornstein.devices import choose_device, choose_precision
from ornstein.evaluation.features import open_features
from ornstein.evaluation.frechet import frechet_distance
from ornstein.store import atomic_write
from ornstein.training import TrainConfig, recipe, train

BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
CASES = (("unet:s", 32, 128), ("unet:m", 64, 64), ("dit:s", 32, 128))  # net, side, batch
TURNS = 5


class Noise:
    """Images of a size, of noise: what they show does not matter here."""

    def __init__(self, side: int) -> None:
        self.x0 = torch.rand(512, 3, side, side) * 2 - 1
        self.shape, self.classes = (3, side, side), ()

    def __len__(self) -> int:
        return len(self.x0)

    def batch(self, indices: torch.Tensor | Sequence[int], /) -> tuple[torch.Tensor, None]:
        return self.x0[torch.as_tensor(indices)], None


def model(net: str, side: int, device: torch.device) -> orn.Denoiser:
    settings = recipe.Settings("noise", side, net=net, conditional=False)  # pyright: ignore[reportArgumentType]
    return recipe.new_denoiser(settings, Noise(side), None, device)  # pyright: ignore[reportArgumentType]


def peak(device: torch.device) -> float:
    """Bytes at most since the last call; nan on a CPU."""
    if device.type != "cuda":
        return float("nan")
    most = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return float(most)


def training(options: argparse.Namespace, device: torch.device) -> list[Table]:
    """Steps of the trainer itself: data on the CPU, pinned copies, autocast, clipping, the average of the weights."""
    columns = ["network", "side", "batch", "precision", "images/s", "compiled", "ratio", "peak GB"]
    table = Table("Training", columns, note="Images a second of `ornstein train`, and with `--compile`.")
    for net, side, batch in options.cases:
        for precision in options.precisions:
            speeds, most = [], 0.0
            for compile in (False, True) if options.compile else (False,):
                config = TrainConfig(steps=10**6, batch=batch, precision=precision, compile=compile)
                with tempfile.TemporaryDirectory() as folder:
                    states: Any = train(model(net, side, device), Noise(side), config, folder)
                    with closing(states):
                        for _ in range(5):  # the first ones compile and fill caches
                            next(states)
                        began, steps = time.perf_counter(), 0
                        while time.perf_counter() - began < options.seconds:
                            next(states)  # a step reads its loss, so it has ended
                            steps += 1
                        speeds.append(batch * steps / (time.perf_counter() - began))
                most = most or peak(device)
            both = (speeds[1], speeds[1] / speeds[0]) if len(speeds) > 1 else ("-", "-")
            table.add(net, side, batch, precision, speeds[0], *both, most / 2**30)
    return [table]


def sampling(options: argparse.Namespace, device: torch.device) -> list[Table]:
    """`orn.sample` with the default solver: images a second, what the compiled network gains, the share outside it."""
    columns = ["network", "side", "batch", "precision", "images/s", "compiled", "ratio", "outside the network"]
    table = Table("Sampling", columns, note=f"{options.steps} steps; the median of {TURNS}.")
    for net, side, batch in options.cases:
        for precision in options.precisions:
            denoiser, dtype = model(net, side, device).eval(), choose_precision(precision, device)
            draw = partial(timed, denoiser, "flow-3m", options.steps, batch, dtype)
            speeds, outside = [], 0.0
            for compile in (False, True) if options.compile else (False,):
                if compile:
                    compile_network(denoiser, draw)
                timings = [draw() for _ in range(TURNS + 1)][1:]
                speeds.append(batch / statistics.median(t.total for t in timings))
                outside = outside or statistics.median(t.outside for t in timings)
            both = (speeds[1], speeds[1] / speeds[0]) if len(speeds) > 1 else ("-", "-")
            table.add(net, side, batch, precision, speeds[0], *both, f"{outside:.1%}")
    return [table]


def cifar(options: argparse.Namespace, device: torch.device) -> list[Table]:
    """A run of --minutes, and the same run resumed to twice that, with its distance at both."""
    columns = ["minutes", "steps", "images", "loss", "Frechet distance"]
    table = Table("CIFAR-10", columns, note=f"`ornstein train --minutes`; {options.samples} samples of 20 steps.")
    images = open_images(options.data, 32)
    features = open_features("conv", device)(images.images)
    real = features(images.images[: options.samples])
    out = options.out / "cifar"
    for minutes in (options.minutes, 2 * options.minutes):
        resume = (out / "train.json").is_file()
        more: dict[str, Any] = {"minutes": minutes, "report": False, "device": str(device), "resume": resume}
        run = recipe.train(options.data, out, **more) if resume else recipe.train(options.data, out, size=32, **more)
        d: Any = run.model
        labels = d.data.labels(options.samples)
        cond = {} if labels is None else {"label": labels}
        x = orn.sample(d, (options.samples, 3, 32, 32), "flow-3m", 20, batch=256, cond=cond)
        distance = frechet_distance(features(orn.data.to_uint8(x.cpu())), real)
        last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
        table.add(minutes, last["step"], last["step"] * run.settings.batch, last["loss"], distance)
    return [table]


def processes(options: argparse.Namespace, device: torch.device) -> list[Table]:
    """The same batch a process on one GPU and on two."""
    table = Table("Processes", ["processes", "images/s", "ratio"], note="`torchrun`, the same batch a process.")
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        table.note = "This machine has one GPU: not measured."
        return [table]
    speeds = []
    for count in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            launched = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), "-m", "ornstein"]
            wanted = ["train", "--data", "digits", "--out", f"{folder}/run", "--steps", "200", "--no-report"]
            wanted += ["--batch", str(128 * count), "--sample-every", "0"]
            subprocess.run([*launched, *wanted], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
            line = json.loads((Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()[-1])
            speeds.append(line["images_per_second"])
        table.add(count, speeds[-1], speeds[-1] / speeds[0])
    return [table]


def tests(options: argparse.Namespace, device: torch.device) -> list[Table]:
    """The quick suite; commands and models in it take the GPU by themselves."""
    table = Table("Tests", ["passed", "skipped", "failed", "seconds"], note='`pytest -m "not slow"`.')
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-n", str(os.cpu_count()), "--dist", "loadscope", "-m", "not slow"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    last = ended.stdout.strip().splitlines()[-1]
    words = last.replace(",", "").split()
    counts = [words[words.index(k) - 1] if k in words else "0" for k in ("passed", "skipped", "failed")]
    table.add(*counts, time.monotonic() - began)
    print("\n".join(line for line in ended.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))))
    return [table]


PARTS = {"tests": tests, "training": training, "sampling": sampling, "cifar": cifar, "processes": processes}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data", help="the CIFAR-10 training images, for the part cifar")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each training")
    parser.add_argument("--steps", type=int, default=20, help="of the sampler")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the first part of cifar")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--precisions", default="float32,bf16,fp16")
    parser.add_argument("--cases", default=";".join(f"{n},{s},{b}" for n, s, b in CASES), help="NET,SIDE,BATCH;...")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--write", type=Path, help="put the tables into this page")
    options = parser.parse_args(arguments)
    device = choose_device(options.device)
    if device.type == "cpu":
        options.precisions = options.precisions.replace(",fp16", "")  # CPUs have none
    options.precisions = options.precisions.split(",")
    cases = (case.split(",") for case in options.cases.split(";"))
    options.cases = [(net, int(side), int(batch)) for net, side, batch in cases]
    options.out.mkdir(parents=True, exist_ok=True)
    unknown = set(options.parts.split(",")) - PARTS.keys()
    if unknown:
        parser.error(f"no part {min(unknown)!r}: {', '.join(PARTS)}")
    for name in options.parts.split(","):
        kept = options.out / f"{name}.json"
        if kept.is_file() or (name == "cifar" and options.data is None):
            continue
        tables = PARTS[name](options, device)
        for table in tables:
            table.show()
        record = {"machine": f"{machine(torch.get_num_threads())}; {versions('torch')}", "seconds": options.seconds}
        atomic_write(kept, json.dumps(record | {"tables": [t.to_config() for t in tables]}, indent=1).encode())
    if options.write:
        written(options.write, [json.loads(f.read_text()) for n in PARTS if (f := options.out / f"{n}.json").is_file()])


def written(page: Path, records: list[dict[str, Any]]) -> None:
    """Put the tables between the two marks of a page."""
    text = page.read_text()
    before, rest = text.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    blocks = [Table(**t).markdown() for record in records for t in record["tables"]]
    about = sorted({record["machine"] for record in records})
    atomic_write(page, "\n\n".join([before + BEGIN, "; ".join(about), *blocks, END + after]).encode())


if __name__ == "__main__":
    main()

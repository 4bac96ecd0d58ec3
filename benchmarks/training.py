"""Quality per hour: `ornstein train` as it is, beside diffusers' unconditional recipe, at equal wall-clock time.

    python benchmarks/training.py                                             # the digits, 2 minutes, 3 seeds
    python benchmarks/training.py --data train.zip --size 32 --minutes 10
    python benchmarks/training.py --data train.zip --size 32 --minutes 40 --seeds 1

Both train at the same time, each with half as many threads as there are cores, so that other work on the machine slows
both. They have the same images, the same number of parameters and no classes. The averaged weights are scored by
Fréchet and kernel distance in the features of `ornstein evaluate`, on the same held-out images: at 20 evaluations, and
at the best of 10, 20 and 50. Ours are sampled by `dpmpp-3m`, theirs by diffusers' DDIM and DPM-Solver++, of which the
better one counts. Finished trainings and scores are kept in --out and not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import ornstein as orn
from ornstein.data import ImageSet, open_images, save_grid, to_uint8
from ornstein.evaluation.features import random_convolutions
from ornstein.evaluation.frechet import frechet_distance, real_floor
from ornstein.evaluation.kernel import kernel_distance
from ornstein.store import atomic_write

HERE = Path(__file__).parent
EVALUATIONS = (20, 10, 50)  # the first one is what is compared with every seed
BATCH = 100
TOLD = Console(stderr=True, width=160)
Scores = dict[str, dict[str, float]]


def train_both(arguments: argparse.Namespace, seed: int) -> None:
    """Both recipes from `seed`, at once, each with half as many threads as there are cores."""
    folders = {who: arguments.out / f"{who}-{seed}" for who in ("ours", "theirs")}
    done = {"ours": folders["ours"] / "done.json", "theirs": folders["theirs"] / "recipe.json"}
    if all(file.is_file() for file in done.values()):
        return
    size = [] if arguments.size is None else ["--size", str(arguments.size)]
    common = ["--data", arguments.data, *size, "--minutes", str(arguments.minutes), "--seed", str(seed)]
    parameters = arguments.parameters or sum(p.numel() for p in _untrained(arguments).net.parameters())
    command = {
        "ours": [sys.executable, "-m", "ornstein", "train", *common, "--no-conditional", "--sample-every", "0"],
        "theirs": [sys.executable, str(HERE / "diffusers_recipe.py"), *common, "--parameters", str(parameters)],
    }
    if arguments.net:
        command["ours"] += ["--net", arguments.net]
    command["theirs"] += ["--beta-schedule", arguments.beta_schedule]
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // 2))}
    running = {}
    for who in command:
        log = (arguments.out / f"{who}-{seed}.log").open("w")
        told = {"stdout": log, "stderr": subprocess.STDOUT}
        running[who] = subprocess.Popen([*command[who], "--out", str(folders[who])], env=environment, **told)
    for who, process in running.items():
        if process.wait():
            raise SystemExit(f"{who} failed: see {arguments.out / f'{who}-{seed}.log'}")
    lines = (folders["ours"] / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    record = {"steps": last["step"], "images_per_second": last["images_per_second"], "loss": last["loss"]}
    atomic_write(done["ours"], json.dumps(record, indent=1).encode())


def _untrained(arguments: argparse.Namespace) -> orn.Denoiser:
    from ornstein.training.recipe import Settings, new_denoiser

    images = open_images(arguments.data, arguments.size)
    settings = Settings(arguments.data, arguments.size, conditional=False, net=arguments.net or "auto")
    return new_denoiser(settings, images)


def ours(run: Path, evaluations: int, count: int) -> tuple[str, torch.Tensor]:
    d = orn.load(run)
    assert d.data is not None
    parts = [
        orn.sample(d, (min(BATCH, count - i), *d.data.shape), "dpmpp-3m", evaluations, seed=1, first=i)
        for i in range(0, count, BATCH)
    ]
    return "dpmpp-3m", to_uint8(torch.cat(parts))


def theirs(folder: Path, evaluations: int, count: int, sampler: str) -> tuple[str, torch.Tensor]:
    import diffusers

    pipeline = diffusers.DDPMPipeline.from_pretrained(folder, use_safetensors=True)
    kind = {"DDIM": diffusers.DDIMScheduler, "DPM-Solver++": diffusers.DPMSolverMultistepScheduler}[sampler]
    scheduler = kind.from_config(pipeline.scheduler.config)
    model = pipeline.unet.eval()
    shape = (model.config.in_channels, model.config.sample_size, model.config.sample_size)
    parts = []
    with torch.no_grad():
        for i in range(0, count, BATCH):
            scheduler.set_timesteps(evaluations)  # it remembers its last steps
            draw = torch.Generator().manual_seed(i + 1)
            x = torch.randn((min(BATCH, count - i), *shape), generator=draw) * scheduler.init_noise_sigma
            for k in scheduler.timesteps:
                x = scheduler.step(model(scheduler.scale_model_input(x, k), k).sample, k, x).prev_sample
            parts.append(x)
    return sampler, to_uint8(torch.cat(parts))


def held_out(arguments: argparse.Namespace, seed: int) -> ImageSet:
    """The images that `ornstein train --seed SEED` holds out, and the peer too."""
    return open_images(arguments.data, arguments.size).split(0.1, seed)[1]


def score(arguments: argparse.Namespace, seed: int, every: bool) -> Scores:
    """The scores of both at 20 evaluations, with `every` at the others too; by whose, sampler and evaluations."""
    file = arguments.out / f"scores-{seed}.json"
    scores: Scores = json.loads(file.read_text()) if file.is_file() else {}
    kept = held_out(arguments, seed).images
    features = random_convolutions(kept)
    real = features(kept)
    for n in EVALUATIONS if every else EVALUATIONS[:1]:
        for who, sampler in (("ours", ""), ("theirs", "DPM-Solver++"), ("theirs", "DDIM")):
            key = f"{who} {sampler} {n}"
            if key in scores:
                continue
            folder = arguments.out / f"{who}-{seed}"
            _, images = (
                ours(folder, n, arguments.count) if who == "ours" else theirs(folder, n, arguments.count, sampler)
            )
            kernel = kernel_distance(features(images), real)
            scores[key] = {
                "frechet": frechet_distance(features(images), real),
                "kernel": kernel.value,
                "kernel_error": kernel.error,
            }
            save_grid(images[:64], arguments.out / f"{key.replace(' ', '-').replace('--', '-')}-{seed}.png", upscale=2)
            TOLD.print(f"seed {seed}: {key}: {scores[key]}")
            atomic_write(file, json.dumps(scores, indent=1).encode())
    return scores


def report(arguments: argparse.Namespace, scores: list[Scores]) -> Table:
    """One row for each number of evaluations: both and the ratio, over seeds."""
    title = f"{Path(arguments.data).name}, {arguments.minutes:g} minutes each, {len(scores)} seeds"
    table = Table(title=title)
    for name in ("evaluations", "measure", "ours", "diffusers", "by", "ratio"):
        table.add_column(name)

    def row(name: str, pick: Any) -> None:
        for measure in ("frechet", "kernel"):
            own, other, by = [], [], set()
            for each in scores:
                own.append(min(v[measure] for k, v in each.items() if k.startswith("ours") and pick(k)))
                best = min((v[measure], k) for k, v in each.items() if k.startswith("theirs") and pick(k))
                other.append(best[0])
                by.add(best[1].removeprefix("theirs "))
            ratios = [a / b for a, b in zip(own, other, strict=True)]
            table.add_row(name, measure, _spread(own), _spread(other), ", ".join(sorted(by)), _spread(ratios))

    row("20", lambda key: key.endswith(" 20"))
    if all(len(each) > 3 for each in scores):
        row("the best of 10, 20, 50", lambda key: True)
    kept = held_out(arguments, 0).images
    floor = real_floor(random_convolutions(kept)(kept))
    table.caption = f"{arguments.count} samples against {len(kept)} held-out images; real halves: {floor:.3g}"
    return table


def _spread(values: list[float]) -> str:
    middle = statistics.median(values)
    return f"{middle:.3g}" if len(values) == 1 else f"{middle:.3g} ({min(values):.3g} to {max(values):.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--size", type=int)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, default=1000, help="samples that are scored")
    parser.add_argument("--net", help="of `ornstein train`; by default its own choice")
    parser.add_argument("--parameters", type=int, help="of their network; by default as many as ours")
    parser.add_argument("--beta-schedule", default="linear", help="of theirs: linear, or squaredcos_cap_v2")
    parser.add_argument("--every", type=int, default=1, help="seeds that are scored at other evaluations too")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.out is None:
        name = f"{Path(arguments.data).stem}-{arguments.minutes:g}"
        arguments.out = Path("runs/bench-train") / name
    arguments.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    for seed in range(arguments.seeds):
        began = time.monotonic()
        train_both(arguments, seed)
        TOLD.print(f"seed {seed}: trained in {time.monotonic() - began:.0f} s")
    scores = [score(arguments, seed, seed < arguments.every) for seed in range(arguments.seeds)]
    Console(width=160).print(report(arguments, scores))


if __name__ == "__main__":
    main()

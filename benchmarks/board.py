"""Quality at equal time: `ornstein train` and the recipes of four peers, in one run on the same cores.

    python benchmarks/board.py --data train.zip --size 32 --minutes 10 [--clock processor] [--only ours,plain]

Two train at once, each with half as many threads as there are cores, ours beside the strongest peer: other work on the
machine slows both. `--clock processor` counts the processor seconds of each instead of the wall clock, on a machine
that is shared. All have the same images, no classes, and as many parameters as ours, whose network and batch are
`ornstein plan`'s choice unless given. The peers: benchmarks/peer_recipes.py, and diffusers' own recipe
(benchmarks/diffusers_recipe.py). Averaged weights are scored by Fréchet distance of samples at 20 evaluations to the
held-out images, in each space of --features; all are sampled by `dpmpp-3m` at the same levels, those with a network of
diffusers by its DDIM and DPM-Solver++ too, of which the best counts. The loss is the squared error of v on held-out
images at fixed times and noise of the cosine process, also of those that were trained with another. Finished trainings
and scores are kept in --out and not repeated.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peer_recipes import CLOCKS, RECIPES, RECORD
from peer_recipes import load as load_peer
from rich.console import Console
from tables import Table, machine

import ornstein as orn
from ornstein.data import ImageSet, open_images, save_grid, to_uint8
from ornstein.evaluation.features import open_features
from ornstein.evaluation.frechet import frechet_distance, real_floor
from ornstein.store import atomic_write
from ornstein.training import loop
from ornstein.training.plan import Likeness, by_rule, planned
from ornstein.training.recipe import Settings, new_denoiser
from training import ours as sample_ours
from training import theirs as sample_theirs

HERE = Path(__file__).parent
EVALUATIONS, BATCH, LOSS_IMAGES = 20, 100, 1000
NEEDS = {"azula": ("azula", "einops"), "lucidrains": ("denoising_diffusion_pytorch", "einops", "ema_pytorch")}
TOLD = Console(stderr=True, width=160)


def train_ours(arguments: argparse.Namespace) -> None:
    """`orn.train` by the clock that was asked for, in a process of its own."""
    if arguments.clock == "processor":
        per_thread = lambda: time.process_time() / torch.get_num_threads()  # noqa: E731
        loop.time = SimpleNamespace(monotonic=per_thread, perf_counter=time.perf_counter)
    run = orn.train(
        arguments.data, arguments.out, size=arguments.size, minutes=arguments.minutes, seed=arguments.seed,
        net=arguments.net or "auto", batch=arguments.batch, conditional=False, sample_every=0, report=False,
        resume=arguments.out.is_dir(), device="cpu",
    )  # fmt: skip
    last = json.loads((arguments.out / "metrics.jsonl").read_text().splitlines()[-1])
    batch = run.settings.batch or 0
    record = {"recipe": "ours", "net": run.settings.net, "batch": batch, "steps": last["step"]}
    record |= {"images": batch * last["step"], "parameters": sum(p.numel() for p in run.model.parameters())}
    atomic_write(arguments.out / RECORD, json.dumps(record, indent=1).encode())


def choose_ours(arguments: argparse.Namespace) -> None:
    """Network and batch of ours where they were not given: the plan's, by half of the cores; kept in --out."""
    file = arguments.out / "plan.json"
    if arguments.net is None or arguments.batch is None:
        if not file.is_file():
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // 2))
            asked = Settings(arguments.data, arguments.size, minutes=arguments.minutes, conditional=False)
            asked = replace(asked, net=arguments.net or "auto", batch=arguments.batch)
            likeness = Likeness.of(open_images(arguments.data, arguments.size))
            if by_rule(asked, likeness):
                choice = planned(asked, likeness, torch.device("cpu"))
                asked = replace(asked, net=choice.speed.net, batch=choice.batch)
            settled = asked.settled(likeness.shape[-1], True)
            chosen = {"net": settled.preset(likeness.shape[-1], False, True), "batch": settled.batch}
            atomic_write(file, json.dumps(chosen).encode())
        chosen = json.loads(file.read_text(encoding="utf-8"))
        arguments.net, arguments.batch = chosen["net"], chosen["batch"]


def command(who: str, arguments: argparse.Namespace, parameters: int) -> list[str]:
    size = [] if arguments.size is None else ["--size", str(arguments.size)]
    common = ["--data", arguments.data, *size, "--minutes", str(arguments.minutes), "--clock", arguments.clock]
    common += ["--seed", str(arguments.seed), "--out", str(arguments.out / who)]
    if who == "ours":
        chosen = ["--net", arguments.net, "--batch", str(arguments.batch)]
        return [sys.executable, str(HERE / "board.py"), *common, *chosen, "--train-ours"]
    script = ["diffusers_recipe.py"] if who == "diffusers" else ["peer_recipes.py", who]
    return [sys.executable, str(HERE / script[0]), *script[1:], *common, "--parameters", str(parameters)]


def train_all(arguments: argparse.Namespace, names: list[str]) -> None:
    """Every recipe that is not trained yet, two at a time."""
    images = open_images(arguments.data, arguments.size)
    settings = Settings(arguments.data, arguments.size, conditional=False, net=arguments.net)
    parameters = arguments.parameters or sum(p.numel() for p in new_denoiser(settings, images).net.parameters())
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // 2))}
    waiting = [who for who in names if not (arguments.out / who / RECORD).is_file()]
    for pair in (waiting[i : i + 2] for i in range(0, len(waiting), 2)):
        running = {}
        for who in pair:
            told = {"stdout": (arguments.out / f"{who}.log").open("w"), "stderr": subprocess.STDOUT}
            running[who] = subprocess.Popen(command(who, arguments, parameters), env=environment, **told)
        for who, process in running.items():
            if process.wait():
                raise SystemExit(f"{who} failed: see {arguments.out / f'{who}.log'}")


def opened(who: str, folder: Path) -> orn.Denoiser:
    return orn.load(folder) if who in ("ours", "diffusers") else load_peer(folder)


def held_out_loss(d: orn.Denoiser, kept: ImageSet) -> float:
    """Squared error of v of the cosine process; the denoiser is asked at the time of its own process of that level."""
    x0 = kept.batch(torch.arange(min(LOSS_IMAGES, len(kept))))[0]
    draw, cosine = torch.Generator().manual_seed(0), orn.schedules.Cosine()
    n = len(x0)
    t = (torch.randperm(n, generator=draw).double() + 0.5) / n
    z = torch.randn(x0.shape, generator=draw)
    own = d.process.schedule.time(cosine.log_snr(t)).clamp(0, 1)
    losses = []
    with torch.no_grad():
        for i in range(0, n, BATCH):
            part = slice(i, i + BATCH)
            guess = d(d.process.add_noise(x0[part], own[part], z[part]), own[part]).x0
            weight = 1 / cosine.sigma(t[part]) ** 2
            losses.append(weight * (guess - x0[part]).square().flatten(1).mean(1))
    return float(torch.cat(losses).mean())


def samples_of(who: str, folder: Path, count: int) -> dict[str, torch.Tensor]:
    """Samples by the solvers that count, by name."""
    if who == "ours":
        return dict([sample_ours(folder, EVALUATIONS, count)])
    d = opened(who, folder)
    assert d.data is not None
    parts = [
        orn.sample(d, (min(BATCH, count - i), *d.data.shape), "dpmpp-3m", EVALUATIONS, seed=1, first=i)
        for i in range(0, count, BATCH)
    ]
    found = {"dpmpp-3m": to_uint8(torch.cat(parts))}
    if who in ("plain", "diffusers"):
        found |= dict(sample_theirs(folder, EVALUATIONS, count, name) for name in ("DDIM", "DPM-Solver++"))
    return found


def score(who: str, arguments: argparse.Namespace, kept: ImageSet) -> dict[str, Any]:
    """The record of a training with its scores, computed once."""
    folder, file = arguments.out / who, arguments.out / f"{who}-scores.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    scores = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    scores["loss"] = held_out_loss(opened(who, folder), kept)
    spaces = [open_features(which)(kept.images) for which in arguments.features.split(",")]
    for solver, images in samples_of(who, folder, arguments.count).items():
        save_grid(images[:64], arguments.out / f"{who}-{solver}.png", upscale=2)
        for which, features in zip(arguments.features.split(","), spaces, strict=True):
            value = frechet_distance(features(images), features(kept.images))
            if value < scores.get(which, (float("inf"),))[0]:
                scores[which] = (value, solver)
    atomic_write(file, json.dumps(scores, indent=1).encode())
    TOLD.print(who, scores)
    return scores


def report(arguments: argparse.Namespace, scores: dict[str, dict[str, Any]], kept: ImageSet) -> Table:
    """A row for each recipe, and ours by the best of the peers."""
    spaces = arguments.features.split(",")
    columns = ["recipe", "parameters", "steps", "images", "loss", *(f"Fréchet, {name}" for name in spaces)]
    clock = "processor minutes" if arguments.clock == "processor" else "minutes"
    table = Table(f"{Path(arguments.data).name}, {arguments.minutes:g} {clock} each, seed {arguments.seed}", columns)
    for who, each in scores.items():
        values = [f"{each[name][0]:.3g} ({each[name][1]})" for name in spaces]
        table.add(who, f"{each['parameters']:,}", each["steps"], each.get("images", "-"), each["loss"], *values)
    peers = [each for who, each in scores.items() if who != "ours"]
    if peers and "ours" in scores:
        ratios = [scores["ours"][name][0] / min(each[name][0] for each in peers) for name in spaces]
        table.add("ours by the best peer", "", "", "", "", *(f"{ratio:.2f}" for ratio in ratios))
    for who, needs in NEEDS.items():
        if who in arguments.only.split(",") and who not in scores:
            missing = ", ".join(name for name in needs if importlib.util.find_spec(name) is None)
            table.add(who, f"not run: {missing} not installed", "", "", "", *("" for _ in spaces))
    real = {which: open_features(which)(kept.images)(kept.images) for which in spaces}
    floors = ", ".join(f"{which} {real_floor(features):.3g}" for which, features in real.items())
    table.note = (
        f"{arguments.count} samples against {len(kept)} held-out images at {EVALUATIONS} evaluations; between halves "
        f"of the real images: {floors}. {machine(max(1, len(os.sched_getaffinity(0)) // 2))} by each."
    )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--size", type=int)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="processor: seconds of each thread")
    parser.add_argument("--net", help="of ours; by default the choice of the plan")
    parser.add_argument("--batch", type=int, help="of ours; by default the choice of the plan")
    parser.add_argument("--parameters", type=int, help="of the peers; by default as many as ours")
    parser.add_argument("--only", default=",".join(["ours", "plain", "azula", "diffusers", "lucidrains"]))
    parser.add_argument("--features", default="conv,pixels", help="of `ornstein evaluate`: names or TorchScript files")
    parser.add_argument("--count", type=int, default=1000, help="samples that are scored")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="write the table into this file")
    parser.add_argument("--train-ours", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.train_ours:
        train_ours(arguments)
        return
    names = arguments.only.split(",")
    for name in names:
        if name not in ("ours", "diffusers", *RECIPES):
            parser.error(f"--only {name!r}: there are ours, diffusers, {', '.join(RECIPES)}")
    stem = f"{Path(arguments.data).stem}-{arguments.minutes:g}-{arguments.clock}-{arguments.seed}"
    arguments.out = arguments.out or Path("runs/board") / stem
    arguments.out.mkdir(parents=True, exist_ok=True)
    names = [who for who in names if all(importlib.util.find_spec(each) for each in NEEDS.get(who, ()))]
    choose_ours(arguments)
    train_all(arguments, names)
    kept = open_images(arguments.data, arguments.size).split(0.1, arguments.seed)[1]
    table = report(arguments, {who: score(who, arguments, kept) for who in names}, kept)
    table.show()
    if arguments.report:
        atomic_write(arguments.report, table.markdown().encode())


if __name__ == "__main__":
    main()

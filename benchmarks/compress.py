"""Quality of compressed models against their multiply-adds and milliseconds, beside random pruning and from scratch.

    python benchmarks/compress.py --data digits --net s --steps 1500 --batch 64 --work runs/compress-digits
    python benchmarks/compress.py --data CIFAR.zip --teacher runs/cifar --seeds 0 --work runs/compress-cifar
    python benchmarks/compress.py --plot docs/images/compress.png --work runs/compress-digits,runs/compress-cifar

A criterion of `depthN` is taylor with N % of what is saved by leaving out branches.

For each seed a teacher is trained (or --teacher taken), then pruned to each --macs by each criterion and fine-tuned for
a tenth of the processor time of the teacher's training; and a net of the shape of the first of them is trained from
scratch for all of that time. The Fréchet distance is in random convolutional features, of the same noise for all
models, from the training images. A step is one evaluation of the network on a batch, in turn with the teacher's, the
least of several, in processor time. What is done is kept in --work, and a second call goes on from there.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import ornstein as orn
from ornstein import checkpoint
from ornstein.compress.budget import network_macs
from ornstein.data import to_uint8
from ornstein.denoiser import Denoiser
from ornstein.evaluation import frechet_distance
from ornstein.evaluation.features import Features, open_features
from ornstein.evaluation.few_steps import Way
from ornstein.training.jobs import new_job
from ornstein.training.recipe import Split, in_memory, open_data
from ornstein.training.settings import SETTINGS, Settings

SHARE = 0.1
_BATCH = 32  # of a timed step
_FEATURES_OF = 5000  # real images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--net", default="s")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--macs", default="0.5")
    parser.add_argument("--criteria", default="taylor,magnitude,random,scratch")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--sampling-steps", type=int, default=10)
    parser.add_argument("--work", default="runs/compress")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.plot is not None:
        plot([Path(each) for each in arguments.work.split(",")], arguments.plot)
        return
    for seed in map(int, arguments.seeds.split(",")):
        one_seed(arguments, seed, Path(arguments.work))
    show(Path(arguments.work))


def one_seed(arguments: argparse.Namespace, seed: int, work: Path) -> None:
    """The rows of one seed; each is kept as soon as it is known."""
    file = work / f"rows-{seed}.json"
    rows: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else {}

    def keep(name: str, row: Callable[[], dict[str, Any]]) -> None:
        if name not in rows:
            rows[name] = row()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(rows, indent=1) + "\n")

    run = arguments.teacher or work / f"teacher-{seed}"
    if arguments.teacher is None and not (run / "report.done").exists():
        options = {"net": arguments.net, "steps": arguments.steps, "batch": arguments.batch, "seed": seed}
        orn.train(arguments.data, run, resume=(run / SETTINGS).exists(), report=False, device="cpu", **options)
        (run / "report.done").touch()
    settings = Settings.stored(run / SETTINGS)
    split = open_data(settings)
    teacher = checkpoint.load(run)
    steps = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    judge = Judge(split, arguments, seed, teacher)
    # The teacher's training in units of one of its own steps; the others are given as many of theirs as cost the same.
    unit = training_cost(teacher, None, settings)
    keep("teacher", lambda: judge(teacher) | {"steps": steps})
    for macs in map(float, arguments.macs.split(",")):
        kinds = arguments.criteria.split(",")
        for criterion in (kind for kind in kinds if kind != "scratch"):
            out = work / f"{criterion}-{macs:g}-{seed}"

            def tuned(criterion: str = criterion, macs: float = macs, out: Path = out) -> dict[str, Any]:
                about = {"criterion": criterion}
                if criterion.startswith("depth"):
                    about = {"criterion": "taylor", "depth": float(criterion.removeprefix("depth")) / 100}
                options = {"macs": macs, "seed": seed, **about}
                probe = orn.compress(run, out / "probe", report=False, **options, steps=1).model
                count = int(SHARE * steps * unit / training_cost(probe, teacher, settings))
                options |= {"steps": count}
                small = orn.compress(
                    run, out / "run", resume=(out / "run" / "compress.json").exists(), report=False, **options
                ).model
                return judge(small) | {"steps": count}

            keep(out.name.rpartition("-")[0], tuned)

        def scratch(macs: float = macs, first: str = kinds[0]) -> dict[str, Any]:
            out = work / f"scratch-{macs:g}-{seed}"
            shape = checkpoint.load(work / f"{first}-{macs:g}-{seed}" / "run")
            torch.manual_seed(seed)
            fresh = copy.deepcopy(shape)
            fresh.net = type(shape.net)(**shape.net.config)
            count = int(steps * unit / training_cost(fresh, None, settings))
            own = replace(settings, steps=count, minutes=None, sample_every=0)
            job = new_job(own, split.train, split.held_out, out, (out / "state").exists(), torch.device("cpu"), fresh)
            for _ in job.states:
                pass
            return judge(fresh) | {"steps": count}

        if "scratch" in kinds:
            keep(f"scratch-{macs:g}", scratch)


class Judge:
    """The row of a model: its multiply-adds, parameters, milliseconds and Fréchet distance."""

    def __init__(self, split: Split, arguments: argparse.Namespace, seed: int, teacher: Denoiser) -> None:
        images = in_memory(split.train).images  # pyright: ignore[reportArgumentType]
        real = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:_FEATURES_OF]]
        self.features: Features = open_features("conv")(real)
        self.known = self.features(real)
        self.count, self.steps, self.seed, self.teacher = arguments.samples, arguments.sampling_steps, seed, teacher

    def __call__(self, model: Denoiser) -> dict[str, Any]:
        assert model.data is not None
        model = copy.deepcopy(model).eval()
        own, of = milliseconds(model, self.teacher)
        x = Way("", model, self.steps, "flow-3m").draw(model.data.labels(self.count), self.count, self.seed)
        return {
            "macs": network_macs(model.net, model.data.shape),
            "parameters": sum(p.numel() for p in model.net.parameters()),
            "milliseconds": own,
            "time": own / of,
            "frechet": frechet_distance(self.features(to_uint8(model.decode(x))), self.known),
            "features": self.features.name,
        }


def milliseconds(*models: Denoiser) -> list[float]:
    """Processor time of one evaluation of each model on a batch, the least of fifteen in turn."""
    assert models[0].data is not None
    x, log_snr = torch.randn(_BATCH, *models[0].data.shape), torch.zeros(_BATCH)
    with torch.inference_mode():
        return [1000 * each for each in least(15, *(lambda m=m: m.net(x, log_snr) for m in models))]


def training_cost(model: Denoiser, teacher: Denoiser | None, settings: Settings) -> float:
    """Processor seconds of loss and gradient on a batch, with the teacher's prediction if there is one."""
    assert model.data is not None and settings.batch is not None
    model = copy.deepcopy(model).train()
    x, log_snr = torch.randn(settings.batch, *model.data.shape), torch.zeros(settings.batch)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            model.net(x, log_snr).float().square().mean().backward()
            if teacher is not None:
                with torch.no_grad():
                    teacher.net(x, log_snr)

    return least(5, step)[0]


def least(times: int, *runs: Callable[[], object]) -> list[float]:
    """The least processor seconds of each; they run in turn, so that what else the machine does meets all."""
    found: list[list[float]] = [[] for _ in runs]
    for turn in range(times + 1):
        for each, run in zip(found, runs, strict=True):
            began = time.process_time()
            run()
            if turn:
                each.append(time.process_time() - began)
    return [min(each) for each in found]


def means(work: Path) -> list[dict[str, Any]]:
    """By model: the mean over the seeds of its figures, and of its distance over the teacher's of the same seed."""
    seeds = [json.loads(f.read_text()) for f in sorted(work.glob("rows-*.json"))]
    out = []
    for name in seeds[0]:
        rows = [(s[name], s["teacher"]) for s in seeds if name in s]
        ratios = sorted(row["frechet"] / of["frechet"] for row, of in rows)
        out.append(
            {
                "name": name,
                "macs": sum(row["macs"] / of["macs"] for row, of in rows) / len(rows),
                "time": sum(row["time"] for row, _ in rows) / len(rows),
                "milliseconds": sum(row["milliseconds"] for row, _ in rows) / len(rows),
                "parameters": sum(row["parameters"] for row, _ in rows) / len(rows),
                "steps": sum(row["steps"] for row, _ in rows) / len(rows),
                "frechet": sum(row["frechet"] for row, _ in rows) / len(rows),
                "ratio": sum(ratios) / len(ratios),
                "ratios": ratios,
            }
        )
    return out


def show(work: Path) -> None:
    """Print the table."""
    table = Table(
        "model", "multiply-adds", "parameters", "ms of a step", "training steps", "Fréchet", "of the teacher's"
    )
    for row in means(work):
        spread = f" ({row['ratios'][0]:.2f} to {row['ratios'][-1]:.2f})" if len(row["ratios"]) > 1 else ""
        table.add_row(
            row["name"], f"{row['macs']:.3f}", f"{row['parameters']:,.0f}",
            f"{row['milliseconds']:.1f} ({row['time']:.2f}x)", f"{row['steps']:.0f}", f"{row['frechet']:.4g}",
            f"{row['ratio']:.2f}{spread}",
        )  # fmt: skip
    Console(width=140).print(table)


def plot(works: list[Path], path: Path) -> None:
    """Draw the Fréchet distance over the teacher's against multiply-adds and against milliseconds."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(works), 2, figsize=(9, 3.4 * len(works)), squeeze=False, sharey="row")
    marks = {
        "teacher": "k*",
        "taylor": "C0o",
        "magnitude": "C2s",
        "random": "C1^",
        "scratch": "C3x",
        "depth50": "C4D",
        "depth100": "C5v",
    }
    for line, work in zip(axes, works, strict=True):
        for row in means(work):
            kind = row["name"].split("-")[0]
            for axis, of in zip(line, ("macs", "milliseconds"), strict=True):
                axis.plot([row[of]] * len(row["ratios"]), row["ratios"], marks[kind], label=kind, alpha=0.8)
        for axis, label in zip(line, ("multiply-adds, of the teacher's", f"ms of a step of {_BATCH}"), strict=True):
            axis.set_xlabel(label)
            axis.axhline(1.25, color="0.6", linewidth=0.8, linestyle="--")
        line[0].set_ylabel("Fréchet distance / teacher's")
        line[0].set_title(work.name.removeprefix("compress-"), loc="left")
        line[1].legend(*unique(line[1]), fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def unique(axis: Any) -> tuple[list[Any], list[str]]:
    """Handles and labels of a legend, each label once."""
    by_label = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    return list(by_label.values()), list(by_label)


if __name__ == "__main__":
    main()

"""The experiment of source S2: does noise correlated over frames as the data are make better clips in fewer steps?

Same network, data, seeds and training steps; only the covariance C differs. Each (source, C, seed) is trained and
sampled once and kept as a JSON file, so that the run can be stopped and gone on with; the table and the figure are made
of all of them.

    python evidence/structured_noise.py --out runs/evidence-noise             # all that is missing
    python evidence/structured_noise.py --out runs/evidence-noise --part 0/2  # every second one, to share the work
    python evidence/structured_noise.py --out runs/evidence-noise --report docs/structured-noise-results.md
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

import ornstein as orn
from ornstein.data import open_clips
from ornstein.evaluation import clip_features, clip_frechet, correlation_error, flicker
from ornstein.noise import ClipStatistics, Covariance, Identity
from ornstein.noise.config import to_config
from ornstein.store import atomic_write
from ornstein.training import TrainConfig, train
from ornstein.training.precision import autocast_within

SOURCES = ("drifting-textures", "moving-digits")
STEPS = (4, 8, 16, 32)
FRAMES, SIZE = 8, 16
SAMPLES = 96
GAMMAS = (0.5, 0.8, 0.95)


@cache
def covariances(source: str) -> dict[str, Covariance]:
    """Every C of the experiment, fitted to 512 clips of the source."""
    clips = open_clips(source, FRAMES, SIZE).batch(torch.arange(512))[0]
    fitted = ClipStatistics.of(clips)
    return {
        "I": Identity(),
        "Mixed": fitted.mixed(),
        "AR1": fitted.ar1(),
        "Toeplitz": fitted.toeplitz(),
        "SpectralAR1": fitted.spectral(),
        **{f"C_{g:g}": fitted.blend(g) for g in GAMMAS},
    }


def one(source: str, name: str, noise: Covariance, seed: int, steps: int, scratch: Path) -> dict[str, object]:
    """Train, sample at every number of steps, measure against held-out clips."""
    clips = open_clips(source, FRAMES, SIZE)
    training, held_out = clips.split(0.1, seed=0)
    torch.manual_seed(seed)
    net = orn.nets.VideoUNet(1, SIZE, FRAMES, width=32, multipliers=(1, 1), depths=(1, 1), attention=(8,))
    denoiser = orn.Denoiser(net, orn.Process(orn.schedules.Cosine(), noise), "v")
    config = TrainConfig(steps=steps, batch=8, learning_rate=2e-3, seed=seed, checkpoint_every=steps)
    began = time.process_time()
    loss = [state.loss for state in train(denoiser, training, config, scratch)]
    seconds = time.process_time() - began
    real = held_out.batch(torch.arange(SAMPLES))[0]
    rows = []
    for n in STEPS:
        with autocast_within(net, torch.device("cpu"), torch.bfloat16):  # as in training
            x = orn.sample(denoiser, (SAMPLES, 1, FRAMES, SIZE, SIZE), solver="dpmpp-2m", steps=n, seed=seed, batch=32)
        x = x.clamp(-1, 1)
        rows.append({"steps": n, **measure(x, real)})
    other = training.batch(torch.arange(SAMPLES))[0]
    return {
        "source": source,
        "noise": name,
        "covariance": to_config(noise),
        "seed": seed,
        "training_steps": steps,
        "cpu_seconds": seconds,
        "loss": statistics.fmean(loss[-50:]),
        "rows": rows,
        "training_clips": measure(other, real),
        "data_flicker": flicker(real),
    }


def measure(x: Tensor, real: Tensor) -> dict[str, float]:
    """Frechet distance, flicker over that of the data, correlation error by lag and by frequency."""
    error = correlation_error(x, real)
    return {
        # 16 directions: with this many clips more of them would measure little but their number
        "frechet": clip_frechet(x, real, partial(clip_features, dim=16)).value,
        "flicker": flicker(x) / flicker(real),
        "by_lag": error.by_lag,
        "by_frequency": error.by_frequency,
    }


def report(folder: Path, path: Path) -> None:
    """The table of means and spreads over seeds, and the figure beside it."""
    results = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    names = list(covariances(SOURCES[0]))
    lines = [
        "| source | C | seeds | " + " | ".join(f"Fréchet, {n} steps" for n in STEPS) + " | "
        + " | ".join(f"flicker, {n} steps" for n in STEPS) + " | correlation error by lag, 8 steps |",
        "|---" * (4 + 2 * len(STEPS)) + "|",
    ]  # fmt: skip
    for source in SOURCES:
        of_source = [r for r in results if r["source"] == source]
        for name in names:
            runs = [r for r in of_source if r["noise"] == name]
            if not runs:
                continue
            cells = [_spread(runs, "frechet", n) for n in STEPS] + [_spread(runs, "flicker", n) for n in STEPS]
            lines.append(f"| {source} | {name} | {len(runs)} | {' | '.join(cells)} | {_spread(runs, 'by_lag', 8)} |")
        if of_source:
            floor = statistics.fmean(r["training_clips"]["frechet"] for r in of_source)
            shake = statistics.fmean(r["training_clips"]["flicker"] for r in of_source)
            lag = statistics.fmean(r["training_clips"]["by_lag"] for r in of_source)
            empty = " |" * (len(STEPS) - 1)
            lines.append(f"| {source} | *training clips* | | {floor:.3f} |{empty} {shake:.2f} |{empty} {lag:.3f} |")
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, ("\n".join(lines) + "\n").encode())
    _figure(results, names, path.with_suffix(".png"))


def _values(runs: list[dict], metric: str, steps: int) -> list[float]:
    return [row[metric] for r in runs for row in r["rows"] if row["steps"] == steps]


def _spread(runs: list[dict], metric: str, steps: int) -> str:
    values = _values(runs, metric, steps)
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3g}{spread}"


def _figure(results: list[dict], names: list[str], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    metrics = (("frechet", "Fréchet distance"), ("flicker", "flicker / that of the data"))
    figure, axes = pyplot.subplots(len(metrics), len(SOURCES), figsize=(11, 8), squeeze=False)
    for column, source in enumerate(SOURCES):
        for row, (metric, label) in enumerate(metrics):
            panel = axes[row][column]
            for k, name in enumerate(names):
                runs = [r for r in results if r["source"] == source and r["noise"] == name]
                if not runs:
                    continue
                mean = [statistics.fmean(_values(runs, metric, n)) for n in STEPS]
                low = [min(_values(runs, metric, n)) for n in STEPS]
                high = [max(_values(runs, metric, n)) for n in STEPS]
                style = {"color": "black", "linewidth": 2} if name == "I" else {"color": f"C{k}"}
                panel.plot(STEPS, mean, marker="o", label=name, **style)
                panel.fill_between(STEPS, low, high, color=style["color"], alpha=0.1, linewidth=0)
            floor = [r["training_clips"][metric] for r in results if r["source"] == source]
            if floor:
                panel.axhline(statistics.fmean(floor), color="grey", linestyle=":", label="training clips")
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xticks(STEPS, [str(n) for n in STEPS])
            panel.set_xlabel("steps")
            panel.set_ylabel(label)
            panel.set_title(source)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/evidence-noise"))
    parser.add_argument("--steps", type=int, default=300, help="training steps")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", default="0/1", help="i/n: only every n-th, from the i-th")
    parser.add_argument("--report", type=Path, help="write the table here, and the figure beside it, and stop")
    arguments = parser.parse_args()
    if arguments.report is not None:
        report(arguments.out, arguments.report)
    else:
        part, parts = map(int, arguments.part.split("/"))
        jobs = [(s, n, seed) for seed in range(arguments.seeds) for s in SOURCES for n in covariances(s)]
        for source, name, seed in jobs[part::parts]:
            file = arguments.out / f"{source}-{name}-{seed}-{arguments.steps}.json"
            if file.exists():
                continue
            scratch = arguments.out / "models" / file.stem
            shutil.rmtree(scratch, ignore_errors=True)  # half a training of a run that was stopped
            result = one(source, name, covariances(source)[name], seed, arguments.steps, scratch)
            atomic_write(file, json.dumps(result, indent=1).encode())
            print(
                file.stem, *(f"{r['steps']}: {r['frechet']:.3f} {r['flicker']:.2f}" for r in result["rows"]), flush=True
            )


if __name__ == "__main__":
    main()

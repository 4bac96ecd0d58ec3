"""The experiment of source S2: does noise that is correlated over frames as the data are make better clips in fewer steps?

Same network, data, seeds and training steps; only the covariance C differs. Each (source, C, seed) is trained and sampled
once and kept as a JSON file, so that the run can be stopped and gone on with; the table and the figure are made of all
of them.

    python evidence/structured_noise.py --out runs/evidence-noise            # everything that is missing, then the table
    python evidence/structured_noise.py --out runs/evidence-noise --part 0/2 # every second one, to share the work
    python evidence/structured_noise.py --out runs/evidence-noise --report docs/structured-noise-results.md
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

import ornstein as orn
from ornstein.data import open_clips
from ornstein.evaluation import clip_frechet, correlation_error, flicker
from ornstein.files import atomic_write
from ornstein.noise import ClipStatistics, Covariance, Identity
from ornstein.noise.config import from_config, to_config
from ornstein.training import TrainConfig, train

SOURCES = ("drifting-textures", "moving-digits")
STEPS = (4, 8, 16, 32)
FRAMES, SIZE = 8, 16
SAMPLES = 128
GAMMAS = (0.5, 0.8, 0.95)


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
    config = TrainConfig(steps=steps, batch=16, learning_rate=2e-3, seed=seed, checkpoint_every=steps)
    began = time.process_time()
    loss = [state.loss for state in train(denoiser, training, config, scratch)]
    seconds = time.process_time() - began
    real = held_out.batch(torch.arange(SAMPLES))[0]
    rows = []
    for n in STEPS:
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
        "frechet": clip_frechet(x, real).value,
        "flicker": flicker(x) / flicker(real),
        "by_lag": error.by_lag,
        "by_frequency": error.by_frequency,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/evidence-noise"))
    parser.add_argument("--steps", type=int, default=400, help="training steps")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", default="0/1", help="i/n: only every n-th, from the i-th")
    parser.add_argument("--report", type=Path, help="write the table here, and the figure beside it, and stop")
    arguments = parser.parse_args()
    if arguments.report is None:
        part, parts = map(int, arguments.part.split("/"))
        jobs = [(s, n, seed) for seed in range(arguments.seeds) for s in SOURCES for n in covariances(s)]
        for source, name, seed in jobs[part::parts]:
            file = arguments.out / f"{source}-{name}-{seed}-{arguments.steps}.json"
            if file.exists():
                continue
            scratch = arguments.out / "models" / file.stem
            for old in (scratch / "metrics.jsonl",):
                old.unlink(missing_ok=True)
            result = one(source, name, covariances(source)[name], seed, arguments.steps, scratch)
            atomic_write(file, json.dumps(result, indent=1).encode())
            print(file.stem, *(f"{r['steps']}: {r['frechet']:.3f} {r['flicker']:.2f}" for r in result["rows"]), flush=True)


if __name__ == "__main__":
    main()

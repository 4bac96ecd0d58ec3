"""The experiment on structured noise: does a covariance of the noise make better clips, or the same in fewer steps?

Same network, data, seeds and training steps; only the noise and the space of the loss differ. A cell is (source, noise,
space, seed): it is trained and sampled once, at every number of steps, and kept as a JSON file, so that the run can be
stopped and gone on with; the table and the figure are made of the cells that are there, and say which.

    python evidence/structured_noise.py --out runs/evidence-noise                          # all that is missing
    python evidence/structured_noise.py --out runs/evidence-noise --only bouncing-balls    # cells with this in the name
    python evidence/structured_noise.py --out runs/evidence-noise --part 0/2               # every second one
    python evidence/structured_noise.py --out runs/evidence-noise --colours --seeds 3      # noise with a colour alone
    python evidence/structured_noise.py --out runs/evidence-noise --report docs/structured-noise-cells.md

The source "bikes" is a real video, cut into patches (`real_clips.py`); its motion is estimated.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Iterable
from functools import cache, partial
from itertools import product
from pathlib import Path

import torch
from PIL import Image
from real_clips import patches
from torch import Tensor

import ornstein as orn
from ornstein.data import Clips, open_clips, save_gif, save_sheet
from ornstein.data.flow import FlowFile, estimate_flow, flow_of
from ornstein.evaluation import clip_features, clip_frechet, correlation_error, flicker, motion_error, warp_error
from ornstein.noise import Carried, ClipStatistics, Covariance, Identity
from ornstein.solvers import coloured
from ornstein.solvers.coloured import COLOURS
from ornstein.store import atomic_write
from ornstein.training import TrainConfig, run_task
from ornstein.training.carried import Rows
from ornstein.training.task import Diffusion

SOURCES = ("drifting-textures", "moving-digits", "bouncing-balls", "bikes")
NOISES = ("I", "Mixed", "AR1", "Toeplitz", "SpectralAR1", "EqualSNR", "Warped")
SPACES = ("pixel", "whitened")
STEPS = (4, 8, 32)
FRAMES, SIZE = 8, 16
SAMPLES = 96
BOUND = 16  # clips whose likelihood is bounded, by so many steps
DEGRADE = 0.1  # of warped noise
STOCHASTIC_STEPS = 20  # of the comparison of colours


@cache
def clips_of(source: str) -> tuple[Clips, Clips]:
    """Clips to train on and held-out ones."""
    if source == "bikes":
        return patches(source, FRAMES, SIZE, 68)
    return open_clips(source, FRAMES, SIZE).split(0.1, seed=0)


@cache
def covariances(source: str) -> dict[str, Covariance]:
    """Every C of the experiment, fitted to 512 clips of the source."""
    clips = clips_of(source)[0].batch(torch.arange(512))[0]
    fitted = ClipStatistics.of(clips)
    return {
        "I": Identity(),
        "Mixed": fitted.mixed(),
        "AR1": fitted.ar1(),
        "Toeplitz": fitted.toeplitz(),
        "SpectralAR1": fitted.spectral(),
        "EqualSNR": fitted.equal_snr(),
        "Warped": Carried(DEGRADE),
    }


def trained(
    source: str, noise: Covariance, space: str, seed: int, steps: int, scratch: Path
) -> tuple[orn.Denoiser, list[float], float]:
    """The model, its losses, and the seconds of processor time."""
    training, _ = clips_of(source)
    torch.manual_seed(seed)
    net = orn.nets.VideoUNet(1, SIZE, FRAMES, width=32, multipliers=(1, 1), depths=(1, 1), attention=(8,))
    denoiser = orn.Denoiser(net, orn.Process(orn.schedules.Cosine(), noise), "v")
    config = TrainConfig(
        steps=steps, batch=8, learning_rate=2e-3, seed=seed, checkpoint_every=steps, loss_space=space
    )  # fmt: skip
    began = time.process_time()
    carried = isinstance(noise, Carried)
    task = Diffusion(denoiser, config, flows=FlowFile(training, None, None) if carried else None)
    loss = [state.loss for state in run_task(task, Rows(training) if carried else training, config, scratch)]
    shutil.rmtree(scratch)
    return denoiser, loss, time.process_time() - began


def one(source: str, name: str, space: str, seed: int, steps: int, scratch: Path) -> dict[str, object]:
    """Train, sample at every number of steps, measure against held-out clips and the motion that these have."""
    noise = covariances(source)[name]
    denoiser, loss, seconds = trained(source, noise, space, seed, steps, scratch)
    carried = isinstance(noise, Carried)
    training, held_out = clips_of(source)
    rows = torch.arange(SAMPLES)
    real, flow = held_out.batch(rows)[0], flow_of(held_out, rows)
    cond = {"flow": flow} if carried else {}
    made = []
    for n in STEPS:
        shape = (SAMPLES, 1, FRAMES, SIZE, SIZE)
        x = orn.sample(
            denoiser, shape, solver="dpmpp-2m", steps=n, seed=seed, batch=32, cond=cond, precision=torch.bfloat16
        ).clamp(-1, 1)
        made.append({"steps": n, **measure(x, real, flow)})
        if seed == 0 and n == 8:
            save_sheet(torch.cat([real[:4], x[:4]]), scratch.with_suffix(".png"), upscale=3)
            for i in range(2):
                save_gif(x[i], scratch.with_name(f"{scratch.name}-{i}.gif"), 8.0, 6)
    return {
        "source": source,
        "noise": name,
        "space": space,
        "seed": seed,
        "training_steps": steps,
        "cpu_seconds": seconds,
        "loss": statistics.fmean(loss[-50:]),
        "rows": made,
        "bits": None if carried else bits(denoiser, real),
        "training_clips": measure(training.batch(rows)[0], real, flow_of(training, rows)),
        "data_flicker": flicker(real),
    }


def colours(source: str, seed: int, steps: int, scratch: Path) -> dict[str, object]:
    """A model of white noise, sampled by stochastic steps whose fresh noise is white, or has a colour."""
    denoiser, *_ = trained(source, Identity(), "pixel", seed, steps, scratch)
    rows = torch.arange(SAMPLES)
    held_out = clips_of(source)[1]
    real, flow = held_out.batch(rows)[0], flow_of(held_out, rows)
    made: dict[str, dict[str, float]] = {}
    for name, table in (("white", [[1.0]]), *COLOURS.items(), ("none", [[0.0]])):
        solver = partial(coloured, table=table)
        shape = (SAMPLES, 1, FRAMES, SIZE, SIZE)
        x = orn.sample(
            denoiser, shape, solver=solver, steps=STOCHASTIC_STEPS, seed=seed, batch=32, precision=torch.bfloat16
        )
        made[name] = measure(x.clamp(-1, 1), real, flow)
    return {"source": source, "seed": seed, "training_steps": steps, "colours": made}


def bits(denoiser: orn.Denoiser, real: Tensor) -> float:
    """The bound on the bits per dimension of a few held-out clips."""
    bound = orn.likelihood.vlb(denoiser, real[:BOUND], steps=1000, terms=BOUND, batch=32)
    nats = (bound.prior + bound.diffusion + bound.reconstruction).mean()
    return float(nats) / real[0].numel() / 0.6931471805599453


def measure(x: Tensor, real: Tensor, flow: Tensor) -> dict[str, float]:
    """Frechet distance, flicker over that of the data, correlation error by lag; error of motion and of warping.

    `flow` is the motion of the real clips, which clips x in warped noise were asked for.
    """
    error = correlation_error(x, real)
    return {
        # 16 directions: with this many clips more of them would measure little but their number
        "frechet": clip_frechet(x, real, partial(clip_features, dim=16)).value,
        "flicker": flicker(x) / flicker(real),
        "by_lag": error.by_lag,
        "by_frequency": error.by_frequency,
        "motion": float(motion_error(estimate_flow(x), flow).mean()),
        "warp": float(warp_error(x, flow).mean()),
    }


def report(folder: Path, path: Path) -> None:
    """The table of means and spreads over seeds, and the figure beside it."""
    found = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    results = [r for r in found if "rows" in r]
    metrics = {"frechet": "Fréchet", "flicker": "flicker", "motion": "motion error"}
    columns = [f"{label}, {n} steps" for label in metrics.values() for n in STEPS]
    lines = [
        *_preface(results),
        f"| source | noise | loss | training steps | seeds | {' | '.join(columns)} | warp error, 8 steps | bits/dim |",
        "|---" * (7 + len(columns)) + "|",
    ]
    for source in SOURCES:
        of_source = [r for r in results if r["source"] == source]
        for name in NOISES:
            for space, steps in product(SPACES, sorted({r["training_steps"] for r in of_source})):
                runs = [r for r in of_source if (r["noise"], r["space"], r["training_steps"]) == (name, space, steps)]
                if runs:
                    cells = [_spread(runs, metric, n) for metric in metrics for n in STEPS]
                    known = [r["bits"] for r in runs if r["bits"] is not None]
                    bound = f"{statistics.fmean(known):.2f}" if known else "-"
                    start = f"| {source} | {name} | {space} | {steps} | {len(runs)} | {' | '.join(cells)}"
                    lines.append(f"{start} | {_spread(runs, 'warp', 8)} | {bound} |")
        if of_source:
            floor = [statistics.fmean(r["training_clips"][metric] for r in of_source) for metric in metrics]
            cells = " | ".join(f"{value:.3g}{' |' * (len(STEPS) - 1)}" for value in floor)
            warp = statistics.fmean(r["training_clips"]["warp"] for r in of_source)
            lines.append(f"| {source} | *training clips* | | | | {cells} | {warp:.3g} | |")
    lines += _colours([r for r in found if "colours" in r])
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, ("\n".join(lines) + "\n").encode())
    usual = min(r["training_steps"] for r in results)
    _figure([r for r in results if r["training_steps"] == usual], path.with_suffix(".png"))
    _animation(folder / "models", path.with_name(f"{path.stem}-motion.gif"))


def _animation(folder: Path, path: Path) -> None:
    """Real clips above, and below them samples in warped noise that were asked for their motion; of every source."""
    columns: list[list[Image.Image]] = []  # of a pair of clips, frame by frame
    for source in SOURCES:
        sheets = sorted(folder.glob(f"{source}-Warped-pixel-0-*.png"), key=lambda file: int(file.stem.split("-")[-1]))
        if not sheets:
            continue
        sheet = Image.open(sheets[-1]).convert("L")
        side = sheet.width // FRAMES
        at = lambda row, k, sheet=sheet, side=side: sheet.crop((k * side, row * side, (k + 1) * side, (row + 1) * side))  # noqa: E731
        for clip in range(4):
            frames = []
            for k in range(FRAMES):
                pair = Image.new("L", (side, 2 * side), 255)
                pair.paste(at(clip, k), (0, 0))
                pair.paste(at(4 + clip, k), (0, side))
                frames.append(pair)
            columns.append(frames)
    if columns:
        whole = []
        for k in range(FRAMES):
            picture = Image.new("L", (sum(c[k].width for c in columns), max(c[k].height for c in columns)), 255)
            left = 0
            for column in columns:
                picture.paste(column[k], (left, 0))
                left += column[k].width
            whole.append(picture.quantize(32))
        whole[0].save(path, save_all=True, append_images=whole[1:], duration=125, loop=0)


def _colours(results: list[dict]) -> list[str]:
    """The table of noise that has a colour while sampling, seed by seed."""
    if not results:
        return []
    names = list(results[0]["colours"])
    lines = [
        "",
        "## Coloured noise while sampling",
        "",
        f"Models of white noise, {STOCHASTIC_STEPS} steps whose fresh noise is white, has a colour "
        "(`ornstein sample --coloured`), or is left out; `--colours`.",
        "",
        f"| source | figure, seed by seed | {' | '.join(names)} |",
        "|---" * (2 + len(names)) + "|",
    ]
    for source in SOURCES:
        runs = [r for r in results if r["source"] == source]
        for metric, label in (("frechet", "Fréchet"), ("flicker", "flicker")):
            if runs:
                cells = (", ".join(f"{r['colours'][name][metric]:.3g}" for r in runs) for name in names)
                lines.append(f"| {source} | {label} | {' | '.join(cells)} |")
    return lines


def _preface(results: list[dict]) -> list[str]:
    cells = sum(1 for _ in jobs(3))
    return [
        "# The experiment on structured noise: every noise, loss, source and number of steps",
        "",
        "Mean ± standard deviation over seeds; made by `make evidence-noise`, explained in "
        "[structured noise](structured-noise.md).",
        f"Of the {cells} cells of three seeds, and others of more training, {len(results)} were run. Flicker is over "
        "that of the data.",
        "Motion error: end-point error, in pixels a frame, of the flow estimated from the samples against that of "
        "held-out clips,",
        "which samples in warped noise were asked for and the others know nothing of. Training clips: against their "
        "own flow.",
        "",
    ]


def jobs(seeds: int) -> Iterable[tuple[str, str, str, int]]:
    """Every cell. White and warped noise have no other space than pixels."""
    for seed in range(seeds):
        for source in SOURCES:
            for name in NOISES:
                for space in SPACES[: 1 if name in ("I", "Warped") else 2]:
                    yield source, name, space, seed


def _values(runs: list[dict], metric: str, steps: int) -> list[float]:
    return [row[metric] for r in runs for row in r["rows"] if row["steps"] == steps]


def _spread(runs: list[dict], metric: str, steps: int) -> str:
    values = _values(runs, metric, steps)
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3g}{spread}"


def _figure(results: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    metrics = (
        ("frechet", "Fréchet distance"), ("flicker", "flicker / that of the data"), ("motion", "motion error, pixels"),
    )  # fmt: skip
    sources = [source for source in SOURCES if any(r["source"] == source for r in results)]
    kinds = [(name, space) for name in NOISES for space in SPACES]
    figure, axes = pyplot.subplots(len(metrics), len(sources), figsize=(13, 10), squeeze=False)
    for column, source in enumerate(sources):
        for row, (metric, label) in enumerate(metrics):
            panel = axes[row][column]
            for k, (name, space) in enumerate(kinds):
                runs = [r for r in results if (r["source"], r["noise"], r["space"]) == (source, name, space)]
                if not runs:
                    continue
                mean = [statistics.fmean(_values(runs, metric, n)) for n in STEPS]
                low = [min(_values(runs, metric, n)) for n in STEPS]
                high = [max(_values(runs, metric, n)) for n in STEPS]
                style = {"color": "black"} if name == "I" else {"color": f"C{k // 2}"}
                panel.plot(STEPS, mean, "o--" if space == "whitened" else "o-", label=f"{name}, {space}", **style)
                panel.fill_between(STEPS, low, high, color=style["color"], alpha=0.1, linewidth=0)
            floor = [r["training_clips"][metric] for r in results if r["source"] == source]
            if floor:
                panel.axhline(statistics.fmean(floor), color="grey", linestyle=":", label="training clips")
            panel.set_xscale("log", base=2)
            panel.set_xticks(STEPS, [str(n) for n in STEPS])
            panel.set_xlabel("steps")
            panel.set_ylabel(label)
            panel.set_title(source)
    for panel in axes[0]:
        panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/evidence-noise"))
    parser.add_argument("--steps", type=int, default=300, help="training steps")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", default="0/1", help="i/n: only every n-th, from the i-th")
    parser.add_argument("--only", nargs="*", default=[""], help="only cells whose name has one of these in it")
    parser.add_argument("--colours", action="store_true", help="compare the colours of fresh noise, and nothing else")
    parser.add_argument("--report", type=Path, help="write the table here, and the figure beside it, and stop")
    arguments = parser.parse_args()
    if arguments.report is not None:
        report(arguments.out, arguments.report)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.colours:
        wanted = [source for source in SOURCES[:3] if any(text in source for text in arguments.only)]
        for seed, source in product(range(arguments.seeds), wanted):
            file = arguments.out / f"colours-{source}-{seed}-{arguments.steps}.json"
            if not file.exists():
                scratch = arguments.out / "models" / file.stem
                shutil.rmtree(scratch, ignore_errors=True)
                result = colours(source, seed, arguments.steps, scratch)
                atomic_write(file, json.dumps(result, indent=1).encode())
                print(file.stem, {k: round(v["frechet"], 4) for k, v in result["colours"].items()}, flush=True)  # pyright: ignore[reportAttributeAccessIssue]
        return
    part, parts = map(int, arguments.part.split("/"))
    cells = [("-".join(map(str, cell)), cell) for cell in jobs(arguments.seeds)]
    # in the order of --only, so that what is asked for first is there first
    chosen = dict.fromkeys(cell for text in arguments.only for cell in cells if text in cell[0])
    for stem, (source, name, space, seed) in list(chosen)[part::parts]:
        file = arguments.out / f"{stem}-{arguments.steps}.json"
        if file.exists():
            continue
        scratch = arguments.out / "models" / file.stem
        shutil.rmtree(scratch, ignore_errors=True)  # half a training of a run that was stopped
        result = one(source, name, space, seed, arguments.steps, scratch)
        atomic_write(file, json.dumps(result, indent=1).encode())
        rows = (f"{r['steps']}: {r['frechet']:.3f} {r['flicker']:.2f} {r['motion']:.2f}" for r in result["rows"])
        print(file.stem, f"{result['cpu_seconds']:.0f} s", *rows, flush=True)


if __name__ == "__main__":
    main()

"""Autoencoders and latent diffusion, measured: rate against distortion, priors, and the time that latents save.

    python evidence/latent.py --faces lfw.zip

Three parts, each kept as JSON in --out and measured once (delete a file to measure again):

- rates: compression against distortion (S0, figure 1.4) of KL and VQ autoencoders at factors 2, 4 and 8, and
  codebooks of several sizes, on 64x64 photographs; a plot of all is written beside docs/latent.md.
- priors: bits/dim of one autoencoder with its own prior N(0, I), with the best Gaussian of each channel, and with a
  diffusion model trained on its latents, on digits and on the photographs.
- speed: Frechet distance against processor seconds of one core, pixels against latents of factor 4, both by the
  trainer's own recipe.
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
from torch import Tensor

from ornstein import likelihood, noise, schedules
from ornstein.autoencoders import AUTOENCODERS, Autoencoder, AutoencoderLoss, addressed, load
from ornstein.autoencoders.latent import LatentSpace, joint_bound
from ornstein.data import ImageSet, open_images, to_unit
from ornstein.denoiser import Data, Denoiser
from ornstein.evaluation.features import open_features
from ornstein.evaluation.frechet import frechet_distance
from ornstein.evaluation.run import draw
from ornstein.evaluation.run_autoencoder import evaluate_autoencoder
from ornstein.nets import UNet
from ornstein.process import Process
from ornstein.store import atomic_write
from ornstein.training import TrainConfig, run_task, train
from ornstein.training.autoencoder import Autoencoding
from ornstein.training.latents import LatentDiffusion, encode_images

HELD_OUT = 0.1
SIZE = 64
SCORED = 500  # samples for a Frechet distance

# kind, factor, and the codebook or the weight of the rate
RATES: list[tuple[str, int, float]] = [
    *(("kl", factor, weight) for factor in (2, 4, 8) for weight in (1.0, 0.05)),
    *(("vq", factor, codes) for factor in (2, 4, 8) for codes in (32, 512)),
    ("vq", 4, 4096),
]


def fitted(loss: AutoencoderLoss, images: ImageSet, config: TrainConfig, out: Path) -> tuple[Autoencoder, float]:
    """The autoencoder in `out`, trained if it is not there, and the processor seconds of its training."""
    note = out / "seconds.json"
    if not note.is_file():
        began = time.process_time()
        for _ in run_task(Autoencoding(loss), images, config, out, resume=(out / "state").exists()):
            pass
        atomic_write(note, json.dumps(time.process_time() - began).encode())
    return load(out), json.loads(note.read_text())


def autoencoder(kind: str, images: ImageSet, net: str, factor: int, setting: float) -> AutoencoderLoss:
    channels, size, _ = images.shape
    torch.manual_seed(0)
    options: dict[str, Any] = {"factor": factor} | ({"codes": int(setting)} if kind == "vq" else {})
    model = AUTOENCODERS[kind].preset(net, channels=channels, size=size, **options)
    return AutoencoderLoss(model, kl_weight=1.0 if kind == "vq" else setting)


def rates(train_set: ImageSet, held_out: ImageSet, steps: int, out: Path) -> None:
    for kind, factor, setting in RATES:
        name = f"{kind}-{factor}-{setting:g}"
        file = out / f"rates-{name}.json"
        if file.exists():
            continue
        loss = autoencoder(kind, train_set, "xs", factor, setting)
        config = TrainConfig(steps=steps, batch=32, checkpoint_every=10**6, learning_rate=2e-3)
        model, seconds = fitted(loss, train_set, config, out / "models" / name)
        q = evaluate_autoencoder(model, held_out)
        found = {"kind": kind, "factor": factor, "setting": setting, "seconds": seconds, "rate": sum(q.rates)}
        found |= {k: getattr(q, k) for k in ("psnr", "ssim", "bits", "error", "reconstruction", "usage", "perplexity")}
        keep(file, found)


def latent_denoiser(space: LatentSpace, classes: tuple[str, ...], net: str) -> Denoiser:
    shape = space.latent_shape
    torch.manual_seed(0)
    unet = UNet.preset(net, channels=shape[0], size=shape[1], classes=len(classes))
    process = Process(schedules.Cosine(), noise.Identity())
    return Denoiser(unet, process, "v", data=Data(shape, classes), space=space)


def priors(
    name: str, train_set: ImageSet, held_out: ImageSet, net: str, steps: tuple[int, int], batch: int, out: Path
) -> None:
    """One autoencoder for each weight of the rate, and its priors, on up to 256 held-out images."""
    for weight in (1.0, 0.05):
        file = out / f"priors-{name}-{weight:g}.json"
        if file.exists():
            continue
        factor = 2 if train_set.shape[1] < 32 else 4
        loss = autoencoder("kl", train_set, net, factor, weight)
        config = TrainConfig(steps=steps[0], batch=batch, checkpoint_every=500, learning_rate=2e-3)
        folder = out / "models" / f"{name}-{weight:g}"
        model, seconds = fitted(loss, train_set, config, folder)
        run = out / "models" / f"{name}-{weight:g}-prior"
        latents = encode_images(folder, train_set, run)
        d = latent_denoiser(latents.space, (), "s")
        config = TrainConfig(steps=steps[1], batch=64, checkpoint_every=500)
        began = time.process_time()
        for _ in run_task(LatentDiffusion(d, config), latents, config, run, resume=(run / "state").exists()):
            pass
        prior_seconds = time.process_time() - began
        x0 = to_unit(held_out.images[:256])
        shape = tuple(x0.shape)
        gaussian = float(latents.space.log_scale)  # of y ~ N(0, I), a density of z by its scale

        def standard(y: Tensor, first: int, space: LatentSpace = latents.space) -> Tensor:
            return density(space.denormalise(y)) - space.log_scale

        def channels(y: Tensor, first: int) -> Tensor:
            return density(y)

        def diffusion(y: Tensor, first: int, d: Denoiser = d) -> Tensor:
            return likelihood.vlb(d, y, 1000, "continuous", "gaussian", terms=100, first=first).total

        def flow(y: Tensor, first: int, d: Denoiser = d) -> Tensor:
            return -likelihood.ode(d, y, "hutchinson", steps=32, probes=1, first=first).value

        found: dict[str, Any] = {"weight": weight, "seconds": seconds, "prior_seconds": prior_seconds}
        found |= {"latents": list(latents.space.latent_shape), "log_scale": gaussian, "images": len(x0)}
        totals: dict[str, Tensor] = {}
        which: dict[str, Callable[[Tensor, int], Tensor]] = {
            "N(0, I)": standard, "Gaussian of each channel": channels, "diffusion, bound": diffusion,
            "diffusion, flow": flow,
        }  # fmt: skip
        for title, prior in which.items():
            bound = joint_bound(latents.space, x0, prior)
            totals[title] = likelihood.bits_per_dim(bound.total, shape, None)
            parts = {k: float(likelihood.bits_per_dim(getattr(bound, k), shape, None).mean()) for k in bound.__dict__}
            below = totals["N(0, I)"] - totals[title]
            found[title] = {"mean": float(totals[title].mean()), "error": error(totals[title])} | parts
            found[title] |= {"below": float(below.mean()), "below_error": error(below)}
        own = model.bound(x0, addressed(0, torch.arange(len(x0))))
        found["own bound"] = float(likelihood.bits_per_dim(own.total, shape, None).mean())
        keep(file, found)


def density(y: Tensor) -> Tensor:
    """-log N(y; 0, I), (B,)."""
    return 0.5 * (y.double().square() + math.log(2 * math.pi)).flatten(1).sum(1)


def error(values: Tensor) -> float:
    return float(values.std() / len(values) ** 0.5)


def speed(train_set: ImageSet, held_out: ImageSet, minutes: float, out: Path) -> None:
    """Frechet distance at marks of processor time, on pixels and on latents; sampling is not counted."""
    extract = open_features("conv", "cpu")(held_out.images)
    real = extract(held_out.images)
    # samples of pixels cost twenty times those of latents, and more than the training up to an early mark
    marks = {"latent": range(5, -1, -1), "pixel": (1, 0)}
    channels, size, _ = train_set.shape
    for kind in ("latent", "pixel"):
        file = out / f"speed-{kind}.json"
        if file.exists():
            continue
        config = TrainConfig(steps=10**6, batch=32 if kind == "pixel" else 64, checkpoint_every=10**6)
        folder = out / "models" / f"speed-{kind}"
        before = 0.0
        if kind == "latent":
            loss = autoencoder("kl", train_set, "xs", 4, 0.05)
            settings = TrainConfig(steps=800, batch=32, checkpoint_every=200, learning_rate=2e-3)
            _, before = fitted(loss, train_set, settings, out / "models" / "speed-kl")
            latents = encode_images(out / "models" / "speed-kl", train_set, folder)
            d = latent_denoiser(latents.space, (), "s")
            states = run_task(LatentDiffusion(d, config), latents, config, folder)
        else:
            torch.manual_seed(0)
            net = UNet.preset("s", channels=channels, size=size, patch=1)
            d = Denoiser(net, Process(schedules.Cosine(), noise.Identity()), "v", data=Data((channels, size, size)))
            states = train(d, train_set, config, folder)
        rows, spent, left = [], 0.0, [minutes * 60 * 2.0**-k for k in marks[kind]]
        began = time.process_time()
        for state in states:
            spent += time.process_time() - began
            if spent >= left[0]:
                samples = draw(state.model, None, SCORED)
                frechet = frechet_distance(extract(samples), real)
                rows.append({"seconds": spent, "step": state.step, "frechet": frechet})
                print(kind, rows[-1], flush=True)
                left = [mark for mark in left if mark > spent]
            if not left:
                break
            began = time.process_time()
        floor = frechet_distance(extract(train_set.images[:SCORED]), real)
        keep(file, {"kind": kind, "autoencoder_seconds": before, "rows": rows, "floor": floor})


def keep(file: Path, found: dict[str, Any]) -> None:
    atomic_write(file, json.dumps(found, indent=1).encode())
    print(file.stem, json.dumps(found)[:300], flush=True)


def report(out: Path, plot: Path | None) -> None:
    """Print the tables of what is there, and draw rate against distortion."""
    found = [json.loads(f.read_text()) for f in sorted(out.glob("rates-*.json"))]
    if found:
        print(
            "\n| model | factor | | rate, bits/dim | PSNR, dB | SSIM | bound, bits/dim | codebook in use, perplexity |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for r in sorted(found, key=lambda r: (r["kind"], r["factor"], r["setting"])):
            what = f"K = {r['setting']:g}" if r["kind"] == "vq" else f"weight {r['setting']:g}"
            used = "" if r["usage"] is None else f"{r['usage']:.0%}, {r['perplexity']:.0f}"
            print(
                f"| {r['kind']} | {r['factor']} | {what} | {r['rate']:.3f} | {r['psnr']:.2f} | {r['ssim']:.3f} | "
                f"{r['bits']:.3f} ± {r['error']:.3f} | {used} |"
            )
        if plot is not None:
            draw_rates(found, plot)
    for file in sorted(out.glob("priors-*.json")):
        r = json.loads(file.read_text())
        print(f"\n{file.stem}: latents {r['latents']}, {r['images']} images")
        for title in ("N(0, I)", "Gaussian of each channel", "diffusion, bound", "diffusion, flow"):
            b = r[title]
            print(
                f"| {title} | {b['mean']:.3f} ± {b['error']:.3f} | {b['below']:.3f} ± {b['below_error']:.3f} | "
                f"{b['reconstruction']:.3f} | {-b['entropy']:.3f} | {b['prior']:.3f} |"
            )
    for file in sorted(out.glob("speed-*.json")):
        r = json.loads(file.read_text())
        print(f"\n{file.stem}: autoencoder {r['autoencoder_seconds']:.0f} s; real against real {r['floor']:.1f}")
        for row in r["rows"]:
            print(f"| {row['seconds']:.0f} s | {row['step']} | {row['frechet']:.1f} |")


def draw_rates(found: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    colours = {2: "tab:blue", 4: "tab:orange", 8: "tab:green"}
    for r in found:
        marker = "o" if r["kind"] == "kl" else "s"
        label = f"K={r['setting']:g}" if r["kind"] == "vq" else f"{r['setting']:g}"
        for axis, name in zip(axes, ("psnr", "ssim"), strict=True):
            axis.plot(r["rate"], r[name], marker, color=colours[r["factor"]])
            axis.annotate(label, (r["rate"], r[name]), textcoords="offset points", xytext=(4, 3), fontsize=7)
    for axis, name in zip(axes, ("PSNR, dB", "SSIM"), strict=True):
        axis.set(xscale="log", xlabel="rate, bits per dimension of the image", ylabel=name)
        axis.grid(alpha=0.3)
    for factor, colour in colours.items():
        axes[0].plot([], [], "-", color=colour, label=f"factor {factor}")
    axes[0].plot([], [], "ko", label="KL, by weight of the rate")
    axes[0].plot([], [], "ks", label="VQ, by entries of the codebook")
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/evidence-latent"))
    parser.add_argument("--faces", type=Path, help="a zip or folder of photographs; without it, digits only")
    parser.add_argument("--parts", default="priors,rates,speed")
    parser.add_argument("--steps", type=int, default=250, help="of each autoencoder of `rates`, 32 images each")
    parser.add_argument("--minutes", type=float, default=12, help="of one core, of each training of `speed`")
    parser.add_argument("--plot", type=Path, default=Path("docs/latent-rates.png"))
    parser.add_argument("--report", action="store_true", help="only print the tables of what is there")
    own = parser.parse_args()
    torch.set_num_threads(1)
    if not own.report:
        parts = own.parts.split(",")
        if "priors" in parts:
            train_set, held_out = open_images("digits").split(HELD_OUT, seed=0)
            priors("digits", train_set, held_out, "xs", (1500, 2000), 128, own.out)
        if own.faces is not None:
            train_set, held_out = open_images(own.faces, SIZE).split(HELD_OUT, seed=0)
            if "speed" in parts:
                speed(train_set, held_out, own.minutes, own.out)
            if "priors" in parts:
                priors("faces", train_set, held_out, "xs", (1000, 1500), 32, own.out)
            if "rates" in parts:
                rates(train_set, held_out, own.steps, own.out)
    report(own.out, own.plot)


if __name__ == "__main__":
    main()

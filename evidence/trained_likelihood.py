"""Bits per dimension of models trained by our own recipe, by every method, and what the training objective changes.

Each (data, objective, seed) is trained and measured once and kept as a JSON file, so that it can be stopped and gone on
with; the tables of docs/likelihood.md are made of all of them.

    python evidence/trained_likelihood.py --out runs/evidence-likelihood                        # digits
    python evidence/trained_likelihood.py --out runs/evidence-likelihood --cifar train.zip      # and CIFAR-10
    python evidence/trained_likelihood.py --out runs/evidence-likelihood --report               # only the tables
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ornstein as orn
from ornstein import likelihood, solvers
from ornstein.data import ImageSet, open_images, to_uint8, to_unit
from ornstein.evaluation import knn_agreement, pixel_frechet
from ornstein.solvers.variance import ReverseVariance
from ornstein.store import atomic_write
from ornstein.training import TrainConfig, train
from ornstein.training.state import STATE, read_record

OBJECTIVES = {"default": None, "hybrid": "hybrid", "continuous": "continuous"}
CHAIN = 1000
FEW = (10, 25, 50)
LEVELS = 100
SAMPLES = 500
SETS = 3
CIFAR_HELD_OUT = 0.02


def trained(
    images: ImageSet, objective: str, seed: int, config: TrainConfig, folder: Path
) -> tuple[orn.Denoiser, float]:
    """The model, from the folder where it is done, and the seconds that it took."""
    channels, size = images.images.shape[1], images.images.shape[-1]
    torch.manual_seed(seed)
    net = orn.nets.UNet.preset(
        "xs", channels=channels, size=size, classes=len(images.classes), learned_variance=objective == "hybrid"
    )
    data = orn.Data(tuple(images.shape), tuple(images.classes))
    d = orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), "v", data=data)
    if not (folder / STATE).exists():
        (folder / "metrics.jsonl").unlink(missing_ok=True)
    for _ in train(d, images, config, folder, resume=(folder / STATE).exists()):
        pass
    return d, read_record(folder)["elapsed"]


def summary(nats: Tensor, shape: tuple[int, ...], bins: int | None) -> dict[str, float]:
    bits = likelihood.bits_per_dim(nats, shape, bins)
    return {"mean": float(bits.mean()), "error": float(bits.std() / len(bits) ** 0.5), "n": len(bits)}


def variances(d: orn.Denoiser, images: ImageSet, fitted: int) -> dict[str, ReverseVariance]:
    """Every reverse variance that the model has; the analytic one is fitted to training images."""
    x0, labels = images.batch(torch.arange(fitted))
    out: dict[str, ReverseVariance] = {"lower": "lower", "upper": "upper"}
    if getattr(d.net, "config", {})["learned_variance"]:
        out["learned"] = "learned"
    out["analytic"] = likelihood.fit_variance(d, x0, nodes=32, cond={"label": labels}, batch=64)
    return out


def bits(
    d: orn.Denoiser,
    table: dict[str, ReverseVariance],
    q: likelihood.Dequantiser,
    x0: Tensor,
    label: Tensor | None,
    terms: int | None,
    flow: int,
    chains: tuple[int, ...],
) -> dict[str, Any]:
    """Bits/dim by method.

    The bound of the chain of 1000 steps is of `terms` of its terms (None: all), that of shorter chains of all. The
    continuous form takes 100 noise levels an image, and `flow` images go along the flow.
    """
    shape, cond = tuple(x0.shape), {"label": label}
    out: dict[str, Any] = {}

    def bound(name: str, steps: int, form: Any, variance: ReverseVariance | None) -> None:
        few = LEVELS if form == "continuous" else terms if steps == CHAIN else None
        b = likelihood.vlb(d, x0, steps, form, variance=variance, terms=few, cond=cond, batch=64)
        parts = {k: float(likelihood.bits_per_dim(getattr(b, k), shape, None).mean()) for k in ("prior", "diffusion")}
        parts["reconstruction"] = float(likelihood.bits_per_dim(b.reconstruction, shape, None).mean())
        out[name] = summary(b.total, shape, None) | parts
        if form == "continuous":
            out[name]["values"] = likelihood.bits_per_dim(b.total, shape, None).tolist()
        if form == "matching":
            # with the same noise, which cancels in a difference
            for other, total in seen.setdefault(steps, {}).items():
                out[name][f"below_{other}"] = summary(total - b.total, shape, None)
            seen[steps][name.split()[1]] = b.total

    seen: dict[int, dict[str, Tensor]] = {}
    for name, variance in table.items():
        for steps in (*chains, CHAIN):
            bound(f"matching {name} {steps}", steps, "matching", variance)
    own = "learned" if "learned" in table else "lower"
    bound(f"consistency {own} {CHAIN}", CHAIN, "consistency", own)
    bound("continuous", CHAIN, "continuous", None)
    return out | flows(d, q, x0[:flow], None if label is None else label[:flow])


def fitted_dequantiser(d: orn.Denoiser, images: ImageSet, batch: int) -> likelihood.Dequantiser:
    """300 steps of so many training images."""
    x0, labels = images.batch(torch.arange(min(len(images), 300 * batch)))
    return likelihood.fit_dequantiser(d, x0, steps=300, batch=batch, cond={"label": labels})


def flows(d: orn.Denoiser, q: likelihood.Dequantiser, x0: Tensor, label: Tensor | None) -> dict[str, Any]:
    """Bits/dim by the flow, pixels dequantised uniformly and by q, with the same probes."""
    value = {
        name: likelihood.ode(
            d, x0, "hutchinson", steps=32, probes=1, dequantisation=how, cond={"label": label}, batch=64
        ).value
        for name, how in {"ode": "uniform", "ode variational": q}.items()
    }
    out: dict[str, Any] = {name: summary(-found, tuple(x0.shape), 256) for name, found in value.items()}
    out["ode variational"]["below_ode"] = summary(value["ode variational"] - value["ode"], tuple(x0.shape), None)
    return out


def quality(d: orn.Denoiser, table: dict[str, ReverseVariance], images: ImageSet) -> list[dict[str, Any]]:
    """Sets of ancestral samples at few steps by each variance, against the training images."""
    assert d.data is not None and images.labels is not None
    labels = d.data.labels(SAMPLES)
    assert labels is not None
    rows = []
    for name, variance in table.items():
        for steps, seed in product(FEW, range(SETS)):
            solver = partial(solvers.ddpm, variance=variance)
            x = orn.sample(d, (SAMPLES, *d.data.shape), solver, steps, seed=seed, cond={"label": labels}, batch=250)
            samples = to_uint8(x)
            frechet = pixel_frechet(samples, images.images)
            agreement = knn_agreement(samples, labels, images.images, images.labels)
            rows.append(
                {
                    "variance": name,
                    "steps": steps,
                    "set": seed,
                    "frechet": frechet.value,
                    "floor": frechet.floor,
                    "agreement": agreement,
                    "spread": spread(samples, labels) / spread(images.images, images.labels),
                }
            )
    return rows


def spread(images: Tensor, labels: Tensor) -> float:
    """Variance of the images of one class, summed over pixels, mean over the classes."""
    x = to_unit(images).flatten(1)
    return statistics.fmean(float(x[labels == c].var(0).sum()) for c in labels.unique())


def digits(objective: str, seed: int, steps: int, folder: Path) -> dict[str, Any]:
    training, held_out = open_images("digits").split(0.1, seed=0)
    config = TrainConfig(steps=steps, seed=seed, objective=OBJECTIVES[objective])
    d, seconds = trained(training, objective, seed, config, folder)
    table, q = variances(d, training, 512), fitted_dequantiser(d, training, 64)
    found = bits(d, table, q, to_unit(held_out.images), held_out.labels, 333, len(held_out), FEW)
    return {"seconds": seconds, "bits": found, "quality": quality(d, table, training)}


def cifar(path: Path, images: int, objective: str, seed: int, steps: int, folder: Path) -> dict[str, Any]:
    """Without classes, as the published figures are."""
    training, held_out = open_images(str(path)).split(CIFAR_HELD_OUT, seed=0)
    training = replace(training, labels=None, classes=[])
    config = TrainConfig(steps=steps, batch=32, seed=seed, objective=OBJECTIVES[objective])
    d, seconds = trained(training, objective, seed, config, folder)
    table, q = variances(d, training, 64), fitted_dequantiser(d, training, 16)
    table.pop("upper")
    found = bits(d, table, q, to_unit(held_out.images[:images]), None, 200, max(1, images // 4), ())
    return {"seconds": seconds, "bits": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/evidence-likelihood"))
    parser.add_argument("--objectives", default="default,hybrid,continuous")
    parser.add_argument("--seeds", default="0,1,2", help="of the digits")
    parser.add_argument("--steps", type=int, default=1500, help="training steps of a model of digits, 128 images each")
    parser.add_argument("--cifar", type=Path, help="a zip of the CIFAR-10 training images: train on those instead")
    parser.add_argument("--cifar-steps", type=int, default=1500, help="training steps, 32 images each")
    parser.add_argument("--cifar-images", type=int, default=64, help="held-out images for the bounds")
    parser.add_argument("--report", action="store_true", help="only print the tables of what is there")
    own = parser.parse_args()
    torch.set_num_threads(1)  # so that the seconds are those of one core
    if not own.report:
        measure: Callable[..., dict[str, Any]]
        if own.cifar is None:
            data, steps, measure, seeds = "digits", own.steps, digits, own.seeds
        else:
            data, steps, measure, seeds = "cifar10", own.cifar_steps, partial(cifar, own.cifar, own.cifar_images), "0"
        for seed in map(int, seeds.split(",")):
            for objective in own.objectives.split(","):
                file = own.out / f"{data}-{objective}-{seed}-{steps}.json"
                if file.exists():
                    continue
                began = time.process_time()
                found = measure(objective, seed, steps, own.out / "models" / file.stem)
                about = {"data": data, "objective": objective, "seed": seed, "training_steps": steps}
                found |= {"cpu_seconds": time.process_time() - began}
                atomic_write(file, json.dumps(about | found, indent=1).encode())
                print(f"{file.stem}: {found['bits']['continuous']['mean']:.3f} bits/dim, continuous", flush=True)
    report([json.loads(f.read_text()) for f in sorted(own.out.glob("*.json"))])


def report(results: list[dict[str, Any]]) -> None:
    """Print the tables.

    Bits/dim ± the standard error over images, (the standard deviation over seeds); quality (over sets and seeds).
    """
    groups: dict[tuple[str, int], dict[str, list[dict[str, Any]]]] = {}
    for r in results:
        key = (r["data"], r["training_steps"])
        groups.setdefault(key, {}).setdefault(r["objective"], []).append(r)
    for (data, steps), by_objective in groups.items():
        names = [n for n in OBJECTIVES if n in by_objective]
        seeds = ", ".join(f"{n}: {sorted(r['seed'] for r in by_objective[n])}" for n in names)
        print(f"\n{data}, {steps} training steps; seeds {seeds}")
        for n in names:
            train_seconds = [r["seconds"] for r in by_objective[n]]
            print(f"  {n}: {statistics.fmean(train_seconds):.0f} s of training")
        methods = list(dict.fromkeys(m for n in names for m in by_objective[n][0]["bits"]))
        print("\n| bits/dim | " + " | ".join(names) + " |\n|---" * 1 + "|---" * len(names) + "|")
        for method in methods:
            cells = [figure([r["bits"][method] for r in by_objective[n] if method in r["bits"]]) for n in names]
            print(f"| {method} | " + " | ".join(cells) + " |")
        for n in names:
            for method, found in by_objective[n][0]["bits"].items():
                for key in (k for k in found if k.startswith("below_")):
                    cell = figure([r["bits"][method][key] for r in by_objective[n]])
                    print(f"{n}: {method} below {key.removeprefix('below_')} on the same noise: {cell}")
        for n in names:
            pairs = [(a, b) for a in by_objective.get("default", []) for b in by_objective[n] if a["seed"] == b["seed"]]
            below = [torch.tensor(values(a)) - torch.tensor(values(b)) for a, b in pairs if values(a) and values(b)]
            if n != "default" and below:
                errors = (float(b.std()) / len(b) ** 0.5 for b in below)
                mean = statistics.fmean(float(b.mean()) for b in below)
                print(f"\n{n} below default, continuous form, same images: {mean:.3f} ± {statistics.fmean(errors):.3f}")
            if "quality" in by_objective[n][0]:
                print(f"\n| {n}: Frechet distance; agreement | " + " | ".join(map(str, FEW)) + " |\n|---|---|---|---|")
                rows = [r["quality"] for r in by_objective[n]]
                for name in dict.fromkeys(q["variance"] for q in rows[0]):
                    cells = [of_quality(rows, name, few) for few in FEW]
                    print(f"| {name} | " + " | ".join(cells) + " |")
                for name, other in product(("learned", "analytic"), ("lower", "upper")):
                    below = [of_pairs(rows, name, other, few) for few in FEW]
                    if all(below):
                        print(f"{name} below {other} on the same noise, " + "; ".join(below))
                print(f"floor {statistics.fmean(q['floor'] for r in rows for q in r):.3f}")


def values(result: dict[str, Any]) -> list[float]:
    """Bits/dim of every image by the continuous form; none in results of older versions."""
    return result["bits"]["continuous"].get("values", [])


def figure(found: list[dict[str, float]]) -> str:
    if not found:
        return "-"
    means = [f["mean"] for f in found]
    text = f"{statistics.fmean(means):.3f} ± {statistics.fmean(f['error'] for f in found):.3f}"
    return text + (f" ({statistics.stdev(means):.3f})" if len(means) > 1 else "")


def of_quality(rows: list[list[dict[str, Any]]], name: str, steps: int) -> str:
    found = [q for r in rows for q in r if q["variance"] == name and q["steps"] == steps]
    values = [q["frechet"] for q in found]
    over_sets = f" ({statistics.stdev(values):.2f})" if len(values) > 1 else ""
    agreement = f"{100 * statistics.fmean(q['agreement'] for q in found):.1f} %"
    inside = [q["spread"] for q in found if "spread" in q]  # results of older versions have none
    variance = f"; variance in a class {100 * statistics.fmean(inside):.0f} %" if inside else ""
    return f"{statistics.fmean(values):.2f}{over_sets}; {agreement}{variance}"


def of_pairs(rows: list[list[dict[str, Any]]], name: str, other: str, steps: int) -> str:
    """Frechet distance of `other` minus that of `name`, set by set: mean over models (standard deviation over them)."""
    at = [
        {(q["variance"], q["set"]): q["frechet"] for q in r if q["steps"] == steps and q["variance"] in (name, other)}
        for r in rows
    ]
    models = [[f[other, k] - f[name, k] for k in range(SETS)] for f in at if len(f) == 2 * SETS]
    if not models:
        return ""
    means = [statistics.fmean(m) for m in models]
    spread = f" ({statistics.stdev(means):.3f})" if len(means) > 1 else ""
    return f"{steps} steps: {statistics.fmean(means):.3f}{spread}"


if __name__ == "__main__":
    main()

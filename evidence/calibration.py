"""Is the truth inside the 90 % band 90 % of the time? Held-out pictures, damaged, and restored 19 times each.

    python evidence/calibration.py RUN... [-n 60] [--methods moments,ddnm] [--own] [--out runs/calibration.json]

RUN is a model of pictures that `ornstein train` made, whose data are where they were. For the pictures that it held out
the right half is hidden, or they are made 2 times smaller, or blurred with noise; 19 answers make a band from the least
to the greatest value of each pixel, which holds one more draw in 18 of 20 cases. A pixel whose answers are all alike,
such as a black border, counts by its rank among them. The error is that of the mean over pictures. PSNR is that of the
mean of the answers. With --own the truths are not held-out pictures but samples of the model itself, whose prior then
is the true one: what is still missing to 90 % is the method's. Results are kept in --out, and not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ornstein as orn
from ornstein import edit
from ornstein.cli.held_out_data import open_material
from ornstein.data import to_uint8
from ornstein.evaluation.distortion import psnr
from ornstein.inverse import Mask, Operator, downsampling
from ornstein.inverse.named import named_operator
from ornstein.randomness import normal
from ornstein.store import atomic_write

ANSWERS = 19
_OWN: dict[str, Any] = {
    "solver": "dpmpp-3m",
    "steps": 60,
    "seed": 1,
}  # of truths; answers have seed 0
_NOISE = 2**21  # the number of the draw of what --degrade would add


def tasks(shape: tuple[int, ...]) -> dict[str, tuple[Operator, float]]:
    half = torch.ones(shape[-1])
    half[shape[-1] // 2 :] = 0
    return {
        "right half": (Mask(half, shape), 0.0),
        "2 times smaller": (downsampling(2, shape), 0.02),
        "blur and noise": (named_operator("blur:1", shape), 0.1),
    }


def measured(d: orn.Denoiser, x: Tensor, A: Operator, std: float, method: str, number: int) -> dict[str, float]:
    """Coverage, spread and PSNR of 19 answers for one picture (C, H, W)."""
    y = A.forward(x[None])
    y = y + std * normal(tuple(y.shape), 0, torch.tensor([number]), _NOISE)
    answers = edit.restore(d, A, y, std, ANSWERS, method, first=number * ANSWERS)
    made, truth = to_uint8(answers), to_uint8(x)
    unknown = torch.ones_like(x, dtype=torch.bool)
    if isinstance(A, Mask) and std == 0:
        unknown = ~A.known[0].expand_as(x)
    inside = edit.coverage(made[:, unknown], truth[unknown])
    mean = answers.mean(0)
    return {
        "inside": float(inside.mean()),
        "spread": float(edit.spread(answers, ANSWERS)[0, unknown.any(0, keepdim=True)].mean()),
        "error": float((mean - x)[unknown].square().mean().sqrt()),
        "psnr": float(psnr(mean[None], x[None])),
        "psnr of one": float(psnr(answers[:1], x[None])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("-n", type=int, default=60, help="pictures of each run")
    parser.add_argument("--methods", default="moments", help="names of methods, with commas between")
    parser.add_argument("--own", action="store_true", help="samples of the model itself for truths")
    parser.add_argument("--out", type=Path, default=Path("runs/calibration.json"))
    parser.add_argument("--seconds", type=float, help="processor seconds after which to stop")
    asked = parser.parse_args()
    kept: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    print("| model | damage | method | inside the 90 % band | spread | error of the mean | PSNR of the mean | of one |")
    print("|---|---|---|---|---|---|---|---|")
    for run in asked.runs:
        d = orn.load(run)
        assert d.data is not None
        if asked.own:
            pictures = orn.sample(d, (asked.n, *d.data.shape), **_OWN).clamp(-1, 1)
        else:
            held_out = open_material(run, d.data.shape, None, None).held_out
            pictures = held_out.batch(torch.arange(min(asked.n, len(held_out))))[0]
        which = f"{run.name}, own" if asked.own else run.name
        for name, (A, std) in tasks(d.data.shape).items():
            for method in asked.methods.split(","):
                found = []
                for i, x in enumerate(pictures):
                    key = f"{which}, {name}, {method}, {i}"
                    if key not in kept:
                        if asked.seconds is not None and time.process_time() > asked.seconds:
                            sys.exit(f"{len(kept)} results in {asked.out}: call again to continue")
                        kept[key] = measured(d, x, A, std, method, i)
                        atomic_write(asked.out, json.dumps(kept, indent=1).encode())
                    found.append(kept[key])
                print(row(which, name, method, found), flush=True)


def row(run: str, name: str, method: str, found: list[dict[str, float]]) -> str:
    columns = {key: torch.tensor([each[key] for each in found]) for key in found[0]}
    inside = columns["inside"]
    mean = {key: float(values.mean()) for key, values in columns.items()}
    cells = [
        f"{run} ({len(found)})", name, method, f"{mean['inside']:.1%} ± {float(inside.std()) / len(found) ** 0.5:.1%}",
        f"{mean['spread']:.3f}", f"{mean['error']:.3f}", f"{mean['psnr']:.1f} dB", f"{mean['psnr of one']:.1f} dB",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()

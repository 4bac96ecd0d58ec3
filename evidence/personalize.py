"""A new person from four pictures, on our own text-to-image model of the face world, whose answers are exact.

    python evidence/personalize.py data DIR     # captioned pictures of many people, 32 pixels; four of a new one
    python evidence/personalize.py base DIR     # `ornstein train --captions auto`: the base
    python evidence/personalize.py people DIR   # methods, ranks and priors at equal processor time, and a plain recipe
    python evidence/personalize.py table DIR    # the table and the curves of docs/personalize.md

A state is a pose, an expression, a background and a light of `STATES`; the prompt says all of it, so that what a
picture should be is known: who it shows is the nearest of 100 people rendered in the state that was asked for, and what
it shows the nearest state, rendered of the person that was learned.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ornstein as orn
from ornstein.data import save_grid
from ornstein.faces.world import identities, render
from ornstein.faces.world.parameters import ATTRIBUTES

SIZE, PEOPLE, PICTURES = 32, 2000, 8000
PARTS: tuple[tuple[tuple[str, dict[str, float]], ...], ...] = (
    (("facing left", {"yaw": -0.45}), ("facing ahead", {"yaw": 0.0}), ("facing right", {"yaw": 0.45})),
    (("serious", {"smile": -0.2}), ("smiling", {"smile": 1.0, "mouth_open": 0.5})),
    (
        ("on red", {"back_red": 0.8, "back_green": 0.15, "back_blue": 0.15}),
        ("on green", {"back_red": 0.15, "back_green": 0.65, "back_blue": 0.2}),
        ("on blue", {"back_red": 0.15, "back_green": 0.25, "back_blue": 0.85}),
        ("on grey", {"back_red": 0.5, "back_green": 0.5, "back_blue": 0.5}),
    ),
    (("lit from the left", {"light_x": -1.1}), ("lit from the right", {"light_x": 1.1})),
)
STATES = list(itertools.product(*(range(len(part)) for part in PARTS)))
PLAIN = {"light_y": 0.4, "light_power": 1.0, "ambient": 0.32, "scale": 1.0, "cloth_red": 0.35, "cloth_green": 0.35,
         "cloth_blue": 0.4}  # fmt: skip
NEW, OTHERS = 7_000, 8_000  # seeds of people that no training has
BASE = {"captions": "auto", "size": SIZE, "net": "s", "patch": 2, "batch": 32, "steps": 1400, "checkpoint_every": 200}


def prompt(state: tuple[int, ...], who: str = "person") -> str:
    """The caption of a state."""
    return f"a photo of a {who} " + " ".join(part[k][0] for part, k in zip(PARTS, state, strict=True))


def numbers(states: list[tuple[int, ...]]) -> Tensor:
    """The attributes of states, (B, 26)."""
    rows = torch.zeros(len(states), len(ATTRIBUTES))
    for row, state in zip(rows, states, strict=True):
        chosen = PLAIN | {k: v for part, i in zip(PARTS, state, strict=True) for k, v in part[i][1].items()}
        for name, value in chosen.items():
            row[ATTRIBUTES.index(name)] = value
    return rows


def data(folder: Path) -> None:
    """Write the pictures of the base with captions, and four of the new person, as files."""
    draw = torch.Generator().manual_seed(0)
    people = identities(PEOPLE, seed=0)
    who = torch.randint(PEOPLE, (PICTURES,), generator=draw)
    states = [STATES[i] for i in torch.randint(len(STATES), (PICTURES,), generator=draw).tolist()]
    (folder / "faces").mkdir(parents=True, exist_ok=True)
    for low in range(0, PICTURES, 200):
        rows = slice(low, low + 200)
        pixels = render(people[who[rows]], numbers(states[rows]), SIZE).image
        for i, (picture, state) in enumerate(zip(pixels, states[rows], strict=True), low):
            save_grid(picture[None], folder / "faces" / f"{i:05d}.png")
            (folder / "faces" / f"{i:05d}.txt").write_text(prompt(state))
    shown = [STATES[i] for i in (0, 15, 26, 41)]
    (folder / "new").mkdir(exist_ok=True)
    for i, picture in enumerate(render(identities(1, NEW).expand(4, -1), numbers(shown), SIZE).image):
        save_grid(picture[None], folder / "new" / f"{i}.png")
        (folder / "new" / f"{i}.txt").write_text(prompt(shown[i], "sks person"))


def base(folder: Path) -> None:
    """Train the base, or go on with it."""
    out = folder / "base"
    orn.train(folder / "faces", out, resume=(out / "train.json").is_file(), report=False, **BASE)


def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2])
    commands: dict[str, Callable[[Path], Any]] = {"data": data, "base": base}
    torch.set_num_threads(1)
    commands[what](folder)


if __name__ == "__main__":
    main()

"""Captioned faces: people of the face world in 48 states, which the captions tell, and a reader of the states."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.faces.world.parameters import ATTRIBUTES, identities, identities_at
from ornstein.faces.world.views import render

__all__ = ["HELD_OUT", "PARTS", "STATES", "State", "caption", "captions", "faces", "numbers", "read"]

State = tuple[int, ...]
"""One choice of each of `PARTS`: pose, expression, background and light."""

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
STATES: list[State] = list(itertools.product(*(range(len(part)) for part in PARTS)))
HELD_OUT: frozenset[State] = frozenset(STATES[4::10])
"""States that no picture for training has; each of their words is in others."""

_SEEN = [state for state in STATES if state not in HELD_OUT]
_ALIKE = {"light_y": 0.4, "light_power": 1.0, "ambient": 0.32, "scale": 1.0, "cloth_red": 0.35, "cloth_green": 0.35,
          "cloth_blue": 0.4}  # fmt: skip
_PEOPLE, _STRIDE, _SEED = 2000, 29, 0  # of the set; neighbours in number differ in person and state
_READ_AT, _EXAMPLES, _OTHERS, _RIDGE = 32, 2048, 100_000, 10.0  # of the reader, whose people no set has


def caption(state: State, who: str = "person") -> str:
    """The caption of a state."""
    return f"a photo of a {who} " + " ".join(part[k][0] for part, k in zip(PARTS, state, strict=True))


def numbers(states: Sequence[State]) -> Tensor:
    """The attributes of states, (B, 26)."""
    rows = torch.zeros(len(states), len(ATTRIBUTES))
    for row, state in zip(rows, states, strict=True):
        chosen = _ALIKE | {k: v for part, i in zip(PARTS, state, strict=True) for k, v in part[i][1].items()}
        for name, value in chosen.items():
            row[ATTRIBUTES.index(name)] = value
    return rows


def _state_of(i: int) -> State:
    """The state of picture i of the set; none of `HELD_OUT`."""
    return _SEEN[(i + i // _PEOPLE) * _STRIDE % len(_SEEN)]


def captions(i: int) -> tuple[str, ...]:
    """The captions of picture i of the set."""
    return (caption(_state_of(i)),)


def faces(rows: Sequence[int], size: int) -> Tensor:
    """Pictures of the set by number, uint8 (B, 3, size, size): 2,000 people in turn."""
    drawn = []
    for low in range(0, len(rows), 256):
        part = rows[low : low + 256]
        people = identities_at(torch.tensor([i % _PEOPLE for i in part]), _SEED)
        picture = render(people, numbers([_state_of(i) for i in part]), size).image
        drawn.append(((picture + 1) * 127.5).round().to(torch.uint8))
    return torch.cat(drawn)


def _with_one(x: Tensor) -> Tensor:
    """Pictures as rows of numbers, and a 1 in each."""
    return torch.cat([x.flatten(1), x.new_ones(len(x), 1)], 1).double()


def _lower(x: Tensor) -> Tensor:
    """The part of pictures where mouths are."""
    return x[:, :, 14:28, 4:28]


def _ridge(x: Tensor, choices: Tensor) -> Tensor:
    """The linear least-squares reader of choices (B,) from pictures, with ridge regularisation."""
    rows = _with_one(x)
    system = rows.T @ rows + _RIDGE * torch.eye(rows.shape[1], dtype=rows.dtype)
    return torch.linalg.solve(system, rows.T @ F.one_hot(choices).double())


@lru_cache(1)
def _readers() -> list[Tensor]:
    """Linear readers of pose, background and light, then of the expression in each pose, from people of no set."""
    states = [STATES[i * _STRIDE % len(STATES)] for i in range(_EXAMPLES)]
    x, choices = render(identities(_EXAMPLES, _OTHERS), numbers(states), _READ_AT).image, torch.tensor(states)
    small = F.avg_pool2d(x, 2)
    whole = [_ridge(small, choices[:, part]) for part in (0, 2, 3)]
    poses = [choices[:, 0] == pose for pose in range(len(PARTS[0]))]
    return whole + [_ridge(_lower(x[rows]), choices[rows, 1]) for rows in poses]


def read(pictures: Tensor) -> list[State]:
    """The state that each picture shows, uint8 (B, 3, H, W), read by linear classifiers of 32 x 32 pixels."""
    x = F.interpolate(pictures.cpu().float() / 127.5 - 1, size=(_READ_AT, _READ_AT), mode="area")
    readers = _readers()
    whole, by_pose = readers[:3], readers[3:]
    small, lower = _with_one(F.avg_pool2d(x, 2)), _with_one(_lower(x))
    pose, background, light = ((small @ weights).argmax(1).tolist() for weights in whole)
    smiles = torch.stack([(lower @ weights).argmax(1) for weights in by_pose], 1)
    expression = [int(smiles[i, k]) for i, k in enumerate(pose)]
    return list(zip(pose, expression, background, light, strict=True))

"""One shard of a set of faces, as a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ornstein.errors import UserError
from ornstein.faces.shape import POINTS, shape_of
from ornstein.store import atomic_save_tensors, check_regular, load_tensors

__all__ = [
    "FORMAT",
    "INDEX",
    "PATTERN",
    "Row",
    "complete_shard",
    "is_complete",
    "read_header",
    "read_shard",
    "shard_name",
    "write_shard",
]

INDEX = "index.json"
PATTERN = "faces-*-of-*.safetensors"
FORMAT = 1
_LARGEST_SIDE = 4096  # pixels


class Row(NamedTuple):
    """One face: image uint8 (3, S, S), embedding (D,), landmarks (5, 2) in crop pixels, transform (2, 3) to them.

    points: (shape.POINTS, 3), in crop pixels.
    """

    name: str
    person: str
    image: Tensor
    embedding: Tensor
    landmarks: Tensor
    transform: Tensor
    points: Tensor
    score: float


def shard_name(shard: int, shards: int) -> str:
    """The file name of the shard with this number, from 0."""
    return f"faces-{shard:05d}-of-{shards:05d}.safetensors"


def write_shard(
    path: Path, rows: Sequence[Row], skipped: Sequence[tuple[str, str]], plan: dict[str, Any], dimension: int
) -> None:
    """Write a shard, complete or not at all.

    Args:
        path: the file.
        rows: the faces.
        skipped: (name, reason) of the skipped files.
        plan: what all shards of the set have in common.
        dimension: of the embeddings.
    """
    size = plan["size"]
    empty = {
        "images": torch.empty(0, 3, size, size, dtype=torch.uint8),
        "embeddings": torch.empty(0, dimension),
        "landmarks": torch.empty(0, 5, 2),
        "transforms": torch.empty(0, 2, 3, dtype=torch.float64),
        "points": torch.empty(0, POINTS, 3),
    }
    columns = [[row.image, row.embedding, row.landmarks, row.transform, row.points] for row in rows]
    stacked = map(torch.stack, zip(*columns, strict=True))
    tensors = dict(zip(empty, stacked, strict=True)) if rows else empty
    tensors["scores"] = torch.tensor([row.score for row in rows], dtype=torch.float32)
    header = {
        "format": FORMAT,
        "plan": plan,
        "names": [row.name for row in rows],
        "people": [row.person for row in rows],
        "skipped": list(skipped),
    }
    atomic_save_tensors(path, tensors, {"faces": json.dumps(header)})


def is_complete(path: Path) -> bool:
    """Whether a shard has the points of its faces: those of older versions have none. Raises UserError if damaged."""
    read_header(path)
    with safe_open(path, framework="pt") as file:
        return "points" in file.keys()  # noqa: SIM118  (no dict)


def complete_shard(path: Path) -> None:
    """Find the points of the faces of an older version's shard in their crops. Raises UserError as `read_shard`."""
    header = read_header(path)
    tensors = read_shard(path, header)
    tensors["points"] = shape_of(tensors["images"], tensors["landmarks"])
    atomic_save_tensors(path, tensors, {"faces": json.dumps(header)})


def read_header(path: Path) -> dict[str, Any]:
    """The metadata that `write_shard` wrote.

    Raises:
        UserError: the file is no shard, or damaged.
    """
    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["faces"])
        if header["format"] != FORMAT:
            raise UserError(
                f"{path} has format {header['format']!r}, and this version reads {FORMAT}: prepare it again"
            )
        names, people, plan, skipped = (header[key] for key in ("names", "people", "plan", "skipped"))
        texts = all(isinstance(each, str) for part in (names, people) for each in part)
        sized = isinstance(plan["size"], int) and 0 < plan["size"] <= _LARGEST_SIDE
        if not texts or not sized or len(names) != len(people) or any(len(pair) != 2 for pair in skipped):
            raise ValueError("its header is none of a shard")
    except (OSError, SafetensorError, LookupError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} is no shard of faces, or damaged ({error}): delete it and go on with --resume"
        ) from None
    return header


def read_shard(path: Path, header: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a shard with that header.

    Raises:
        UserError: they are damaged, or their shapes do not fit the header.
    """
    tensors, _ = load_tensors(path)
    n, size = len(header["names"]), header["plan"]["size"]
    shapes = {
        "images": (n, 3, size, size),
        "landmarks": (n, 5, 2),
        "transforms": (n, 2, 3),
        "scores": (n,),
        "embeddings": (n, None),
    }
    if "points" in tensors:  # sets of older versions have none
        shapes["points"] = (n, POINTS, 3)
    for name, shape in shapes.items():
        given = tuple(tensors[name].shape) if name in tensors else ()
        if len(given) != len(shape) or any(k not in (None, m) for k, m in zip(shape, given, strict=True)):
            raise UserError(f"{path} is no shard of faces: {name} has shape {given}; delete it and prepare it again")
    if tensors["images"].dtype != torch.uint8:
        raise UserError(f"{path} is no shard of faces: its images are {tensors['images'].dtype}")
    return tensors

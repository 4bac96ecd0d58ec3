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
from ornstein.store import atomic_save_tensors

INDEX = "index.json"
PATTERN = "faces-*-of-*.safetensors"
FORMAT = 1


class Row(NamedTuple):
    """One face: image uint8 (3, S, S), embedding (D,), landmarks (5, 2) in crop pixels, transform (2, 3) to them."""

    name: str
    person: str
    image: Tensor
    embedding: Tensor
    landmarks: Tensor
    transform: Tensor
    score: float


def shard_name(shard: int, shards: int) -> str:
    """The file name of the shard with this number, from 0."""
    return f"faces-{shard:05d}-of-{shards:05d}.safetensors"


def write_shard(
    path: Path, rows: Sequence[Row], skipped: Sequence[tuple[str, str]], plan: dict[str, Any], dimension: int
) -> None:
    """Write the faces, and the (name, reason) of the files passed over, whole or not at all."""
    size = plan["size"]
    empty = {
        "images": torch.empty(0, 3, size, size, dtype=torch.uint8),
        "embeddings": torch.empty(0, dimension),
        "landmarks": torch.empty(0, 5, 2),
        "transforms": torch.empty(0, 2, 3, dtype=torch.float64),
    }
    columns = [[row.image, row.embedding, row.landmarks, row.transform] for row in rows]
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


def read_header(path: Path) -> dict[str, Any]:
    """What `write_shard` wrote beside the tensors; UserError where the file is no shard."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["faces"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} is no shard of faces, or damaged ({error}): delete it and go on with --resume"
        ) from None
    if header.get("format") != FORMAT:
        raise UserError(
            f"{path} has format {header.get('format')!r}, and this version reads {FORMAT}: prepare it again"
        )
    return header

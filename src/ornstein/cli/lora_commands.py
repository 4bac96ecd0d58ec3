"""The bodies of `ornstein lora info | convert | merge | scale`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from rich.table import Table

from ornstein import checkpoint
from ornstein.cli.models import told
from ornstein.errors import UserError
from ornstein.interop.exchange import write_model
from ornstein.interop.lora import load_lora, merge_lora, parts_of, read_lora, write_lora
from ornstein.interop.settings import LoraConvert, LoraInfo, LoraMerge, LoraScale
from ornstein.nets.lora import Lora, combine
from ornstein.progress import cell, console, say

__all__ = ["convert", "info", "merge", "scale"]


def info(asked: LoraInfo, given: frozenset[str]) -> None:
    """Show one file."""
    with told():
        lora = read_lora(asked.file)
    layers = lora.layers.values()
    about: dict[str, Any] = {
        "layers": dict(Counter(name.partition(".")[0] for name in lora.layers)),
        "rank": sorted({layer.rank for layer in layers}),
        "alpha": sorted({layer.alpha for layer in layers}),
        "parameters": sum(layer.down.numel() + layer.up.numel() for layer in layers),
        "dora": any(layer.magnitude is not None for layer in layers),
        "base": lora.base,
        "says": dict(lora.facts),
    }
    if asked.json:
        print(json.dumps(about, indent=1))
        return
    rows = {
        "layers": ", ".join(f"{n} of {part}" for part, n in about["layers"].items()),
        "rank": ", ".join(map(str, about["rank"])),
        "alpha": ", ".join(f"{a:g}" for a in about["alpha"]),
        "parameters": f"{about['parameters']:,}",
        "kind": "DoRA" if about["dora"] else "LoRA",
        "base": lora.base[:12] if lora.base else "not said",
    } | dict(lora.facts)
    table = Table(show_header=False, show_edge=False, box=None, pad_edge=False)
    for name, value in rows.items():
        table.add_row(cell(name), cell(str(value)[:200]))
    console.print(table)


def convert(asked: LoraConvert, given: frozenset[str]) -> None:
    """Write another kind of file."""
    parts = None if asked.base is None else parts_of(checkpoint.load(asked.base))
    with told():
        lora = read_lora(asked.file, parts)
    _wrote(lora, write_lora(lora, asked.out, asked.to, asked.overwrite))


def merge(asked: LoraMerge, given: frozenset[str]) -> None:
    """Add files up, in a file or in a model."""
    weights = asked.weights or (1.0,) * len(asked.files)
    if len(weights) != len(asked.files):
        raise UserError(f"--weights has {len(weights)} numbers for {len(asked.files)} files")
    if asked.into is None:
        with told():
            lora = combine([read_lora(file) for file in asked.files], weights)
        _wrote(lora, write_lora(lora, asked.out, overwrite=asked.overwrite))
        return
    model = checkpoint.load(asked.into)
    with told():
        for file, weight in zip(asked.files, weights, strict=True):
            load_lora(model, file, weight, asked.any_base)
    merge_lora(model)
    write_model(model, asked.into, asked.out)
    say(f"{asked.out}: {asked.into} with {len(asked.files)} LoRA in its weights")


def scale(asked: LoraScale, given: frozenset[str]) -> None:
    """Write the file with another strength."""
    with told():
        lora = read_lora(asked.file).scaled(asked.by)
    _wrote(lora, write_lora(lora, asked.out, overwrite=asked.overwrite))


def _wrote(lora: Lora, file: Path) -> None:
    alphas = ", ".join(f"{a:g}" for a in sorted({layer.alpha for layer in lora.layers.values()}))
    ranks = ", ".join(map(str, sorted({layer.rank for layer in lora.layers.values()})))
    say(f"{file}: {len(lora.layers)} layers, rank {ranks}, alpha {alphas}")

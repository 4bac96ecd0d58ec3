"""A run of `ornstein personalize`: a base, named by path and hash, and what was learned on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ornstein import checkpoint
from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.interop.lora import load_lora, merge_lora, parts_of
from ornstein.interop.pipeline import Pipeline
from ornstein.interop.words import EMBEDS, add_word, merge_words
from ornstein.nets.lora import adapted
from ornstein.nets.switch import Switch
from ornstein.settings import extent_of
from ornstein.store import CONFIG, MODEL, atomic_save_tensors, load_tensors
from ornstein.text.gate import Gate
from ornstein.text.prompting import Prompting

__all__ = ["base_of", "load_learned", "open_run", "write_weights", "write_words"]

_BASE = "base"  # of the metadata of a file of weights


def open_run(folder: Path, config: Mapping[str, Any], trust_sizes: bool = False) -> Denoiser:
    """The base of a run with what the run has learned in its weights.

    Raises:
        UserError: the base is not there, or is another one than the run was trained on; files that do not fit it.
    """
    about = config.get("personal")
    if not isinstance(about, Mapping) or not isinstance(about.get("base"), Mapping):
        raise UserError(f"{folder / CONFIG} does not say what the run was personalised from")
    base = base_of(folder, about["base"])
    d = checkpoint.load(base, trust_sizes=trust_sizes)
    load_learned(d, folder, about)
    size = about.get("size")
    if isinstance(d, Pipeline) and isinstance(size, int | str):
        d = d.sized(*extent_of(size))
    return d.eval()


def base_of(folder: Path, base: Mapping[str, Any]) -> Path:
    """Where the base of a run is.

    Raises:
        UserError: it is not there, or has changed.
    """
    path, wanted = Path(str(base.get("path"))), str(base.get("hash"))
    near = folder / str(base.get("relative", ""))
    found = next((p for p in (path, near) if p.exists() and p != folder), None)
    if found is None:
        raise UserError(f"the base of {folder}, {path} ({wanted[:12]}), is not there: put it back")
    here = checkpoint.fingerprint(found)
    if here != wanted:
        raise UserError(
            f"{folder} was personalised from the base {wanted[:12]}, and {found} is {here[:12]} now: put the base back"
        )
    return found


def load_learned(d: Denoiser, folder: Path, about: Mapping[str, Any]) -> None:
    """Write what a run has learned into its base, `d`, or put it behind a gate there."""
    method, file = about.get("method"), folder / MODEL
    gated = about.get("prior") == "gated"
    if gated and not isinstance(about.get("placeholder"), str):
        raise UserError(f"{folder / CONFIG} does not say which word opens the gate")
    switch = None
    if method == "lora":
        load_lora(d, file)
        if gated:
            switch = Switch(adapted(parts_of(d)).values())
        else:
            merge_lora(d)
    elif method == "dreambooth":
        switch = _load_weights(d, file, gated)
    elif method == "textual-inversion":
        rows = {name.partition("."): value for name, value in load_tensors(file)[0].items()}
        words = {word for _, _, word in rows}
        if len(words) != 1:
            raise UserError(f"{file} holds {len(words)} words, and should hold one")
        add_word(d, words.pop(), {encoder: value for (encoder, _, _), value in rows.items()})
        merge_words(d)
    else:
        raise UserError(f"{folder / CONFIG} names an unknown method, {method!r}")
    if switch is not None and isinstance(d, Prompting):
        d.gate = Gate(str(about["placeholder"]), switch)


def write_weights(file: Path, tensors: Mapping[str, Tensor], base: str) -> None:
    """Write tensors that replace those of a base with that hash, or are added to it."""
    atomic_save_tensors(file, dict(tensors), {"format": "pt", _BASE: base})


def write_words(folder: Path, rows: Mapping[str, Tensor], word: str) -> None:
    """Write a word's embeddings (n, D) by text encoder as diffusers reads them, one file an encoder."""
    for i, value in enumerate(rows.values()):
        name = EMBEDS if i == 0 else EMBEDS.replace(".", f"_{i + 1}.")
        atomic_save_tensors(folder / name, {word: value}, {"format": "pt"})


def _load_weights(d: Denoiser, file: Path, switched: bool) -> Switch | None:
    """Replace weights by those of a file; if asked for, with a switch that has the old ones."""
    tensors, parts = load_tensors(file)[0], parts_of(d)
    own = dict(parts.named_parameters())
    for name, value in tensors.items():
        if name not in own or own[name].shape != value.shape:
            raise UserError(f"{file} does not belong to this base: it has {name} {tuple(value.shape)}")
        if not bool(torch.isfinite(value).all()):
            raise UserError(f"{file}: {name} has values that are not finite; the file is damaged")
    switch = Switch(parameters=[own[name] for name in tensors]) if switched else None
    with torch.no_grad():
        for name, value in tensors.items():
            own[name].copy_(value)
    if isinstance(d, Pipeline):
        d.forget_text()
    return switch

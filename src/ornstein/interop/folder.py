"""Pipeline folders from anywhere: checked before anything is loaded. Safetensors only, no code of the folder's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ornstein.checkpoint import INDEX
from ornstein.errors import UserError
from ornstein.extras import require
from ornstein.interop.families import FAMILIES, family_of
from ornstein.interop.notes import quiet
from ornstein.interop.pipeline import Pipeline
from ornstein.store import read_json

__all__ = ["check_folder", "open_pipeline"]

# Components of these libraries are built; "stable_diffusion" holds the safety checker, which is left out.
_LIBRARIES = ("diffusers", "transformers")
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack")


def check_folder(folder: Path) -> dict[str, Any]:
    """The index of a pipeline folder, whose parts are all there and all safe to read.

    Raises:
        UserError: another kind of folder, an unknown pipeline, code of its own, a missing part, or pickled weights.
    """
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder} is not a pipeline of diffusers: it has no {INDEX}")
    index = read_json(folder / INDEX)
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(f"{folder} is a {name}, which is not read; known: {', '.join(FAMILIES)}")
    for part, value in index.items():
        if part in _UNUSED or not isinstance(value, list) or value == [None, None]:
            continue
        if len(value) != 2 or value[0] not in (*_LIBRARIES, _HOME.get(name)) or not str(value[1]).isidentifier():
            raise UserError(f"{folder / INDEX}: {part} is {value}, code that is not of {' or '.join(_LIBRARIES)}")
        if not (folder / part).is_dir():
            raise UserError(f"{folder} has no {part}, which its {INDEX} lists: the download is incomplete")
        _check_weights(folder / part)
    return index


# Pipelines some of whose classes live in their own module.
_HOME = {"LDMTextToImagePipeline": "latent_diffusion"}


def _check_weights(part: Path) -> None:
    files = [f.name for f in part.iterdir() if f.is_file()]
    pickles = [f for f in files if f.endswith(_PICKLES)]
    if pickles and not any(f.endswith(".safetensors") for f in files):
        raise UserError(
            f"{part / pickles[0]} is a pickle, which can run code and is not loaded: convert it where you trust it, "
            "with diffusers' `save_pretrained(FOLDER, safe_serialization=True)`, and give that folder"
        )


def open_pipeline(
    path: str | Path, dtype: torch.dtype | None = None, variant: str | None = None, local: bool = True
) -> Pipeline:
    """The denoiser of a pipeline, in evaluation mode.

    Args:
        path: a folder; or, if `local` is False, a hub id.
        dtype: of the weights; float32 by default.
        variant: the weights called so, "fp16" or "bf16"; by default those that are there.

    Raises:
        UserError: see `check_folder`; or the folder cannot be read.
    """
    diffusers = require("diffusers", "interop", "a pipeline of diffusers")
    folder = Path(path)
    index = check_folder(folder)
    variant = variant or _variant(folder)
    absent = {name: None for name in _UNUSED if name in index}
    name = str(index["_class_name"])
    with quiet():
        try:
            pipe = getattr(diffusers, name).from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                torch_dtype=dtype or torch.float32,
                variant=variant,
                **absent,
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError) as error:
            what = " ".join(str(error).split())[:300]
            raise UserError(f"{folder} cannot be read as a {name}: {what}") from error
    pipe.set_progress_bar_config(disable=True)
    return Pipeline(pipe, family_of(name), folder).eval()


def _variant(folder: Path) -> str | None:
    """The variant of the weights if there are no plain ones."""
    for part in sorted(p for p in folder.iterdir() if p.is_dir()):
        files = [f.name for f in part.iterdir() if f.name.endswith(".safetensors")]
        for name in ("fp16", "bf16"):
            if files and all(f".{name}" in f for f in files):
                return name
    return None

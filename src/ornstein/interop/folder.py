"""Pipeline folders from anywhere: checked before anything is loaded. Safetensors only, no code of the folder's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ornstein.checkpoint import INDEX
from ornstein.errors import UserError
from ornstein.extras import require
from ornstein.interop.families import FAMILIES, family_of
from ornstein.interop.notes import quiet
from ornstein.interop.pipeline import Pipeline
from ornstein.store import read_json

__all__ = ["check_folder", "from_hub", "open_file", "open_pipeline"]

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
        raise UserError(f"{folder} is a {name}, which is not read; known: DDPM and DDIM, {', '.join(FAMILIES)}")
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


def open_pipeline(path: str | Path, dtype: torch.dtype = torch.float32, variant: str | None = None) -> Pipeline:
    """The denoiser of a pipeline folder, in evaluation mode.

    Args:
        path: the folder.
        dtype: of the weights.
        variant: the weights called so, "fp16" or "bf16"; by default the plain ones, or those that are there.

    Raises:
        UserError: see `check_folder`; or the folder cannot be read.
    """
    folder = Path(path)
    index = check_folder(folder)
    absent = {name: None for name, value in index.items() if name in _UNUSED or value == [None, None]}
    options = {"use_safetensors": True, "variant": variant or _variant(folder), **absent}
    return _opened(str(index["_class_name"]), "from_pretrained", folder, dtype, **options)


def open_file(path: str | Path, dtype: torch.dtype = torch.float32) -> Pipeline:
    """The denoiser of a pipeline in one .safetensors file, as kohya and others write it, read by diffusers.

    Such a file has no configs and no tokenizers. They are read from the folder of the same name beside it, a pipeline
    with or without weights, or from those of its base model that diffusers has downloaded before.

    Raises:
        UserError: it is no pipeline, or there are no configs for it.
    """
    file = Path(path)
    configs = file.with_suffix("")
    if (configs / INDEX).is_file():
        name = str(check_folder(configs)["_class_name"])
        try:
            return _opened(name, "from_single_file", file, dtype, config=str(configs), safety_checker=None)
        except UserError as error:
            raise UserError(f"{error} (are the configs in {configs}/ those of its base model?)") from error
    try:
        with safe_open(file, framework="pt") as content:
            keys = list(content.keys())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    name = next((name for part, name in _LAYOUTS.items() if any(part in key for key in keys)), None)
    if name is None:
        raise UserError(f"{file} is not the file of a pipeline: it has neither of {', '.join(_LAYOUTS)}")
    try:
        return _opened(name, "from_single_file", file, dtype)
    except UserError as error:
        what = f"put the configs and tokenizers of its base model, a pipeline folder, in {configs}/"
        raise UserError(f"{file} has weights alone, and no configs of a {name} were found: {what} ({error})") from error


# A part of the names of tensors in the one-file layouts of pipelines.
_LAYOUTS = {
    "double_blocks.": "FluxPipeline",
    "joint_blocks.": "StableDiffusion3Pipeline",
    "conditioner.embedders.": "StableDiffusionXLPipeline",
    "model.diffusion_model.": "StableDiffusionPipeline",
}


def from_hub(name: str) -> Path:
    """The folder that a hub id is, or was before, downloaded to: its safetensors, configs and tokenizers.

    Raises:
        UserError: neither the hub nor its cache on this machine has it.
    """
    hub = require("huggingface_hub", "interop", "a model of the hub")
    wanted = ["*.json", "*.txt", "*.model", "*/*.safetensors"]
    with quiet():
        try:
            return Path(hub.snapshot_download(name, allow_patterns=wanted))
        except Exception as error:  # of the network, in many kinds
            what = " ".join(str(error).split())[:160]
            why = f"neither a folder here nor to be had from the hub ({type(error).__name__}: {what})"
            raise UserError(f"{name} is {why}") from None


def _opened(name: str, how: str, path: Path, dtype: torch.dtype, **options: Any) -> Pipeline:
    """The pipeline that diffusers reads from `path`."""
    diffusers = require("diffusers", "interop", "a pipeline of diffusers")
    with quiet():
        try:
            pipe = getattr(getattr(diffusers, name), how)(path, local_files_only=True, torch_dtype=dtype, **options)
        except UserError:
            raise
        except Exception as error:  # of a stranger's folder, in many kinds
            what = " ".join(str(error).split())[:300]
            raise UserError(f"{path} cannot be read as a {name}: {what}") from error
        pipe.set_progress_bar_config(disable=True)
        return Pipeline(pipe, family_of(name), path).eval()


def _variant(folder: Path) -> str | None:
    """The variant of the weights if there are no plain ones."""
    for part in sorted(p for p in folder.iterdir() if p.is_dir()):
        files = [f.name for f in part.iterdir() if f.name.endswith(".safetensors")]
        for name in ("fp16", "bf16"):
            if files and all(f".{name}" in f for f in files):
                return name
    return None

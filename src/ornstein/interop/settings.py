"""The settings of prompts, LoRA files and exchange with other libraries. It imports no torch: options come from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ornstein.settings import setting, trust_sizes_setting

__all__ = ["Export", "Import", "LoraConvert", "LoraInfo", "LoraMerge", "LoraScale", "Prompts", "Push"]

_PANEL = "Models of text"
_OUT = ("-o", "--out")


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What a model that takes text is asked for."""

    prompt: str | None = setting(None, "The prompt.", names=("-p", "--prompt"), panel=_PANEL)
    prompts: Path | None = setting(None, "A text file with a prompt a line; samples take them in turn.", panel=_PANEL)
    negative: str | None = setting(None, "The prompt that guidance leads away from.", panel=_PANEL)
    lora: list[str] | None = setting(
        None, "A LoRA file on the model, or FILE:0.7 at another strength; may be repeated.", repeated=True
    )


@dataclass(frozen=True, kw_only=True)
class LoraInfo:
    """Show what a LoRA file is: its kind of names, rank, alpha, layers, base, and what else it says.

    Example: ornstein lora info dog.safetensors
    """

    file: Path = setting(help="A .safetensors file, or a folder with one.", argument=True)
    json: bool = setting(False, "As JSON.")


@dataclass(frozen=True, kw_only=True)
class LoraConvert:
    """Write a LoRA as another kind of file. Rank, alpha and tensors stay what they are, to the last bit.

    Example: ornstein lora convert dog.safetensors --to kohya --out dog-comfy.safetensors
    """

    file: Path = setting(help="A LoRA of any of the kinds.", argument=True)
    to: Literal["ornstein", "diffusers", "kohya"] = setting(help="The kind of file; ComfyUI takes kohya's.")
    out: Path = setting(help="The file to write, or a folder for it.", names=_OUT)
    base: Path | None = setting(None, "The model that it is for: its layers make the names of a kohya file exact.")
    overwrite: bool = setting(False, "Replace a file that is there.")


@dataclass(frozen=True, kw_only=True)
class LoraMerge:
    """Add LoRAs up: in one file, or with --into, in a copy of a model.

    Example: ornstein lora merge dog.safetensors ink.safetensors --weights 1,0.5 --into sd-folder --out sd-dog-ink
    """

    files: list[Path] = setting(help="LoRA files.", argument=True, repeated=True)
    weights: tuple[float, ...] | None = setting(None, "A strength for each.", by_data="1")
    into: Path | None = setting(None, "A run, or the folder of a pipeline: write it with the LoRAs in its weights.")
    out: Path = setting(help="The file, or the folder of the model, to write.", names=_OUT)
    any_base: bool = setting(False, "Accept a LoRA that was trained on another base.")
    overwrite: bool = setting(False, "Replace a file that is there.")


@dataclass(frozen=True, kw_only=True)
class LoraScale:
    """Write a LoRA with another strength: its alpha is multiplied.

    Example: ornstein lora scale dog.safetensors --by 0.7 --out dog-soft.safetensors
    """

    file: Path = setting(help="A LoRA of any of the kinds.", argument=True)
    by: float = setting(help="The factor.")
    out: Path = setting(help="The file to write; of our own kind.", names=_OUT)
    overwrite: bool = setting(False, "Replace a file that is there.")


@dataclass(frozen=True, kw_only=True)
class Import:
    """Make a run of the pipeline of a diffusers folder.

    A network with its scheduler becomes an ordinary run. A pipeline with text encoders or a decoder stays a folder of
    diffusers, which every command takes in the place of a run: it is written as a checked copy in safetensors alone.

    Example: ornstein import ddpm-folder --out runs/ddpm
    """

    folder: Path = setting(help="The folder of a pipeline.", argument=True)
    out: Path = setting(help="The run directory to write.", names=_OUT)
    trust_sizes: bool = trust_sizes_setting()


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a model for another library or program.

    diffusers: a network that diffusers has as well becomes a folder that diffusers opens; for any other it is said
    which part of it diffusers cannot express. onnx: a folder with the network as model.onnx, of any batch and, where
    the network allows that, any size, and with the times and coefficients of a sampler. torch-export: a file of
    `torch.export`. safetensors: a folder with the config and weights alone. ONNX and torch-export are compared with the
    model before they are left there.

    Example: ornstein export runs/photos --to onnx --out photos-onnx
    """

    run: Path = setting(help="The run directory, or the folder of a pipeline.", argument=True)
    to: Literal["diffusers", "onnx", "torch-export", "safetensors"] = setting("diffusers", "The library or format.")
    out: Path = setting(help="The folder to write; for torch-export the file.", names=_OUT)
    trust_sizes: bool = trust_sizes_setting()


@dataclass(frozen=True, kw_only=True)
class Push:
    """Upload a model to the Hugging Face hub, with a model card: weights and config, no settings or logs.

    The token is that of `hf auth login` or HF_TOKEN. A README.md in the folder is the card; else one is written.

    Example: ornstein push runs/photos-small me/photos-small --license apache-2.0
    """

    folder: Path = setting(help="A run, a folder of `ornstein export`, or a pipeline.", argument=True)
    repo: str = setting(help="owner/name on the hub.", argument=True)
    license: str | None = setting(None, "Licence under which others may use it: apache-2.0, cc-by-4.0, other, ...")
    private: bool = setting(False, "Make the repository a private one.")

"""A model as a folder: model.safetensors and config.json. Never a pickle; complete or absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from ornstein import noise, schedules
from ornstein.denoiser import Data, Denoiser
from ornstein.errors import UserError
from ornstein.files import atomic_write
from ornstein.nets import NETS
from ornstein.process import Process

FORMAT = 1
CONFIG = "config.json"
MODEL = "model.safetensors"


def to_config(denoiser: Denoiser, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """All that is needed to use the model again: schedule, noise, prediction, data, network; `extra` goes beside it."""
    net = denoiser.net
    config: dict[str, Any] = {
        "format": FORMAT,
        "schedule": schedules.to_config(denoiser.process.schedule),
        "noise": noise.to_config(denoiser.process.noise),
        "prediction": denoiser.prediction,
        "data_std": denoiser.data_std,
        "net": {"type": type(net).__name__, **getattr(net, "config", {})},
    }
    if denoiser.data_covariance is not None:
        config["data_covariance"] = noise.to_config(denoiser.data_covariance)
    if denoiser.space is not None:
        config["latent"] = denoiser.space.to_config()
    if denoiser.data is not None:
        data = denoiser.data
        config["data"] = {
            "shape": list(data.shape),
            "classes": list(data.classes),
            "value_range": list(data.value_range),
        }
    return config | (extra or {})


def save(denoiser: Denoiser, path: str | Path, extra: dict[str, Any] | None = None) -> None:
    """Write the folder `path`. The config goes last: a folder without it is no model, so none is ever half written."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().to("cpu").contiguous() for k, v in denoiser.net.state_dict().items()}
    atomic_write(folder / MODEL, save_tensors(tensors))
    atomic_write(folder / CONFIG, (json.dumps(to_config(denoiser, extra), indent=1) + "\n").encode())


def read_config(path: str | Path) -> dict[str, Any]:
    """config.json of a model folder. Raises UserError where there is none or it cannot be read."""
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{folder} is no run: there is no such folder")
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} is no run: it has no {CONFIG}; train one with `ornstein train --out {folder}`")
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as e:
        raise UserError(f"{folder / CONFIG} cannot be read: {e}") from e
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise UserError(f"{folder / CONFIG} is not a model of format {FORMAT}; this version reads that one only")
    return config


def load(path: str | Path, net: nn.Module | None = None) -> Denoiser:
    """The denoiser saved at `path`, in evaluation mode. `net` stands in for a network that is not one of Ornstein's.

    Raises UserError where the folder is no model, or its tensors are not the network's.
    """
    folder, config = Path(path), read_config(path)
    if "autoencoder" in config:
        raise UserError(
            f"{folder} holds an autoencoder: `ornstein.autoencoders.load` reads it, `train --latent` uses it"
        )
    try:
        if net is None:
            arguments = dict(config["net"])
            kind = arguments.pop("type")
            if kind not in NETS:
                raise ValueError(f"unknown network {kind!r}; give it as ornstein.load(path, net=...)")
            net = NETS[kind](**arguments)
        process = Process(schedules.from_config(config["schedule"]), noise.from_config(config["noise"]))
        data = None
        if "data" in config:
            d = config["data"]
            low, high = d["value_range"]
            data = Data(tuple(d["shape"]), tuple(d["classes"]), (low, high))
        covariance = noise.from_config(config["data_covariance"]) if "data_covariance" in config else None
        space = None
        if "latent" in config:
            # Few models have one, and it brings networks of its own.
            from ornstein.autoencoders.latent import LatentSpace

            space = LatentSpace.from_config(config["latent"], folder)
        denoiser = Denoiser(net, process, config["prediction"], config["data_std"], data, covariance, space)
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(f"{folder / CONFIG} does not describe a model: {e}") from e
    load_weights(net, folder / MODEL)
    return denoiser.eval()


def load_weights(net: nn.Module, file: Path) -> None:
    try:
        tensors = load_tensors(file.read_bytes())
    except (OSError, SafetensorError) as e:
        raise UserError(f"{file} cannot be read: {e}") from e
    own = net.state_dict()
    missing, foreign = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or foreign:
        what = f"lacks {missing[0]}" if missing else f"has a foreign tensor {foreign[0]}"
        raise UserError(f"{file} is not this network's: it {what} ({len(missing)} missing, {len(foreign)} foreign)")
    for name, value in own.items():
        if value.shape != tensors[name].shape:
            raise UserError(f"{file}: {name} has shape {tuple(tensors[name].shape)}, not {tuple(value.shape)}")
        if not bool(torch.isfinite(tensors[name]).all()):
            raise UserError(f"{file}: {name} has values that are not finite; the file is damaged")
    net.load_state_dict(tensors)

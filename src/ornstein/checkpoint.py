"""A model as a folder: model.safetensors and config.json. Never a pickle; complete or absent."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ornstein import nets, noise, schedules
from ornstein.denoiser import Data, Denoiser, Distilled
from ornstein.errors import UserError
from ornstein.process import Process
from ornstein.solvers.tuned import Tuned
from ornstein.store import atomic_save_tensors, atomic_write, load_tensors, read_json

FORMAT = 1
CONFIG = "config.json"
MODEL = "model.safetensors"
TUNED = "tuned.json"

# What a model's trajectories follow from, besides its weights.
_TRAJECTORY = ("schedule", "noise", "prediction", "data_std", "data_covariance", "net", "data")


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
    if denoiser.distilled is not None:
        config["distilled"] = {"times": list(denoiser.distilled.times), "guidance": denoiser.distilled.guidance}
    return config | (extra or {})


def save(denoiser: Denoiser, path: str | Path, extra: dict[str, Any] | None = None) -> None:
    """Write the folder `path`. The config goes last: a folder without it is no model, so none is ever half written."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_save_tensors(folder / MODEL, denoiser.net.state_dict(), {})
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
            if kind == "DiffusersNet":
                # It needs a library that no other network needs.
                from ornstein.interop.diffusers import DiffusersNet

                net = DiffusersNet(**arguments)
            elif kind in nets.NETS:
                net = getattr(nets, kind)(**arguments)
            else:
                raise ValueError(f"unknown network {kind!r}; give it as ornstein.load(path, net=...)")
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
        distilled = None
        if "distilled" in config:
            few = config["distilled"]
            distilled = Distilled(tuple(float(t) for t in few["times"]), float(few["guidance"]))
        said = config["prediction"]
        denoiser = Denoiser(net, process, said, config["data_std"], data, covariance, space, distilled)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as e:
        # a network of nonsense arguments fails in many ways, some of them PyTorch's
        raise UserError(f"{folder / CONFIG} does not describe a model: {' '.join(str(e).split())}") from e
    load_weights(net, folder / MODEL)
    return denoiser.eval()


def load_weights(net: nn.Module, file: Path) -> None:
    tensors, _ = load_tensors(file)
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


def fingerprint(path: str | Path) -> str:
    """A hash of the model at `path`: of its weights and of all that its trajectories follow from."""
    folder, config = Path(path), read_config(path)
    told = json.dumps({k: config.get(k) for k in _TRAJECTORY}, sort_keys=True)
    try:
        weights = (folder / MODEL).read_bytes()
    except OSError as e:
        raise UserError(f"{folder / MODEL} cannot be read: {e}") from e
    return hashlib.sha256(weights + told.encode()).hexdigest()


def save_tuned(path: str | Path, solvers: list[Tuned]) -> None:
    """Store solvers that were tuned for the model at `path` beside it; those for other numbers of steps stay."""
    folder, own = Path(path), fingerprint(path)
    known: dict[tuple[int, float], dict[str, Any]] = {}
    if (folder / TUNED).is_file():
        stored = read_json(folder / TUNED)
        if stored.get("model") == own:
            known = {(len(t.steps), t.guidance): t.to_config() for t in _tuned(folder, stored)}
    known |= {(len(t.steps), t.guidance): t.to_config() for t in solvers}
    content = {"format": FORMAT, "model": own, "solvers": [known[key] for key in sorted(known)]}
    atomic_write(folder / TUNED, (json.dumps(content, indent=1) + "\n").encode())


def load_tuned(path: str | Path, steps: int | None = None) -> list[Tuned]:
    """The solvers tuned for the model at `path`, of `steps` steps or all; none where none were.

    Raises UserError where they were tuned for another model: other weights, another schedule or other noise.
    """
    folder = Path(path)
    if not (folder / TUNED).is_file():
        return []
    stored = read_json(folder / TUNED)
    found = [t for t in _tuned(folder, stored) if steps is None or len(t.steps) == steps]
    if found and stored.get("model") != fingerprint(path):
        raise UserError(
            f"{folder / TUNED} was tuned for another model than {folder} holds now: "
            f"run `ornstein tune {folder}` again, or name a --solver"
        )
    return found


def _tuned(folder: Path, stored: dict[str, Any]) -> list[Tuned]:
    try:
        if stored["format"] != FORMAT:
            raise ValueError(f"format {stored['format']} is not {FORMAT}")
        return [Tuned.from_config(c) for c in stored["solvers"]]
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(f"{folder / TUNED} cannot be used: {e}; run `ornstein tune {folder}` again") from e

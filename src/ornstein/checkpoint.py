"""Models on disk: a run directory, or the folder of a diffusers pipeline, opened as a denoiser. Never a pickle."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import weakref
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ornstein import noise, schedules
from ornstein.autoencoders.latent import LatentSpace
from ornstein.denoiser import Denoiser, Distilled, SampleSpec
from ornstein.errors import RunError, UserError
from ornstein.few_steps.choice import Choice, nearest
from ornstein.few_steps.churn import Churn, nearest_churn
from ornstein.nets import NETS
from ornstein.process import Process
from ornstein.request import CHURNED
from ornstein.sizes import build_network, check_numbers, check_sample
from ornstein.solvers.tuned import Tuned
from ornstein.store import (
    CONFIG,
    FORMAT,
    MODEL,
    atomic_write,
    file_hash,
    json_bytes,
    load_weights,
    read_config,
    read_json,
)
from ornstein.text import FrozenEncoder, TextDenoiser, TextEncoder, open_encoder

__all__ = [
    "CHOSEN",
    "INDEX",
    "TUNED",
    "check_tuned",
    "fingerprint",
    "is_autoencoder",
    "is_pipeline",
    "load",
    "load_chosen",
    "load_churn",
    "load_tuned",
    "locate",
    "network_class",
    "run_folder",
    "save",
    "save_chosen",
    "save_churn",
    "save_tuned",
    "solver_of",
]

TUNED = "tuned.json"
CHOSEN = "solver.json"
INDEX = "model_index.json"  # of a diffusers pipeline

# The keys of a config that decide a model's trajectories, besides its weights.
_TRAJECTORY = ("schedule", "noise", "prediction", "data_std", "data_covariance", "net", "data")


def network_class(name: str) -> type[nn.Module]:
    """The network class that a config names. Raises ValueError for an unknown name."""
    if name not in NETS:
        raise ValueError(f"unknown network {name!r}; give it as ornstein.load(path, net=...)")
    return getattr(import_module(NETS[name]), name)


def is_pipeline(path: str | Path) -> bool:
    """Whether `path` is the folder of a diffusers pipeline, or a .safetensors file of one."""
    folder = Path(path)
    if folder.suffix == ".safetensors" and folder.is_file():
        return True
    return (folder / INDEX).is_file() and not (folder / CONFIG).exists()


def locate(path: str | Path) -> Path:
    """The folder or file of a model: `path` itself if it is there, and the download of a hub id, "owner/name".

    A name whose first part is a folder here is a path, not a hub id.

    Raises:
        UserError: the hub does not answer, or has no such pipeline.
    """
    text, found = str(path), Path(path)
    if found.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text) or found.parent.exists():
        return found
    return import_module("ornstein.interop.folder").from_hub(text)


def run_folder(path: str | Path) -> Path:
    """Where results on a model are kept: the run itself; for a pipeline the folder NAME.ornstein beside it.

    Nothing is written into a pipeline's folder: it may be shared, or belong to a cache.
    """
    folder = Path(path)
    if not is_pipeline(folder):
        return folder
    folder = folder.resolve()
    return folder.with_name(f"{folder.name}.ornstein")


def is_autoencoder(path: str | Path) -> bool:
    """Whether a run holds an autoencoder. Raises UserError if it is neither a run nor a pipeline."""
    return not is_pipeline(path) and "autoencoder" in read_config(path)


def save(denoiser: Denoiser, path: str | Path, extra: dict[str, Any] | None = None) -> None:
    """Write a model's folder: `denoiser.save(path, extra)`."""
    denoiser.save(path, extra)


def load(path: str | Path, net: nn.Module | None = None, trust_sizes: bool = False) -> Denoiser:
    """The denoiser stored at `path`, in evaluation mode.

    The folder may come from a stranger: only JSON and safetensors are read, and the sizes that it names are bounded
    before anything is allocated (`ornstein.sizes`).

    Args:
        path: a run directory; the folder or the hub id of a diffusers pipeline; or a .safetensors file of one.
        net: used in place of a network that is not one of Ornstein's.
        trust_sizes: lift the bounds on the sizes of network and samples, and of a latent model's autoencoder.

    Raises:
        UserError: the folder holds no model, or a nonsensical one, or its tensors do not fit the network.
    """
    folder = locate(path)
    if is_pipeline(folder) and folder.is_file():
        return import_module("ornstein.interop.folder").open_file(folder)
    if is_pipeline(folder):
        return import_module("ornstein.interop.diffusers").load_pipeline(folder)
    config, where = read_config(folder), str(folder / CONFIG)
    if "autoencoder" in config:
        raise UserError(
            f"{folder} holds an autoencoder: `ornstein.autoencoders.load` reads it, `train --latent` uses it"
        )
    if "personal" in config:
        return import_module("ornstein.interop.personal").open_run(folder, config, trust_sizes)
    check_numbers(config, where)
    try:
        denoiser = _from_config(config, folder, net, trust_sizes)
    except (UserError, RunError):
        raise
    except Exception as e:  # a network with nonsensical arguments fails in many ways, some of them PyTorch's
        what = f"{e} is missing" if isinstance(e, KeyError) else " ".join(str(e).split()) or type(e).__name__
        raise UserError(f"{where} does not describe a model: {what[:300]}") from e
    load_weights(denoiser.weights, folder / MODEL)
    denoiser.solvers = _Kept(folder, denoiser.net)
    return denoiser.eval()


class _Kept:
    """The solvers of a run, for the network that was loaded from it and no other: that of a copy may have changed."""

    def __init__(self, folder: Path, net: nn.Module) -> None:
        self.folder, self.net = folder, weakref.ref(net)

    def __call__(self, net: nn.Module, steps: int, guidance: float, name: str | None = None) -> Tuned | str | None:
        """As `solver_of`, or the solver with tuned churn; None for another network."""
        if net is not self.net() or not any((self.folder / file).is_file() for file in (TUNED, CHOSEN)):
            return None
        if name == CHURNED:
            churn = nearest_churn(load_churn(self.folder, self._model), steps, guidance)
            return None if churn is None else churn.solver
        return solver_of(self.folder, steps, guidance, self._model)

    @functools.cached_property
    def _model(self) -> str:
        return fingerprint(self.folder)  # reads all weights: once, not for each sample


def _from_config(config: dict[str, Any], folder: Path, net: nn.Module | None, trust: bool) -> Denoiser:
    data = SampleSpec.from_config(config["data"]) if "data" in config else None
    if data is not None:
        check_sample(data.shape, str(folder / CONFIG), trust)
    if net is None:
        arguments = dict(config["net"])
        make = network_class(str(arguments.pop("type")))
        net = build_network(lambda: make(**arguments), folder / MODEL, trust)
    process = Process(schedules.from_config(config["schedule"]), noise.from_config(config["noise"]))
    covariance = noise.from_config(config["data_covariance"]) if "data_covariance" in config else None
    if data is not None:
        for each in (process.noise, *([] if covariance is None else [covariance])):
            if not getattr(each, "needs_flow", False):
                each.color(torch.zeros(1, *data.shape))  # raises ValueError if it was made for other shapes
    make_model: Any = Denoiser
    if "text" in config:
        encoder = _text_encoder(config["text"], folder, trust)
        make_model = partial(TextDenoiser, encoder=encoder, examples=tuple(map(str, config["text"]["examples"])))
    return make_model(
        net,
        process,
        config["prediction"],
        config["data_std"],
        data,
        covariance,
        LatentSpace.from_config(config["latent"], folder, trust) if "latent" in config else None,
        Distilled.from_config(config["distilled"]) if "distilled" in config else None,
        bool(config.get("whitened", False)),
    )


def _text_encoder(config: dict[str, Any], folder: Path, trust: bool) -> TextEncoder | FrozenEncoder:
    """The text encoder of the model in `folder`. Raises UserError if a frozen one is missing or has changed."""
    kind = config["kind"]
    if kind == TextEncoder.kind:
        arguments = {name: value for name, value in config.items() if name not in ("kind", "examples")}
        return build_network(lambda: TextEncoder(**arguments), folder / MODEL, trust)
    path = Path(config["folder"])
    if kind != "minilm" and not path.is_dir():
        path = folder.resolve().parent / path.name  # both folders were moved
    encoder = open_encoder(kind if kind == "minilm" else f"{kind}:{path}")
    if encoder.fingerprint != config["fingerprint"]:
        raise UserError(
            f"the text encoder in {encoder.path} has changed since {folder} was trained with it (its hash differs): "
            "put the old one back, or train again"
        )
    return encoder


def fingerprint(path: str | Path) -> str:
    """A hash of the model at `path`: of its weights and of everything that decides its trajectories.

    Raises:
        UserError: there is no model.
    """
    folder = Path(path)
    if folder.is_file():
        return file_hash(folder).hexdigest()
    if is_pipeline(folder):
        return _pipeline_hash(folder)
    config = read_config(path)
    described = json.dumps(
        {k: config.get(k) for k in _TRAJECTORY} | {k: config[k] for k in ("text", "whitened") if k in config},
        sort_keys=True,
    )
    digest = file_hash(folder / MODEL)
    digest.update(described.encode())
    return digest.hexdigest()


def _pipeline_hash(folder: Path) -> str:
    """A hash of all weights and configs of a pipeline."""
    digest = hashlib.sha256()
    for file in sorted(f for f in folder.rglob("*") if f.suffix in (".json", ".safetensors", ".txt", ".model")):
        digest.update(f"{file.relative_to(folder)} {file_hash(file).hexdigest()}\n".encode())
    return digest.hexdigest()


def save_tuned(path: str | Path, solvers: list[Tuned]) -> None:
    """Store solvers tuned for the model at `path` beside it; those for other steps and guidance scales are kept.

    Raises:
        UserError: as `check_tuned`.
    """
    check_tuned(path)
    folder, model = run_folder(path), fingerprint(path)
    folder.mkdir(exist_ok=True)
    stored: dict[tuple[int, float, float], dict[str, Any]] = {}

    def key(t: Tuned) -> tuple[int, float, float]:
        return len(t.steps), t.guidance, t.guidance if t.until is None else t.until

    if (folder / TUNED).is_file():
        content = read_json(folder / TUNED)
        if content.get("model") == model:
            stored = {key(t): t.to_config() for t in _tuned(folder, content)}
    stored |= {key(t): t.to_config() for t in solvers}
    atomic_write(
        folder / TUNED,
        json_bytes({"format": FORMAT, "model": model, "solvers": [stored[k] for k in sorted(stored)]}),
    )


def check_tuned(path: str | Path) -> None:
    """Raise UserError if the folder has a tuned.json that `save_tuned` did not write: it would be replaced."""
    file = run_folder(path) / TUNED
    if file.exists() and not {"format", "model", "solvers"} <= read_json(file).keys():
        raise UserError(f"{file} does not hold tuned solvers, and is not replaced: move it away")


def load_tuned(path: str | Path, steps: int | None = None, model: str | None = None) -> list[Tuned]:
    """The solvers tuned for the model at `path`, those of `steps` steps or all of them; an empty list if none were.

    Args:
        model: the fingerprint of the model, where it is known.

    Raises:
        UserError: they were tuned for another model: other weights, another schedule or other noise.
    """
    folder = run_folder(path)
    if not (folder / TUNED).is_file():
        return []
    content = read_json(folder / TUNED)
    solvers = [t for t in _tuned(folder, content) if steps is None or len(t.steps) == steps]
    if solvers and content.get("model") != (model or fingerprint(path)):
        raise UserError(
            f"{folder / TUNED} was tuned for another model than {path} holds now: "
            f"run `ornstein tune {path}` again, or name a --solver"
        )
    return solvers


def _tuned(folder: Path, content: dict[str, Any]) -> list[Tuned]:
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']} is not {FORMAT}")
        return [Tuned.from_config(c) for c in content["solvers"]]
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(f"{folder / TUNED} cannot be used: {e}; run `ornstein tune {folder}` again") from e


def solver_of(path: str | Path, steps: int, guidance: float, model: str | None = None) -> Tuned | None:
    """The solver that a run keeps for so many steps and this guidance: tuned, else chosen; None if it has neither.

    Args:
        model: the fingerprint of the model, where it is known.

    Raises:
        UserError: a file is damaged, or the tuned solvers are of another model.
    """
    serving = [t for t in load_tuned(path, steps, model) if t.serves(guidance)]
    if serving:
        return min(serving, key=lambda t: t.until is not None)  # one for this scale alone comes first
    return load_chosen(path, steps, guidance, model)


def save_chosen(path: str | Path, choices: list[Choice]) -> None:
    """Store the default solvers of the model at `path` beside it; the churn that was tuned for it is kept."""
    _store_chosen(path, choices=[c.to_config() for c in choices])


def save_churn(path: str | Path, found: list[Churn]) -> None:
    """Store the churn tuned for the model at `path` beside it; that for other steps and scales is kept.

    Raises:
        UserError: the run has a file of that name that is damaged.
    """
    every = {(c.steps, c.guidance): c for c in [*load_churn(path), *found]}
    _store_chosen(path, churn=[every[key].to_config() for key in sorted(every)])


def _store_chosen(path: str | Path, **changed: list[dict[str, Any]]) -> None:
    """Write some of what the file holds, and keep the rest of it if it is of the same model and not damaged."""
    folder, model = run_folder(path), fingerprint(path)
    folder.mkdir(exist_ok=True)
    kept: dict[str, Any] = {}
    if (folder / CHOSEN).is_file():
        with suppress(UserError):
            kept = read_json(folder / CHOSEN)
    kept = kept if kept.get("model") == model and kept.get("format") == FORMAT else {}
    content = {"choices": [], **kept, "format": FORMAT, "model": model, **changed}
    atomic_write(folder / CHOSEN, json_bytes(content))


def load_churn(path: str | Path, model: str | None = None) -> list[Churn]:
    """The churn tuned for the model at `path`; an empty list if none was, for the weights it has.

    Args:
        model: the fingerprint of the model, where it is known.

    Raises:
        UserError: the file is damaged.
    """
    content = _chosen(run_folder(path) / CHOSEN)
    if not content or content.get("model") != (model or fingerprint(path)):
        return []  # trained on since: it was another model's
    return content["churn"]


def load_chosen(path: str | Path, steps: int, guidance: float, model: str | None = None) -> Tuned | None:
    """The default solver of the model at `path` for so many steps; None if none was chosen for the weights it has.

    Raises:
        UserError: the file is damaged.
    """
    content = _chosen(run_folder(path) / CHOSEN)
    found = nearest(content["choices"], steps, guidance) if content else None
    if found is None or content.get("model") != (model or fingerprint(path)):
        return None  # trained on since: the choice was another model's
    return found.solver(schedules.from_config(read_config(path)["schedule"]), steps)


def _chosen(file: Path) -> dict[str, Any]:
    """What the file holds, its choices and its churn read; empty if there is none."""
    if not file.is_file():
        return {}
    content = read_json(file)
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']} is not {FORMAT}")
        choices = [Choice.from_config(c) for c in content["choices"]]
        churn = [Churn.from_config(c) for c in content.get("churn", [])]  # older files have none
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(f"{file} cannot be used: {e}; delete it, or name a --solver") from e
    return {**content, "choices": choices, "churn": churn}

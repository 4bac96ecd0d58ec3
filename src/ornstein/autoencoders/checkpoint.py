"""An autoencoder as a folder: model.safetensors and config.json, as a denoiser's; complete or absent."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ornstein.autoencoders.autoencoder import Autoencoder
from ornstein.autoencoders.kinds import AUTOENCODERS
from ornstein.errors import UserError
from ornstein.sizes import build_network, check_numbers, check_sample
from ornstein.store import (
    CONFIG,
    FORMAT,
    MODEL,
    atomic_save_tensors,
    atomic_write,
    check_regular,
    json_bytes,
    load_weights,
    make_folder,
    read_config,
)


def to_config(model: Autoencoder, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """All that is needed to make the model again, in JSON types; `extra` goes beside it."""
    return {"format": FORMAT, "autoencoder": {"type": model.kind, **model.config}} | (extra or {})


def save(model: Autoencoder, path: str | Path, extra: dict[str, Any] | None = None) -> None:
    """Write the folder `path`; the config goes last: a folder without it is no model. RunError where it cannot."""
    folder = make_folder(path)
    atomic_save_tensors(folder / MODEL, model.state_dict(), {})
    atomic_write(folder / CONFIG, json_bytes(to_config(model, extra)))


def load(path: str | Path, trust_sizes: bool = False) -> Autoencoder:
    """The autoencoder stored at `path`, in evaluation mode.

    Args:
        trust_sizes: lift the bounds on the sizes that the folder may name (`ornstein.sizes`).

    Raises:
        UserError: the folder does not hold an autoencoder, or its tensors are not the model's.
    """
    folder, config = Path(path), _config(path)
    where = str(folder / CONFIG)
    check_numbers(config, where)
    try:
        arguments = dict(config["autoencoder"])
        kind = arguments.pop("type")
        if kind not in AUTOENCODERS:
            raise ValueError(f"unknown autoencoder {kind!r}; known: {', '.join(AUTOENCODERS)}")
        model = build_network(lambda: AUTOENCODERS[kind](**arguments), folder / MODEL, trust_sizes)
        check_sample(tuple(model.shape), where, trust_sizes)
    except UserError:
        raise
    except Exception as e:  # nonsensical arguments fail in many ways, some of them PyTorch's
        raise UserError(f"{where} does not describe an autoencoder: {' '.join(str(e).split())[:300]}") from e
    load_weights(model, folder / MODEL)
    return model.eval()


def fingerprint(path: str | Path) -> str:
    """SHA-256 of the weights and the description of the autoencoder at `path`: what latents made by it depend on.

    Raises UserError where there is none.
    """
    folder, config = Path(path), _config(path)
    check_regular(folder / MODEL)
    digest = hashlib.sha256(json.dumps(config["autoencoder"], sort_keys=True).encode())
    try:
        digest.update((folder / MODEL).read_bytes())
    except OSError as e:
        raise UserError(f"{folder / MODEL} cannot be read: {e.strerror or e}") from e
    return digest.hexdigest()


def _config(path: str | Path) -> dict[str, Any]:
    config = read_config(path)
    if "autoencoder" not in config:
        raise UserError(f"{path} holds no autoencoder; train one with `ornstein train --model kl --out {path}`")
    return config

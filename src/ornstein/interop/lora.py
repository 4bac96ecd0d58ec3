"""LoRA files: our own, those of diffusers and peft, and those of kohya's scripts and ComfyUI; loaded into any denoiser.

The three kinds hold the same tensors and differ in the names of the layers and in where alpha is. A file always says
its alpha here; where a foreign one does not, what is assumed is said in a warning.

| kind | a layer | its alpha |
|---|---|---|
| ornstein | `unet.mid.to_q.down`, `.up` | metadata `ornstein_lora` |
| diffusers | `unet.mid.to_q.lora_A.weight`, `.lora_B.weight` | metadata `lora_adapter_metadata` |
| kohya | `lora_unet_mid_to_q.lora_down.weight`, `.lora_up.weight` | tensor `lora_unet_mid_to_q.alpha` |
"""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.interop.lora_names import dotted, flat, known_names
from ornstein.interop.pipeline import Pipeline
from ornstein.nets.lora import Lora, LoraLayer, attach, base_hash, detach, merge
from ornstein.store import CONFIG, atomic_save_tensors, load_tensors, read_json

__all__ = [
    "TARGETS",
    "FileKind",
    "load_lora",
    "lora_file",
    "merge_lora",
    "parts_of",
    "read_lora",
    "unload_lora",
    "with_base",
    "write_lora",
]

FileKind = Literal["ornstein", "diffusers", "kohya"]

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj", "qkv", "out")
"""The layers that are adapted unless others are named: those of attention, of diffusers, transformers and Ornstein."""

_OWN, _THEIRS = "ornstein_lora", "lora_adapter_metadata"
_NAMES = ("lora.safetensors", "pytorch_lora_weights.safetensors", "adapter_model.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_DOWN = (".down", ".lora_A.weight", ".lora_A.default.weight", ".lora_down.weight", "lora.down.weight",
         ".lora_linear_layer.down.weight")  # fmt: skip
_MAGNITUDE = (".magnitude", ".lora_magnitude_vector", ".lora_magnitude_vector.weight", ".dora_scale")
_UP = {"down": "up", "lora_A": "lora_B", "lora_down": "lora_up"}
_ENCODERS = {"text_encoder": "lora_te", "text_encoder_2": "lora_te2", "text_encoder_3": "lora_te3"}


def parts_of(d: Denoiser) -> nn.ModuleDict:
    """The networks of a denoiser by the names that LoRA files use: "unet" or "transformer", "text_encoder", ..."""
    net, family = d.net, getattr(d, "family", None)
    model = getattr(net, "model", net)  # inside a pipeline, or one of diffusers by itself
    main = getattr(family, "part", None) or ("unet" if "unet" in type(model).__name__.lower() else "transformer")
    rest = {name: part for name, part in getattr(d, "parts", {}).items() if name in _ENCODERS}
    if getattr(d, "trains_text", False):  # a run whose encoder was trained along
        rest["text_encoder"] = d.encoder
    return nn.ModuleDict({main: model, **rest})


def load_lora(d: Denoiser, lora: Lora | str | Path, strength: float = 1.0, any_base: bool = False) -> Lora:
    """Put a LoRA on a denoiser; several add up. `merge_lora` and `unload_lora` take it from there.

    Prompts of a pipeline that were encoded before are of its old text encoders: encode them again.

    Args:
        lora: a LoRA or its file.
        strength: a factor on it.
        any_base: accept one of another base, as long as its layers fit.

    Returns:
        The LoRA.

    Raises:
        UserError: it is of another base: another hash, or layers that do not fit; it cannot be read.
    """
    parts = parts_of(d)
    lora = lora if isinstance(lora, Lora) else read_lora(lora, parts)
    attach_to = dict(lora.layers)
    if lora.base is not None and not any_base and all(_has(parts, name) for name in attach_to):
        here = base_hash(parts, attach_to)
        if here != lora.base:
            raise UserError(
                f"this LoRA was trained on the base {lora.base[:12]}, and this model is {here[:12]}: load it into its "
                "own base, or accept another one (any_base)"
            )
    attach(parts, attach_to, strength)
    _changed(d)
    return lora


def merge_lora(d: Denoiser) -> None:
    """Write the LoRAs on a denoiser into its weights."""
    merge(parts_of(d))


def unload_lora(d: Denoiser) -> None:
    """Take the LoRAs off a denoiser: its weights are what they were, bit for bit."""
    detach(parts_of(d))
    _changed(d)


def _changed(d: Denoiser) -> None:
    """Conditions that a pipeline has encoded are of its old text encoders."""
    if isinstance(d, Pipeline):
        d.forget_text()


def _has(parts: nn.Module, name: str) -> bool:
    try:
        return hasattr(parts.get_submodule(name), "weight")
    except AttributeError:
        return False


def read_lora(path: str | Path, parts: nn.Module | None = None) -> Lora:
    """The LoRA in a safetensors file, or in a folder with one.

    Args:
        parts: of the model that it is for (`parts_of`): the names of its layers make those of a kohya file exact.

    Raises:
        UserError: it is not a LoRA, is damaged, or is a pickle.
    """
    file = lora_file(path)
    tensors, metadata = load_tensors(file)
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{file}: {name} has values that are not finite; the file is damaged")
    own = _json(file, metadata, _OWN)
    grouped = _grouped(file, tensors)
    names = own.get("names", {})
    known = {} if parts is None else known_names(parts)
    renamed = {name: names.get(name) or dotted(name, known) for name in grouped}
    if len(set(renamed.values())) < len(renamed):
        raise UserError(f"{file} holds a layer twice")
    alphas = own.get("alpha", {}) | _alphas(file, metadata, {renamed[n]: len(g["down"]) for n, g in grouped.items()})
    layers, assumed = {}, []
    for name, found in grouped.items():
        alpha = float(found["alpha"]) if "alpha" in found else alphas.get(renamed[name])
        if alpha is None:
            assumed.append(name)
            alpha = float(len(found["down"]))
        magnitude = found.get("magnitude")
        try:
            layers[renamed[name]] = LoraLayer(
                found["down"], found["up"], float(alpha), None if magnitude is None else magnitude.flatten()
            )
        except UserError as error:
            raise UserError(f"{file}: {name}: {error}") from None
    if assumed:
        which = (
            "it" if len(assumed) == len(layers) else f"{len(assumed)} of {len(layers)} layers, such as {assumed[0]},"
        )
        warnings.warn(
            f"{file} does not say the alpha of {which}: it is taken to be the rank, a scale of 1", UserWarning, 2
        )
    facts = {k: v for k, v in metadata.items() if k not in (_OWN, _THEIRS, "format")}
    return Lora(layers, own.get("base"), facts)


def lora_file(path: str | Path) -> Path:
    """The file of a LoRA: `path` itself, or the one in that folder. Raises UserError for a pickle, or if none is."""
    path = Path(path)
    if path.suffix in _PICKLES:
        raise UserError(
            f"{path} is a pickle, which can run code and is not loaded: convert it where you trust it, with "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True), FILE.safetensors)"
        )
    if not path.is_dir():
        return path
    named = [path / name for name in _NAMES if (path / name).is_file()]
    found = named[:1] if (path / CONFIG).is_file() else named or sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        raise UserError(f"{path} holds {len(found)} files that may be a LoRA: name one of them")
    return found[0]


def _json(file: Path, metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    try:
        content = json.loads(metadata.get(key, "{}"))
        if not isinstance(content, dict):
            raise ValueError("not a mapping")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: its metadata {key} cannot be read: {error}") from None
    return content


def _grouped(file: Path, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of each layer, by the layer's name in the file."""
    layers: dict[str, dict[str, Tensor]] = {}
    used: set[str] = set()
    for key in tensors:
        suffix = next((s for s in _DOWN if key.endswith(s)), None)
        if suffix is None:
            continue
        stem = key.removesuffix(suffix)
        up = stem + next(suffix.replace(a, b) for a, b in reversed(_UP.items()) if a in suffix)
        if up not in tensors:
            raise UserError(f"{file} has {key}, and no {up}")
        name = stem.removesuffix(".").removesuffix("_")  # "to_q.lora.down", and "processor.to_q_lora.down"
        found = {"down": tensors[key], "up": tensors[up]}
        used |= {key, up}
        for kind, ends in (("alpha", (".alpha",)), ("magnitude", _MAGNITUDE)):
            present = next((name + end for end in ends if name + end in tensors), None)
            if present is not None:
                found[kind] = tensors[present]
                used.add(present)
        layers[name] = found
    foreign = sorted(tensors.keys() - used)
    if foreign or not layers:
        what = f"it has the tensor {foreign[0]}" if foreign else "it is empty"
        raise UserError(f"{file} is not a LoRA, or one of another kind (LoHa, LoKr): {what}")
    return layers


def _alphas(file: Path, metadata: Mapping[str, str], ranks: Mapping[str, int]) -> dict[str, float]:
    """The alphas that diffusers' metadata, or peft's config beside the file, gives the layers."""
    said = _json(file, metadata, _THEIRS)
    beside = file.parent / "adapter_config.json"
    if not said and beside.is_file() and file.name.startswith("adapter_model"):
        said = {
            f"{component}.{k}": v
            for k, v in read_json(beside).items()
            for component in {n.split(".")[0] for n in ranks}
        }
    alphas: dict[str, float] = {}
    for name, rank in ranks.items():
        component, _, layer = name.partition(".")
        alpha = said.get(f"{component}.lora_alpha")
        for end, value in (said.get(f"{component}.alpha_pattern") or {}).items():
            end = str(end).removeprefix("^")
            alpha = value if layer == end or layer.endswith("." + end) else alpha
        if isinstance(alpha, int | float):
            alphas[name] = float(alpha) * (math.sqrt(rank) if said.get(f"{component}.use_rslora") else 1)
    return alphas


def write_lora(lora: Lora, path: str | Path, to: FileKind = "ornstein", overwrite: bool = False) -> Path:
    """Write a LoRA as one safetensors file.

    Args:
        path: a file whose name ends in .safetensors, or a folder, which gets the name that its kind is looked for by.
        to: the kind of file.
        overwrite: replace a file that is there.

    Returns:
        The file.

    Raises:
        UserError: an unknown kind; a file that is there.
    """
    if to not in get_args(FileKind):
        raise UserError(f"{to!r} is no kind of LoRA file; known: {', '.join(get_args(FileKind))}")
    file = Path(path)
    if file.suffix != ".safetensors":
        file = file / {"ornstein": _NAMES[0], "diffusers": _NAMES[1], "kohya": "lora_kohya.safetensors"}[to]
    if file.exists() and not overwrite:
        raise UserError(f"{file} exists: choose another name, or overwrite it")
    file.parent.mkdir(parents=True, exist_ok=True)
    own: dict[str, Any] = {"base": lora.base} if lora.base else {}
    metadata = dict(lora.facts) | {"format": "pt"}
    tensors: dict[str, Tensor] = {}
    names = _file_names(lora, to)
    down, up, magnitude = {
        "ornstein": (".down", ".up", ".magnitude"),
        "diffusers": (".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"),
        "kohya": (".lora_down.weight", ".lora_up.weight", ".dora_scale"),
    }[to]
    for name, layer in lora.layers.items():
        stem = names[name]
        tensors |= {stem + down: layer.down, stem + up: layer.up}
        if layer.magnitude is not None:
            tensors[stem + magnitude] = layer.magnitude[:, None] if to == "kohya" else layer.magnitude
        if to == "kohya":
            exact = torch.tensor(layer.alpha, dtype=torch.float64)
            tensors[stem + ".alpha"] = exact.float() if exact.float().item() == layer.alpha else exact
    if to == "ornstein":
        own["alpha"] = {name: layer.alpha for name, layer in lora.layers.items()}
    elif to == "diffusers":
        metadata[_THEIRS] = json.dumps(_peft_config(lora), sort_keys=True)
    else:
        own["names"] = {names[name]: name for name in lora.layers}
        metadata |= _kohya_facts(lora) | dict(lora.facts)
    if own:
        metadata[_OWN] = json.dumps(own, sort_keys=True)
    atomic_save_tensors(file, tensors, metadata)
    return file


def _file_names(lora: Lora, to: FileKind) -> dict[str, str]:
    """The layers' names in a file."""
    if to != "kohya":
        return {name: name for name in lora.layers}
    several = any(name.startswith("text_encoder_") for name in lora.layers)
    names = {}
    for name in lora.layers:
        component, _, layer = name.partition(".")
        prefix = _ENCODERS.get(component, "lora_unet")
        names[name] = f"{'lora_te1' if several and prefix == 'lora_te' else prefix}_{flat(layer)}"
    return names


def _peft_config(lora: Lora) -> dict[str, Any]:
    """What diffusers builds peft's LoraConfig from, for each component: without it, it takes alpha to be the rank."""
    config: dict[str, Any] = {}
    for component in dict.fromkeys(name.partition(".")[0] for name in lora.layers):
        layers = {n.partition(".")[2]: v for n, v in lora.layers.items() if n.startswith(component + ".")}
        rank = Counter(layer.rank for layer in layers.values()).most_common(1)[0][0]
        alpha = Counter(layer.alpha for layer in layers.values()).most_common(1)[0][0]
        said = {
            "r": rank,
            "lora_alpha": alpha,
            "rank_pattern": {f"^{n}": v.rank for n, v in layers.items() if v.rank != rank},
            "alpha_pattern": {f"^{n}": v.alpha for n, v in layers.items() if v.alpha != alpha},
            "target_modules": sorted(layers),
            "use_dora": any(layer.magnitude is not None for layer in layers.values()),
            "lora_bias": False,
        }
        config |= {f"{component}.{key}": value for key, value in said.items()}
    return config


def _kohya_facts(lora: Lora) -> dict[str, str]:
    ranks, alphas = ({getattr(v, key) for v in lora.layers.values()} for key in ("rank", "alpha"))
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": f"{alphas.pop():g}" if len(alphas) == 1 else "Dynamic",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": lora.facts.get("modelspec.title", "LoRA"),
    }


def with_base(lora: Lora, d: Denoiser) -> Lora:
    """The same, saying that it was trained on the base that `d` is without its adaptations."""
    return replace(lora, base=base_hash(parts_of(d), lora.layers))

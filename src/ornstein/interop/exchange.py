"""Whole models between Ornstein and diffusers: runs of pipelines, and pipelines of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.interop.diffusers import DiffusersNet, save_pipeline
from ornstein.interop.lora import parts_of
from ornstein.interop.notes import quiet
from ornstein.interop.pipeline import Pipeline
from ornstein.nets.lora import adapted
from ornstein.store import CONFIG, read_config
from ornstein.text.prompting import check_ungated

__all__ = ["export_model", "not_expressible", "write_folder", "write_model"]

# What diffusers' classes of the same name do otherwise, by our network.
_DIFFERS = {
    "UNet": (
        "UNet2DModel",
        "its decoder adds the encoder's last features, where UNet2DModel joins those of every block",
        "it embeds the log-SNR, where UNet2DModel embeds a timestep",
    ),
    "DiT": (
        "DiTTransformer2DModel",
        "its attention rotates queries and keys by position, where DiTTransformer2DModel adds positions to the tokens",
        "it embeds the log-SNR, where DiTTransformer2DModel embeds a timestep",
    ),
}


def not_expressible(d: Denoiser) -> list[str]:
    """The parts of a model that no class of diffusers expresses, in words; empty if it can be exported."""
    check_ungated(d)
    if isinstance(d, Pipeline) or isinstance(d.net, DiffusersNet):
        return []
    name, config = type(d.net).__name__, getattr(d.net, "config", {})
    if name not in _DIFFERS:
        return [f"its network {name}, of which diffusers has no class"]
    theirs, *parts = _DIFFERS[name]
    if name == "UNet" and config.get("patch", 1) > 1:
        parts.append(f"it takes patches of {config['patch']} pixels, where {theirs} takes pixels")
    if name == "DiT" and config.get("registers", 0):
        parts.append(f"it has {config['registers']} register tokens, of which {theirs} has none")
    if config.get("text_width", 0):
        parts.append(f"it takes text, which {theirs} does not")
    if d.prediction not in ("eps", "x0", "v"):
        parts.append(f"it predicts {d.prediction!r}, where diffusers' schedulers of a chain take eps, x0 or v")
    if type(d.process.noise).__name__ != "Identity":
        parts.append(f"its noise is {d.process.noise}, where diffusers' is white")
    if d.space is not None:
        parts.append("its autoencoder is none of diffusers'")
    return parts


def export_model(d: Denoiser, out: str | Path) -> None:
    """Write a model as a pipeline folder of diffusers.

    Raises:
        UserError: diffusers has no such model; each part that it cannot express is named.
    """
    parts = not_expressible(d)
    if parts:
        raise UserError(f"diffusers cannot express this model: {'; '.join(parts)}")
    _check_new(Path(out))
    write_folder(d, out)


def write_folder(d: Denoiser, out: str | Path) -> None:
    """Write a model that diffusers has as a pipeline folder, over what is there."""
    if isinstance(d, Pipeline):
        _check_plain(d)
        with quiet():
            d._pipe.save_pretrained(out, safe_serialization=True)
    else:
        save_pipeline(d, out)


def write_model(d: Denoiser, source: str | Path, out: str | Path) -> None:
    """Write a model that was read from `source` and changed, in the form of its source: a run, or a pipeline folder.

    Raises:
        UserError: there is something at `out`; adaptations are on the model that are not merged.
    """
    if isinstance(d, Pipeline):
        export_model(d, out)
        return
    _check_new(Path(out))
    _check_plain(d)
    extra: dict[str, Any] = {}
    if (Path(source) / CONFIG).is_file():
        own = d.to_config()
        extra = {key: value for key, value in read_config(source).items() if key not in own}
    d.save(out, extra)


def _check_new(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists: name a new folder")


def _check_plain(d: Denoiser) -> None:
    if adapted(parts_of(d)):
        raise UserError("LoRAs are on this model: merge them into its weights first (`ornstein.nets.lora.merge`)")

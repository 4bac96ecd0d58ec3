"""The files of a personalised run: for Ornstein, for diffusers, and for ComfyUI and kohya's scripts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ornstein import checkpoint
from ornstein.denoiser import Denoiser
from ornstein.interop.lora import write_lora
from ornstein.interop.personal import write_weights, write_words
from ornstein.interop.pipeline import Pipeline
from ornstein.personalization.learned import Learned, lora_of
from ornstein.personalization.settings import PersonalizeSettings
from ornstein.settings import to_json
from ornstein.store import CONFIG, FORMAT, MODEL, atomic_write, json_bytes, load_tensors, make_folder

__all__ = ["DIFFUSERS", "KOHYA", "about_run", "restore", "write_run"]

DIFFUSERS, KOHYA = "pytorch_lora_weights.safetensors", "lora_kohya.safetensors"

# What decides the model that a run trains; the same in a run and its resumption.
_FIXED = (
    "method", "prompt", "rank", "alpha", "dora", "targets", "train_text", "vectors", "initial", "class_prompt",
    "placeholder", "captions", "prior", "prior_weight", "class_images", "size", "crop", "aspect", "held_out", "outside",
)  # fmt: skip


def about_run(d: Denoiser, base: Path, settings: PersonalizeSettings) -> dict[str, Any]:
    """The config of a run: its base by hash, its method and its prompts."""
    assert d.data is not None
    fixed = {name: value for name, value in to_json(settings).items() if name in _FIXED}
    return {
        "format": FORMAT,
        "personal": fixed | {"base": {"hash": checkpoint.fingerprint(base)}, "placeholder": settings.word},
        "data": d.data.to_config(),
        "prediction": d.prediction,
        "net": {"type": f"{settings.method} of {type(getattr(d.net, 'model', d.net)).__name__}"},
    }


def write_run(
    learned: Learned, out: Path, extra: dict[str, Any], d: Denoiser, base: Path, about: dict[str, Any],
    settings: PersonalizeSettings,
) -> None:  # fmt: skip
    """Write a run directory: the weights, then the config that makes it one."""
    make_folder(out)
    own = about["personal"]["base"]["hash"]
    if settings.method == "lora":
        facts = {
            "modelspec.title": f"{out.name}: {settings.prompt}",
            "modelspec.trigger_phrase": settings.word or settings.prompt,
            "ornstein_base": own,
        }
        lora = lora_of(learned, d, settings.alpha, facts)
        write_lora(lora, out / MODEL, "ornstein", overwrite=True)
        write_lora(lora, out / DIFFUSERS, "diffusers", overwrite=True)
        write_lora(lora, out / KOHYA, "kohya", overwrite=True)
    else:
        write_weights(out / MODEL, learned.named(), own)
        if settings.method == "textual-inversion" and isinstance(d, Pipeline):
            assert settings.word is not None
            write_words(out, {name.partition(".")[0]: v for name, v in learned.named().items()}, settings.word)
    place = {"path": str(base.resolve()), "relative": os.path.relpath(base.resolve(), out.resolve())}
    personal = about["personal"] | {"base": about["personal"]["base"] | place}
    atomic_write(out / CONFIG, json_bytes(about | {"personal": personal} | extra))


def restore(learned: Learned, out: Path) -> None:
    """Put the numbers that a run holds in its files into `learned`."""
    learned.take(load_tensors(out / MODEL)[0])

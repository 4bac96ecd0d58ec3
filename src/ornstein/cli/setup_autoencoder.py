"""The untrained autoencoder and its loss that `train --model` was asked for."""

from __future__ import annotations

from typing import Any

import torch

from ornstein.autoencoders import AUTOENCODERS, AutoencoderLoss
from ornstein.cli.setup import Settings
from ornstein.data import ImageSet, StreamedSet
from ornstein.errors import UserError

DIFFUSION = "diffusion"
MODELS = (DIFFUSION, *AUTOENCODERS)

# An autoencoder for a diffusion to come has latents that say nearly all; one that is to make images by itself, a bound.
_KL = {"kl": 0.05}
_RECONSTRUCTION = {"ae": "l1", "vq": "l1"}
_FREE_BITS = {"hvae": 0.1}  # without them the layers above the first hardly come alive

# Settings, the arguments they become, and the models that have these.
_SHAPE = {
    "factor": ("factor", tuple(AUTOENCODERS)),
    "latent_channels": ("latent_channels", tuple(AUTOENCODERS)),
    "layers": ("layers", ("hvae",)),
    "codes": ("codes", ("vq",)),
}
_LOSS = {
    "reconstruction": ("reconstruction", tuple(AUTOENCODERS)),
    "kl": ("kl_weight", ("vae", "hvae", "kl")),
    "kl_warmup": ("warmup", ("vae", "hvae", "kl")),
    "free_bits": ("free_bits", ("vae", "hvae", "kl")),
    "perceptual": ("perceptual", tuple(AUTOENCODERS)),
    "perceptual_weight": ("perceptual_weight", tuple(AUTOENCODERS)),
    "adversarial": ("adversarial_weight", tuple(AUTOENCODERS)),
}
_FOREIGN = ("frames", "noise", "data_noise", "centre", "given_frames", "init", "objective", "conditional", "latent")


def check_model(settings: Settings) -> None:
    """Raises UserError for an unknown model, or an option that the one asked for does not have."""
    model = settings.model
    if model not in MODELS:
        raise UserError(f"unknown --model {model!r}; known: {', '.join(MODELS)}")
    for name, (_, models) in (_SHAPE | _LOSS).items():
        if getattr(settings, name) is not None and model not in models:
            raise UserError(f"--{name.replace('_', '-')} is for --model {', '.join(models)}, not {model}")
    if settings.perceptual_weight is not None and settings.perceptual is None:
        raise UserError("--perceptual-weight needs --perceptual: random, or a TorchScript file")
    if model == DIFFUSION:
        return
    defaults = Settings(data=settings.data)
    for name in _FOREIGN:
        if getattr(settings, name) != getattr(defaults, name):
            raise UserError(f"--{name.replace('_', '-')} is for diffusion models, not --model {model}")


def new_autoencoder(settings: Settings, data: ImageSet | StreamedSet) -> AutoencoderLoss:
    """The untrained autoencoder for these images, inside its loss. UserError where an argument is out of range."""
    channels, size, _ = data.shape
    kind = settings.model
    preset = settings.net
    if preset == "auto":
        preset = "xs" if size <= 16 else "m" if torch.cuda.is_available() else "s"
    torch.manual_seed(settings.seed)
    try:
        model = AUTOENCODERS[kind].preset(preset, channels=channels, size=size, **_given(settings, _SHAPE))
        defaults: dict[str, Any] = {
            "reconstruction": _RECONSTRUCTION.get(kind, "nll"),
            "kl_weight": _KL.get(kind, 1.0),
            "free_bits": _FREE_BITS.get(kind, 0.0),
        }
        loss = AutoencoderLoss(model, **(defaults | _given(settings, _LOSS)))
    except ValueError as error:
        raise UserError(str(error)) from error
    return loss.to("cuda") if torch.cuda.is_available() else loss


def _given(settings: Settings, names: dict[str, tuple[str, tuple[str, ...]]]) -> dict[str, Any]:
    values = {argument: getattr(settings, name) for name, (argument, _) in names.items()}
    return {argument: value for argument, value in values.items() if value is not None}

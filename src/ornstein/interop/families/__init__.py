"""The kinds of pipelines that are read, one file each. `FAMILIES` names them by the class of the pipeline."""

from __future__ import annotations

from importlib import import_module

from ornstein.interop.families.family import Family, Network

__all__ = ["FAMILIES", "Family", "Network", "family_of"]

_HERE = "ornstein.interop.families"

FAMILIES: dict[str, str] = {
    "AnimateDiffPipeline": "animatediff:AnimateDiff",
    "DiTPipeline": "class_conditional:ClassConditional",
    "FluxPipeline": "flux:Flux",
    "LDMTextToImagePipeline": "ldm:LatentDiffusion",
    "PixArtSigmaPipeline": "pixart:PixArt",
    "StableDiffusion3Pipeline": "stable_diffusion_3:StableDiffusion3",
    "StableDiffusionAdapterPipeline": "stable_diffusion:StableDiffusion",
    "StableDiffusionControlNetPipeline": "controlled:Controlled",
    "StableDiffusionInpaintPipeline": "stable_diffusion:StableDiffusion",
    "StableDiffusionPipeline": "stable_diffusion:StableDiffusion",
    "StableDiffusionXLInpaintPipeline": "sdxl:StableDiffusionXL",
    "StableDiffusionXLPipeline": "sdxl:StableDiffusionXL",
    "WanPipeline": "wan:Wan",
}
"""The family of each pipeline class of diffusers, as "module:class"."""


def family_of(pipeline: str) -> Family:
    """The family of a pipeline class. Raises KeyError if it is not read."""
    module, _, name = FAMILIES[pipeline].partition(":")
    return getattr(import_module(f"{_HERE}.{module}"), name)()

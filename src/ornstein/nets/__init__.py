"""Networks: what a `Denoiser` wraps. `NETS` names those that a checkpoint can rebuild from its config."""

import importlib
from typing import TYPE_CHECKING, Any

from ornstein.nets.dit import DiT
from ornstein.nets.tiled import Tiled
from ornstein.nets.unet import UNet
from ornstein.nets.video import VideoUNet, frames_known, known_masks

if TYPE_CHECKING:
    from ornstein.faces.nets import FaceUNet, RelitUNet

NETS: dict[str, str] = {
    "DiT": "ornstein.nets.dit",
    "DiffusersNet": "ornstein.interop.diffusers",
    "FaceUNet": "ornstein.faces.nets",
    "RelitUNet": "ornstein.faces.nets",
    "UNet": "ornstein.nets.unet",
    "VideoUNet": "ornstein.nets.video",
}
"""The module of each network, by the name that a stored model has for it."""

__all__ = ["NETS", "DiT", "FaceUNet", "RelitUNet", "Tiled", "UNet", "VideoUNet", "frames_known", "known_masks"]


def __getattr__(name: str) -> Any:
    # These networks stand above this package: they are imported when a stored model or a user names them.
    if name in NETS:
        return getattr(importlib.import_module(NETS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

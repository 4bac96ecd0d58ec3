"""Networks: what a `Denoiser` wraps. `NETS` names those that a checkpoint can rebuild from its config."""

from torch import nn

from ornstein.nets.unet import UNet
from ornstein.nets.video import VideoUNet, frames_known, known_masks

NETS: dict[str, type[nn.Module]] = {"UNet": UNet, "VideoUNet": VideoUNet}

__all__ = ["NETS", "UNet", "VideoUNet", "frames_known", "known_masks"]

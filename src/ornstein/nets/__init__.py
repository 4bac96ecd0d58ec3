"""Networks: what a `Denoiser` wraps. `NETS` names those that a checkpoint can rebuild from its config."""

from torch import nn

from ornstein.nets.face import FaceUNet
from ornstein.nets.relit import RelitUNet
from ornstein.nets.unet import UNet
from ornstein.nets.video import VideoUNet, frames_known, known_masks

NETS: dict[str, type[nn.Module]] = {"FaceUNet": FaceUNet, "RelitUNet": RelitUNet, "UNet": UNet, "VideoUNet": VideoUNet}

__all__ = ["NETS", "FaceUNet", "RelitUNet", "UNet", "VideoUNet", "frames_known", "known_masks"]

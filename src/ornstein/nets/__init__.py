"""Networks: what a `Denoiser` wraps. `NETS` names those that a checkpoint can rebuild from its config."""

from ornstein.nets.unet import UNet

NETS = {"UNet": UNet}

__all__ = ["NETS", "UNet"]

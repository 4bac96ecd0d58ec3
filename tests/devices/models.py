"""Small models for the tests of devices: random weights, so that nothing is hidden by a layer that starts at zero."""

import torch

import ornstein as orn
from ornstein.nets import UNet, VideoUNet

CLASSES = ("a", "b", "c")
LABELS = torch.tensor([0, 1, 2, 0])


def filled(net: torch.nn.Module) -> torch.nn.Module:
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draw))
    return net


def image_model(
    schedule: orn.schedules.Schedule | None = None, prediction: str = "v", **settings: object
) -> orn.Denoiser:
    """A class-conditional model of images (2, 8, 8), on the CPU."""
    net = filled(UNet(2, 8, 3, width=16, multipliers=(1, 1), depths=(1, 1), attention=(4,), **settings))
    process = orn.Process(schedule or orn.schedules.Cosine())
    return orn.Denoiser(net, process, prediction, data=orn.Data((2, 8, 8), CLASSES)).eval()  # pyright: ignore


def clip_model(noise: orn.noise.Covariance | None = None) -> orn.Denoiser:
    """A class-conditional model of clips (2, 4, 8, 8) that takes known frames, on the CPU."""
    net = VideoUNet(2, 8, 4, 3, width=16, multipliers=(1, 1), depths=(1, 1), attention=(4,), conditioning=True)
    process = orn.Process(orn.schedules.Cosine(), noise=noise or orn.noise.AR1(4, 0.5))
    return orn.Denoiser(filled(net), process, data=orn.Data((2, 4, 8, 8), CLASSES)).eval()

import pytest
import torch

import ornstein as orn
from ornstein.nets import DiT, UNet
from ornstein.training import TrainConfig


class Stripes:
    """A toy image set: class 0 is horizontal stripes, class 1 vertical ones, in every phase and strength."""

    def __init__(self, n: int = 96, labelled: bool = True) -> None:
        i = torch.arange(n)
        rows = torch.arange(8) + i[:, None]
        stripes = torch.sin(rows * 1.5)[:, None, :, None].expand(-1, 1, 8, 8)
        vertical = (i % 2 == 1)[:, None, None, None]
        strength = 0.5 + 0.5 * (i / n)[:, None, None, None]
        self.images = torch.where(vertical, stripes.transpose(2, 3), stripes) * strength
        self.labels = i % 2 if labelled else None

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices):
        return self.images[indices], None if self.labels is None else self.labels[indices]


def tiny_denoiser(**net_settings) -> orn.Denoiser:
    torch.manual_seed(0)
    settings = {"channels": 1, "size": 8, "classes": 2, "width": 16, "multipliers": (1, 2), "depths": (1, 1)}
    net = UNet(**settings | {"attention": (4,), "dropout": 0.1} | net_settings)
    return orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), prediction="v")


def tiny_transformer() -> orn.Denoiser:
    torch.manual_seed(0)
    net = DiT(1, 8, classes=2, width=16, depth=2, heads=2, patch=2)
    return orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), prediction="v")


def tiny_config(**settings) -> TrainConfig:
    return TrainConfig(**{"steps": 12, "batch": 8, "checkpoint_every": 4, "warmup": 3} | settings)


@pytest.fixture
def toy():
    class Toy:
        Images = Stripes
        denoiser = staticmethod(tiny_denoiser)
        config = staticmethod(tiny_config)

    return Toy

"""Networks of every kind that is pruned, and the shapes of their samples."""

import torch

from ornstein.nets import DiT, UNet, VideoUNet

__all__ = ["NETS", "SHAPES", "randomised"]


def randomised(net):
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p += 0.2 * torch.randn(p.shape, generator=draw)
    return net.eval()


NETS = {
    "unet": lambda: UNet(3, 16, 4, width=32, multipliers=(1, 2, 2), depths=(1, 1, 1), attention=(8, 4), text_width=6),
    "stem": lambda: UNet(1, 8, width=16, multipliers=(2, 2), depths=(1, 2), attention=(4,), learned_variance=True),
    "video": lambda: VideoUNet(1, 8, 3, width=16, multipliers=(1, 2), depths=(1, 1), attention=(4,), conditioning=True),
    "dit": lambda: DiT(3, 8, 4, width=32, depth=2, heads=4),
    "clips": lambda: DiT(1, 8, frames=3, width=32, depth=2, heads=4, time="factorised"),
}
SHAPES = {"unet": (3, 16, 16), "stem": (1, 8, 8), "video": (1, 3, 8, 8), "dit": (3, 8, 8), "clips": (1, 3, 8, 8)}

"""A patch discriminator with spectral norm: is each patch of an image real or generated?"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

__all__ = ["PatchDiscriminator"]


class PatchDiscriminator(nn.Module):
    """Logits (B, 1, h, w) of images (B, C, H, W), by up to three strided convolutions, as long as 4 pixels are left.

    Every convolution has spectral norm 1 (Miyato et al. 2018, arXiv:1802.05957). Source: Isola et al. 2017
    (arXiv:1611.07004), section 3.2.2.
    """

    def __init__(self, channels: int, size: int, width: int = 32) -> None:
        super().__init__()
        halvings = max(1, min(3, (size // 4).bit_length() - 1))
        layers: list[nn.Module] = []
        now, out = channels, width
        for _ in range(halvings):
            layers += [spectral_norm(nn.Conv2d(now, out, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
            now, out = out, 2 * out
        layers += [spectral_norm(nn.Conv2d(now, now, 3, padding=1)), nn.LeakyReLU(0.2)]
        layers += [spectral_norm(nn.Conv2d(now, 1, 3, padding=1))]
        self.layers = nn.Sequential(*layers)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (missing from the stubs)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.contiguous(memory_format=torch.channels_last)).to(x.dtype)

    def hinge(self, real: Tensor, fake: Tensor) -> Tensor:
        """mean max(0, 1 - D(real)) + max(0, 1 + D(fake)), halved. Its gradient reaches only the discriminator.

        Source: Lim & Ye 2017 (arXiv:1705.02894).
        """
        on_real, on_fake = self(torch.cat([real, fake.detach()])).chunk(2)
        return 0.5 * (F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean())

    def deceived(self, fake: Tensor) -> Tensor:
        """-mean D(fake), which the autoencoder minimises. Its gradient does not reach the discriminator."""
        fixed = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return -functional_call(self, fixed, (fake,)).mean()

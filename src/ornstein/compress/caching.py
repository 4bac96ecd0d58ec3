"""Deep features that are kept between steps of a sampler (DeepCache): a step in so many computes all of the U-Net."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.nets import UNet

__all__ = ["Cached", "cached"]


class Cached(nn.Module):
    """A U-Net whose levels below the first are computed at every `every`-th evaluation, and kept in between.

    The first level, at full resolution, sees each state anew; what it adds to changes slowly along a trajectory. A
    trajectory begins where the log-SNR falls. With and without a label, or a text, are kept apart, for guidance.

    Source: Ma et al. 2024 (arXiv:2312.00858), DeepCache.
    """

    places_conditions = True

    def __init__(self, net: UNet, every: int) -> None:
        super().__init__()
        self.net, self.every = net, every
        self.kept: dict[Any, tuple[int, float, Tensor]] = {}  # evaluations done, the last log-SNR, deep features

    @property
    def without(self) -> tuple[str, ...]:
        """Conditions that the network was made without."""
        return self.net.without

    def forward(
        self,
        x: Tensor,
        log_snr: Tensor,
        label: Tensor | None = None,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """As `UNet.forward`."""
        h, embedding, context = self.net.first(x, log_snr, label, text, text_mask)
        key, now = (tuple(x.shape), label is None, text is None), float(log_snr[0])
        done, before, deep = self.kept.get(key, (0, now, h))
        if now < before:
            done = 0
        if done % self.every == 0:
            deep = self.net.below(h, embedding, context)
        self.kept[key] = (done + 1, now, deep)
        return self.net.last(deep + h, embedding, context, x)


def cached(denoiser: Denoiser, every: int) -> Denoiser:
    """A denoiser for sampling whose U-Net keeps its deep features for `every` evaluations; 1 computes all each time.

    Raises:
        UserError: another network, or one of a single level.
    """
    net = denoiser.net
    if type(net) is not UNet or len(net.encoder) < 2:
        raise UserError(f"features are kept of U-Nets of two levels and more, which this {type(net).__name__} is not")
    if every < 1:
        raise UserError(f"features are kept for 1 evaluation or more, not {every}")
    out = copy.copy(denoiser)
    out.__dict__ = {**denoiser.__dict__, "_modules": dict(denoiser._modules)}
    out.net = Cached(net, every)
    return out.eval()

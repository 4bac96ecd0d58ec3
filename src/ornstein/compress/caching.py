"""Deep features that are kept between steps of a sampler (DeepCache): a step in so many computes all of the U-Net."""

from __future__ import annotations

import copy
import functools
from typing import Any

from torch import Tensor, nn

from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.nets import UNet, VideoUNet

__all__ = ["Cached", "cached", "with_net"]


class Cached(nn.Module):
    """A U-Net whose levels below the first are computed at every `every`-th evaluation, and kept in between.

    The first level, at full resolution, sees each state anew; what it adds to changes slowly along a trajectory. A
    trajectory begins where the log-SNR falls. With and without a label, or a text, are kept apart, for guidance.

    Source: Ma et al. 2024 (arXiv:2312.00858), DeepCache.
    """

    places_conditions = True

    def __init__(self, net: UNet | VideoUNet, every: int) -> None:
        super().__init__()
        self.net: Any = net
        self.every = every
        self.kept: dict[Any, tuple[int, float, Tensor]] = {}  # evaluations done, the last log-SNR, deep features

        @functools.wraps(self.net.forward)  # a denoiser reads the names of the conditions there
        def forward(x: Tensor, log_snr: Tensor, **cond: Any) -> Tensor:
            return self._evaluated(x, log_snr, **cond)

        self.forward = forward

    @property
    def without(self) -> tuple[str, ...]:
        """Conditions that the network was made without."""
        return self.net.without

    def _evaluated(self, x: Tensor, log_snr: Tensor, **cond: Any) -> Tensor:
        net = self.net
        h, *about = net.first(x, log_snr, **cond)
        given = tuple(name for name, value in cond.items() if value is not None)
        key, now = (tuple(x.shape), given), float(log_snr[0])
        done, before, deep = self.kept.get(key, (0, now, h))
        if now < before:
            done = 0
        if done % self.every == 0:
            deep = net.below(h, *about)
        self.kept[key] = (done + 1, now, deep)
        return net.last(deep + h, *about, x)


def with_net(denoiser: Denoiser, net: nn.Module) -> Denoiser:
    """The denoiser with another network in its place, in evaluation mode; all else is shared."""
    out = copy.copy(denoiser)
    out.__dict__ = {**denoiser.__dict__, "_modules": dict(denoiser._modules)}
    out.net = net
    return out.eval()


def cached(denoiser: Denoiser, every: int) -> Denoiser:
    """A denoiser for sampling whose U-Net keeps its deep features for `every` evaluations; 1 computes all each time.

    Raises:
        UserError: another network, or one of a single level.
    """
    net = denoiser.net
    if type(net) not in (UNet, VideoUNet) or len(net.encoder) < 2:  # pyright: ignore[reportArgumentType]
        raise UserError(f"features are kept of U-Nets of two levels and more, which this {type(net).__name__} is not")
    if every < 1:
        raise UserError(f"features are kept for 1 evaluation or more, not {every}")
    return with_net(denoiser, Cached(net, every))  # pyright: ignore[reportArgumentType]

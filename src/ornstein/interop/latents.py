"""The autoencoders of pipelines: latents to images or clips and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ornstein.errors import UserError

__all__ = ["Latents"]

_AT_ONCE = 2**22  # values of pictures that are decoded at once


@dataclass(frozen=True, eq=False)
class Latents:
    """The latents y = (z - mean)/std of a pipeline's autoencoder, normalised as its config says.

    Attributes:
        vae: an autoencoder of diffusers.
        latent_shape: (c, h, w), or (c, f, h, w) for clips. An autoencoder of pictures takes the frames of clips one by
            one.
    """

    vae: Any
    latent_shape: tuple[int, ...]
    _statistics: tuple[Tensor, Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        config = self.vae.config
        # Each autoencoder has some of these: latents_mean and latents_std per channel, or a shift and a factor.
        mean = torch.tensor(config.get("latents_mean") or config.get("shift_factor") or 0.0).flatten()
        std = torch.tensor(config.get("latents_std") or 1.0).flatten() / (config.get("scaling_factor") or 1.0)
        object.__setattr__(self, "_statistics", (mean, std))

    def __deepcopy__(self, memo: dict[int, Any]) -> Latents:
        return self  # it is never trained: copies of a denoiser share it

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of the images, or (C, F, H, W)."""
        config = self.vae.config
        channels = config.get("out_channels", 3)
        *rest, h, w = self.latent_shape[1:]
        factor = self._factor
        return (channels, *(self._frames(f) for f in rest), h * factor, w * factor)

    @property
    def of_clips(self) -> bool:
        """Whether the autoencoder itself takes clips."""
        return any(isinstance(m, torch.nn.Conv3d) for m in self.vae.modules())

    @property
    def _factor(self) -> int:
        """How many times larger pictures are than latents."""
        config = self.vae.config
        if "scale_factor_spatial" in config and config.scale_factor_spatial:
            return int(config.scale_factor_spatial)
        blocks = config.get("block_out_channels") or config.get("dim_mult") or (1,)
        return 2 ** (len(blocks) - 1)

    def _frames(self, latent: int) -> int:
        """Frames of a clip with so many latent frames."""
        if not self.of_clips:
            return latent
        return (latent - 1) * int(self.vae.config.get("scale_factor_temporal") or 4) + 1

    def latent_size(self, *size: int) -> tuple[int, ...]:
        """The size (h, w), or (f, h, w), of the latents of pictures (H, W) or clips (F, H, W).

        Raises:
            ValueError: they are not multiples of the factor that latents are smaller by.
        """
        *frames, height, width = size
        if height % self._factor or width % self._factor or min(size) < 1:
            raise ValueError(f"the size of pictures is a multiple of {self._factor}, got {height}x{width}")
        if not self.of_clips:
            return (*frames, height // self._factor, width // self._factor)
        step = self._frames(2) - 1
        if any((f - 1) % step for f in frames):
            raise ValueError(f"the number of frames is 1 more than a multiple of {step}, got {frames[0]}")
        return (*((f - 1) // step + 1 for f in frames), height // self._factor, width // self._factor)

    def decode(self, y: Tensor) -> Tensor:
        """Images or clips in [-1, 1] from latents (B, *)."""
        with torch.no_grad():
            return self.mean_of(y).clamp(-1, 1)

    def mean_of(self, y: Tensor) -> Tensor:
        """The decoder's output for latents (B, *), not clamped."""
        mean, std = self._placed(y)
        return self._by_frames(lambda z: self.vae.decode(z, return_dict=False)[0], y * std + mean).to(y)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents y of images or clips x in [-1, 1], each (B, *)."""

        def both(z: Tensor) -> Tensor:
            out = self.vae.encode(z, return_dict=False)[0]
            if isinstance(out, Tensor):  # a codebook: no distribution
                return torch.cat([out, torch.zeros_like(out)], 1)
            return torch.cat([out.mean, out.std], 1)

        with torch.no_grad():
            z_mean, z_std = self._by_frames(both, x).to(x).chunk(2, 1)
        mean, std = self._placed(z_mean)
        return (z_mean - mean) / std, z_std / std

    def to_config(self) -> dict[str, Any]:
        raise UserError(
            "a pipeline is no run directory: `ornstein export FOLDER --to diffusers` writes pipelines, and `save` of "
            "its network alone needs a model without text"
        )

    def _placed(self, y: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (s.to(y.device, torch.promote_types(y.dtype, torch.float32)) for s in self._statistics)
        return mean.view(1, -1, *[1] * (y.ndim - 2)), std.view(1, -1, *[1] * (y.ndim - 2))

    def _by_frames(self, f: Any, x: Tensor) -> Tensor:
        """f of a few samples at a time, frame by frame if x holds clips and f takes pictures."""
        weight = next(self.vae.parameters())
        parts = x.to(weight)
        apart = x.ndim == 5 and not self.of_clips
        if apart:
            parts = parts.transpose(1, 2).flatten(0, 1)
        out = torch.cat([f(part) for part in self._split(parts)])
        return out.unflatten(0, (len(x), x.shape[2])).transpose(1, 2) if apart else out

    def _split(self, x: Tensor) -> Iterator[Tensor]:
        pixels = x[0].numel() if x.shape[1] == self.vae.config.get("in_channels", 3) else x[0].numel() * self._factor**2
        yield from x.split(max(1, _AT_ONCE // max(1, pixels)))

"""AnimateDiff: Stable Diffusion with attention over the frames of a clip. Source: Guo et al. 2023, arXiv:2307.04725."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ornstein.interop.families.stable_diffusion import StableDiffusion

__all__ = ["AnimateDiff"]

_FRAMES = 16  # the length that the motion modules were trained with


class AnimateDiff(StableDiffusion):
    """Takes `text` (B, L, D), the same for all frames of a clip (B, C, F, H, W)."""

    def call(self, model: Any, x: Tensor, k: Tensor, cond: dict[str, Tensor]) -> Tensor:
        text = cond["text"].repeat_interleave(x.shape[2], dim=0)
        return super().call(model, x, k, {**cond, "text": text})

    def latent_shape(self, pipe: Any) -> tuple[int, ...]:
        channels, *size = super().latent_shape(pipe)
        return (channels, _FRAMES, *size)

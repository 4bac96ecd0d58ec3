"""Flux: a transformer on straight paths over 2x2 packed latents, with a pooled CLIP text and the states of T5.

Flux.1-dev is distilled to take the guidance scale as a condition. Source: Black Forest Labs 2024, the model card.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ornstein.interop.families.family import Family, Shape, shift_of, tokens

__all__ = ["Flux"]

_T5_TOKENS = 512
_GUIDANCE = 3.5  # the scale that the model's authors give


class Flux(Family):
    """Takes `text` (B, L, D), `pooled` (B, P) and, where it is distilled so, `guidance_scale` (B,)."""

    part = "transformer"
    conditions = ("text", "pooled", "guidance_scale")
    encoders = (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))

    def call(self, model: Any, x: Tensor, k: Tensor, cond: dict[str, Tensor]) -> Tensor:
        b, c, height, width = x.shape
        h, w = height // 2, width // 2
        packed = x.reshape(b, c, h, 2, w, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w, 4 * c)
        ids = torch.zeros(h, w, 3, device=x.device, dtype=x.dtype)
        ids[..., 1] += torch.arange(h, device=x.device)[:, None]
        ids[..., 2] += torch.arange(w, device=x.device)
        guidance = None
        if model.config.guidance_embeds:
            guidance = cond.get("guidance_scale", x.new_full((b,), _GUIDANCE))
        out = model(
            hidden_states=packed,
            timestep=k.to(x.dtype) / 1000,
            guidance=guidance,
            pooled_projections=cond["pooled"],
            encoder_hidden_states=cond["text"],
            txt_ids=ids.new_zeros(cond["text"].shape[1], 3),
            img_ids=ids.flatten(0, 1),
            return_dict=False,
        )[0]
        return out.reshape(b, h, w, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)

    def encode(self, pipe: Any, prompts: list[str], shape: Shape, device: torch.device) -> dict[str, Tensor]:
        text, pooled, _ = pipe.encode_prompt(prompts, None, device=device, max_sequence_length=_T5_TOKENS)
        return {"text": text, "pooled": pooled}

    def latent_shape(self, pipe: Any) -> tuple[int, ...]:
        side = pipe.default_sample_size // 2 * 2
        return (pipe.transformer.config.in_channels // 4, side, side)

    def timing(self, pipe: Any, steps: int, shape: Shape) -> dict[str, Any]:
        length = tokens(shape, 2)
        return {
            "sigmas": torch.linspace(1.0, 1 / steps, steps, dtype=torch.float64).tolist(),
            "mu": shift_of(length, pipe.scheduler.config, 1.15),
        }

    def longest(self, tokenizer: Any) -> int:
        return min(super().longest(tokenizer), _T5_TOKENS)

    def guided_by_condition(self, pipe: Any) -> bool:
        return bool(pipe.transformer.config.guidance_embeds)

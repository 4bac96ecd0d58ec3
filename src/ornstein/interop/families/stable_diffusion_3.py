"""Stable Diffusion 3: a transformer on straight paths, with the states of two CLIP encoders and T5.

Source: Esser et al. 2024, arXiv:2403.03206.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ornstein.interop.families.family import Family, Shape, shift_of, tokens

__all__ = ["StableDiffusion3"]

_T5_TOKENS = 256


class StableDiffusion3(Family):
    """Takes `text` (B, L, D) and `pooled` (B, P). A pipeline without T5 has zeros in its place, as in diffusers."""

    part = "transformer"
    conditions = ("text", "pooled")
    encoders = (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))

    def call(self, model: Any, x: Tensor, k: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return model(x, cond["text"], cond["pooled"], k, return_dict=False)[0]

    def encode(self, pipe: Any, prompts: list[str], shape: Shape, device: torch.device) -> dict[str, Tensor]:
        text, _, pooled, _ = pipe.encode_prompt(
            prompts, None, None, device=device, do_classifier_free_guidance=False, max_sequence_length=_T5_TOKENS
        )
        return {"text": text, "pooled": pooled}

    def timing(self, pipe: Any, steps: int, shape: Shape) -> dict[str, Any]:
        if not pipe.scheduler.config.get("use_dynamic_shifting", False):
            return {}
        # 1.16 is the pipeline's own default, not the scheduler's
        length = tokens(shape, pipe.transformer.config.patch_size)
        return {"mu": shift_of(length, pipe.scheduler.config, 1.16)}

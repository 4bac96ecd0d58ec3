"""PixArt-Sigma: a transformer with cross-attention to the masked states of T5, and a learned variance.

Source: Chen et al. 2024, arXiv:2403.04692.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ornstein.interop.families.family import Family, Shape

__all__ = ["PixArt"]

_T5_TOKENS = 300


class PixArt(Family):
    """Takes `text` (B, L, D) and `text_mask` (B, L). Its output has twice the channels: eps and the variance (E9)."""

    part = "transformer"
    conditions = ("text", "text_mask")

    def call(self, model: Any, x: Tensor, k: Tensor, cond: dict[str, Tensor]) -> Tensor:
        added = {"resolution": None, "aspect_ratio": None}
        return model(
            x,
            encoder_hidden_states=cond["text"],
            encoder_attention_mask=cond["text_mask"],
            timestep=k,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]

    def encode(self, pipe: Any, prompts: list[str], shape: Shape, device: torch.device) -> dict[str, Tensor]:
        text, mask, _, _ = pipe.encode_prompt(prompts, False, device=device, max_sequence_length=_T5_TOKENS)
        return {"text": text, "text_mask": mask.bool()}

    def longest(self, tokenizer: Any) -> int:
        return _T5_TOKENS

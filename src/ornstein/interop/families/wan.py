"""Wan 2.1: a transformer on straight paths over latents of clips, with the states of UMT5.

Source: Wan team 2025, arXiv:2503.20314.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ornstein.errors import UserError
from ornstein.interop.families.family import Family, Shape

__all__ = ["Wan"]

_T5_TOKENS = 512
_LATENT_FRAMES, _SIZE = 21, (60, 104)  # 81 frames of 480x832, what the pipeline makes by default


class Wan(Family):
    """Takes `text` (B, L, D), of latents (B, C, f, h, w)."""

    part = "transformer"

    def call(self, model: Any, x: Tensor, k: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return model(hidden_states=x, timestep=k, encoder_hidden_states=cond["text"], return_dict=False)[0]

    def encode(self, pipe: Any, prompts: list[str], shape: Shape, device: torch.device) -> dict[str, Tensor]:
        text, _ = pipe.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=_T5_TOKENS, device=device
        )
        return {"text": text}

    def latent_shape(self, pipe: Any) -> tuple[int, ...]:
        if getattr(pipe, "transformer_2", None) is not None or pipe.config.get("expand_timesteps"):
            raise UserError("only Wan with one transformer (2.1) is read: Wan 2.2 changes its network at a noise level")
        return (pipe.transformer.config.in_channels, _LATENT_FRAMES, *_SIZE)

    def longest(self, tokenizer: Any) -> int:
        return _T5_TOKENS

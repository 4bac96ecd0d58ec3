"""The first latent diffusion from text: a U-Net with cross-attention to a BERT-like encoder trained along.

Source: Rombach et al. 2022, arXiv:2112.10752.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ornstein.interop.families.family import Shape
from ornstein.interop.families.stable_diffusion import StableDiffusion

__all__ = ["LatentDiffusion"]

_TOKENS = 77


class LatentDiffusion(StableDiffusion):
    """Takes `text` (B, 77, D)."""

    encoders = (("bert", "tokenizer"),)
    autoencoder = "vqvae"

    def encode(self, pipe: Any, prompts: list[str], shape: Shape, device: torch.device) -> dict[str, Tensor]:
        ids = pipe.tokenizer(
            prompts, padding="max_length", max_length=_TOKENS, truncation=True, return_tensors="pt"
        ).input_ids
        return {"text": pipe.bert(ids.to(device))[0]}

    def longest(self, tokenizer: Any) -> int:
        return _TOKENS

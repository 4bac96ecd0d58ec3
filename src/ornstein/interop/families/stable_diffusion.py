"""Stable Diffusion 1.x and 2.x: a U-Net with cross-attention to the states of one CLIP text encoder.

Source: Rombach et al. 2022, arXiv:2112.10752. Version 1 predicts eps, version 2 v; the scheduler's config says which.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ornstein.interop.families.family import Family, Shape, residuals

__all__ = ["StableDiffusion"]


class StableDiffusion(Family):
    """Takes `text`, the token states (B, L, D) of the prompt, and `residuals`; a model for inpainting, `inpaint`."""

    conditions = ("text", "residuals", "inpaint")

    def call(self, model: Any, x: Tensor, k: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return model(x, k, encoder_hidden_states=cond["text"], return_dict=False, **residuals(cond))[0]

    def encode(self, pipe: Any, prompts: list[str], shape: Shape, device: torch.device) -> dict[str, Tensor]:
        return {"text": pipe.encode_prompt(prompts, device, 1, False)[0]}

"""Stable Diffusion XL: a U-Net with the states of two text encoders, a pooled text and the sizes of the picture.

Source: Podell et al. 2023, arXiv:2307.01952.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ornstein.interop.families.family import Family, Shape, residuals

__all__ = ["StableDiffusionXL"]


class StableDiffusionXL(Family):
    """Takes `text` (B, L, D), `pooled` (B, P) and `time_ids` (B, 6): original size, crop and target size.

    Also `residuals` and, in a model for inpainting, `inpaint`.
    """

    conditions = ("text", "pooled", "time_ids", "residuals", "inpaint")
    encoders = (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))

    def call(self, model: Any, x: Tensor, k: Tensor, cond: dict[str, Tensor]) -> Tensor:
        added = {"text_embeds": cond["pooled"], "time_ids": cond["time_ids"]}
        return model(
            x, k, encoder_hidden_states=cond["text"], added_cond_kwargs=added, return_dict=False, **residuals(cond)
        )[0]

    def encode(self, pipe: Any, prompts: list[str], shape: Shape, device: torch.device) -> dict[str, Tensor]:
        text, _, pooled, _ = pipe.encode_prompt(prompts, device=device, do_classifier_free_guidance=False)
        size = tuple(n * pipe.vae_scale_factor for n in shape[-2:])
        # The original and the target size are the picture's, and nothing is cropped: what the model makes best.
        ids = torch.tensor([[*size, 0, 0, *size]], dtype=text.dtype, device=text.device)
        return {"text": text, "pooled": pooled, "time_ids": ids.repeat(len(prompts), 1)}

    def encode_nothing(self, pipe: Any, shape: Shape, device: torch.device) -> dict[str, Tensor]:
        cond = self.encode(pipe, [""], shape, device)
        if not pipe.config.get("force_zeros_for_empty_prompt", False):
            return cond
        return {name: value if name == "time_ids" else torch.zeros_like(value) for name, value in cond.items()}

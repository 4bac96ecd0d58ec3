"""Stable Diffusion with a ControlNet: a copy of the encoder that reads a picture of edges, poses, depths, ...

Source: Zhang et al. 2023, arXiv:2302.05543.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ornstein.errors import UserError
from ornstein.interop.families.stable_diffusion import StableDiffusion
from ornstein.interop.schedulers import Reading

__all__ = ["Controlled"]


class Controlled(StableDiffusion):
    """Takes `control` too, pictures (B, 3, H, W) in [0, 1]; without it, it is Stable Diffusion."""

    conditions = (*StableDiffusion.conditions, "control")

    def network(self, pipe: Any, reading: Reading) -> nn.Module:
        if type(pipe.controlnet).__name__ != "ControlNetModel":
            raise UserError(f"one ControlNetModel is read, not a {type(pipe.controlnet).__name__}")
        self._control = pipe.controlnet
        return super().network(pipe, reading)

    def call(self, model: Any, x: Tensor, k: Tensor, cond: dict[str, Tensor]) -> Tensor:
        if "control" in cond:
            text, control = cond["text"], cond["control"]
            down, mid = self._control(x, k, encoder_hidden_states=text, controlnet_cond=control, return_dict=False)
            features: Any = {f"down_{i}": feature for i, feature in enumerate(down)} | {"mid": mid}
            cond = {**cond, "residuals": features}
        return super().call(model, x, k, cond)

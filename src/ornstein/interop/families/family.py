"""What Ornstein needs to know of a kind of pipeline: its network, its conditions, its samples and its decoder."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ornstein.denoiser import Space
from ornstein.errors import UserError
from ornstein.interop.latents import Latents
from ornstein.interop.remembered import Text, remember_text
from ornstein.interop.schedulers import Reading
from ornstein.schedules import Rectified

__all__ = ["Family", "Network", "Shape", "residuals", "shift_of", "tokens"]

Shape = tuple[int, ...]


class Network(nn.Module):
    """The network of a pipeline as `net(x, log_snr, **cond)`.

    The output of a flow-matching model is dx/du on straight paths, x = (1 - u) x0 + u eps. With a shifted schedule
    u = k t/(1 + (k - 1) t) it becomes dx/dt by the factor u'(t) = (k - (k - 1) u)^2/k.

    The condition `inpaint` (B, 5, h, w), the mask and the latents of what it leaves, goes to the 9 channels of a model
    for inpainting.

    Args:
        model: the network of diffusers.
        reading: what the pipeline's scheduler says of it.
        family: it calls the model.
    """

    def __init__(self, model: nn.Module, reading: Reading, family: Family) -> None:
        super().__init__()
        self.model = model
        self.reading = reading
        self.family = family
        self._text = Text()
        remember_text(model)
        _fastest_layout(model)

    def forward(self, x: Tensor, log_snr: Tensor, **cond: Any) -> Tensor:
        """The output for x (B, *) at log_snr (B,), in the dtype of the model's weights."""
        dtype = next(self.model.parameters()).dtype
        cond, x = _cast(cond, dtype), x.to(dtype)
        if "text" in cond and not torch.is_grad_enabled():
            cond["text"] = self._text(cond["text"])
        if "inpaint" in cond:
            x = torch.cat([x, cond.pop("inpaint")], dim=1)
        out = self.family.call(self.model, x, self.reading.timesteps(log_snr), cond)
        schedule = self.reading.schedule
        if isinstance(schedule, Rectified) and self.reading.prediction == "flow" and schedule.shift != 1:
            shift, u = schedule.shift, torch.sigmoid(-log_snr.double() / 2)
            speed = (shift - (shift - 1) * u) ** 2 / shift
            out = out * speed.to(out.dtype).to(out.device).reshape(-1, *[1] * (out.ndim - 1))
        return out


def _cast(cond: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The conditions in the dtype of a model; numbers of classes and masks stay."""

    def of(value: Any) -> Any:
        if isinstance(value, dict):
            return _cast(value, dtype)
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return {name: of(value) for name, value in cond.items()}


def residuals(cond: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a U-Net of diffusers for the condition `residuals`: features that others add to it.

    `down_0`, `down_1`, ... and `mid` of a ControlNet, `inner_0`, ... of a T2I adapter, each (B, C, h, w).
    """
    given = cond.get("residuals")
    if not given:
        return {}

    def numbered(name: str) -> list[Tensor] | None:
        return [given[f"{name}_{i}"] for i in range(len(given)) if f"{name}_{i}" in given] or None

    return {
        "down_block_additional_residuals": numbered("down"),
        "mid_block_additional_residual": given.get("mid"),
        "down_intrablock_additional_residuals": numbered("inner"),
    }


def _fastest_layout(model: Any) -> None:
    """Convolutions are fastest with channels last; a model without them stays as it is."""
    if any(isinstance(m, nn.Conv2d) and m.kernel_size != m.stride for m in model.modules()):
        model.to(memory_format=torch.channels_last)


class Family:
    """A kind of pipeline; a subclass is written for each.

    Attributes:
        part: the component that is the network.
        conditions: the names of the conditions that `call` takes.
        encoders: the text encoders, each with its tokenizer; empty for a model without text.
        autoencoder: the component that decodes samples; "" if there is none.
    """

    part: ClassVar[str] = "unet"
    conditions: ClassVar[tuple[str, ...]] = ("text",)
    encoders: ClassVar[tuple[tuple[str, str], ...]] = (("text_encoder", "tokenizer"),)
    autoencoder: ClassVar[str] = "vae"

    def network(self, pipe: Any, reading: Reading) -> nn.Module:
        """The network of the pipeline with the signature of Ornstein."""
        return Network(getattr(pipe, self.part), reading, self)

    def call(self, model: Any, x: Tensor, k: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The model's output for x (B, *), timesteps k (B,) and the conditions."""
        raise NotImplementedError

    def encode(self, pipe: Any, prompts: list[str], shape: Shape, device: torch.device) -> dict[str, Tensor]:
        """The conditions of prompts for samples of `shape`."""
        raise NotImplementedError

    def latent_shape(self, pipe: Any) -> Shape:
        """The shape of one sample of the network, of the size that it was trained for."""
        config, vae = getattr(pipe, self.part).config, getattr(pipe, self.autoencoder or "vae", None)
        # a model for inpainting has more channels than latents have
        channels = config.in_channels if vae is None else vae.config.get("latent_channels", config.in_channels)
        size = config.sample_size
        return (channels, *((size, size) if isinstance(size, int) else tuple(size)))

    def space(self, pipe: Any, shape: Shape) -> Space | None:
        """What decodes the network's samples; None if they are images."""
        vae = getattr(pipe, self.autoencoder, None) if self.autoencoder else None
        return None if vae is None else Latents(vae, shape)

    def encode_nothing(self, pipe: Any, shape: Shape, device: torch.device) -> dict[str, Tensor]:
        """The conditions of one sample without a prompt: those of the empty one, unless the model has others."""
        return self.encode(pipe, [""], shape, device)

    def timing(self, pipe: Any, steps: int, shape: Shape) -> dict[str, Any]:
        """What the scheduler's `set_timesteps` takes besides the number of steps, for samples of `shape`."""
        return {}

    def classes(self, pipe: Any) -> tuple[str, ...]:
        """Class names, if the model has classes."""
        return ()

    def guided_by_condition(self, pipe: Any) -> bool:
        """Whether the network takes the guidance scale as its condition `guidance_scale`."""
        return False

    def check_encoders(self, pipe: Any, prompts: Sequence[str]) -> None:
        """Raise UserError without an encoder; warn of prompts that are longer than the model reads."""
        if not self.encoders:
            raise UserError(f"{type(pipe).__name__} is a model without text: leave out the prompt")
        for name, tokenizer in self.encoders:
            if getattr(pipe, name, None) is None or getattr(pipe, tokenizer, None) is None:
                raise UserError(f"this {type(pipe).__name__} has no {name} and {tokenizer}: prompts cannot be encoded")
            reads = self.longest(getattr(pipe, tokenizer))
            for prompt in prompts:
                count = len(getattr(pipe, tokenizer)(prompt, truncation=False, verbose=False).input_ids)
                if count > reads:
                    what = f"a prompt of {count} tokens is cut to the {reads} that {name} reads: {prompt[:40]!r}..."
                    warnings.warn(what, UserWarning, stacklevel=3)

    def longest(self, tokenizer: Any) -> int:
        """How many tokens of a prompt the encoder with this tokenizer reads."""
        return min(int(tokenizer.model_max_length), 2**31)


def shift_of(sequence: int, config: Any, largest: float) -> float:
    """mu of a scheduler with dynamic shifting: linear in the number of tokens (Esser et al. 2024, section 5.3.2)."""
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    start, end = config.get("base_shift", 0.5), config.get("max_shift", largest)
    return start + (end - start) * (sequence - low) / (high - low)


def tokens(shape: Shape, patch: int) -> int:
    """How many patches a sample (C, H, W) has."""
    return math.prod(n // patch for n in shape[1:])

"""A pipeline of diffusers as a denoiser: its network, schedule, conditions and decoder."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ornstein.denoiser import SampleSpec
from ornstein.errors import UserError
from ornstein.interop.families import Family
from ornstein.interop.latents import Latents
from ornstein.interop.notes import quiet
from ornstein.interop.schedulers import read, times_of
from ornstein.noise import Covariance
from ornstein.process import Process
from ornstein.text.prompting import Prompting

__all__ = ["Pipeline"]


class Pipeline(Prompting):
    """The denoiser of a diffusers pipeline. `encode` makes conditions of prompts, `decode` images of samples.

    A call without text is that of the empty prompt, which is what these models were trained to take for no prompt.

    Args:
        pipe: the pipeline of diffusers; it shares all of its networks with this denoiser.
        family: its kind.
        path: the folder or hub id that it was read from.
        shape: of its samples, latents; those of the pictures that the model was trained for by default.

    Raises:
        UserError: its scheduler cannot be expressed.
    """

    def __init__(self, pipe: Any, family: Family, path: str | Path, shape: tuple[int, ...] | None = None) -> None:
        shape = shape or family.latent_shape(pipe)
        reading = read(pipe.scheduler, family.timing(pipe, 1, shape).get("mu"))
        data, space = SampleSpec(shape, family.classes(pipe)), family.space(pipe, shape)
        super().__init__(
            family.network(pipe, reading),
            Process(reading.schedule),
            reading.prediction,
            reading.data_std,
            data,
            space=space,
        )
        self.family = family
        self.path = path
        self._pipe = pipe
        rest = {n: m for n, m in pipe.components.items() if isinstance(m, nn.Module) and n != family.part}
        self.parts = nn.ModuleDict(rest)  # they move to a device with the network
        self._empty: dict[str, Tensor] = {}

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("label",) if self._rows else self.family.conditions

    def inpainting(self, image: Tensor, mask: Tensor) -> Tensor:
        """The condition `inpaint` of a model for inpainting.

        Args:
            image: (B, 3, H, W) in [-1, 1].
            mask: (B, 1, H, W), 1 where the image is to be made and 0 where it stays.

        Raises:
            ValueError: the model is not one for inpainting.
        """
        space = self.space
        if not isinstance(space, Latents) or not self.has_mask_channels:
            raise ValueError("this model has no channels for a mask: inpaint by projection, which any model can")
        kept = space.encode(image * (mask < 0.5))[0]
        small = nn.functional.interpolate(mask.to(kept), size=kept.shape[-2:])  # nearest, as in training
        return torch.cat([small, kept], dim=1)

    @property
    def has_mask_channels(self) -> bool:
        """Whether the network is one for inpainting: it takes a mask and the latents of what it leaves."""
        return getattr(self.network.config, "in_channels", 0) == 2 * self._shape[0] + 1

    @property
    def _encoder_device(self) -> torch.device:
        """Where the text encoders are: they may stay on the CPU."""
        part = self.parts[self.family.encoders[0][0]] if self.family.encoders else self.net
        return next(part.parameters()).device

    @property
    def network(self) -> Any:
        """The network that is sampled, a class of diffusers."""
        return getattr(self._pipe, self.family.part)

    def with_network(self, network: Any) -> Pipeline:
        """The pipeline with another network in its place, of the same inputs; this one is not to be used any more."""
        self._pipe.register_modules(**{self.family.part: network})
        return type(self)(self._pipe, self.family, self.path, self._shape)

    @property
    def guided_by_condition(self) -> bool:
        """Whether the network takes the guidance scale as its condition `guidance_scale` (B,)."""
        return self.family.guided_by_condition(self._pipe)

    @property
    def takes_text(self) -> bool:
        """Whether the model has text encoders."""
        return bool(self.family.encoders)

    @property
    def pipe(self) -> Any:
        """The pipeline of diffusers."""
        return self._pipe

    @property
    def encoders(self) -> list[tuple[str, Any, Any]]:
        """The text encoders that are there: name, module and tokenizer."""
        found = [(n, getattr(self._pipe, n, None), getattr(self._pipe, t, None)) for n, t in self.family.encoders]
        return [(name, encoder, tokenizer) for name, encoder, tokenizer in found if None not in (encoder, tokenizer)]

    def with_noise(self, noise: Covariance) -> Pipeline:
        """The same model, of the same weights, whose samples start from noise of another covariance.

        The network was trained with white noise: what it makes of other noise is to be measured.

        Raises:
            ValueError: the covariance does not fit the samples.
        """
        noise.color(torch.zeros(1, *self._shape))
        made = copy.copy(self)
        made.process = Process(self.process.schedule, noise)
        return made

    def sized(self, *size: int) -> Pipeline:
        """The same model for pictures of another size: (height, width), or (frames, height, width) of clips.

        It shares all weights. The size decides a shift of the schedule and conditions, in the models that have these.

        Raises:
            ValueError: latents cannot have this size.
        """
        channels, *old = self._shape
        space = self.space
        assert isinstance(space, Latents)
        latent = space.latent_size(*size)
        if len(latent) == len(old) - 1:
            latent = (old[0], *latent)
        made = Pipeline(self._pipe, self.family, self.path, (channels, *latent))
        made.gate = self.gate
        return made.train(self.training)

    @property
    def _shape(self) -> tuple[int, ...]:
        assert self.data is not None
        return self.data.shape

    def times(self, steps: int) -> list[float]:
        """The times at which the pipeline's own scheduler calls the network in `steps` steps, and its end."""
        return times_of(
            self._pipe.scheduler, steps, self.process.schedule, **self.family.timing(self._pipe, steps, self._shape)
        )

    def _output(self, x_t: Tensor, t: Any, cond: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        cond = {name: value for name, value in cond.items() if name != "negative" and value is not None}
        if self._rows is not None:
            cond = self._of_label(cond, len(x_t), x_t.device)
        elif self.family.encoders and "text" not in cond:
            cond = self._nothing(len(x_t)) | cond
        return super()._output(x_t, t, cond)

    def _nothing(self, count: int) -> dict[str, Tensor]:
        """The conditions of samples without a prompt."""
        if not self._empty:
            self.family.check_encoders(self._pipe, [])
            with torch.no_grad(), quiet():
                self._empty = self.family.encode_nothing(self._pipe, self._shape, self._encoder_device)
        return {name: value.expand(count, *value.shape[1:]) for name, value in self._empty.items()}

    def encode_trained(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The conditions of prompts, one row each, with gradients to text encoders that are being trained."""
        with torch.enable_grad():
            return self._of_texts(list(prompts))

    def _encoded(self, texts: list[str]) -> dict[str, Tensor]:
        """The conditions of texts. Raises UserError for a model without text, or without its text encoder."""
        self.family.check_encoders(self._pipe, texts)
        with quiet():
            return self.family.encode(self._pipe, texts, self._shape, self._encoder_device)

    def _check_shared(self, name: str) -> None:
        if name not in self.family.conditions or (name == "guidance_scale" and not self.guided_by_condition):
            takes = ", ".join(n for n in self.family.conditions if n != "text")
            raise ValueError(f"this model takes no condition {name!r}; besides prompts it takes {takes or 'none'}")

    def forget_text(self) -> None:
        """Encode the empty prompt anew: the text encoders have changed."""
        self._empty = {}

    def save(self, path: str | Path, extra: dict[str, Any] | None = None) -> None:
        """Not possible: a pipeline is more than a network. Raises UserError."""
        raise UserError(f"{path}: a pipeline is not stored as a run; `ornstein export` writes it as a folder again")

    def __repr__(self) -> str:
        _, _, about = super().__repr__().partition(" with ")
        return f"Pipeline({type(self._pipe).__name__} with {about}"

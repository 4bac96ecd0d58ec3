"""What every likelihood asks of a denoiser: float64 around it, its own dtype inside, its conditions filled in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ornstein.denoiser import Denoiser, Denoises
from ornstein.process import Prediction, Process
from ornstein.wrapper import device_of, module_of

# Each purpose of randomness has a stream of its own; sampling has those from 0 up.
STREAM = 0x4C4B0000


@dataclass(frozen=True)
class Model:
    """A denoiser with the conditions of all samples; samples and times go in, and predictions come out, in float64.

    A network computes in the dtype of its parameters.
    """

    denoiser: Denoises
    cond: dict[str, Any]
    dtype: torch.dtype
    device: torch.device

    @property
    def process(self) -> Process:
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Tensor | float, rows: Tensor) -> Prediction:
        """The prediction for x_t (B, *) float64, whose conditions are those of the samples `rows` (B,)."""
        own = {k: v[rows.to(v.device)] if _one_a_sample(v) else v for k, v in self.cond.items()}
        out = self.denoiser(x_t.to(self.dtype), t, **own)
        mix = None if out.variance_mix is None else out.variance_mix.double()
        return Prediction(self.process, x_t, t, out.x0.double(), out.eps.double(), mix)


def open_model(d: Denoises, x0: Tensor, cond: dict[str, Any] | None) -> Model:
    """The model for the samples x0 (B, *). ValueError where they are none, not finite, or not the model's data,
    and for a distilled model.
    """
    if x0.ndim < 2 or len(x0) == 0:
        raise ValueError(f"a likelihood needs at least one sample, (B, ...), got shape {tuple(x0.shape)}")
    if not x0.is_floating_point():
        raise ValueError(f"samples are floating point in [-1, 1], got {x0.dtype}")
    if not bool(x0.isfinite().all()):
        raise ValueError("the samples have values that are not finite")
    module = module_of(d)
    if isinstance(module, Denoiser) and module.data is not None and tuple(x0.shape[1:]) != tuple(module.data.shape):
        raise ValueError(f"the model was made for samples of {tuple(module.data.shape)}, got {tuple(x0.shape[1:])}")
    if isinstance(module, Denoiser) and module.distilled is not None:
        raise ValueError("a distilled model does not say E[x_0 | x_t] and has no likelihood: take its teacher's")
    parameter = next((p for p in module.parameters() if p.is_floating_point()), None) if module is not None else None
    dtype = torch.float64 if parameter is None else parameter.dtype
    own = {k: v for k, v in (cond or {}).items() if v is not None}
    for name, value in own.items():
        if _one_a_sample(value) and len(value) != len(x0):
            raise ValueError(f"cond[{name!r}] has {len(value)} rows for {len(x0)} samples")
    return Model(d, own, dtype, device_of(d))


def _one_a_sample(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def chunks(total: int, size: int) -> Iterator[Tensor]:
    """The numbers 0..total-1, at most `size` at a time. ValueError for a size below 1."""
    if size < 1:
        raise ValueError(f"batch must be at least 1, got {size}")
    yield from torch.arange(total).split(size)


def dimensions(x: Tensor) -> int:
    """Numbers in one sample of x (B, *)."""
    return math.prod(x.shape[1:])


def column(values: Tensor, x: Tensor) -> Tensor:
    """(B,) shaped to multiply x (B, *)."""
    return values.reshape(-1, *[1] * (x.ndim - 1))

"""A denoiser as every likelihood uses it: float64 around the network, its own dtype inside, conditions filled in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ornstein.denoiser import Denoiser, Denoises
from ornstein.devices import float64_device
from ornstein.process import Prediction, Process
from ornstein.wrapper import conditions_of, device_of, module_of, rows_of

__all__ = ["STREAM", "Model", "chunks", "dimensions", "open_model"]

STREAM = 0x4C4B0000
"""The first stream of randomness of likelihoods; each purpose has its own, and sampling has those from 0 up."""


@dataclass(frozen=True)
class Model:
    """A denoiser with the conditions of all samples. Samples, times and predictions are float64.

    A network computes in the dtype of its parameters, on `device`; everything else is on `exact`, which has float64.
    """

    denoiser: Denoises
    cond: dict[str, Any]
    dtype: torch.dtype
    device: torch.device
    _last: list[Any] = field(default_factory=list)

    @property
    def process(self) -> Process:
        return self.denoiser.process

    @property
    def exact(self) -> torch.device:
        """The device of float64 arithmetic."""
        return float64_device(self.device)

    def __call__(self, x_t: Tensor, t: Tensor | float, rows: Tensor) -> Prediction:
        """The prediction for x_t (B, *) float64, with the conditions of the samples `rows` (B,), a CPU tensor."""
        out = self.denoiser(x_t.to(self.dtype).to(self.device), t, **self._conditions(rows))

        def exact(value: Tensor) -> Tensor:
            return value.to(x_t.device).to(x_t.dtype)

        mix = None if out.variance_mix is None else exact(out.variance_mix)
        return Prediction(self.process, x_t, t, exact(out.x0), exact(out.eps), mix)

    def _conditions(self, rows: Tensor) -> dict[str, Any]:
        """Those of the samples `rows`: the same tensors as in the last call if the rows are its rows.

        A network reads labels on a GPU once a tensor, which waits for the GPU.
        """
        if not self._last or not torch.equal(self._last[0], rows):
            self._last[:] = rows, rows_of(self.cond, rows)
        return self._last[1]


def open_model(d: Denoises, x0: Tensor, cond: dict[str, Any] | None) -> Model:
    """The model for the samples x0 (B, *); conditions move to its device.

    Raises:
        ValueError: there are no samples, they are not finite, or not the model's data; a condition has another number
            of rows; or the model is distilled.
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
    return Model(d, conditions_of(d, cond, len(x0)), dtype, device_of(d))


def chunks(total: int, size: int) -> Iterator[Tensor]:
    """The numbers 0..total-1, at most `size` at a time.

    Raises:
        ValueError: size < 1.
    """
    if size < 1:
        raise ValueError(f"batch must be at least 1, got {size}")
    yield from torch.arange(total).split(size)


def dimensions(x: Tensor) -> int:
    """Numbers in one sample of x (B, *)."""
    return math.prod(x.shape[1:])

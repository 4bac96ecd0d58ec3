"""What a network has learned on top of its base, as something that can be switched off."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ornstein.nets.lora import LoraWeight

__all__ = ["Switch"]


class Switch:
    """Layers of a LoRA, or parameters that are about to take other values: on, but within `off`.

    Args:
        layers: of a LoRA; off, their strength is 0.
        parameters: off, they have the values that they have now, of which a copy is kept.
    """

    def __init__(self, layers: Iterable[LoraWeight] = (), parameters: Iterable[nn.Parameter] = ()) -> None:
        self._layers = list(layers)
        self._before = [[parameter, parameter.detach().clone()] for parameter in parameters]

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within it the network computes as its base, bit for bit. No copy is made: values change places."""
        strengths = [layer.strength for layer in self._layers]
        learned = [parameter.data for parameter, _ in self._before]
        try:
            for layer in self._layers:
                layer.strength = 0.0
            for pair in self._before:
                pair[1] = pair[1].to(pair[0])
                pair[0].data = pair[1]
            torch.clear_autocast_cache()  # it knows a parameter by its name alone, not by its values
            yield
        finally:
            for layer, strength in zip(self._layers, strengths, strict=True):
                layer.strength = strength
            for (parameter, _), values in zip(self._before, learned, strict=True):
                parameter.data = values
            torch.clear_autocast_cache()

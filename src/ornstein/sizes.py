"""Bounds on what a model's files may make this process allocate, checked before anything is allocated.

A run directory from a stranger is data. Its config may describe a network of any size, so the network is first built
without memory (on PyTorch's "meta" device) and counted: it may not have more numbers than its weights file has bytes.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules import module as hooks

from ornstein.errors import UserError
from ornstein.store import check_regular

__all__ = ["LARGEST_SAMPLE", "MOST_MODULES", "build_network", "check_numbers", "check_sample"]

N = TypeVar("N", bound=nn.Module)

MOST_MODULES = 20_000
"""Modules of a network; the largest one of ours has about 400, Flux of diffusers about 3,000."""

LARGEST_SAMPLE = 2**26
"""Numbers in one sample: a picture of 4,700 x 4,700 pixels in colour, or 85 frames of 512 x 512."""

_LARGEST_INTEGER = 2**31
_DEEPEST = 64
_TRUST = "; if you trust its author, lift the limit with --trust-sizes (trust_sizes=True)"


def check_numbers(config: Any, where: str, depth: int = 0) -> None:
    """Check that a config of JSON types has no absurd integer, no NaN and no deep nesting.

    Raises:
        UserError: it has; `where` names the file.
    """
    if depth > _DEEPEST:
        raise UserError(f"{where} is nested more than {_DEEPEST} deep")
    if isinstance(config, dict):
        for value in config.values():
            check_numbers(value, where, depth + 1)
    elif isinstance(config, list):
        for value in config:
            check_numbers(value, where, depth + 1)
    elif isinstance(config, float) and math.isnan(config):
        raise UserError(f"{where} holds a value that is not a number (NaN)")
    elif isinstance(config, int) and abs(config) > _LARGEST_INTEGER:
        raise UserError(f"{where} holds the number {config:.3g}, which no setting can be")


def check_sample(shape: tuple[int, ...], where: str, trust: bool = False) -> None:
    """Check that one sample of `shape` has at most `LARGEST_SAMPLE` numbers.

    Raises:
        UserError: it has more, and `trust` is not set; `where` names the file.
    """
    count = math.prod(shape)
    if count > LARGEST_SAMPLE and not trust:
        raise UserError(f"{where}: a sample of {shape} has {count:.3g} numbers, more than {LARGEST_SAMPLE:.3g}{_TRUST}")


def build_network(make: Callable[[], N], weights: Path, trust: bool = False) -> N:
    """The network that `make` builds, once it is known that it is no larger than its file of weights.

    Args:
        make: builds the network; it is called twice, the first time on the "meta" device.
        weights: the safetensors file of the network.
        trust: build it whatever its size.

    Raises:
        UserError: the file is missing, or the network has more numbers than the file has bytes, or more than
            `MOST_MODULES` modules.
        Exception: what `make` raises for wrong arguments.
    """
    if trust:
        return make()
    check_regular(weights)
    size = weights.stat().st_size
    try:
        with _Counting(size, weights), torch.device("meta"):
            make()
    except UserError:
        raise
    except Exception:  # what else is wrong, the real network says too
        pass
    with _Counting(size, weights):
        return make()


class _Counting:
    """While it is open, modules that this thread builds are counted; the first one past a limit raises UserError."""

    def __init__(self, numbers: int, weights: Path) -> None:
        self.limit, self.weights = numbers, weights
        self.numbers = self.modules = 0
        self.thread = threading.get_ident()
        self.handles: list[Any] = []

    def __enter__(self) -> None:
        self.handles = [
            hooks.register_module_parameter_registration_hook(self._parameter),
            hooks.register_module_module_registration_hook(self._module),
        ]

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _parameter(self, module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is None or threading.get_ident() != self.thread:
            return
        self.numbers += parameter.numel()
        if self.numbers > self.limit:
            raise UserError(
                f"{self.weights} has {self.limit:,} bytes, but its config describes a network of more numbers than "
                f"that: the two do not belong together{_TRUST}"
            )

    def _module(self, module: nn.Module, name: str, child: nn.Module | None) -> None:
        if threading.get_ident() != self.thread:
            return
        self.modules += 1
        if self.modules > MOST_MODULES:
            raise UserError(f"the config of {self.weights} describes more than {MOST_MODULES:,} modules{_TRUST}")

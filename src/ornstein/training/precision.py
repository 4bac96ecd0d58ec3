"""How a training computes on its device: half precision, loss scaling, TF32, and the random state of dropout layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ornstein.devices import has_float64

__all__ = ["LossScale", "addressed_dropout", "autocast_within", "float32_products", "wide"]

_FIRST_SCALE = 2.0**16
_GROWTH = 2000  # steps without an overflow, after which the scale is doubled


def wide(device: torch.device) -> torch.dtype:
    """The dtype of sums over steps and processes: float64, but float32 on MPS, which has no other."""
    return torch.float64 if has_float64(device) else torch.float32


class LossScale:
    """Dynamic loss scaling for fp16, in which small gradients vanish; the identity for any other precision.

    The loss is multiplied by `value` and the gradients are divided by it. The scale is halved when a gradient
    overflows, and that step changes no weight; it is doubled after 2000 steps without an overflow. It is part of the
    trainer's state. Source: Micikevicius et al. 2018 (arXiv:1710.03740), section 3.2.

    Args:
        dtype: what the networks are autocast to, None for float32.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        self.used = dtype == torch.float16
        self.value = _FIRST_SCALE if self.used else 1.0
        self.since = 0  # steps since the last change

    def unscale(self, parameters: Sequence[Tensor]) -> None:
        """Divide the gradients by the scale."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.used and gradients:
            torch._foreach_mul_(gradients, 1 / self.value)  # pyright: ignore[reportPrivateImportUsage]

    def overflowed(self) -> bool:
        """Halve the scale after a gradient that is not finite; False if scaling is not the cause."""
        if not self.used or self.value <= 1:
            return False
        self.value, self.since = self.value / 2, 0
        return True

    def stepped(self) -> None:
        """Count a step whose gradient was finite."""
        self.since += 1
        if self.used and self.since >= _GROWTH:
            self.value, self.since = 2 * self.value, 0

    def to_state(self) -> list[float] | None:
        """What a resumed run needs, in JSON types; None if there is nothing."""
        return [self.value, self.since] if self.used else None

    def load_state(self, state: list[float] | None) -> None:
        """Go on from `to_state`."""
        if self.used and state is not None:
            self.value, self.since = float(state[0]), int(state[1])


@contextmanager
def autocast_within(net: nn.Module, device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """Autocast inside `net` only: noise, targets and loss around it keep their precision."""
    if dtype is None:
        yield
        return
    region = torch.autocast(device.type, dtype)

    def enter(*_: object) -> None:
        region.__enter__()

    def leave(*_: object) -> None:
        region.__exit__(None, None, None)

    hooks = (net.register_forward_pre_hook(enter), net.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def float32_products(device: torch.device, exact: bool) -> Iterator[None]:
    """How a CUDA device multiplies float32 matrices and convolutions: exactly, or rounded to TF32 (10-bit mantissa).

    TF32 is several times faster. A training in "float32" is exact; in half precision the few float32 products that
    remain may be TF32. Within the block alone: the settings are PyTorch's own, and global.
    """
    if device.type != "cuda":
        yield
        return
    backends: tuple[Any, Any] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = not exact
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


@contextmanager
def addressed_dropout(device: torch.device, seed: int) -> Iterator[None]:
    """Within it the global generators, which dropout layers draw from, follow from `seed`; then they are put back.

    Only those of the CPU and of `device` are touched, by a call each: `torch.manual_seed` and `torch.random.fork_rng`
    go through every backend, which takes a tenth of a millisecond a step.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    elif device.type == "mps":
        generators.append(torch.mps._get_default_mps_generator())
    with ExitStack() as stack:
        for each in generators:
            stack.callback(each.set_state, each.get_state())
            each.manual_seed(seed)
        yield

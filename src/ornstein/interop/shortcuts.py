"""The same output of a network of diffusers in less time on a CPU: convolutions of one pixel, and rows given twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Twice", "quick_pointwise", "twice_of"]


class _Pointwise:
    """A convolution of one pixel as a product, which with channels last copies nothing."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.ndim != 4 or torch.compiler.is_compiling():
            return super().forward(x)  # pyright: ignore[reportAttributeAccessIssue]
        weight, bias = self.weight, self.bias  # pyright: ignore[reportAttributeAccessIssue]
        return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


def quick_pointwise(model: nn.Module) -> None:
    """Make products of the convolutions of one pixel. Weights and their names stay."""
    for module in model.modules():
        plain = isinstance(module, nn.Conv2d) and not isinstance(module, _Pointwise)
        if plain and module.kernel_size == module.stride == (1, 1) and (module.groups, module.padding) == (1, (0, 0)):
            _mixed(module, _Pointwise)


class Twice:
    """A U-Net whose rows come twice, as under guidance: what it makes of them before it reads the text is made once.

    `with twice(x, k):` around a call compares both halves of its input. On an accelerator, for which that would wait,
    in training, and outside of it the network is what it was.
    """

    def __init__(self, model: nn.Module) -> None:
        self.same = False
        for module in _before_text(model):
            if not isinstance(module, _Once):
                _mixed(module, _Once)
            module._twice = self  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]

    @contextmanager
    def __call__(self, x: Tensor, k: Tensor) -> Iterator[None]:
        """For samples x (2B, *) and timesteps k (2B,)."""
        on_cpu = x.device.type == k.device.type == "cpu"
        if on_cpu and len(x) == len(k) and len(x) % 2 == 0 and not torch.is_grad_enabled():
            self.same = all(torch.equal(*each.chunk(2)) for each in (x, k))
        try:
            yield
        finally:
            self.same = False


def twice_of(model: nn.Module) -> Twice:
    """The one of a network, however many wrap it."""
    if "_halves" not in model.__dict__:
        model.__dict__["_halves"] = Twice(model)
    return model.__dict__["_halves"]


class _Once:
    """A module that computes the first half of its rows where the second is the same."""

    def forward(self, x: Tensor, *more: Any, **options: Any) -> Tensor:
        plain = super().forward  # pyright: ignore[reportAttributeAccessIssue]
        if not self._twice.same:  # pyright: ignore[reportAttributeAccessIssue]
            return plain(x, *more, **options)
        count = len(x) // 2
        rest = [v[:count] if isinstance(v, Tensor) and len(v) == len(x) else v for v in more]
        y = plain(x[:count], *rest, **options)
        return torch.cat([y, y])


def _before_text(model: Any) -> Iterator[nn.Module]:
    """The modules of a U-Net up to its first cross-attention, where nothing but the samples and the time goes in."""
    if type(model).__name__ != "UNet2DConditionModel" or model.config.addition_embed_type or model.class_embedding:
        return
    yield model.conv_in
    for block in model.down_blocks:
        attentions = getattr(block, "attentions", None) or ()
        for i, resnet in enumerate(block.resnets):
            yield resnet
            if attentions:
                first = attentions[i].transformer_blocks[0]
                yield from (attentions[i].norm, attentions[i].proj_in, first.norm1, first.attn1)
                return
        yield from block.downsamplers or ()


def _mixed(module: nn.Module, addition: type) -> Any:
    """The module, with another forward before its own."""
    kind = type(module)
    module.__class__ = type(kind.__name__, (addition, kind), {})
    return module

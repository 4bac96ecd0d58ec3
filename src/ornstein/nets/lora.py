"""Low-rank adaptation of linear and convolutional layers (E37): W + (alpha/r) B A, with W left as it is.

`Lora` is the adaptation as data, `attach` puts it on a network, `merge` writes it into the weights, `detach` takes it
off: the weights are then bit for bit what they were. `trainable` makes a new one to train. `ornstein.interop.lora`
reads and writes its files.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ornstein.errors import UserError

__all__ = [
    "Lora", "LoraLayer", "LoraWeight", "adapted", "attach", "base_hash", "combine", "detach", "merge", "trainable",
]  # fmt: skip


@dataclass(frozen=True)
class LoraLayer:
    """The adaptation of one layer.

    Attributes:
        down: A, (r, in), or (r, in, kh, kw) of a convolution.
        up: B, (out, r), or (out, r, 1, 1).
        alpha: the strength; the change of the weight is (alpha/r) B A.
        magnitude: (out,), of DoRA (Liu et al. 2024, arXiv:2402.09353): each row of W + (alpha/r) B A is scaled to this
            norm. None for plain LoRA.

    Raises:
        UserError: shapes that do not fit, a rank above the layer's size, or an alpha that is not finite.
    """

    down: Tensor
    up: Tensor
    alpha: float
    magnitude: Tensor | None = None

    def __post_init__(self) -> None:
        if self.down.ndim not in (2, 4) or self.up.ndim not in (2, 4) or self.up.shape[1] != self.rank:
            raise UserError(f"down {tuple(self.down.shape)} and up {tuple(self.up.shape)} are not those of a LoRA")
        if not math.isfinite(self.alpha):
            raise UserError(f"alpha is {self.alpha}")
        largest = min(self.up.shape[0], self.down[0].numel())
        if not 1 <= self.rank <= largest:
            raise UserError(f"the rank {self.rank} is not between 1 and {largest}, the smaller side of the layer")

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """alpha/r."""
        return self.alpha / self.rank

    def delta(self) -> Tensor:
        """(alpha/r) B A, (out, in * kh * kw), in float32 at least."""
        wide = torch.promote_types(self.down.dtype, torch.float32)
        return self.scale * (self.up.flatten(1).to(wide) @ self.down.flatten(1).to(wide))


@dataclass(frozen=True)
class Lora:
    """A LoRA: what is added to a model, layer by layer.

    Attributes:
        layers: by component and name of the layer, such as "unet.mid_block.attentions.0.proj_in".
        base: `base_hash` of the model that it was trained on; None if that is not known.
        facts: whatever else its file says, as texts.
    """

    layers: Mapping[str, LoraLayer]
    base: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.layers:
            raise UserError("a LoRA without layers")

    def scaled(self, factor: float) -> Lora:
        """The same with `factor` times the strength; the factors themselves stay as they are.

        Raises:
            UserError: it is a DoRA, whose magnitudes do not scale with it.
        """
        if any(layer.magnitude is not None for layer in self.layers.values()):
            raise UserError("a DoRA has magnitudes of its own, which do not scale with alpha")
        return replace(self, layers={n: replace(v, alpha=v.alpha * factor) for n, v in self.layers.items()})


def combine(loras: Sequence[Lora], weights: Sequence[float]) -> Lora:
    """One LoRA whose change of the weights is the weighted sum of those of several: ranks add up, alpha is the rank.

    Where the ranks together pass the size of a layer, its factors are those of the sum's singular values.

    Raises:
        UserError: a DoRA, two bases, or two shapes of a layer.
    """
    bases = {lora.base for lora in loras} - {None}
    if len(bases) > 1:
        raise UserError(f"these LoRAs are of different bases: {', '.join(sorted(str(b)[:12] for b in bases))}")
    layers: dict[str, LoraLayer] = {}
    for name in dict.fromkeys(n for lora in loras for n in lora.layers):
        parts = [(lora.layers[name], w) for lora, w in zip(loras, weights, strict=True) if name in lora.layers]
        if any(part.magnitude is not None for part, _ in parts):
            raise UserError(f"{name} is a DoRA, which is not a sum: merge it into a model instead")
        if len({(p.down.shape[1:], p.up.shape[0]) for p, _ in parts}) > 1:
            raise UserError(f"{name} has different shapes in these LoRAs")
        down = torch.cat([part.down.float() for part, _ in parts])
        up = torch.cat([w * part.scale * part.up.float() for part, w in parts], dim=1)
        largest = min(len(up), down[0].numel())
        if len(down) > largest:
            u, s, v = torch.linalg.svd(up.flatten(1) @ down.flatten(1), full_matrices=False)
            up = (u * s).reshape(len(up), largest, *up.shape[2:])
            down = v.reshape(largest, *down.shape[1:])
        layers[name] = LoraLayer(down, up, float(len(down)))
    return Lora(layers, bases.pop() if bases else None)


class LoraWeight(nn.Module):
    """The parametrisation of a weight: W -> W + sum of (alpha/r) B A, computed where the weight is used (E37)."""

    def __init__(self, layer: LoraLayer, strength: float = 1.0) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(layer.down), nn.Parameter(layer.up)
        self.magnitude = None if layer.magnitude is None else nn.Parameter(layer.magnitude)
        self.alpha, self.strength = layer.alpha, strength

    @property
    def layer(self) -> LoraLayer:
        """The adaptation as it is now."""
        magnitude = None if self.magnitude is None else self.magnitude.detach().clone()
        return LoraLayer(self.down.detach().clone(), self.up.detach().clone(), self.alpha, magnitude)

    def forward(self, weight: Tensor) -> Tensor:
        if not self.strength:
            return weight
        change = LoraLayer(self.down, self.up, self.alpha).delta().reshape(weight.shape)
        if self.magnitude is None:
            return (weight + self.strength * change).to(weight.dtype)
        moved = weight + self.strength * change
        norm = torch.linalg.vector_norm(
            moved.flatten(1), dim=1
        ).detach()  # a constant for the gradient, as in the paper
        rows = (self.magnitude / norm).reshape(-1, *[1] * (weight.ndim - 1))
        return (rows * moved).to(weight.dtype)


def attach(net: nn.Module, layers: Mapping[str, LoraLayer], strength: float = 1.0) -> None:
    """Put an adaptation on the layers of a network; several add up.

    Args:
        layers: by the names of modules of `net`.
        strength: a factor on the change.

    Raises:
        UserError: a layer that the network does not have, or has in another shape. Nothing is attached then.
    """
    found = [(_weighted(net, name), name, layer) for name, layer in layers.items()]
    for module, name, layer in found:
        size, shape = tuple(module.weight.shape), (layer.up.shape[0], *layer.down.shape[1:])
        if size[0] != shape[0] or math.prod(size[1:]) != math.prod(shape[1:]):
            raise UserError(f"{name} has a weight of {size}, the LoRA one of {shape}: it is of another base")
    for module, _, layer in found:
        on = {"device": module.weight.device}
        placed = LoraLayer(
            layer.down.to(**on),
            layer.up.to(**on),
            layer.alpha,
            None if layer.magnitude is None else layer.magnitude.to(**on),
        )
        parametrize.register_parametrization(module, "weight", LoraWeight(placed, strength))


def _weighted(net: nn.Module, name: str) -> Any:
    try:
        module = net.get_submodule(name)
    except AttributeError:
        module = None
    if not isinstance(module, nn.Linear | nn.Conv2d) or getattr(module, "groups", 1) != 1:
        raise UserError(f"the model has no linear layer or convolution {name}: this LoRA is of another base")
    return module


def adapted(net: nn.Module) -> dict[str, LoraWeight]:
    """The adaptations on a network, by layer; the last one of a layer that has several."""
    found = {}
    for name, module in list(net.named_modules()):
        if parametrize.is_parametrized(module, "weight"):
            on: Any = module.parametrizations
            own = [p for p in on.weight if isinstance(p, LoraWeight)]
            found |= {name: own[-1]} if own else {}
    return found


def detach(net: nn.Module) -> None:
    """Take all adaptations off: the weights are what they were before, bit for bit."""
    for name in adapted(net):
        parametrize.remove_parametrizations(net.get_submodule(name), "weight", leave_parametrized=False)


def merge(net: nn.Module) -> None:
    """Write all adaptations into the weights: an ordinary network again."""
    with torch.no_grad():
        for name in adapted(net):
            parametrize.remove_parametrizations(net.get_submodule(name), "weight", leave_parametrized=True)


def trainable(
    net: nn.Module,
    targets: Iterable[str],
    rank: int,
    alpha: float | None = None,
    generator: torch.Generator | None = None,
    dora: bool = False,
) -> dict[str, LoraWeight]:
    """New adaptations to train: A random, B zero, so that nothing changes at first; every other parameter is frozen.

    Args:
        targets: ends of the names of layers, such as "to_q", or "qkv"; those of `ornstein.interop.lora.TARGETS`.
        rank: r.
        alpha: by default the rank, a scale of 1.
        generator: of the A.
        dora: learn the norm of each row too.

    Returns:
        The adaptations by layer. `adapted(net)` finds them again; `LoraWeight.layer` is one as data.

    Raises:
        UserError: no layer has such a name, or the rank is above the size of one.
    """
    ends = tuple(targets)
    pattern = re.compile(rf"(^|\.)({'|'.join(re.escape(e) for e in ends)})$")
    names = [
        name for name, module in net.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and getattr(module, "groups", 1) == 1 and pattern.search(name)
    ]  # fmt: skip
    if not names:
        raise UserError(f"the model has no linear layer or convolution that ends in {', '.join(ends)}")
    layers = {}
    for name in names:
        weight = _weighted(net, name).weight.detach()
        bound = 1 / math.sqrt(weight[0].numel())  # the usual initialisation of such a layer
        down = torch.empty(rank, *weight.shape[1:]).uniform_(-bound, bound, generator=generator)
        up = torch.zeros(len(weight), rank, *[1] * (weight.ndim - 2))
        norm = torch.linalg.vector_norm(weight.float().flatten(1), dim=1) if dora else None
        try:
            layers[name] = LoraLayer(down, up, float(rank if alpha is None else alpha), norm)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    attach(net, layers)
    return adapted(net)


def base_hash(net: nn.Module, names: Iterable[str]) -> str:
    """A hash of the weights of some layers as they are without adaptations: what a LoRA of them was trained on."""
    digest = hashlib.sha256()
    for name in sorted(names):
        module = _weighted(net, name)
        on: Any = getattr(module, "parametrizations", None)
        weight = on.weight.original if on is not None and "weight" in on else module.weight
        digest.update(name.encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()

"""Pruning of diffusers' U-Nets, UNet2DModel and UNet2DConditionModel: the small one has narrower `block_out_channels`.

Its config has one width a level, so all channels of equal width get the same new one, and the result is a folder that
diffusers opens: no attribute of a layer is left over from the large network.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ornstein.compress.budget import TOLERANCE, multiply_adds
from ornstein.compress.groups import Group, Member
from ornstein.compress.prune import kept_channels, narrowed
from ornstein.errors import UserError

__all__ = ["KINDS", "prune_unet2d", "unet2d_groups"]

KINDS = ("UNet2DModel", "UNet2DConditionModel")
"""Names of the classes of diffusers that are compressed."""

_MOST = 4000  # combinations of widths that are counted
_TOKENS, _TIME_IDS = 77, 6  # of a text, and numbers on the size of the picture that Stable Diffusion XL takes


class _Streams:
    """Channels by the layer that makes them; those that are added to each other become one stream."""

    def __init__(self) -> None:
        self.same: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        self.members: dict[str, list[Member]] = {}
        self.groups: list[Group] = []

    def root(self, name: str) -> str:
        while self.same[name] != name:
            name = self.same[name]
        return name

    def made(self, layer: str, module: nn.Module) -> str:
        weight: Tensor = module.weight  # pyright: ignore[reportAssignmentType]
        self.same[layer], self.sizes[layer] = layer, weight.shape[0]
        self.members[layer] = [Member(f"{layer}.weight"), Member(f"{layer}.bias")]
        return layer

    def add(self, a: str, b: str) -> None:
        a, b = self.root(a), self.root(b)
        if a != b:
            self.same[b] = a
            self.members[a] += self.members.pop(b)

    def read(self, x: list[str], layer: str, axis: int = 1, names: tuple[str, ...] = ("weight",)) -> None:
        """A layer reads the joined streams x; a norm has axis 0 and a bias."""
        offset = 0
        for stream in x:
            self.members[self.root(stream)] += [Member(f"{layer}.{n}", axis, offset=offset) for n in names]
            offset += self.sizes[stream]

    def normed(self, x: list[str], layer: str) -> None:
        self.read(x, layer, 0, ("weight", "bias"))

    def all(self) -> list[Group]:
        streams = [Group(n, self.sizes[n], tuple(m), kind="stream") for n, m in self.members.items()]
        return streams + self.groups


def unet2d_groups(model: Any) -> list[Group]:
    """The groups of a UNet2DModel or a UNet2DConditionModel, as Stable Diffusion has.

    Raises:
        UserError: layers that only some of their variants have.
    """
    config, kind = model.config, type(model).__name__
    conv = {config.get("downsample_type", "conv"), config.get("upsample_type", "conv")} == {"conv"}
    if not conv or config.time_embedding_type != "positional" or config.get("time_cond_proj_dim"):
        raise UserError(f"of diffusers' {kind} the variants with conv sampling and positional time are compressed")
    if config.norm_num_groups is None or config.mid_block_type is None:
        raise UserError(f"a {kind} without norm_num_groups or a middle block is not compressed")
    if config.get("only_cross_attention") or config.get("dual_cross_attention"):
        raise UserError(f"a {kind} with blocks of cross-attention alone, or of two texts, is not compressed")
    s = _Streams()
    x = [s.made("conv_in", model.conv_in)]
    skips = [x]
    for i, block in enumerate(model.down_blocks):
        for j in range(len(block.resnets)):
            x = _layer(s, f"down_blocks.{i}", block, j, x)
            skips.append(x)
        for sampler in getattr(block, "downsamplers", None) or []:
            x = _sampled(s, f"down_blocks.{i}.downsamplers.0.conv", sampler.conv, x)
            skips.append(x)
    middle = model.mid_block
    x = _resnet(s, "mid_block.resnets.0", middle.resnets[0], x)
    for j, attention in enumerate(middle.attentions):
        if attention is not None:
            _attended(s, f"mid_block.attentions.{j}", attention, x)
        x = _resnet(s, f"mid_block.resnets.{j + 1}", middle.resnets[j + 1], x)
    for i, block in enumerate(model.up_blocks):
        for j in range(len(block.resnets)):
            x = _layer(s, f"up_blocks.{i}", block, j, x + skips.pop())
        for sampler in getattr(block, "upsamplers", None) or []:
            x = _sampled(s, f"up_blocks.{i}.upsamplers.0.conv", sampler.conv, x)
    s.normed(x, "conv_norm_out")
    s.read(x, "conv_out")
    return s.all()


def _layer(s: _Streams, at: str, block: Any, j: int, x: list[str]) -> list[str]:
    x = _resnet(s, f"{at}.resnets.{j}", block.resnets[j], x)
    attentions = getattr(block, "attentions", None)
    if attentions is not None:
        _attended(s, f"{at}.attentions.{j}", attentions[j], x)
    return x


def _attended(s: _Streams, at: str, attention: Any, x: list[str]) -> None:
    if hasattr(attention, "transformer_blocks"):
        _transformer(s, at, attention, x)
    else:
        _attention(s, at, attention, x)


def _transformer(s: _Streams, at: str, transformer: Any, x: list[str]) -> None:
    """Blocks of self-attention, attention to the text, and a feed-forward part, between two projections."""
    s.normed(x, f"{at}.norm")
    s.read(x, f"{at}.proj_in")
    h = [s.made(f"{at}.proj_in", transformer.proj_in)]
    for k, block in enumerate(transformer.transformer_blocks):
        inside = f"{at}.transformer_blocks.{k}"
        for j, attention in ((1, block.attn1), (2, block.attn2)):
            name = f"{inside}.attn{j}"
            s.normed(h, f"{inside}.norm{j}")
            for layer in ("to_q", "to_k", "to_v") if j == 1 else ("to_q",):  # the second looks at the text
                s.read(h, f"{name}.{layer}")
            s.add(s.made(f"{name}.to_out.0", attention.to_out[0]), h[0])
            members = [Member(f"{name}.to_q.{w}", query=True) for w in ("weight", "bias")]
            members += [Member(f"{name}.{n}.{w}") for n in ("to_k", "to_v") for w in ("weight", "bias")]
            members.append(Member(f"{name}.to_out.0.weight", axis=1))
            size, heads = attention.to_q.out_features, attention.heads
            s.groups.append(Group(f"{name}.inner", size, tuple(members), parts=heads, kind="queries"))
        s.normed(h, f"{inside}.norm3")
        s.read(h, f"{inside}.ff.net.0.proj")
        last = block.ff.net[2]
        copies = block.ff.net[0].proj.out_features // last.in_features  # values and their gates
        members = [Member(f"{inside}.ff.net.0.proj.{w}", copies=copies) for w in ("weight", "bias")]
        members.append(Member(f"{inside}.ff.net.2.weight", axis=1))
        s.groups.append(Group(f"{inside}.ff", last.in_features, tuple(members), kind="feedforward"))
        s.add(s.made(f"{inside}.ff.net.2", last), h[0])
    s.read(h, f"{at}.proj_out")
    s.add(s.made(f"{at}.proj_out", transformer.proj_out), x[0])


def _sampled(s: _Streams, at: str, conv: nn.Module, x: list[str]) -> list[str]:
    s.read(x, at)
    return [s.made(at, conv)]


def _resnet(s: _Streams, at: str, block: Any, x: list[str]) -> list[str]:
    s.normed(x, f"{at}.norm1")
    s.read(x, f"{at}.conv1")
    inner = [Member(f"{at}.{n}.{w}") for n in ("conv1", "norm2") for w in ("weight", "bias")]
    if block.time_emb_proj is not None:
        copies = 2 if block.time_embedding_norm == "scale_shift" else 1
        inner += [Member(f"{at}.time_emb_proj.{w}", copies=copies) for w in ("weight", "bias")]
    inner.append(Member(f"{at}.conv2.weight", axis=1))
    s.groups.append(Group(f"{at}.inner", block.conv1.out_channels, tuple(inner)))
    out = s.made(f"{at}.conv2", block.conv2)
    if block.conv_shortcut is None:
        s.add(out, x[0])
    else:
        s.read(x, f"{at}.conv_shortcut")
        s.add(out, s.made(f"{at}.conv_shortcut", block.conv_shortcut))
    return [out]


def _attention(s: _Streams, at: str, attention: Any, x: list[str]) -> None:
    s.normed(x, f"{at}.group_norm")
    for name in ("to_q", "to_k", "to_v"):
        s.read(x, f"{at}.{name}")
    s.add(s.made(f"{at}.to_out.0", attention.to_out[0]), x[0])
    inner, heads = attention.to_q.out_features, attention.heads
    unit = inner // heads if heads > 1 else 1
    members = [Member(f"{at}.{n}.{w}", unit=unit) for n in ("to_k", "to_v") for w in ("weight", "bias")]
    members += [Member(f"{at}.to_q.{w}", unit=unit, query=True) for w in ("weight", "bias")]
    members.append(Member(f"{at}.to_out.0.weight", axis=1, unit=unit))
    s.groups.append(Group(f"{at}.inner", inner // unit, tuple(members), kind="heads" if heads > 1 else "queries"))


def prune_unet2d(
    model: Any, budget: float, shape: tuple[int, ...], values: Mapping[str, Tensor] | None, draw: torch.Generator
) -> tuple[Any, int, int]:
    """The pruned U-Net, its multiply-adds, and those of `model`. `values` by the names of the model's tensors.

    Raises:
        UserError: the budget cannot be met; the least, or the nearest, share is named.
    """
    groups = unet2d_groups(model)
    # with its private entries, diffusers would take defaults for what is changed
    config = {name: value for name, value in model.config.items() if not name.startswith("_")}
    blocks = list(config["block_out_channels"])

    def changed(widths: Mapping[int, int]) -> dict[str, Any]:
        time = config.get("time_embedding_dim") or 4 * blocks[0]
        return config | {"block_out_channels": [widths[n] for n in blocks], "time_embedding_dim": time}

    def cost(widths: Mapping[int, int]) -> int:
        with torch.device("meta"):
            inner = type(model).from_config(changed(widths)).eval()
            return multiply_adds(lambda: inner(**_example(config, shape)))

    widths, macs, full = _widths(config, cost, budget)
    by_group = {}
    for group in groups:
        unit, more = next(m.unit for m in group.members), 4 if group.kind == "feedforward" else 1
        by_group[group.name] = more * widths[group.size * unit // more] // unit
    kept = kept_channels(groups, by_group, values, draw)
    state = narrowed(groups, model.state_dict(), kept)
    small = type(model).from_config(changed(widths))
    state["time_embedding.linear_1.weight"] = _refitted(model, small)
    weight = next(model.parameters())
    small = small if weight.dtype == torch.float32 else small.to(weight.dtype)
    small.load_state_dict(state)
    return small.to(weight.device).eval(), macs, full


def _example(config: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """What the network is called with, on the default device."""
    one = torch.zeros(1, dtype=torch.long)
    channels = config.get("in_channels") or shape[0]  # a network for inpainting takes more than it makes
    given: dict[str, Any] = {"sample": torch.zeros(1, channels, *shape[1:]), "timestep": one}
    if config.get("num_class_embeds"):
        given["class_labels"] = one
    if config.get("cross_attention_dim"):
        given["encoder_hidden_states"] = torch.zeros(1, _TOKENS, config["cross_attention_dim"])
    if config.get("addition_embed_type") == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - _TIME_IDS * config["addition_time_embed_dim"]
        given["added_cond_kwargs"] = {"text_embeds": torch.zeros(1, pooled), "time_ids": torch.zeros(1, _TIME_IDS)}
    return given


def _widths(
    config: dict[str, Any], cost: Callable[[Mapping[int, int]], int], budget: float
) -> tuple[dict[int, int], int, int]:
    """The new width of each width: of those within the tolerance, the ones whose shares are most alike."""
    distinct = sorted(set(config["block_out_channels"]))
    # of a UNet2DModel the features of a head; of a UNet2DConditionModel, in spite of the name, the number of heads
    head = config.get("num_attention_heads") or config.get("attention_head_dim") or 1
    attended = any("Attn" in b for b in (*config["down_block_types"], *config["up_block_types"])) or config.get(
        "add_attention", True
    )
    groups = math.lcm(config["norm_num_groups"], config.get("attn_norm_num_groups") or 1)
    step = math.lcm(groups, *((head,) if isinstance(head, int) else head) if attended else (1,), 2)
    choices = [list(range(step, n + 1, step)) or [n] for n in distinct]
    while math.prod(map(len, choices)) > _MOST:
        choices = [c[(len(c) + 1) % 2 :: 2] if len(c) > 2 else c for c in choices]

    full = cost({n: n for n in distinct})
    target = budget * full
    wanted = math.sqrt(budget)
    found = [dict(zip(distinct, c, strict=True)) for c in itertools.product(*choices)]
    # widths that differ stay different, in the same order: a shortcut is there where they differ
    found = [w for w in found if all(w[a] < w[b] for a, b in itertools.pairwise(distinct))]
    found.sort(key=lambda w: sum((w[n] / n - wanted) ** 2 for n in distinct))
    nearest: tuple[dict[int, int], int] | None = None
    for widths in found[:60]:
        macs = cost(widths)
        if nearest is None or abs(macs - target) < abs(nearest[1] - target):
            nearest = widths, macs
        if abs(macs - target) <= TOLERANCE * target:
            return widths, macs, full
    least = cost(min(found, key=lambda w: sum(w.values())))
    assert nearest is not None
    raise UserError(
        f"a budget of {budget:g} cannot be met to {TOLERANCE:.0%}: widths are multiples of {step} here, the least is "
        f"{least / full:.3f} and the nearest {nearest[1] / full:.3f}"
    )


def _refitted(model: Any, small: Any) -> Tensor:
    """The first layer of the time embedding on the fewer sinusoids of the small network, by least squares over time.

    The bias stays; a narrower network has other frequencies, not some of the old ones.
    """
    steps = torch.arange(1000, dtype=torch.float32)
    old, new = model.time_proj(steps).double(), small.time_proj(steps).double()
    layer = model.time_embedding.linear_1
    wanted = old @ layer.weight.detach().cpu().double().T
    return torch.linalg.lstsq(new, wanted, driver="gelsd").solution.T.to(layer.weight)

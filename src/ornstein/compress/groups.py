"""Coupled channels of a network: which rows and columns of which tensors belong to one feature."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ornstein.errors import UserError
from ornstein.nets import DiT, UNet, VideoUNet
from ornstein.nets.blocks import Attention, Block, CrossAttention
from ornstein.nets.dit import DiTBlock

__all__ = ["Group", "Member", "channel_groups", "with_widths"]


@dataclass(frozen=True)
class Member:
    """An axis of a tensor that runs over the channels of a group.

    Channel c is the entries `copy * size * unit + c * unit` and the `unit - 1` after them, for each of the `copies`:
    scale and shift, or queries, keys and values, are such copies; the features of a head are a unit. `offset` entries
    before them belong to another group, where features are joined.

    Attributes:
        name: of the tensor in the state of the network.
        axis: 0 for what makes the channels, 1 for what reads them.
        copies, unit, offset: see above.
        query: its first copy makes queries, whose size decides the divisor of the scores of attention.
    """

    name: str
    axis: int = 0
    copies: int = 1
    unit: int = 1
    offset: int = 0
    query: bool = False

    def rows(self, channels: Tensor, size: int) -> Tensor:
        """The entries along the axis (n,) int64 of the given channels of a group of `size`."""
        within = (channels[:, None] * self.unit + torch.arange(self.unit)).flatten()
        copies = torch.arange(self.copies)[:, None] * size * self.unit
        return self.offset + (copies + within).flatten()


@dataclass(frozen=True)
class Group:
    """Channels that can only be kept or removed together in all of their members.

    Attributes:
        name: of the part, as the network's `widths` has it.
        size: channels now.
        members: the tensors.
        parts: equal consecutive parts, the heads of attention: as many channels are removed from each.
        kind: "stream" for features that blocks add to, "inner" for those within a block, "queries" for those of
            attention, whose scores are divided by the root of their number, "heads" for whole heads, "feedforward" for
            those between two layers, four times as many as in the stream.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    parts: int = 1
    kind: str = "inner"


def channel_groups(net: nn.Module) -> list[Group]:
    """The groups of a network.

    Raises:
        UserError: a network whose groups are not known.
    """
    for kind, groups in _GROUPS.items():
        if type(net) is kind:
            return list(groups(net))
    raise UserError(
        f"a {type(net).__name__} cannot be compressed: {', '.join(kind.__name__ for kind in _GROUPS)} of Ornstein and "
        "the UNet2DModel of diffusers can"
    )


def with_widths(net: nn.Module, widths: Mapping[str, int]) -> nn.Module:
    """A new network like `net` of other widths; those that are not named stay. A branch of width 0 is left out."""
    config: dict[str, Any] = {**net.config}  # pyright: ignore[reportGeneralTypeIssues]
    kind: Any = type(net)
    return kind(**config | {"widths": config.get("widths", {}) | dict(widths)})


class _Streams:
    """Members of the streams of a U-Net, collected on a walk through its layers."""

    def __init__(self) -> None:
        self.members: dict[str, list[Member]] = {}
        self.sizes: dict[str, int] = {}

    def made(self, stream: str, layer: str, module: nn.Conv2d | nn.Linear) -> None:
        """The outputs of a layer are the channels of a stream."""
        self.sizes[stream] = module.weight.shape[0]
        self._add(stream, Member(f"{layer}.weight"))
        if module.bias is not None:
            self._add(stream, Member(f"{layer}.bias"))

    def read(self, stream: str, layer: str) -> None:
        self._add(stream, Member(f"{layer}.weight", axis=1))

    def normed(self, stream: str, layer: str, module: nn.Module) -> None:
        if getattr(module, "weight", None) is not None:
            for name in ("weight", "bias"):
                self._add(stream, Member(f"{layer}.{name}"))

    def _add(self, stream: str, member: Member) -> None:
        self.members.setdefault(stream, []).append(member)

    def groups(self) -> Iterator[Group]:
        for name, members in self.members.items():
            yield Group(name, self.sizes[name], tuple(members), kind="stream")


def _of_unet(net: UNet, prefix: str = "", streams: _Streams | None = None) -> Iterator[Group]:
    whole = streams is None
    streams = _Streams() if streams is None else streams
    streams.made(net.streams[0], f"{prefix}stem", net.stem)
    now = net.streams[0]
    for level, stage in enumerate(net.encoder):
        for i, block in enumerate(stage):  # pyright: ignore[reportArgumentType]
            own = net.streams[level + 1]
            yield from _of_block(block, f"encoder.{level}.{i}", prefix, now, own, streams)
            now = own
    for k, stage in enumerate(net.decoder):
        own = net.streams[len(net.decoder) - k]
        if k:
            streams.read(now, f"{prefix}up.{k - 1}")
            streams.made(own, f"{prefix}up.{k - 1}", net.up[k - 1])  # pyright: ignore[reportArgumentType]
        for i, block in enumerate(stage):  # pyright: ignore[reportArgumentType]
            yield from _of_block(block, f"decoder.{k}.{i}", prefix, own, own, streams)
        now = own
    streams.normed(now, f"{prefix}head.0", net.head[0])
    streams.read(now, f"{prefix}head.2")
    if whole:
        yield from streams.groups()


def _of_block(block: Block, name: str, prefix: str, source: str, own: str, streams: _Streams) -> Iterator[Group]:
    at = prefix + name
    if isinstance(block.shortcut, nn.Conv2d):
        streams.read(source, f"{at}.shortcut")
        streams.made(own, f"{at}.shortcut", block.shortcut)
    if block.inner:
        streams.normed(source, f"{at}.norm1", block.norm1)
        streams.read(source, f"{at}.conv1")
        streams.made(own, f"{at}.conv2", block.conv2)
        inner = [Member(f"{at}.conv1.weight"), Member(f"{at}.conv1.bias"), Member(f"{at}.conv2.weight", axis=1)]
        if block.modulation is not None:
            inner += [Member(f"{at}.modulation.weight", copies=2), Member(f"{at}.modulation.bias", copies=2)]
        yield Group(name, block.inner, tuple(inner))
    if isinstance(block.attention, Attention):
        streams.normed(own, f"{at}.attention.norm", block.attention.norm)
        streams.read(own, f"{at}.attention.qkv")
        streams.made(own, f"{at}.attention.out", block.attention.out)
        made = [Member(f"{at}.attention.qkv.{each}", copies=3, query=True) for each in ("weight", "bias")]
        members = (*made, Member(f"{at}.attention.out.weight", axis=1))
        yield Group(f"{name}.attention", block.attention.out.in_features, members, block.attention.heads, "queries")
    if isinstance(block.reading, CrossAttention):
        yield _reading(block.reading, f"{name}.reading", f"{at}.reading", own, streams)


def _reading(reading: CrossAttention, name: str, at: str, own: str, streams: _Streams) -> Group:
    streams.normed(own, f"{at}.norm", reading.norm)
    streams.read(own, f"{at}.q")
    streams.made(own, f"{at}.out", reading.out)
    members = (
        Member(f"{at}.q.weight", query=True), Member(f"{at}.q.bias", query=True), Member(f"{at}.kv.weight", copies=2),
        Member(f"{at}.kv.bias", copies=2), Member(f"{at}.out.weight", axis=1),
    )  # fmt: skip
    return Group(name, reading.out.in_features, members, reading.heads, "queries")


def _of_video(net: VideoUNet) -> Iterator[Group]:
    """The groups of the image network; the layers along time read and make the channels of its streams."""
    streams, image = _Streams(), net.image
    yield from _of_unet(image, "image.", streams)
    if net.given is not None:
        streams.made(image.streams[0], "given", net.given)
    levels = len(net.encoder)
    for side, stages in (("encoder", net.encoder), ("decoder", net.decoder)):
        for k, stage in enumerate(stages):
            own = image.streams[(k if side == "encoder" else levels - 1 - k) + 1]
            for i, layer in enumerate(stage):  # pyright: ignore[reportArgumentType]
                at = f"{side}.{k}.{i}"
                for name in ("weight", "bias"):
                    streams._add(own, Member(f"{at}.modulation.{name}", copies=2))
                streams.read(own, f"{at}.conv")
                streams.made(own, f"{at}.conv", layer.conv)
                if layer.attention is not None:
                    streams.normed(own, f"{at}.attention.norm", layer.attention.norm)
                    streams.read(own, f"{at}.attention.qkv")
                    streams.made(own, f"{at}.attention.out", layer.attention.out)
    yield from streams.groups()


def _of_dit(net: DiT) -> Iterator[Group]:
    for side, blocks in (("blocks", net.blocks), ("across", net.across)):
        for i, block in enumerate(blocks):
            assert isinstance(block, DiTBlock)
            at = f"{side}.{i}"
            if block.heads:
                unit = block.temperature.shape[-1]
                made = [Member(f"{at}.qkv.{each}", copies=3, unit=unit) for each in ("weight", "bias")]
                read = [Member(f"{at}.temperature", axis=1), Member(f"{at}.out.weight", axis=1, unit=unit)]
                yield Group(f"{at}.heads", block.heads, (*made, *read), kind="heads")
            if block.hidden:
                members = (Member(f"{at}.up.weight"), Member(f"{at}.up.bias"), Member(f"{at}.down.weight", axis=1))
                yield Group(f"{at}.mlp", block.hidden, members)


_GROUPS: dict[type[nn.Module], Callable[..., Iterator[Group]]] = {
    UNet: _of_unet,
    VideoUNet: _of_video,
    DiT: _of_dit,
}

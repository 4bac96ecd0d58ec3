"""A model split over the processes of a launch, by PyTorch's fully_shard (FSDP): each holds its part of every tensor.

Weights, gradients, moments and averages are DTensors then; a layer's weights are gathered while it is computed. On disk
a state is whole, as that of one process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn


def is_split(tensor: Tensor) -> bool:
    """Whether this process holds a part of `tensor` alone."""
    return hasattr(tensor, "full_tensor")


def split(module: nn.Module, world: int) -> None:
    """Split the parameters of `module`, in place; those of its blocks are gathered block by block."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()  # the engine knows no channels-last
    mesh = init_device_mesh(next(module.parameters()).device.type, (world,))
    for block in blocks_of(module):
        if any(True for _ in block.parameters()):
            fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The blocks of a network: the members of its lists of modules."""
    lists = [each for each in module.modules() if isinstance(each, nn.ModuleList)]
    return [child for each in lists for child in each if not isinstance(child, nn.ModuleList)]


@contextmanager
def without_sum(module: nn.Module) -> Iterator[None]:
    """Within it a backward pass adds to the gradients of this process and shares nothing."""
    root = cast("Any", module)
    root.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        root.set_requires_gradient_sync(True)


def whole(tensor: Tensor) -> Tensor:
    """All of `tensor`. Where it is split, all processes must ask at once."""
    return cast("Any", tensor).full_tensor() if is_split(tensor) else tensor


def parts(tensors: Sequence[Tensor]) -> list[Tensor]:
    """What this process holds of each."""
    return [cast("Any", each.detach()).to_local() if is_split(each) else each for each in tensors]


def split_as(tensor: Tensor, like: Tensor) -> Tensor:
    """The whole `tensor`, which every process has, split as `like` is."""
    if not is_split(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    other = cast("Any", like)
    return distribute_tensor(tensor.to(like.device), other.device_mesh, other.placements, src_data_rank=None)


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of `module` in whole tensors. Where it is split, all processes must ask at once."""
    return {name: whole(value.detach()) for name, value in module.state_dict().items()}


@torch.no_grad()
def load_whole(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Put whole tensors into `module`, split or not. Raises as `load_state_dict`."""
    own = module.state_dict()
    module.load_state_dict({name: split_as(v, own[name]) if name in own else v for name, v in state.items()})

"""Activation checkpointing: the same numbers from less memory."""

import pytest
import torch
from torch import nn

from ornstein.errors import UserError
from ornstein.nets import DiT, UNet
from ornstein.training.recompute import recomputed


def gradients(net: nn.Module, kept: list[int] | None = None) -> list[torch.Tensor]:
    x, log_snr = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.zeros(2)
    torch.manual_seed(1)  # of dropout
    net.zero_grad()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if kept is not None:
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = net(x, log_snr)
    (out - 1).square().mean().backward()
    return [parameter.grad.clone() for parameter in net.parameters()]


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_gradients_are_the_same_and_less_is_kept(kind: str) -> None:
    torch.manual_seed(0)
    net = UNet(1, 16, width=16, dropout=0.3) if kind == "unet" else DiT(1, 16, width=16, depth=4, heads=2, dropout=0.3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    plain_kept: list[int] = []
    plain = gradients(net, plain_kept)
    again_kept: list[int] = []
    with recomputed(net):
        again = gradients(net, again_kept)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert sum(again_kept) < 0.5 * sum(plain_kept)
    assert all("forward" not in vars(module) for module in net.modules())


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="Linear has no blocks"), recomputed(nn.Linear(1, 1)):
        pass

"""Depth: residual branches of a network that are left out, chosen by how little its predictions change."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ornstein.compress.budget import TOLERANCE, network_macs
from ornstein.compress.groups import channel_groups, with_widths
from ornstein.denoiser import Denoiser
from ornstein.progress import say

__all__ = ["branches", "shallower", "without"]

_PROBES = 64  # samples, spread over diffusion time


def branches(net: nn.Module) -> list[str]:
    """Names of the residual branches of a network: all its groups but the streams that branches add to.

    They are the convolutions and the attentions of a block, or the MLP: without one the block passes on its input.
    """
    return [group.name for group in channel_groups(net) if group.kind != "stream"]


def without(net: nn.Module, names: Iterable[str]) -> nn.Module:
    """The network without some of its branches; the other weights are its own."""
    small: Any = with_widths(net, dict.fromkeys(names, 0))
    state, kept = net.state_dict(), {}
    for name, wanted in small.state_dict().items():
        tensor = state[name]
        if len(tensor) > len(wanted):  # the modulation of a transformer's block: attention first, then the MLP
            gone = name.rpartition(".modulation.")[0] + ".heads"
            tensor = tensor[-len(wanted) :] if small.config["widths"].get(gone) == 0 else tensor[: len(wanted)]
        kept[name] = tensor.clone()
    small.load_state_dict(kept)
    return small.train(net.training)


def shallower(
    model: Denoiser,
    budget: float,
    share: float,
    batches: Sequence[tuple[Tensor, Mapping[str, Any]]],
    generator: torch.Generator,
) -> Denoiser:
    """A model without the branches that it misses least, which make up a share of the multiply-adds to be saved.

    One branch after another is left out: the one whose absence, with those left out before, changes the predictions
    least for each multiply-add that it saves. The change is the mean square over data and diffusion times of what the
    loss compares, so to the best prediction it adds to the loss as much.

    Args:
        model: the large model.
        budget: share of its multiply-adds that is to be left in the end. No branch is left out that would save more.
        share: of the multiply-adds to be saved, those that branches give; 1 for as many as they can.
        batches: data x0 (B, *) and conditions.
        generator: of times and noise, on the CPU.
    """
    assert model.data is not None
    shape = tuple(model.data.shape)

    def cost(names: Iterable[str]) -> int:
        with torch.device("meta"):
            return network_macs(with_widths(model.net, dict.fromkeys(names, 0)).eval(), shape)

    full = cost(())
    left = {name: full - cost([name]) for name in branches(model.net)}  # branches are added, and so are their costs
    wanted, most = share * (1 - budget) * full, (1 - budget * (1 - TOLERANCE)) * full
    x0, cond = batches[0]
    x0, cond = x0[:_PROBES], {name: value[:_PROBES] for name, value in cond.items() if value is not None}
    t = (torch.arange(len(x0)) + torch.rand(len(x0), generator=generator)) / len(x0)
    t = t.clamp(min=1e-3).to(x0.device)
    z = torch.randn(x0.shape, generator=generator).to(x0.device)
    small, gone, saved = copy.deepcopy(model).eval(), [], 0
    with torch.no_grad():
        truth = model(model.process.add_noise(x0, t, z), t, **cond)

        def change(name: str) -> float:
            small.net = without(model.net, [*gone, name]).to(x0.device)
            return float(small.error(truth, **cond).mean())

        while saved < wanted:
            fitting = [name for name in left if saved + left[name] <= most]
            if not fitting:
                break
            best = min(fitting, key=lambda name: change(name) / left[name])
            gone.append(best)
            saved += left.pop(best)
    small.net = without(model.net, gone)
    say(f"left out: {', '.join(gone) or 'no branch'}, {saved / full:.1%} of the multiply-adds")
    return small

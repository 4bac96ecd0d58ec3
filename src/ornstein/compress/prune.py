"""Structural pruning (E42): the importance of coupled channels, and the network of those that are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ornstein.compress.groups import Group
from ornstein.denoiser import Denoiser

__all__ = ["CRITERIA", "importance_of", "input_moments", "kept_channels", "narrowed", "refitted", "taylor_gradients"]

CRITERIA = ("taylor", "magnitude", "random")
_BINS = 16  # diffusion times whose gradients are added up
_RIDGE = 1e-3  # of the mean square of a feature
_NEGLIGIBLE = 0.05  # of the largest loss: times with less say little (Fang et al. 2023, section 3.3)

State = Mapping[str, Tensor]


def taylor_gradients(
    model: Denoiser, batches: Sequence[tuple[Tensor, dict[str, Any]]], generator: torch.Generator
) -> dict[str, Tensor]:
    """Gradients of the loss over diffusion time, added up over the times whose loss is not negligible.

    Args:
        model: the denoiser; its gradients are left empty.
        batches: data x0 (B, *) and conditions.
        generator: of times and noise, on the CPU.

    Source: Fang et al. 2023 (arXiv:2305.10924), Diff-Pruning.
    """
    parameters = {name: p for name, p in model.net.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    found: list[tuple[float, list[Tensor | None]]] = []
    for k in range(_BINS):
        x0, cond = batches[k % len(batches)]
        t = (k + torch.rand(len(x0), generator=generator)) / _BINS
        z = torch.randn(x0.shape, generator=generator).to(x0.device)
        loss = model.loss(x0, t.clamp(min=1e-3).to(x0.device), z, **cond).mean()
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        found.append((float(loss.detach()), list(gradients)))
    largest = max(loss for loss, _ in found)
    for loss, gradients in found:
        if loss >= _NEGLIGIBLE * largest:
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    total[name] += gradient
    return total


def importance_of(group: Group, values: State) -> Tensor:
    """The importance of each channel (size,), float64: the sum of squares of `values` over all members.

    `values` are the weights for the criterion "magnitude", and weights times gradients for "taylor": to first order the
    change of the loss if a weight becomes 0.
    """
    total = torch.zeros(group.size, dtype=torch.float64)
    for member in group.members:
        tensor = values.get(member.name)
        if tensor is not None:
            square = tensor.detach().double().cpu().square().movedim(member.axis, 0)
            each = square.reshape(len(square), -1).sum(1)
            rows = member.rows(torch.arange(group.size), group.size)
            total += each[rows].view(member.copies, group.size, member.unit).sum((0, 2))
    return total


def kept_channels(
    groups: Sequence[Group], widths: Mapping[str, int], values: State | None, generator: torch.Generator
) -> dict[str, Tensor]:
    """The channels to keep by group, sorted: the most important ones of each part; random ones without `values`."""
    kept: dict[str, Tensor] = {}
    for group in groups:
        if values is None:
            scores = torch.rand(group.size, generator=generator, dtype=torch.float64)
        else:
            scores = importance_of(group, values)
        each = group.size // group.parts
        count = widths[group.name] // group.parts
        best = scores.view(group.parts, each).argsort(dim=1, descending=True, stable=True)[:, :count].sort(1).values
        kept[group.name] = (best + each * torch.arange(group.parts)[:, None]).flatten()
    return kept


def narrowed(groups: Iterable[Group], state: State, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a network with the kept channels of each group alone.

    Queries are scaled so that the scores of attention keep their divisor, the root of the full number of features.
    """
    cuts: dict[tuple[str, int], list[Tensor]] = {}
    scales: dict[str, tuple[int, float]] = {}
    out = dict(state)
    for group in groups:
        channels = kept[group.name]
        for member in group.members:
            if member.name in state:
                cuts.setdefault((member.name, member.axis), []).append(member.rows(channels, group.size))
        if group.kind == "queries":
            factor = (len(channels) / group.size) ** 0.5
            for member in group.members:
                if member.query and member.name in state:
                    scales[member.name] = (len(channels), factor)
    for (name, axis), rows in cuts.items():
        index = rows[0] if len(rows) == 1 else torch.cat(rows).sort().values  # joined features
        out[name] = out[name].index_select(axis, index.to(out[name].device)).contiguous()
    for name, (count, factor) in scales.items():
        out[name] = torch.cat([out[name][:count] * factor, out[name][count:]])
    return out


def input_moments(
    model: Denoiser,
    groups: Iterable[Group],
    batches: Sequence[tuple[Tensor, dict[str, Any]]],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Second moments (n, n) of the inputs of the layers that read a group, by the name of their weight.

    The mean is over pixels or tokens, samples of `batches` and diffusion times.
    """
    moments: dict[str, Tensor] = {}
    hooks = []
    for name in {m.name for group in groups for m in group.members if m.axis == 1 and m.name.endswith(".weight")}:
        layer = model.net.get_submodule(name.removesuffix(".weight"))
        if not isinstance(layer, (nn.Linear, nn.Conv2d)):
            continue

        def add(layer: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            x = inputs[0].movedim(1, -1) if isinstance(layer, nn.Conv2d) else inputs[0]
            rows = x.detach().float().flatten(0, -2)
            moments[name] = moments.get(name, 0) + (rows.T @ rows / len(rows)).double().cpu()

        hooks.append(layer.register_forward_pre_hook(add))
    try:
        with torch.no_grad():
            for x0, cond in batches:
                t = ((torch.arange(len(x0)) + torch.rand(len(x0), generator=generator)) / len(x0)).clamp(min=1e-3)
                z = torch.randn(x0.shape, generator=generator).to(x0.device)
                t = t.to(x0.device)
                model(model.process.add_noise(x0, t, z), t, **cond)
    finally:
        for hook in hooks:
            hook.remove()
    return moments


def refitted(
    groups: Iterable[Group], state: State, kept: Mapping[str, Tensor], moments: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The state with the kept inputs of each layer made to predict those that are removed, by least squares.

    A layer reads W x. With x ~ A x_k, A = M[:, k] (M[k, k] + ridge)^-1 and M the second moments of its inputs, it
    reads (W A) x_k: of all layers of the kept inputs the nearest one, if neighbouring pixels are alike.

    Source: He et al. 2017 (arXiv:1707.06168), channel pruning, with one A for all offsets of a kernel.
    """
    rows: dict[str, list[Tensor]] = {}
    for group in groups:
        if len(kept[group.name]) < group.size:
            for member in group.members:
                if member.axis == 1 and member.name in moments:
                    rows.setdefault(member.name, []).append(member.rows(kept[group.name], group.size))
    out = dict(state)
    for name, found in rows.items():
        index, moment, weight = torch.cat(found).sort().values, moments[name], state[name]
        own = moment[index][:, index]
        own = own + _RIDGE * own.diagonal().mean().clamp(min=1e-12) * torch.eye(len(index), dtype=own.dtype)
        predicts = torch.linalg.solve(own, moment[index]).T  # A
        changed = torch.tensordot(weight.detach().double().cpu().movedim(1, -1), predicts, dims=1)
        full = weight.detach().clone().movedim(1, -1)
        full[..., index.to(full.device)] = changed.to(full)
        out[name] = full.movedim(-1, 1)
    return out

r"""Integral layers (E42): channels as samples of a function on [0, 1], so that a network is resampled to any width.

A layer y_i = sum_j W_ij x_j is read as the quadrature of y(u) = int_0^1 K(u, v) x(v) dv at the nodes v_j = j/(n - 1),
with the weights q_j of the trapezoid rule: W_ij = K(u_i, v_j) q_j. With m nodes in place of n the kernel is
interpolated linearly at the new nodes, and multiplied by their weights. For n = m this is the layer itself.

The channels of a trained network have no order. They are first put in one in which the kernels vary least: a short path
through all of them (nearest neighbours, then 2-opt). Channels that a norm takes together stay together, so the network
computes what it did.

Source: the idea of TorchIntegral, "Integral neural networks" (Solodskikh et al., CVPR 2023).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ornstein import checkpoint
from ornstein.compress.groups import Group, channel_groups, with_widths
from ornstein.compress.imitation import Imitation
from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.nets.blocks import group_norm
from ornstein.store import read_config

__all__ = [
    "INTEGRAL",
    "LEAST",
    "Elastic",
    "at_width",
    "check_elastic",
    "ordered",
    "resampled",
    "shortest_path",
    "total_variation",
]

INTEGRAL = "integral"
"""The key of a run's config that says from which width on it was trained."""

LEAST = 0.25
"""The narrowest width that a network is fine-tuned for."""

_UNIT = 8  # widths are multiples of it, for speed
_WHOLE = 0.25  # share of the steps at full width
_SWEEPS = 20  # of 2-opt, at most


def resampled(groups: Sequence[Group], state: Mapping[str, Tensor], widths: Mapping[str, int]) -> dict[str, Tensor]:
    """The tensors of a network with the channels of each group resampled to its width; differentiable."""
    out = dict(state)
    for group in groups:
        if widths.get(group.name, group.size) == group.size:
            continue
        n, m = group.size, widths[group.name]
        interpolate = _interpolation(n, m)
        quadrature = _trapezoid(m)[:, None] * interpolate / _trapezoid(n)
        for member in group.members:
            if member.name in out:
                matrix = interpolate if member.axis == 0 else quadrature
                tensor = out[member.name].movedim(member.axis, 0)
                parts = tensor.reshape(member.copies, n, -1)
                made = matrix.to(tensor) @ parts
                out[member.name] = made.reshape(member.copies * m, *tensor.shape[1:]).movedim(0, member.axis)
    return out


def _interpolation(n: int, m: int) -> Tensor:
    """The matrix (m, n), float64, of linear interpolation from n equal nodes on [0, 1] to m; of one node it is 1/2."""
    at = torch.linspace(0, n - 1, m, dtype=torch.float64) if m > 1 else torch.tensor([(n - 1) / 2]).double()
    low = at.floor().clamp(max=max(n - 2, 0)).long()
    share = at - low
    matrix = torch.zeros(m, n, dtype=torch.float64)
    rows = torch.arange(m)
    matrix[rows, low] = 1 - share
    matrix[rows, (low + 1).clamp(max=n - 1)] += share
    return matrix


def _trapezoid(n: int) -> Tensor:
    """Weights (n,), float64, that add up to 1."""
    if n == 1:
        return torch.ones(1, dtype=torch.float64)
    weights = torch.full((n,), 1 / (n - 1), dtype=torch.float64)
    weights[0] = weights[-1] = 0.5 / (n - 1)
    return weights


def elastic_groups(net: nn.Module) -> list[Group]:
    """The groups that are resampled. Queries, whose scores depend on their number, and whole heads are not."""
    return [group for group in channel_groups(net) if group.kind in ("stream", "inner")]


def elastic_widths(groups: Sequence[Group], width: float) -> dict[str, int]:
    """The widths at a share of all channels."""
    out = {}
    for group in groups:
        unit = _UNIT if group.size >= 2 * _UNIT else 1
        out[group.name] = min(group.size, max(unit, unit * round(width * group.size / unit)))
    return out


def at_width(denoiser: Denoiser, width: float) -> Denoiser:
    """A denoiser whose network is resampled to a share `width` of its channels.

    Any network of `channel_groups` can be resampled; one of `ornstein compress --method integral` was trained for it.

    Raises:
        UserError: `width` is not in (0, 1], or the network has no such channels.
    """
    if not 0 < width <= 1:
        raise UserError(f"a width is a share of the channels, above 0 and at most 1, not {width:g}")
    net = denoiser.net
    groups = elastic_groups(net)
    widths = elastic_widths(groups, width)
    small = copy.copy(denoiser)
    small.__dict__ = {**denoiser.__dict__, "_modules": dict(denoiser._modules)}
    small.net = with_widths(net, widths).to(next(net.parameters()).device)
    small.net.load_state_dict(resampled(groups, net.state_dict(), widths))
    return small.eval()


def check_elastic(run: str | Path) -> None:
    """Raise UserError unless a run was trained for every width."""
    if checkpoint.is_pipeline(run) or INTEGRAL not in read_config(run):
        raise UserError(
            f"{run} was trained at one width: `ornstein compress {run} --method integral` makes a run for --width"
        )


class Elastic:
    """The objective of a network that serves every width: `Imitation` at a width drawn anew for each batch.

    A quarter of the batches are at full width, the others uniform from `LEAST` to 1. The draw is a function of the
    batch's noise, so that a resumed training draws the same.

    Args:
        imitation: the loss, with the teacher.
        model: the model to be trained.

    Raises:
        UserError: a network without such channels.
    """

    def __init__(self, imitation: Imitation, model: Denoiser) -> None:
        self.imitation = imitation
        self.about = {INTEGRAL: LEAST}  # what the run's config says of it
        self.groups = elastic_groups(model.net)
        self.skeletons: dict[tuple[int, ...], nn.Module] = {}

    def __call__(self, model: Denoiser, x0: Tensor, t: Tensor, z: Tensor, **cond: Any) -> Tensor:
        u = 0.5 * (1 + math.erf(float(z.flatten()[0]) / math.sqrt(2)))
        width = 1.0 if u < _WHOLE else LEAST + (1 - LEAST) * (u - _WHOLE) / (1 - _WHOLE)
        widths = elastic_widths(self.groups, width)
        if all(widths[group.name] == group.size for group in self.groups):
            return self.imitation(model, x0, t, z, **cond)
        key = tuple(widths.values())
        if key not in self.skeletons:
            self.skeletons[key] = with_widths(model.net, widths).to(z.device)
        view = copy.copy(model)
        view.__dict__ = {**model.__dict__, "_modules": dict(model._modules)}
        view.net = _Resampled(model.net, self.skeletons[key], self.groups, widths)
        view.precision = self.imitation.teacher.precision
        return self.imitation(view, x0, t, z, **cond)


class _Resampled(nn.Module):
    """A skeleton that computes with the resampled tensors of a network."""

    places_conditions = True

    def __init__(self, net: nn.Module, skeleton: nn.Module, groups: Sequence[Group], widths: dict[str, int]) -> None:
        super().__init__()
        self.parts = [(net, skeleton)]  # in a list: their parameters are not this module's
        self.groups, self.widths = groups, widths

    def forward(self, *inputs: Tensor, **cond: Any) -> Tensor:
        net, skeleton = self.parts[0]
        skeleton.train(net.training)
        state = resampled(self.groups, dict(net.named_parameters()), self.widths)
        return functional_call(skeleton, state, inputs, cond)


def ordered(net: nn.Module) -> nn.Module:
    """A copy of a network with its channels in the order of least total variation; it computes the same."""
    groups = elastic_groups(net)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for group in groups:
        order = torch.empty(group.size, dtype=torch.int64)
        norm = group_norm(group.size).num_groups
        each = group.size // norm
        points = _points(group, state)
        for k in range(norm):
            rows = slice(k * each, (k + 1) * each)
            order[rows] = k * each + shortest_path(torch.cdist(points[rows], points[rows], p=1))
        for member in group.members:
            if member.name in state:
                index = member.rows(order, group.size).to(state[member.name].device)
                state[member.name] = state[member.name].index_select(member.axis, index)
    out = copy.deepcopy(net)
    out.load_state_dict(state)
    return out


def total_variation(net: nn.Module) -> float:
    """The sum over all groups of the L1 distance of neighbouring channels."""
    state = net.state_dict()
    return sum(float(_points(g, state).diff(dim=0).abs().sum()) for g in elastic_groups(net))


def _points(group: Group, state: Mapping[str, Tensor]) -> Tensor:
    """All weights of each channel, (size, D), float64."""
    rows = []
    for member in group.members:
        if member.name in state:
            tensor = state[member.name].detach().cpu().double().movedim(member.axis, 0)
            rows.append(tensor.reshape(member.copies, group.size, -1).transpose(0, 1).flatten(1))
    return torch.cat(rows, 1)


def shortest_path(distance: Tensor) -> Tensor:
    """An order (n,) in which the sum of the distances (n, n) of neighbours is small: nearest neighbours, then 2-opt."""
    n = len(distance)
    away = distance.tolist()
    path, left = [0], set(range(1, n))
    while left:
        path.append(min(left, key=away[path[-1]].__getitem__))
        left.remove(path[-1])
    for _ in range(_SWEEPS):
        better = False
        for i in range(n - 1):
            for j in range(i + 1, n):
                # turning path[i..j] round changes the two steps at its ends; the path is open, so one may be missing
                before = path[i - 1] if i else None
                after = path[j + 1] if j + 1 < n else None
                gain = 0.0
                if before is not None:
                    gain += away[before][path[i]] - away[before][path[j]]
                if after is not None:
                    gain += away[path[j]][after] - away[path[i]][after]
                if gain > 1e-12:
                    path[i : j + 1] = path[i : j + 1][::-1]
                    better = True
        if not better:
            break
    return torch.tensor(path)

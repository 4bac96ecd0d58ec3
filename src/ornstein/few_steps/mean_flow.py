"""Distillation by the identity of MeanFlow: a student whose prediction is the mean velocity over its step (E31).

With y = x/(a + s), u = s/(a + s) and w = eps - x0 of the teacher, the flow is dy/du = w. The mean W of w between t and
the end s of the student's step is given by (u_t - u_s) W = int_{u_s}^{u_t} w du. Its derivative along the flow gives

    W = w - (u_t - u_s) dW/du,   dW/du = (d_y W) w + d_u W,

one evaluation of the teacher and one derivative of the student in the direction (w, 1), by forward differentiation and
without a gradient. It is the rule of `consistency` with steps of no length (Geng et al. 2025, arXiv:2505.13447): no
error of a teacher's step, and no nodes, but the derivative of a network that is still learning.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.autograd.forward_ad as forward
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from ornstein.denoiser import Denoiser
from ornstein.few_steps.consistency import Consistency, position, scaled
from ornstein.process import expand

__all__ = ["MeanFlow", "along"]

_TOP = 1 - 1e-6  # of u: the log-SNR of pure noise is infinite


class _Contiguous(TorchFunctionMode):
    """Group norms of contiguous tensors: their forward derivative knows no other layout."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.group_norm:
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **(kwargs or {}))


@contextmanager
def _in_full(net: nn.Module, device: torch.device) -> Iterator[None]:
    """No autocast inside `net`: it leaves the tangents of some layers in float32 beside weights in half precision."""
    region = torch.autocast(device.type, enabled=False)

    def enter(*_: object) -> None:
        region.__enter__()

    def leave(*_: object) -> None:
        region.__exit__(None, None, None)

    # inside the hooks of a training, which turn autocast on
    hooks = net.register_forward_pre_hook(enter), net.register_forward_hook(leave, prepend=True, always_call=True)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def along(model: Denoiser, y: Tensor, u: Tensor, velocity: Tensor, cond: dict[str, Any]) -> Tensor:
    """dW/du (B, *) of a model's W = eps - x0 at y (B, *), u (B,), in the direction (`velocity`, 1)."""
    schedule = model.process.schedule
    with forward.dual_level(), _Contiguous(), sdpa_kernel(SDPBackend.MATH):  # others have no forward derivative
        u = forward.make_dual(u, torch.ones_like(u))
        t = schedule.time(-2 * torch.logit(u)).clamp(0, 1)
        x = forward.make_dual(y, velocity) * expand(schedule.alpha(t) + schedule.sigma(t), y)
        with _in_full(model.net, y.device):
            out = model(x, t, **cond)
        tangent = forward.unpack_dual(out.eps - out.x0).tangent
    assert tangent is not None
    return tangent


class MeanFlow(Consistency):
    """The objective f(student, x0, t, z, **cond) -> (B,) of distillation by the identity of MeanFlow.

    The time t in (0, 1] chooses one of the student's steps and, uniformly in u, a place in it. The arguments are those
    of `Consistency`.
    """

    @torch.no_grad()
    def target(
        self, model: Denoiser, x0: Tensor, t: Tensor, z: Tensor, cond: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x_t (B, *) at a time t (B,) of the objective's own, which the given one chooses, and the W to be learned."""
        p, ends = model.process, position(model.process, self.own)
        place = (1 - t.double().cpu()).clamp(min=0) * (len(ends) - 1)
        k = place.floor().long().clamp(max=len(ends) - 2)
        u, u_s = torch.lerp(ends[k], ends[k + 1], place - k).clamp(max=_TOP), ends[k + 1]
        t = p.schedule.time(-2 * torch.logit(u)).clamp(0, 1)
        x_t = p.add_noise(x0, t, z)
        here = self.guided(x_t, t, **cond)
        w = here.eps - here.x0
        return x_t, t, w - expand(u - u_s, w) * along(model, scaled(p, x_t, t), u, w, cond)

"""How much memory a network's activations take, from tensors without data: nothing is allocated."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ornstein.text.gate import NAMED

if TYPE_CHECKING:
    from ornstein.interop.pipeline import Pipeline

__all__ = ["peak_activations", "samples_at_once"]


def peak_activations(run: Callable[[], object], modules: Sequence[nn.Module]) -> int:
    """The largest number of bytes that tensors made by `run` hold at once, without gradients.

    Attention counts as one that does not hold its matrix, which is what PyTorch has on accelerators and CPUs.

    Args:
        run: a call on tensors of the device "meta".
        modules: their weights, on "meta", do not count.
    """
    with torch.no_grad(), _Attention(), _Live(modules) as live:
        run()
    return live.peak


def samples_at_once(model: Pipeline, free: float, guided: bool) -> int:
    """How many samples of a pipeline fit in memory at once, at least 1; from tensors without data.

    Activations count in the dtype of the weights; under autocast they are fewer.

    Args:
        model: the pipeline; its own weights are in memory already.
        free: bytes for activations.
        guided: whether guidance doubles the rows of a call.
    """
    assert model.data is not None
    net, weight = model.net, next(model.net.parameters())
    tensors = {name: t.to("meta") for name, t in (*net.named_parameters(), *net.named_buffers())}
    cond = model.encode([""]) if model.takes_text else {}
    # what opens a gate is for the model, not for its network
    given = {n: value.to("meta") for n, value in cond.items() if isinstance(value, Tensor) and n != NAMED}
    x, log_snr = torch.empty(1, *model.data.shape, dtype=weight.dtype, device="meta"), torch.empty(1, device="meta")

    if model.has_mask_channels:
        given["inpaint"] = x.new_empty(1, x.shape[1] + 1, *x.shape[2:])
    peak = peak_activations(lambda: torch.func.functional_call(net, tensors, (x.clone(), log_snr), given), [])
    return max(1, int(free / peak / (1 + guided)))


class _Live(TorchDispatchMode):
    """Bytes of the storages that operations made and that are still alive."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.now = self.peak = 0
        weights = (t for m in modules for t in (*m.parameters(), *m.buffers()))
        self._known = {t.untyped_storage()._cdata for t in weights}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _Attention(TorchFunctionMode):
    """Attention on "meta" would hold the matrix of all pairs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, value = args[0] if args else given["query"], args[2] if len(args) > 2 else given["value"]
            return query.new_empty((*query.shape[:-1], value.shape[-1]))
        return func(*args, **given)

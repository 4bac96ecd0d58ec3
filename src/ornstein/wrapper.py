"""Denoisers around other denoisers: the common base, and how the networks inside any of them are found."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ornstein.denoiser import Denoiser, Denoises, Distilled, condition_tensor
from ornstein.noise import Carried
from ornstein.process import Prediction, Process
from ornstein.schedules import Times

__all__ = [
    "AlongFlow",
    "Conditioned",
    "Wrapper",
    "conditions_of",
    "device_of",
    "distilled_of",
    "evaluation_mode",
    "filled_in",
    "kept_solver",
    "module_of",
    "network_precision",
    "networks_of",
    "one_a_sample",
    "rows_of",
]


# A foreign wrapper may hold a whole data set; its network is not that far away.
_MOST_OBJECTS = 10_000


class Wrapper:
    """Base of denoisers that change the predictions of another one, `denoiser`.

    Process, device and networks are those of the inner denoiser. A subclass implements `__call__`.
    """

    denoiser: Denoises

    @property
    def process(self) -> Process:
        return self.denoiser.process

    @property
    def device(self) -> torch.device:
        return device_of(self.denoiser)

    def __call__(self, x_t: Tensor, t: Times, /, **cond: Any) -> Prediction:
        raise NotImplementedError


@dataclass(frozen=True)
class Conditioned(Wrapper):
    """A denoiser with its conditions filled in."""

    denoiser: Denoises
    cond: dict[str, Any]

    def __call__(self, x_t: Tensor, t: Times, /, **cond: Any) -> Prediction:
        return self.denoiser(x_t, t, **self.cond, **cond)


@dataclass(frozen=True)
class AlongFlow(Wrapper):
    """A model whose noise is carried by motion, with the flows of a batch (B, F - 1, 2, H, W) put into its process.

    Raises:
        ValueError: the noise of the model follows no flow; flows that are not such.
    """

    denoiser: Denoises
    flow: Tensor

    def __post_init__(self) -> None:
        noise = self.denoiser.process.noise
        if not isinstance(noise, Carried):
            raise ValueError(f"the noise of this model follows no flow, it is {noise}: train it with --noise warped")
        object.__setattr__(self, "_process", replace(self.denoiser.process, noise=noise.along(self.flow)))

    @property
    def process(self) -> Process:
        return self.__dict__["_process"]

    def __call__(self, x_t: Tensor, t: Times, /, **cond: Any) -> Prediction:
        return self.denoiser(x_t, t, **cond)


def filled_in(d: Denoises, cond: dict[str, Any]) -> Denoises:
    """A denoiser with its conditions filled in; "flow" goes into the noise of its process."""
    cond = dict(cond)
    flow = cond.pop("flow", None)
    return Conditioned(d if flow is None else AlongFlow(d, torch.as_tensor(flow)), cond)


def networks_of(d: object) -> list[nn.Module]:
    """The outermost modules reachable from `d`, each once: `d` itself, or what its attributes hold.

    A denoiser need not derive from `Wrapper`: attributes of any name, containers, partial functions and closures are
    followed, so that the network of a user's own wrapper is found too.
    """
    found: list[nn.Module] = []
    visited: set[int] = set()
    waiting: list[object] = [d]
    while waiting and len(visited) < _MOST_OBJECTS:
        each = waiting.pop(0)
        if id(each) in visited:
            continue
        visited.add(id(each))
        if isinstance(each, nn.Module):
            found.append(each)
        else:
            waiting.extend(_parts(each))
    return found


def _parts(value: object) -> Iterator[object]:
    """The objects that `value` holds and that may lead to a network."""
    if isinstance(value, type | types.ModuleType | Tensor | str | bytes | int | float | complex | None):
        return
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, types.MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, types.FunctionType):
        cells = value.__closure__ or ()
        for cell in cells:
            try:
                yield cell.cell_contents
            except ValueError:  # a variable that is not assigned yet
                continue
    else:
        yield from getattr(value, "__dict__", {}).values()
        for base in type(value).__mro__:
            slots = base.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if hasattr(value, name):
                    yield getattr(value, name)


def module_of(d: Denoises) -> nn.Module | None:
    """The first `Denoiser` inside `d`, or else its first network; None if there is none (an exact oracle)."""
    networks = networks_of(d)
    return next((n for n in networks if isinstance(n, Denoiser)), networks[0] if networks else None)


def device_of(d: Denoises) -> torch.device:
    """Where the weights inside `d` are; the CPU if there are none."""
    for network in networks_of(d):
        for tensor in chain(network.parameters(), network.buffers()):  # the first: all of them take a while to list
            return tensor.device
    return torch.device("cpu")


def conditions_of(d: Denoises, cond: dict[str, Any] | None, count: int) -> dict[str, Any]:
    """The conditions of `count` samples, without those that are None.

    A list of numbers becomes a tensor; any other list or tuple keeps one entry a sample. Tensors move to the device of
    the networks inside `d`, if there are any. The same holds inside a dict, such as `negative` (`ornstein.guidance`).

    Raises:
        ValueError: a condition with another number of rows.
    """
    out: dict[str, Any] = {}
    device = device_of(d) if networks_of(d) else None
    for name, value in (cond or {}).items():
        if value is None:
            continue
        if isinstance(value, dict):
            out[name] = conditions_of(d, value, count)
            continue
        value = condition_tensor(value)
        if one_a_sample(value) and len(value) != count:
            raise ValueError(f"cond[{name!r}] has {len(value)} rows for {count} samples")
        out[name] = value.to(device) if isinstance(value, Tensor) and device is not None else value
    return out


def rows_of(cond: dict[str, Any], rows: slice | Tensor) -> dict[str, Any]:
    """The conditions of some of the samples, a slice or their numbers; those that all samples share are kept."""

    def of(value: Any) -> Any:
        if isinstance(value, dict):
            return rows_of(value, rows)
        if not one_a_sample(value):
            return value
        if isinstance(rows, slice):
            return value[rows]
        return value[rows.to(value.device)] if isinstance(value, Tensor) else [value[i] for i in rows.tolist()]

    return {name: of(value) for name, value in cond.items()}


def one_a_sample(value: Any) -> bool:
    """Whether a condition has one entry a sample, rather than one that all samples share."""
    return value.ndim > 0 if isinstance(value, Tensor) else isinstance(value, list | tuple)


def distilled_of(d: Denoises) -> Distilled | None:
    """What the distilled model inside `d` was trained for; None for any other."""
    return getattr(module_of(d), "distilled", None)


def kept_solver(d: Denoises, steps: int, guidance: float, name: str | None = None) -> Any:
    """The solver that the run of the model inside `d` keeps for so many steps; None if there is no run, or none.

    name: "churned" for the one of tuned churn, which is not taken unless it is asked for.
    """
    model = module_of(d)
    if not isinstance(model, Denoiser) or model.solvers is None:
        return None
    return model.solvers(model.net, steps, guidance, name)


@contextmanager
def evaluation_mode(d: Denoises) -> Iterator[None]:
    """All networks inside `d` in evaluation mode (no dropout); each module gets its own mode back afterwards."""
    networks = networks_of(d)
    # module by module: a part that is frozen in evaluation mode stays so in a network that is training
    modes = [(m, m.training) for network in networks for m in network.modules()]
    if any(training for _, training in modes):
        for network in networks:
            network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            if module.training != training:  # setting an attribute of a module is slow
                module.training = training


@contextmanager
def network_precision(d: Denoises, dtype: torch.dtype | None, fixed: bool = False) -> Iterator[None]:
    """The networks of all denoisers inside `d`, and nothing around them, under autocast to `dtype`; unchanged if None.

    fixed: inside, no weight changes and no gradient of one is taken: each is converted once.

    Raises:
        ValueError: `d` has no network.
    """
    if dtype is None:
        yield
        return
    denoisers = [n for n in networks_of(d) if isinstance(n, Denoiser)]
    if not denoisers:
        raise ValueError("precision is a setting of networks; this denoiser has none")
    before = [each.precision for each in denoisers]
    for each in denoisers:
        each.precision = dtype
    # Copies of the weights in that dtype live until the outermost autocast ends: one around all calls, which does
    # nothing itself, keeps them, where each call would make them anew.
    kept = torch.autocast(device_of(d).type, enabled=False) if fixed else nullcontext()
    try:
        with kept:
            yield
    finally:
        for each, precision in zip(denoisers, before, strict=True):
            each.precision = precision

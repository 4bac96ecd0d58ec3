"""What a training would be: the machine is measured for a few seconds, and network and batch follow from a rule."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor

from ornstein import processes
from ornstein.data import to_unit
from ornstein.devices import free_memory
from ornstein.errors import RunError
from ornstein.training.config import TrainConfig
from ornstein.training.loop import run_task
from ornstein.training.models import learns_classes, new_denoiser
from ornstein.training.optimizer import Muon, optimizer_of
from ornstein.training.scaling import BATCHES, Choice, Speed, choose
from ornstein.training.settings import DIFFUSION, Settings
from ornstein.training.task import Diffusion

__all__ = ["NETS", "Likeness", "by_rule", "fitted", "kept_for_backward", "measured", "planned"]

NETS = ("xs", "s", "m", "l")
"""Networks that are chosen from, by size."""

_TINY = 16  # pixels; the rule was not fitted on smaller images
_LEAST_MINUTES = 1.0  # a shorter training is not worth measuring for
_SHARE, _MOST_SECONDS = 0.05, 15.0  # of the training, and at most: what the measurement may take
_BATCHES = {"cpu": (8, 32)}  # where a step is measured
_GPU_BATCHES = (32, 256)
_TIMED = 2  # steps that are timed, after one that warms up


@dataclass
class Likeness:
    """Random pixels in the shape and the classes of a data set: a step on them takes as long, and reads no file."""

    shape: tuple[int, ...]
    classes: Sequence[str]
    count: int
    _pixels: Tensor | None = None

    @classmethod
    def of(cls, data: Any) -> Likeness:
        return cls(tuple(data.shape), list(data.classes), len(data))

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Tensor | Sequence[int], /) -> tuple[Tensor, Tensor | None]:
        count = len(indices)
        if self._pixels is None or len(self._pixels) < count:
            draw = torch.Generator().manual_seed(0)
            self._pixels = torch.randint(0, 256, (count, *self.shape), generator=draw, dtype=torch.uint8)
        labels = torch.zeros(count, dtype=torch.int64) if self.classes else None
        return to_unit(self._pixels[:count]), labels


def fitted(settings: Settings, data: Likeness) -> bool:
    """Whether the rule is for such models: diffusion on the pixels of images of more than 16 pixels a side."""
    pixels = settings.model == DIFFUSION and settings.frames is None and settings.latent is None
    return pixels and data.shape[-1] > _TINY


def by_rule(settings: Settings, data: Likeness) -> bool:
    """Whether `train` measures the machine, and chooses network or batch by the rule, for what is left open."""
    left_open = settings.net == "auto" or settings.batch is None
    timed = settings.minutes is not None and settings.minutes >= _LEAST_MINUTES
    return left_open and timed and fitted(settings, data) and processes.current().world == 1


def planned(settings: Settings, data: Likeness, device: torch.device) -> Choice:
    """The network and batch for the minutes of the settings, of those that the settings leave open.

    Networks are measured from the smallest on, until a larger one is not expected to be better, or would take more than
    a twentieth of the training (at most 15 seconds) to measure. On a CPU steps are measured in processor time, and all
    of them together in wall-clock time: other work on the machine slows all networks alike, and changes no choice.
    """
    minutes = cast(float, settings.minutes)
    names = NETS if settings.net == "auto" else (settings.net,)
    batches = BATCHES if settings.batch is None else (settings.batch,)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    left = max(3.0, min(_MOST_SECONDS, _SHARE * 60 * minutes)) * (
        torch.get_num_threads() if device.type == "cpu" else 1
    )
    speeds: list[Speed] = []
    wall = busy = 0.0
    while True:
        real, began = time.perf_counter(), clock()
        try:
            speeds.append(measured(replace(settings, net=names[len(speeds)]), data, device, clock))
        except RunError:  # out of memory
            if not speeds:
                raise
            break
        spent = clock() - began
        wall, busy, left = wall + time.perf_counter() - real, busy + spent, left - spent
        best = choose([each.slowed(wall / busy) for each in speeds], minutes, batches, free_memory(device))
        # the next one takes about twice as long
        if best.speed.net != speeds[-1].net or left < 2 * spent or len(speeds) == len(names):
            break
    return choose([each.slowed(wall / busy) for each in speeds], minutes, batches, free_memory(device))


def measured(settings: Settings, data: Likeness, device: torch.device, clock: Callable[[], float]) -> Speed:
    """The speed and memory of the network of the settings, in steps of the trainer itself, by the clock."""
    settled = settings.settled(data.shape[-1], device.type == "cpu")
    batches = _BATCHES.get(device.type, _GPU_BATCHES) if settings.batch is None else (settings.batch,)
    known = learns_classes(settled, cast(Any, data))
    seconds: list[tuple[int, float]] = []
    parameters = activations = moments = 0.0
    for batch in batches:
        config = replace(settled.config(), batch=batch, steps=10**6, minutes=None, track=None, checkpoint_every=10**9)
        denoiser = new_denoiser(settled, cast(Any, data), None, device)
        parameters, moments = sum(p.numel() for p in denoiser.parameters()), _moments(denoiser, config)
        with tempfile.TemporaryDirectory() as folder:
            own = data if known else replace(data, classes=())
            states = cast(Any, run_task(Diffusion(denoiser, config), own, config, folder))
            with closing(states):
                with kept_for_backward(denoiser) as kept:
                    next(states)
                activations = kept.bytes / batch
                seconds.append((batch, statistics.median(_times(states, clock))))
    return Speed(settings.net, int(parameters), tuple(seconds), activations, moments)


def _times(states: Any, clock: Callable[[], float]) -> list[float]:
    """Seconds of each of a few steps."""
    each, began = [], clock()
    for _ in islice(states, _TIMED):
        now = clock()
        each.append(now - began)
        began = now
    return each


class _Kept:
    """Bytes of the tensors that a forward pass keeps, parameters apart, each storage counted once."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.bytes = 0.0
        self._seen = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self._alive: list[Tensor] = []  # a freed storage's address would be used again

    def note(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self._alive.append(x.detach())
            self.bytes += storage.nbytes()
        return x


@contextmanager
def kept_for_backward(model: torch.nn.Module) -> Iterator[_Kept]:
    """Within it the bytes that forward passes of the model keep for the backward pass are counted, in `.bytes`."""
    kept = _Kept(model)
    with torch.autograd.graph.saved_tensors_hooks(kept.note, lambda x: x):
        yield kept


def _moments(model: torch.nn.Module, config: TrainConfig) -> float:
    """Bytes of the optimizer's moments: two for each weight, of which Muon keeps one for matrices."""
    optimizer = optimizer_of(model, config)
    matrices = sum(p.numel() for p in optimizer.matrices) if isinstance(optimizer, Muon) else 0
    return 4.0 * (2 * sum(p.numel() for p in model.parameters()) - matrices)

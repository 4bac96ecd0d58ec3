"""What a run learns: a model, its loss on a batch, and how it is saved. The trainer does the rest."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from ornstein import checkpoint
from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.nets.video import known_masks
from ornstein.training.config import TrainConfig
from ornstein.training.objective import check_objective, loss_of, times_of
from ornstein.training.processes import Processes

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Part:
    """Rows `first` to `first + count` - 1 of a batch of `total`: what one process computes at once."""

    first: int
    count: int
    total: int

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.count)


class Task(ABC, Generic[M]):
    """A model to train; `networks` are the parts of it that may compute in half precision.

    All of `model` is averaged over the training and kept in the trainer's state, its buffers too.

    Where a batch is computed in parts, by several processes or one after the other, `part` says which rows x0 is. A
    task with `by_rows` draws for the whole batch, takes its rows of it, and gives the mean over rows of losses that
    each depend on their row alone: then the parts together are the whole, to rounding. Others get a generator of their
    own for every part.
    """

    by_rows: ClassVar[bool] = False

    def __init__(self, model: M, networks: Sequence[nn.Module]) -> None:
        self.model = model
        self.networks = networks
        self.part: Part | None = None

    def whole(self, x0: Tensor) -> tuple[int, slice]:
        """The rows of the batch that x0 is a part of, and which of them it is."""
        return (len(x0), slice(None)) if self.part is None else (self.part.total, self.part.rows)

    def varying(self, labelled: bool) -> bool:
        """Whether a parameter may have no part in a step, of images with or without labels."""
        return True

    def share(self, processes: Processes, accumulate: int) -> None:
        """Called once before the training: what the model itself must share between processes is set up here.

        Raises UserError where the task cannot be trained so.
        """

    def with_own_model(self) -> Task[M]:
        """The same task of a copy of the model, which may be split over processes; the model itself stays whole.

        Raises UserError where it cannot be split.
        """
        raise UserError("FSDP splits diffusion models of images, clips and latents alone: launch without --use_fsdp")

    @abstractmethod
    def loss(
        self, x0: Tensor, labels: Tensor | None, draw: torch.Generator, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and figures to log, of a batch x0 (B, *) on the model's device.

        Everything random comes from `draw`; `progress` is the fraction of the training done.
        """

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """A description of the model in JSON types, which a resumption must share."""

    @abstractmethod
    def save(self, model: M, out: Path, extra: dict[str, Any]) -> None:
        """Write `model`, the averaged one, into the folder `out`, with `extra` in its config."""


class Diffusion(Task[Denoiser]):
    """Training of a denoiser by the objective of the configuration (E10-E17)."""

    by_rows = True

    def __init__(self, denoiser: Denoiser, config: TrainConfig) -> None:
        super().__init__(denoiser, [denoiser.net])
        check_objective(config.objective, denoiser)
        self.settings = config
        self.objective = loss_of(config.objective)
        own = getattr(denoiser.net, "config", {})
        self.conditional = "label" in denoiser.conditions and own.get("classes", 1) > 0
        self.conditioning: bool = own.get("conditioning", False)

    def varying(self, labelled: bool) -> bool:
        return self.conditional and not labelled

    def with_own_model(self) -> Diffusion:
        own = copy.copy(self)
        own.model, own.networks = copy.deepcopy((self.model, self.networks))
        return own

    def loss(
        self, x0: Tensor, labels: Tensor | None, draw: torch.Generator, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        n, rows = self.whole(x0)
        t = times_of(self.settings.objective, n, self.model.process.schedule, draw)[rows]
        z = torch.randn((n, *x0.shape[1:]), generator=draw, device=x0.device, dtype=x0.dtype)[rows]
        cond: dict[str, Tensor] = {}
        if self.conditional and labels is not None:
            dropped = torch.rand(n, generator=draw, device=x0.device)[rows] < self.settings.condition_dropout
            cond["label"] = labels.to(x0.device).masked_fill(dropped, -1)
        if self.conditioning:
            cond |= {"known": x0, "known_mask": known_masks(n, x0.shape[2], draw)[rows]}
        return self.objective(self.model, x0, t, z, **cond).mean(), {}

    def config(self) -> dict[str, Any]:
        return self.model.to_config()

    def save(self, model: Denoiser, out: Path, extra: dict[str, Any]) -> None:
        checkpoint.save(model, out, extra)


@contextmanager
def autocast_within(net: nn.Module, device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """Autocast inside `net` only: noise, targets and loss around it keep their precision."""
    if dtype is None:
        yield
        return
    region = torch.autocast(device.type, dtype)

    def enter(*_: object) -> None:
        region.__enter__()

    def leave(*_: object) -> None:
        region.__exit__(None, None, None)

    hooks = (net.register_forward_pre_hook(enter), net.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

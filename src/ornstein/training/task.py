"""A training task: a model, its loss on a batch, and how it is saved. The trainer does the rest."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from ornstein import checkpoint
from ornstein.data.flow import FlowFile
from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.nets.video import known_masks
from ornstein.noise import Carried
from ornstein.process import Prediction
from ornstein.processes import Processes
from ornstein.training.captions import CaptionTable
from ornstein.training.carried import check_carried, noised, rows_and_labels
from ornstein.training.config import TrainConfig
from ornstein.training.loss_space import LossSpace
from ornstein.training.objective import TimeSampling, check_objective, loss_of

__all__ = ["Diffusion", "M", "Part", "Task", "on_cpu"]

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Part:
    """Rows `first` to `first + count` - 1 of a batch of `total`: those that one process computes at once."""

    first: int
    count: int
    total: int

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.count)


class Task(ABC, Generic[M]):
    """A model and its training loss.

    A batch may be computed in parts, by several processes or one after the other; `part` then says which rows x0 is. A
    task with `by_rows` draws noise for the whole batch, takes its rows of it, and returns the mean of losses that each
    depend on one row only: the parts together equal the whole batch, to rounding. Other tasks get a generator of their
    own for every part.

    Args:
        model: what is trained. All of it, buffers included, is averaged over the training (EMA) and kept in the
            trainer's state.
        networks: the parts of the model that may compute in half precision.
    """

    by_rows: ClassVar[bool] = False
    done: bool = False
    """Whether the training is over before its steps are; a task may say so in `watch`, and from `load_state` on."""

    def __init__(self, model: M, networks: Sequence[nn.Module]) -> None:
        self.model = model
        self.networks = networks
        self.part: Part | None = None

    def whole(self, x0: Tensor) -> tuple[int, slice]:
        """The size of the whole batch, and the rows of it that x0 is."""
        return (len(x0), slice(None)) if self.part is None else (self.part.total, self.part.rows)

    def varying(self, labelled: bool) -> bool:
        """Whether a step, of images with or without labels, may leave a parameter without a gradient."""
        return True

    def share(self, processes: Processes, accumulate: int) -> None:
        """Set up what the model itself shares between processes; called once, before the training.

        Raises:
            UserError: the task cannot be trained in this way.
        """

    def with_own_model(self) -> Task[M]:
        """The same task with a copy of the model, which can be split over processes; the model itself stays whole.

        Raises:
            UserError: it cannot be split.
        """
        raise UserError("FSDP splits diffusion models of images, clips and latents alone: launch without --use_fsdp")

    @abstractmethod
    def loss(
        self, x0: Tensor, labels: Tensor | None, draw: torch.Generator, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and figures to log.

        Args:
            x0: the batch (B, *), on the model's device.
            labels: class indices (B,) on the CPU, or None.
            draw: the source of all randomness, on the model's device.
            progress: fraction of the training done.
        """

    def learn(self, figures: dict[str, float], pieces: int) -> dict[str, float]:
        """Called after a step with its figures, means over so many pieces of the batch; returns those to log."""
        return figures

    def watch(self, average: M, step: int) -> None:
        """Called at every checkpoint that the settings ask for, and at the end, before it is written.

        Args:
            average: the model with EMA weights. All processes call this together, and must come to the same.
        """

    def to_state(self) -> dict[str, Any] | None:
        """What the task has learned besides the model, in JSON types; None for nothing."""
        return None

    def load_state(self, state: dict[str, Any] | None) -> None:
        """Go on from what `to_state` gave, when a run is resumed."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """A description of the model in JSON types; a resumed run must have the same."""

    @abstractmethod
    def save(self, model: M, out: Path, extra: dict[str, Any]) -> None:
        """Write `model`, with EMA weights, into the run directory `out`, with `extra` in its config."""


class Diffusion(Task[Denoiser]):
    """Training of a denoiser by the objective of the configuration (E10-E17).

    With `captions` the labels of a batch are the numbers of its rows in that table (`training.captions.Captioned`).
    With `flows` they are those of `training.carried.Rows`, and the noise of each clip is carried by its flow (E40).
    """

    by_rows = True

    def __init__(
        self,
        denoiser: Denoiser,
        config: TrainConfig,
        captions: CaptionTable | None = None,
        flows: FlowFile | None = None,
    ) -> None:
        super().__init__(denoiser, [denoiser.net])
        self.captions = captions
        self.flows = flows
        if isinstance(denoiser.process.noise, Carried):
            check_carried(config, flows)
        check_objective(config.objective, denoiser)
        self.settings = config
        self.objective = loss_of(config.objective)
        self.space = LossSpace(config.loss_space, config.objective, denoiser.process.noise)
        self.times = TimeSampling(config.time_sampling, config.objective, denoiser.process.schedule)
        config_of_net = getattr(denoiser.net, "config", {})
        self.classes: int | None = config_of_net.get("classes")
        self.conditional = "label" in denoiser.conditions and self.classes != 0
        self.conditioning = bool(config_of_net.get("conditioning"))

    def varying(self, labelled: bool) -> bool:
        return self.conditional and not labelled

    def with_own_model(self) -> Diffusion:
        task = copy.copy(self)
        task.model, task.networks = copy.deepcopy((self.model, self.networks))
        return task

    def loss(
        self, x0: Tensor, labels: Tensor | None, draw: torch.Generator, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        n, rows = self.whole(x0)
        small = on_cpu(draw)
        t, weight = self.times.draw(n, small)
        t = t[rows]
        z = torch.randn((n, *x0.shape[1:]), generator=draw, device=x0.device, dtype=x0.dtype)[rows]
        carried: Prediction | None = None
        if self.flows is not None:
            assert labels is not None
            numbers, labels = rows_and_labels(labels)
            flow = self.flows(numbers)
            carried = noised(self.model.process, x0, t, flow, whole=(n, rows), draw=draw)
        cond: dict[str, Any] = {}
        if self.captions is not None and labels is not None:
            chosen = torch.rand(n, generator=small)[rows]
            dropped = torch.rand(n, generator=small)[rows] < self.settings.condition_dropout
            cond |= self.captions.conditions(labels, chosen, dropped)
        elif self.conditional and labels is not None:
            self._check_labels(labels)
            dropped = torch.rand(n, generator=small)[rows] < self.settings.condition_dropout
            cond["label"] = labels.masked_fill(dropped, -1)
        if self.conditioning:
            cond |= {"known": x0, "known_mask": known_masks(n, x0.shape[2], small)[rows]}
        figures: dict[str, Tensor] = {}

        def norm(error: Tensor, t: Tensor) -> Tensor:
            if self.space.learns:
                figures.update(self.space.figures(error, t))
            return self.space.norm(error, t)

        if self.settings.loss_space != "pixel":
            cond["norm"] = norm
        losses = self.objective(self.model, x0, t, z, **cond) if carried is None else self.model.error(carried, **cond)
        if weight is None:
            return losses.mean(), figures
        return (losses * weight[rows].to(losses)).mean(), figures | self.times.figures(t, losses)

    def learn(self, figures: dict[str, float], pieces: int) -> dict[str, float]:
        return self.times.learn(self.space.learn(figures, pieces), pieces)

    def to_state(self) -> dict[str, Any] | None:
        learned, times = self.space.to_state(), self.times.to_state()
        return times if learned is None else {"modes": learned, "times": times}

    def load_state(self, state: dict[str, Any] | None) -> None:
        if state is not None and "modes" in state:
            self.space.load_state(state["modes"])
            state = state["times"]
        self.times.load_state(state)

    def _check_labels(self, labels: Tensor) -> None:
        """Raises UserError for a label that the network has no class for: it would read beyond its table."""
        if self.classes is not None and len(labels) and int(labels.max()) >= self.classes:
            raise UserError(f"the data have the label {int(labels.max())}, but the network has {self.classes} classes")

    def config(self) -> dict[str, Any]:
        captions = {} if self.captions is None else {"captions": self.captions.digest}
        return self.model.to_config() | captions

    def save(self, model: Denoiser, out: Path, extra: dict[str, Any]) -> None:
        checkpoint.save(model, out, extra | getattr(self.objective, "about", {}))


def on_cpu(draw: torch.Generator) -> torch.Generator:
    """The generator itself if it is on the CPU, else one of the same seed there.

    Times, labels and masks are small: on the CPU they are checked without waiting for the device.
    """
    return draw if draw.device.type == "cpu" else torch.Generator().manual_seed(draw.initial_seed())

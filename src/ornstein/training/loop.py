"""The training loop, as a generator of states."""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor, nn

from ornstein import processes, sharding
from ornstein.compiling import compiled
from ornstein.denoiser import Denoiser
from ornstein.devices import choose_precision
from ornstein.errors import RunError, UserError
from ornstein.metrics import append_metrics, drop_metrics_after
from ornstein.randomness import generator
from ornstein.training import failures, lock, state
from ornstein.training.averages import Averages, drop_after
from ornstein.training.config import TrainConfig
from ornstein.training.interrupts import Interrupts
from ornstein.training.loader import AHEAD, Images, Loader
from ornstein.training.optimizer import optimizer_of
from ornstein.training.precision import LossScale, addressed_dropout, autocast_within, float32_products, wide
from ornstein.training.recompute import recomputed
from ornstein.training.task import Diffusion, M, Part, Task
from ornstein.training.tracking import Trackers

__all__ = ["LOG_EVERY", "TrainState", "run_task", "train"]

LOG_EVERY = 10
"""Steps that are averaged in a line of metrics.jsonl."""


@dataclass(frozen=True)
class TrainState(Generic[M]):
    """The state of a training after a step.

    Attributes:
        step: steps done.
        loss: of this step.
        learning_rate: of this step.
        images_per_second: over the last steps.
        elapsed: seconds, over all resumptions.
        progress: fraction of the training done, in [0, 1].
        sample_due: whether it is time for a sample grid.
        model: the model with EMA weights, to sample from; the next step changes it.
    """

    step: int
    loss: float
    learning_rate: float
    images_per_second: float
    elapsed: float
    progress: float
    sample_due: bool
    model: M


def train(
    denoiser: Denoiser, images: Images, config: TrainConfig, out: str | Path, resume: bool = False
) -> Iterator[TrainState[Denoiser]]:
    """Train `denoiser` on `images` into the run directory `out`, one state a step (E10, through `denoiser.loss`).

    This is `run_task` with the objective of `config`, and raises the same errors.
    """
    return run_task(Diffusion(denoiser, config), images, config, out, resume)


def run_task(
    task: Task[M], images: Images, config: TrainConfig, out: str | Path, resume: bool = False
) -> Iterator[TrainState[M]]:
    """Train the model of `task` on `images` into the run directory `out`, one state a step.

    The directory holds config.json and model.safetensors (the EMA weights), state/ (what a resumed run needs) and
    metrics.jsonl. The data and all random numbers of step k are functions of (seed, k): a run of `steps` steps that is
    killed and resumed ends in the same bits as one that was not, on the same machine with the same number of threads.
    When the iterator is exhausted, the task's model holds the EMA weights.

    It trains where the model's weights are. On a CUDA device the step reads one tensor, at its end; float32 products
    are exact with precision "float32", else TF32 is allowed. In fp16 the loss is scaled (`LossScale`).

    If a launcher started several processes (`torchrun`, `accelerate launch`), each computes its share of the batch on
    the device of its local rank. The curve is that of one process to rounding if the task is `by_rows`, and a run may
    be resumed on another number of processes. Only the first process writes; all of them yield the same states.

    SIGINT and SIGTERM end the step, save a checkpoint and raise KeyboardInterrupt; if the caller is busy between
    steps, they save at once and raise there. A second signal interrupts at once. Leaving the loop early saves nothing:
    the last checkpoint stays.

    Raises:
        UserError: `out` holds a run and `resume` is not set, or there is none to resume, or it is another one; another
            process trains it; the batch does not divide among processes and parts.
        RunError: the loss, the gradient or the data are not finite; the memory or the disk is full; `out` cannot be
            written; another process of the launch has ended. The last checkpoint is intact.
        KeyboardInterrupt: see above.
    """
    run = _Run(task, images, config, Path(out))
    run.begin(resume)
    return run.steps()


class _Run(Generic[M]):
    def __init__(self, task: Task[M], images: Images, config: TrainConfig, out: Path) -> None:
        if not len(images):
            raise UserError("there are no images to train on")
        self.processes = processes.current()
        # the caller's model, if this process holds only parts of the EMA weights; refreshed before the caller sees it
        self.shown: M | None = task.model if self.processes.split else None
        task = task.with_own_model() if self.processes.split else task
        self.task, self.model, self.images, self.config, self.out = task, task.model, images, config, out
        self.parts = _parts(config, self.processes)
        task.share(self.processes, config.accumulate)
        self.device = self.processes.place(self.model)
        # on a CPU that trains, a thread for images that are in memory already would only compete with the step
        ahead = AHEAD if hasattr(images, "order") or self.device.type != "cpu" else 0
        pinned = self.device.type == "cuda"
        self.loader = Loader(images, config.batch, config.seed, self.parts, ahead, pinned)
        self.dtype = choose_precision(config.precision, self.device)
        self.scale = LossScale(self.dtype)
        self.kept = Averages(self.model, config)
        self.average = self.kept.shown
        self.criterion: nn.Module = _Criterion(task)
        if self.processes.world > 1:
            self.criterion = self.processes.wrap(self.criterion, task.varying(images.batch([0])[1] is not None))
        if self.processes.split:
            self.kept.split(self.processes.world)
        if config.compile and self.processes.split:
            raise UserError("--compile does not work on a model that is split over processes: leave it out")
        self.parameters: list[Tensor] = list(self.model.parameters())
        self.optimizer = optimizer_of(self.model, config)
        self.step = 0
        self.elapsed = 0.0
        self.saved = -1
        self.locked = False

    def describe(self) -> dict[str, Any]:
        """The description of the run: a resumed run must have the same."""
        about = self.task.config() | {"training": asdict(self.config), "images": len(self.images)}
        return about | ({"streamed": True} if hasattr(self.images, "order") else {})

    def begin(self, resume: bool) -> None:
        """Lock the directory, and load the state of the run in it if `resume`."""
        file = self.processes.agreed(lambda: self.claim(resume))
        if file is not None:
            record = state.load(file, self.model, self.kept.modules, self.optimizer)
            self.step, self.elapsed = record["step"], record["elapsed"]
            self.scale.load_state(record.get("loss_scale"))
            self.task.load_state(record.get("task"))

    def claim(self, resume: bool) -> Path | None:
        """Lock the directory; the state to go on from, None for the beginning. Called in the main process only."""
        if not resume:
            state.check_new(self.out)
            self.locked = lock.hold(self.out)
            return None
        state.check_resumable(self.out)
        self.locked = lock.hold(self.out)
        try:
            state.clear(self.out)
            if not state.has_state(self.out):
                drop_metrics_after(self.out, 0)
                drop_after(self.out, 0)
                return None  # killed before the first checkpoint: start again
            file, record = state.sound(self.out)
            state.check_same(self.out, record["run"], self.describe())
            if self.config.steps is not None and self.config.steps < record["step"]:
                raise UserError(f"{self.out} already has {record['step']} steps: ask for more than {self.config.steps}")
            drop_metrics_after(self.out, record["step"])
            drop_after(self.out, record["step"])
        except BaseException:
            self.unlock()
            raise
        return file

    def unlock(self) -> None:
        if self.locked:
            lock.release(self.out)
            self.locked = False

    def save(self) -> None:
        """Write a checkpoint of this step, unless there is one."""
        if self.saved == self.step:
            return
        main = self.processes.main
        if main or self.processes.split:
            tensors = state.tensors_of(self.model, self.kept.modules, self.optimizer, main)
            shown = self.refreshed()
        else:
            tensors, shown = {}, self.average
        if main:
            record = {"step": self.step, "elapsed": self.elapsed, "run": self.describe()}
            if self.scale.used:
                record["loss_scale"] = self.scale.to_state()
            learned = self.task.to_state()
            if learned is not None:
                record["task"] = learned
            state.save(self.out, tensors, record)
            # second: if a kill falls between the two, the resumed run writes this one again
            training = asdict(self.config) | {"step": self.step, "images": len(self.images)}
            self.task.save(shown, self.out, {"training": training})
        self.saved = self.step

    def keep(self) -> None:
        """Keep the averages of this step for `ornstein ema`."""
        if self.processes.main or self.processes.split:
            tensors = self.kept.tensors()
            if self.processes.main:
                self.kept.keep(self.out, self.step, tensors)

    def refreshed(self) -> M:
        """The model with EMA weights, whole. If it is split, all processes must call this together."""
        if self.shown is None:
            return self.average
        self.shown.load_state_dict(sharding.whole_state(self.average))
        return self.shown.eval()

    def steps(self) -> Iterator[TrainState[M]]:
        config = self.config
        self.model.train()
        start = time.monotonic() - self.elapsed
        losses: list[dict[str, float]] = []
        seconds = spent = waited = 0.0
        try:
            trackers = Trackers(config.track if self.processes.main else None, self.out, asdict(config))
            # a split model cannot be saved by one process between steps: it stops after the next step
            memory = recomputed(self.model) if config.recompute else nullcontext()
            # not the averages, which previews call at other shapes
            code = compiled(self.task.networks) if config.compile else nullcontext()
            with memory, code, Interrupts(None if self.processes.split else self.save) as interrupts:
                while self.progress < 1 and not self.task.done:
                    began = time.perf_counter()
                    learning_rate = config.learning_rate_at(self.step, self.progress)
                    figures, stop = self.take_step(learning_rate, start, interrupts)
                    took = time.perf_counter() - began
                    seconds = 0.9 * seconds + 0.1 * took if seconds else took
                    losses.append(figures)
                    spent += took
                    if self.kept.due(self.step):
                        self.keep()
                    due = self.step % config.checkpoint_every == 0 or self.progress >= 1
                    if due:
                        self.task.watch(self.average, self.step)
                    checkpoint_due = due or stop
                    if self.step % LOG_EVERY == 0 or checkpoint_due:
                        timing = {"images_per_second": config.batch / seconds, "elapsed": self.elapsed}
                        timing |= {"data_wait": (self.loader.waited - waited) / spent}
                        waited, spent = self.loader.waited, 0.0
                        self.log(trackers, {"step": self.step, "learning_rate": learning_rate}, losses, timing)
                        losses.clear()
                    if checkpoint_due:
                        self.save()
                    if stop:
                        raise KeyboardInterrupt
                    sample_due = config.sample_every > 0 and self.step % config.sample_every == 0
                    if self.shown is not None and sample_due:
                        self.refreshed()
                    with interrupts.caller():
                        yield TrainState(
                            self.step,
                            figures["loss"],
                            learning_rate,
                            config.batch / seconds,
                            self.elapsed,
                            self.progress,
                            sample_due,
                            self.average if self.shown is None else self.shown,
                        )
                self.save()  # a finished run, resumed: it may have been killed before its model was written
            trackers.finish()
        finally:
            self.loader.close()
            self.unlock()
        if self.shown is None:
            self.model.load_state_dict(self.average.state_dict())
            self.model.eval()
        else:
            self.refreshed()

    def log(
        self, trackers: Trackers, about: dict[str, float], losses: list[dict[str, float]], timing: dict[str, float]
    ) -> None:
        """Write a line of metrics: the means of the figures of several steps, in the main process."""
        if self.processes.main:
            line = about | {name: sum(each[name] for each in losses) / len(losses) for name in losses[0]} | timing
            append_metrics(self.out, line)
            trackers.log(line)

    @property
    def progress(self) -> float:
        return self.config.progress(self.step, self.elapsed)

    def take_step(self, learning_rate: float, start: float, interrupts: Interrupts) -> tuple[dict[str, float], bool]:
        """One optimizer step: its loss and figures, and whether to stop; the same in all processes.

        Raises:
            RunError: the step failed; nothing was changed.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        try:
            with float32_products(self.device, exact=self.dtype is None):
                computed = self.gradients()
                self.scale.unscale(self.parameters)
                norm = sharding.whole(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip))
                # the flag is read once: a signal that arrives later is seen after the yield
                stop, elapsed = interrupts.requested, time.monotonic() - start
                shared = self.shared(stop, elapsed)
                # the one read of the step: it waits for the device
                values = torch.stack([norm.detach().to(wide(self.device)), *computed.values(), *shared]).tolist()
        except (RuntimeError, MemoryError) as error:
            if interrupts.requested and isinstance(error, RuntimeError) and self.processes.lost(error):
                raise KeyboardInterrupt from None  # all processes got the signal, and another one stopped first
            one_line = failures.of_step(error, self.step + 1, self.config, self.processes, self.out)
            if one_line is None:
                raise
            raise one_line from None
        gradient, *values = values
        if shared:
            *values, stops, elapsed = values
            stop = stops > 0
        figures = dict(zip(computed, values, strict=True))
        if math.isfinite(figures["loss"]) and math.isfinite(gradient):
            with float32_products(self.device, exact=self.dtype is None):
                self.optimizer.step()
            self.scale.stepped()
        elif not math.isfinite(figures["loss"]) or not self.scale.overflowed():
            raise self.not_finite(figures["loss"], gradient)
        self.optimizer.zero_grad()
        self.step, self.elapsed = self.step + 1, elapsed
        self.kept.update(self.step)
        return self.task.learn(figures, len(self.parts) * self.processes.world), stop

    def shared(self, stop: bool, elapsed: float) -> list[Tensor]:
        """Over all processes: how many were told to stop, and the time of the main one; empty for one process."""
        if self.processes.world == 1:
            return []
        mine = [float(stop), elapsed if self.processes.main else 0.0]
        return list(self.processes.total(torch.tensor(mine, dtype=wide(self.device), device=self.device)))

    def not_finite(self, loss: float, gradient: float) -> RunError:
        """The error of a step whose loss or gradient is not finite."""
        data = self.bad_data()
        what = data or (f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient norm is {gradient}")
        advice = "" if data else ". Train again with a lower learning rate"
        return RunError(f"step {self.step + 1}: {what}; {failures.kept(self.out)}{advice}")

    def gradients(self) -> dict[str, Tensor]:
        """Put the gradient of the step's batch, times the loss scale, into the parameters; its loss and figures."""
        sums: dict[str, Tensor] = {}
        for i, (part, (x0, labels)) in enumerate(zip(self.parts, self.loader.batches(self.step), strict=True)):
            last = i == len(self.parts) - 1
            with ExitStack() as stack:
                if not last:
                    stack.enter_context(self.processes.apart(self.criterion))
                loss, figures = self.loss(part, x0, labels)
                (loss * (self.scale.value / len(self.parts)) if self.scale.used else loss / len(self.parts)).backward()
            for name, value in ({"loss": loss} | figures).items():
                sums[name] = sums.get(name, 0) + value.detach().to(wide(self.device)) / len(self.parts)
        if self.processes.world > 1:
            means = self.processes.total(torch.stack(list(sums.values()))) / self.processes.world
            sums = dict(zip(sums, means, strict=True))
        return sums

    def loss(self, part: Part, x0: Tensor, labels: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and figures of a part of the batch."""
        self.task.part = None if part.count == part.total else part
        # by rows, all parts draw the batch's noise; else each has its own
        own = () if self.task.by_rows or part.first == 0 else (part.first,)
        seed = generator(self.config.seed, "train", self.step, *own).initial_seed()
        draw = torch.Generator(self.device).manual_seed(seed)
        with addressed_dropout(self.device, seed + part.first), ExitStack() as half:
            for network in self.task.networks:
                half.enter_context(autocast_within(network, self.device, self.dtype))
            x0 = x0.to(self.device, non_blocking=True)
            x0 = self.mirrored(part, x0) if self.config.flip else x0
            return self.criterion(x0, labels, draw, self.progress)

    def mirrored(self, part: Part, x0: Tensor) -> Tensor:
        """x0 (B, *, W) with half of its rows, by the seed and the step, mirrored left to right."""
        draw = generator(self.config.seed, "flip", self.step)
        chosen = (torch.rand(part.total, generator=draw) < 0.5)[part.rows].to(x0.device)
        return torch.where(chosen.view(-1, *[1] * (x0.ndim - 1)), x0.flip(-1), x0)

    def bad_data(self) -> str | None:
        """Names the images of this step, of this process, that hold values that are not finite."""
        rows = self.loader.rows(self.step)
        return failures.not_finite_rows(self.images.batch(rows)[0], rows.tolist(), getattr(self.images, "names", None))


class _Criterion(nn.Module):
    """The loss of a task as a module around its model, which DistributedDataParallel wraps."""

    def __init__(self, task: Task[Any]) -> None:
        super().__init__()
        self.model = task.model
        self.task = task

    def forward(
        self, x0: Tensor, labels: Tensor | None, draw: torch.Generator, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.task.loss(x0, labels, draw, progress)


def _parts(config: TrainConfig, group: processes.Processes) -> list[Part]:
    """The parts of a batch that this process computes, one after the other.

    Raises:
        UserError: the batch does not divide among the processes and parts.
    """
    pieces = group.world * config.accumulate
    if config.batch % pieces:
        parts = f" in {config.accumulate} parts each" if config.accumulate > 1 else ""
        raise UserError(
            f"a batch of {config.batch} does not divide among {group.world} "
            f"{'process' if group.world == 1 else 'processes'}{parts}: use a multiple of {pieces}"
        )
    count = config.batch // pieces
    first = group.rank * config.accumulate
    return [Part(count * i, count, config.batch) for i in range(first, first + config.accumulate)]

"""The training loop, as a generator of states."""

import copy
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ornstein.denoiser import Denoiser
from ornstein.devices import choose_precision
from ornstein.errors import RunError, UserError
from ornstein.randomness import generator
from ornstein.training import failures, lock, processes, sharding, state
from ornstein.training.config import TrainConfig, ema_decay, ema_exponent
from ornstein.training.interrupts import Interrupts
from ornstein.training.loader import AHEAD, Images, Loader
from ornstein.training.optimizer import optimizer_of
from ornstein.training.task import Diffusion, M, Part, Task, autocast_within
from ornstein.training.tracking import Trackers

LOG_EVERY = 10  # steps averaged in a line of metrics.jsonl


@dataclass(frozen=True)
class TrainState(Generic[M]):
    """What the trainer tells after each step.

    step: steps done. loss: of this step. learning_rate: of this step. images_per_second: over the last steps.
    elapsed: seconds, over all resumptions. progress: fraction of the training done, in [0, 1]. sample_due: it is
    time for a sample grid. model: the one with the averaged weights, to sample from; changed by the next step.
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
    """Train `denoiser` on `images` into the run folder `out`, one state a step (E10, through `denoiser.loss`).

    As `run_task` with the objective of `config`: what that raises, this raises.
    """
    return run_task(Diffusion(denoiser, config), images, config, out, resume)


def run_task(
    task: Task[M], images: Images, config: TrainConfig, out: str | Path, resume: bool = False
) -> Iterator[TrainState[M]]:
    """Train the model of `task` on `images` into the run folder `out`, one state a step.

    The folder holds config.json and model.safetensors (the averaged weights), state/ (what a resumption needs) and
    metrics.jsonl. Everything random in step k and its data are functions of (seed, k): a run of `steps` steps that is
    killed and resumed ends in the same bits as one that was not, on the same machine and number of threads. When the
    iterator is exhausted, the task's model holds the averaged weights.

    Where a launcher started several processes (`torchrun`, `accelerate launch`), each computes its share of the batch:
    the curve is that of one process to rounding where the task is `by_rows`, and a run may be resumed on another number
    of processes. The first of them alone writes; all of them yield the same states.

    SIGINT and SIGTERM end the step, save a checkpoint and raise KeyboardInterrupt, where the caller is if it has the
    control; a second one interrupts at once. Leaving the loop early saves nothing: the last checkpoint stands.

    Raises:
        UserError: `out` holds a run and `resume` is not set, or there is none to resume, or it is another one; another
            process trains it; the batch does not divide among processes and parts.
        RunError: the loss, the gradient or the data are not finite; the memory or the disk is full; `out` cannot be
            written; another process of the launch is gone. The last checkpoint is intact.
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
        # what the caller has and samples from: the average, refreshed where there is something to be seen of it
        self.shown: M | None = task.model if self.processes.split else None
        task = task.with_own_model() if self.processes.split else task
        self.task, self.model, self.images, self.config, self.out = task, task.model, images, config, out
        self.parts = _parts(config, self.processes)
        task.share(self.processes, config.accumulate)
        self.device = next(self.model.parameters()).device
        # a processor that trains has no time to spare for images that are in memory already
        ahead = AHEAD if hasattr(images, "order") or self.device.type == "cuda" else 0
        self.loader = Loader(images, config.batch, config.seed, self.parts, ahead)
        self.dtype = choose_precision(config.precision, self.device)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.exponent = ema_exponent(config.ema)
        self.criterion: nn.Module = _Criterion(task)
        if self.processes.world > 1:
            self.criterion = self.processes.wrap(self.criterion, task.varying(images.batch([0])[1] is not None))
        if self.processes.split:
            sharding.split(self.average, self.processes.world)
        self.parameters: list[Tensor] = list(self.model.parameters())
        self.averages: list[Tensor] = list(self.average.parameters())
        self.optimizer = optimizer_of(self.model, config)
        self.step = 0
        self.elapsed = 0.0
        self.saved = -1
        self.locked = False

    def describe(self) -> dict[str, Any]:
        """What a resumption must have in common with the run, and then some."""
        about = self.task.config() | {"training": asdict(self.config), "images": len(self.images)}
        return about | ({"streamed": True} if hasattr(self.images, "order") else {})

    def begin(self, resume: bool) -> None:
        """Take the folder, and go to where the run in it stopped if that is asked for."""
        file = self.processes.agreed(lambda: self.claim(resume))
        if file is not None:
            self.step, self.elapsed = state.load(file, self.model, self.average, self.optimizer)

    def claim(self, resume: bool) -> Path | None:
        """Lock the folder; the state to go on from, None for the beginning. In the main process."""
        if not resume:
            state.check_new(self.out)
            self.locked = lock.hold(self.out)
            return None
        state.check_resumable(self.out)
        self.locked = lock.hold(self.out)
        try:
            state.clear(self.out)
            if not state.has_state(self.out):
                state.drop_metrics_after(self.out, 0)
                return None  # killed before the first checkpoint: the beginning is where it stopped
            file, record = state.sound(self.out)
            state.check_same(self.out, record["run"], self.describe())
            if self.config.steps is not None and self.config.steps < record["step"]:
                raise UserError(f"{self.out} already has {record['step']} steps: ask for more than {self.config.steps}")
            state.drop_metrics_after(self.out, record["step"])
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
            tensors = state.tensors_of(self.model, self.average, self.optimizer, main)
            shown = self.refreshed()
        else:
            tensors, shown = {}, self.average
        if main:
            record = {"step": self.step, "elapsed": self.elapsed, "run": self.describe()}
            state.save(self.out, tensors, record)
            # second: if a kill falls between the two, the resumed run writes this one again
            training = asdict(self.config) | {"step": self.step, "images": len(self.images)}
            self.task.save(shown, self.out, {"training": training})
        self.saved = self.step

    def refreshed(self) -> M:
        """The averaged model, whole. Where it is split, all processes must ask at once."""
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
            # between steps one process cannot save what all hold parts of: it stops with the next step
            with Interrupts(None if self.processes.split else self.save) as interrupts:
                while self.progress < 1:
                    began = time.perf_counter()
                    learning_rate = config.learning_rate_at(self.step, self.progress)
                    figures, stop = self.take_step(learning_rate, start, interrupts)
                    took = time.perf_counter() - began
                    seconds = 0.9 * seconds + 0.1 * took if seconds else took
                    losses.append(figures)
                    spent += took
                    checkpoint_due = self.step % config.checkpoint_every == 0 or self.progress >= 1 or stop
                    if self.step % LOG_EVERY == 0 or checkpoint_due:
                        means = {name: sum(each[name] for each in losses) / len(losses) for name in losses[0]}
                        line = {"step": self.step, "learning_rate": learning_rate} | means
                        line |= {"images_per_second": config.batch / seconds, "elapsed": self.elapsed}
                        line |= {"data_wait": (self.loader.waited - waited) / spent}
                        waited, spent = self.loader.waited, 0.0
                        if self.processes.main:
                            state.append_metrics(self.out, line)
                            trackers.log(line)
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

    @property
    def progress(self) -> float:
        return self.config.progress(self.step, self.elapsed)

    def take_step(self, learning_rate: float, start: float, interrupts: Interrupts) -> tuple[dict[str, float], bool]:
        """One optimizer step: its loss and figures, and whether to stop. All processes come to the same.

        Raises RunError, and changes nothing, where it fails.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        try:
            told = self.gradients()
            norm = sharding.whole(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip))
            # read once: what comes later is seen after the yield
            mine = [float(interrupts.requested), time.monotonic() - start if self.processes.main else 0.0]
            agreed = self.processes.total(torch.tensor(mine, dtype=torch.float64, device=self.device))
            values = torch.stack([norm.detach().double(), *agreed, *told.values()]).tolist()
        except (RuntimeError, MemoryError) as error:
            if interrupts.requested and isinstance(error, RuntimeError) and self.processes.lost(error):
                raise KeyboardInterrupt from None  # all were told to stop, and another did so first
            one_line = failures.of_step(error, self.step + 1, self.config, self.processes, self.out)
            if one_line is None:
                raise
            raise one_line from None
        gradient, stops, elapsed, *rest = values
        figures = dict(zip(told, rest, strict=True))
        if not (math.isfinite(figures["loss"]) and math.isfinite(gradient)):
            loss = figures["loss"]
            what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient norm is {gradient}"
            what, advice = (
                self.bad_data() or what,
                "" if self.bad_data() else ". Train again with a lower learning rate",
            )
            raise RunError(f"step {self.step + 1}: {what}; {failures.kept(self.out)}{advice}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step, self.elapsed = self.step + 1, elapsed
        decay = ema_decay(self.exponent, self.step) if self.config.ema else 0.0
        get_ema_multi_avg_fn(decay)(sharding.parts(self.averages), sharding.parts(self.parameters), self.step - 1)
        for old, new in zip(self.average.buffers(), self.model.buffers(), strict=True):
            old.copy_(new)
        return figures, stops > 0

    def gradients(self) -> dict[str, Tensor]:
        """The gradient of the step's batch in the parameters; its loss and figures, float64 scalars."""
        told: dict[str, Tensor] = {}
        for i, (part, (x0, labels)) in enumerate(zip(self.parts, self.loader.batches(self.step), strict=True)):
            last = i == len(self.parts) - 1
            with ExitStack() as stack:
                if not last:
                    stack.enter_context(self.processes.apart(self.criterion))
                loss, figures = self.loss(part, x0, labels)
                (loss / len(self.parts)).backward()
            for name, value in ({"loss": loss} | figures).items():
                told[name] = told.get(name, 0) + value.detach().double() / len(self.parts)
        names = list(told)
        if self.processes.world > 1:
            means = self.processes.total(torch.stack(list(told.values()))) / self.processes.world
            told = dict(zip(names, means, strict=True))
        return told

    def loss(self, part: Part, x0: Tensor, labels: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and figures of a part of the batch."""
        self.task.part = None if part.count == part.total else part
        # by rows, all parts draw the batch's noise; else each has its own
        own = () if self.task.by_rows or part.first == 0 else (part.first,)
        seed = generator(self.config.seed, "train", self.step, *own).initial_seed()
        draw = torch.Generator(self.device).manual_seed(seed)
        devices = [self.device] if self.device.type == "cuda" else []
        # dropout layers draw from the global generator: addressed as well, and the caller's left alone
        with torch.random.fork_rng(devices), ExitStack() as half:
            torch.manual_seed(seed + part.first)
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
        """Which images of this step, of this process, are not numbers."""
        rows = self.loader.rows(self.step)
        return failures.not_finite_rows(self.images.batch(rows)[0], rows.tolist(), getattr(self.images, "names", None))


class _Criterion(nn.Module):
    """The loss of a task as a module over its model: what DistributedDataParallel wraps."""

    def __init__(self, task: Task[Any]) -> None:
        super().__init__()
        self.model = task.model
        self.task = task

    def forward(
        self, x0: Tensor, labels: Tensor | None, draw: torch.Generator, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.task.loss(x0, labels, draw, progress)


def _parts(config: TrainConfig, group: processes.Processes) -> list[Part]:
    """The parts of a batch that this process computes, one after the other."""
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

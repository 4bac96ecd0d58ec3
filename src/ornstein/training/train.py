"""The training loop, as a generator of states."""

import copy
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Protocol

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ornstein.data.order import batch_indices
from ornstein.denoiser import Denoiser
from ornstein.errors import RunError, UserError
from ornstein.files import write_error
from ornstein.randomness import generator
from ornstein.training import state
from ornstein.training.config import TrainConfig, autocast_dtype, ema_decay, ema_exponent
from ornstein.training.task import Diffusion, M, Task, autocast_within

LOG_EVERY = 10  # steps averaged in a line of metrics.jsonl


class Images(Protocol):
    """What is trained on: `ornstein.data.ImageSet`, or anything with the same two methods."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor | Sequence[int], /) -> tuple[Tensor, Tensor | None]:
        """Images float32 (B, C, H, W) in [-1, 1] and labels int64 (B,), or None."""
        ...


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

    SIGINT and SIGTERM end the step, save a checkpoint and raise KeyboardInterrupt; a second one interrupts at
    once. Leaving the loop early saves nothing: the last checkpoint stands.

    Raises:
        UserError: `out` holds a run and `resume` is not set, or there is none to resume, or it is another one.
        RunError: the loss or the gradient is not finite, or the disk is full; the last checkpoint is intact.
        KeyboardInterrupt: see above.
    """
    run = _Run(task, images, config, Path(out))
    if resume:
        run.resume()
    else:
        state.check_new(run.out)
    return run.steps()


class _Run(Generic[M]):
    def __init__(self, task: Task[M], images: Images, config: TrainConfig, out: Path) -> None:
        if not len(images):
            raise UserError("there are no images to train on")
        self.task, self.model, self.images, self.config, self.out = task, task.model, images, config, out
        self.device = next(self.model.parameters()).device
        self.dtype = autocast_dtype(config.precision, self.device)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.exponent = ema_exponent(config.ema)
        self.parameters: list[Tensor] = list(self.model.parameters())
        self.averages: list[Tensor] = list(self.average.parameters())
        decayed = [p for p in self.parameters if p.ndim > 1]
        kept = [p for p in self.parameters if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}],
            lr=config.learning_rate,
            betas=config.betas,
            fused=self.device.type in ("cpu", "cuda"),
        )
        self.step = 0
        self.elapsed = 0.0

    def describe(self) -> dict[str, Any]:
        """What a resumption must have in common with the run, and then some."""
        return self.task.config() | {"training": asdict(self.config), "images": len(self.images)}

    def resume(self) -> None:
        state.check_resumable(self.out)
        if not (self.out / state.STATE).exists():
            state.drop_metrics_after(self.out, 0)
            return  # killed before the first checkpoint: the beginning is where it stopped
        record = state.read_record(self.out)
        state.check_same(self.out, record["run"], self.describe())
        if self.config.steps is not None and self.config.steps < record["step"]:
            raise UserError(f"{self.out} already has {record['step']} steps: ask for more than {self.config.steps}")
        state.load(self.out, self.model, self.average, self.optimizer)
        state.drop_metrics_after(self.out, record["step"])
        self.step, self.elapsed = record["step"], record["elapsed"]

    def save(self) -> None:
        record = {"step": self.step, "elapsed": self.elapsed, "run": self.describe()}
        state.save(self.out, self.model, self.average, self.optimizer, record)
        # second: if a kill falls between the two, the resumed run writes this one again
        training = asdict(self.config) | {"step": self.step, "images": len(self.images)}
        self.task.save(self.average, self.out, {"training": training})

    def steps(self) -> Iterator[TrainState[M]]:
        config = self.config
        self.model.train()
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(self.out, error) from error
        start = time.monotonic() - self.elapsed
        saved = -1
        losses: list[dict[str, float]] = []
        seconds = 0.0
        with _Interrupts() as interrupts:
            while self.progress < 1:
                began = time.perf_counter()
                learning_rate = config.learning_rate_at(self.step, self.progress)
                loss, figures = self.take_step(learning_rate)
                self.elapsed = time.monotonic() - start
                took = time.perf_counter() - began
                seconds = 0.9 * seconds + 0.1 * took if seconds else took
                losses.append({"loss": loss} | figures)
                stop = interrupts.requested  # read once: what comes later is seen after the yield
                checkpoint_due = self.step % config.checkpoint_every == 0 or self.progress >= 1 or stop
                if self.step % LOG_EVERY == 0 or checkpoint_due:
                    means = {name: sum(each[name] for each in losses) / len(losses) for name in losses[0]}
                    line = {"step": self.step, "learning_rate": learning_rate} | means
                    line |= {"images_per_second": config.batch / seconds, "elapsed": self.elapsed}
                    state.append_metrics(self.out, line)
                    losses.clear()
                if checkpoint_due:
                    self.save()
                    saved = self.step
                if stop:
                    raise KeyboardInterrupt
                yield TrainState(
                    self.step,
                    loss,
                    learning_rate,
                    config.batch / seconds,
                    self.elapsed,
                    self.progress,
                    config.sample_every > 0 and self.step % config.sample_every == 0,
                    self.average,
                )
                if interrupts.requested:  # it came while the caller was drawing
                    if saved != self.step:
                        self.save()
                    raise KeyboardInterrupt
            if saved != self.step:
                self.save()  # a finished run, resumed: it may have been killed before its model was written
        self.model.load_state_dict(self.average.state_dict())
        self.model.eval()

    @property
    def progress(self) -> float:
        return self.config.progress(self.step, self.elapsed)

    def take_step(self, learning_rate: float) -> tuple[float, dict[str, float]]:
        """One optimizer step; its loss and figures. Raises RunError, and changes nothing, where it is not finite."""
        config, step = self.config, self.step
        x0, labels = self.images.batch(batch_indices(len(self.images), config.batch, step, config.seed))
        x0 = x0.to(self.device, non_blocking=True)
        seed = generator(config.seed, "train", step).initial_seed()
        draw = torch.Generator(self.device).manual_seed(seed)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        devices = [self.device] if self.device.type == "cuda" else []
        # dropout layers draw from the global generator: addressed as well, and the caller's left alone
        with torch.random.fork_rng(devices), ExitStack() as half:
            torch.manual_seed(seed)
            for network in self.task.networks:
                half.enter_context(autocast_within(network, self.device, self.dtype))
            loss, figures = self.task.loss(x0, labels, draw, self.progress)
            loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.clip)
        told = [loss, norm, *figures.values()]
        value, gradient, *rest = torch.stack([each.detach().float() for each in told]).tolist()
        if not (math.isfinite(value) and math.isfinite(gradient)):
            what = f"loss is {value}" if not math.isfinite(value) else f"gradient norm is {gradient}"
            kept = (
                f"the last checkpoint is kept in {self.out}" if (self.out / state.STATE).exists() else "no checkpoint"
            )
            raise RunError(f"step {step + 1}: the {what}; {kept}. Train again with a lower learning rate")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step = step + 1
        decay = ema_decay(self.exponent, self.step) if self.config.ema else 0.0
        get_ema_multi_avg_fn(decay)(self.averages, self.parameters, step)
        for old, new in zip(self.average.buffers(), self.model.buffers(), strict=True):
            old.copy_(new)
        return value, dict(zip(figures, rest, strict=True))


class _Interrupts:
    """SIGINT and SIGTERM as a flag, read between steps: a step is never cut in two. The second one does interrupt."""

    def __init__(self) -> None:
        self.requested = False
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> "_Interrupts":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers there only
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self.handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def handle(self, *_: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

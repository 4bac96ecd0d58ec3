"""Folders of diffusers: pruned, fine-tuned on the predictions of the large model, and written as folders again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ornstein import checkpoint
from ornstein.compress.diffusers_unet import KINDS, prune_unet2d
from ornstein.compress.imitation import Imitation
from ornstein.compress.prune import taylor_gradients
from ornstein.compress.settings import BUDGET, CompressSettings
from ornstein.data import ImageSet, open_images
from ornstein.data.captions import read_captions
from ornstein.data.rows import RowFile
from ornstein.data.sets import split_rows
from ornstein.denoiser import Denoiser
from ornstein.devices import choose_precision
from ornstein.errors import UserError
from ornstein.interop.diffusers import DiffusersNet
from ornstein.interop.exchange import write_folder
from ornstein.interop.pipeline import Pipeline
from ornstein.progress import progress, say
from ornstein.randomness import generator
from ornstein.settings import to_json
from ornstein.store import atomic_write, make_folder
from ornstein.training import Task, TrainConfig, run_task
from ornstein.training.objective import TimeSampling
from ornstein.training.settings import COMPRESS
from ornstein.training.shared_rows import fill, find_cache, keep_cache
from ornstein.training.task import on_cpu

__all__ = ["TRAINING", "compressed_folder"]

TRAINING = "training"
"""Sub-folder of the small pipeline's folder with the state of its fine-tuning, for --resume."""

_BATCH, _RATE = 16, 3e-4
_ENCODED = 8  # pictures that the autoencoder takes at once
_HELD_OUT, _MOST_HELD_OUT = 0.1, 32
_TAYLOR_BATCH = 16


def compressed_folder(
    asked: CompressSettings, run: Path, out: Path, resume: bool, device: torch.device
) -> tuple[Denoiser, int, int]:
    """The small model of a folder of diffusers, its multiply-adds, and those of the large one; writes its folder.

    Raises:
        UserError: a network that is not pruned; fine-tuning without data, or of a network that takes masks.
    """
    teacher = checkpoint.load(run).to(device)
    network = _network(teacher)
    if type(network).__name__ not in KINDS:
        raise UserError(f"{run} has no U-Net of diffusers: {' and '.join(KINDS)} are compressed")
    tuned = asked.steps != 0
    if tuned and asked.data is None:
        raise UserError(
            f"{run} is a folder of diffusers, which knows no data: give --data, or --steps 0 for pruning alone"
        )
    if tuned and asked.steps is None and asked.minutes is None:
        raise UserError("how long the pipeline was trained is not known: give --steps or --minutes for the fine-tuning")
    if tuned and isinstance(teacher, Pipeline) and teacher.has_mask_channels:
        raise UserError(f"{run} is a model for inpainting, which is pruned without fine-tuning: give --steps 0")
    rows = _rows(teacher, asked, out) if tuned else None
    draw = generator(asked.seed, "compress")
    assert teacher.data is not None
    budget = BUDGET if asked.macs is None else asked.macs
    values = _values(teacher, network, asked, rows, draw)
    small, macs, full = prune_unet2d(network, budget, tuple(teacher.data.shape), values, draw)
    dtype = next(small.parameters()).dtype
    student = _with_network(teacher, small)
    say(f"{macs:,} of {full:,} multiply-adds ({macs / full:.3f})")
    make_folder(out)
    atomic_write(out / COMPRESS, (json.dumps(to_json(asked), indent=1) + "\n").encode())
    if rows is not None:
        student.net.float()
        _tune(teacher, student, asked, rows, out / TRAINING, resume)
        student.net.to(dtype)
    write_folder(student.eval(), out)
    return student, macs, full


def _network(model: Denoiser) -> Any:
    return model.network if isinstance(model, Pipeline) else getattr(model.net, "model", model.net)


def _with_network(model: Denoiser, network: Any) -> Denoiser:
    """The model with another network; a pipeline of diffusers then has it, and `model` still computes with its own."""
    if isinstance(model, Pipeline):
        return model.with_network(network)
    assert isinstance(model.net, DiffusersNet)
    small = Denoiser(DiffusersNet(network, model.net.config["betas"]), model.process, model.prediction, data=model.data)
    return small.to(next(network.parameters()).device)


def _values(
    teacher: Denoiser, network: nn.Module, asked: CompressSettings, rows: _Rows | None, draw: torch.Generator
) -> dict[str, Tensor] | None:
    """What the criterion squares and adds up, by the names of the network's tensors; None for random channels."""
    criterion = asked.criterion or ("magnitude" if rows is None else "taylor")
    if criterion == "random":
        return None
    weights = {name: p.detach() for name, p in network.named_parameters()}
    if criterion == "magnitude":
        return weights
    if rows is None:
        raise UserError("the criterion taylor needs data: give --data, or take --criterion magnitude")
    device, batches = next(network.parameters()).device, []
    for _ in range(4):
        mean_std, which = rows.batch(torch.randint(len(rows), (_TAYLOR_BATCH,), generator=draw))
        cond = {name: value.to(device) for name, value in rows.conditions(which).items()}
        batches.append((mean_std[:, 0].to(device), cond))
    found = taylor_gradients(teacher, batches, draw)
    by_tensor = {id(p): found[name] for name, p in teacher.net.named_parameters() if name in found}
    return {name: p.detach() * by_tensor[id(p)] for name, p in network.named_parameters() if id(p) in by_tensor}


class _Rows:
    """Latents of pictures, or pixels, read from a file, and the conditions of each.

    Args:
        file: float32 (N, 2, *), mean and standard deviation; None without latents.
        images: the pictures.
        chosen: the rows of `images` that these are.
        cond: conditions of all different captions, and last of none; `caption` (N, K) int64 says which are of a
            picture. For classes a table of labels.
    """

    def __init__(
        self, file: Path | None, images: ImageSet, chosen: Tensor, cond: dict[str, Tensor], caption: list[list[int]]
    ) -> None:
        self.file = None if file is None else RowFile(file)
        self.images, self.chosen, self.cond, self.caption = images, chosen, cond, caption

    def __len__(self) -> int:
        return len(self.chosen)

    def part(self, chosen: Tensor) -> _Rows:
        """Some of the rows."""
        made = _Rows(None, self.images, self.chosen[chosen], self.cond, self.caption)
        made.file = self.file
        return made

    def batch(self, indices: Tensor | Sequence[int], /) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, float32 (B, 2, *), and the numbers of the pictures, int64 (B,)."""
        rows = self.chosen[torch.as_tensor(indices, dtype=torch.int64)]
        if self.file is not None:
            return torch.from_numpy(self.file.read(rows.numpy())), rows
        x = self.images.batch(rows)[0]
        return torch.stack([x, torch.zeros_like(x)], 1), rows

    def conditions(self, rows: Tensor, pick: Tensor | None = None, dropped: Tensor | None = None) -> dict[str, Tensor]:
        """The conditions of pictures: `pick` (B,) in [0, 1) chooses among the captions of each, `dropped` has none."""
        if not self.cond:
            return {}
        which = []
        for k, row in enumerate(rows.tolist()):
            known = [] if dropped is not None and bool(dropped[k]) else self.caption[row]
            which.append(known[int((0.0 if pick is None else float(pick[k])) * len(known))] if known else -1)
        return {name: value[torch.tensor(which)] for name, value in self.cond.items()}


def _rows(teacher: Denoiser, asked: CompressSettings, out: Path) -> _Rows:
    """The pictures of --data in the size of the model, with their latents and conditions."""
    assert teacher.shape is not None and asked.data is not None
    channels, *size = teacher.shape
    images = open_images(asked.data, (size[0], size[1]), channels)
    say(images.summary)
    if not isinstance(teacher, Pipeline):
        cond, caption = _labels(teacher, images)
        return _Rows(None, images, torch.arange(len(images)), cond, caption)
    try:
        captions = read_captions(asked.data, images.names).texts
    except UserError as error:
        say(f"{error}: the small model learns without prompts")
        captions = [()] * len(images)
    different = {text: k for k, text in enumerate(dict.fromkeys(text for each in captions for text in each if text))}
    caption = [[different[text] for text in each if text] for each in captions]
    cond = _encoded(teacher, list(different))
    file = None if teacher.space is None else _latents(teacher, images, asked, out)
    return _Rows(file, images, torch.arange(len(images)), cond, caption)


def _labels(teacher: Denoiser, images: ImageSet) -> tuple[dict[str, Tensor], list[list[int]]]:
    """The classes of the data if the model has as many, else any class of the model for each picture."""
    count = len(teacher.data.classes) if teacher.data is not None else 0
    if not count:
        return {}, []
    labels = images.labels
    if labels is None or len(images.classes) != count:
        say(f"the model has {count} classes and the data have {len(images.classes)}: pictures are given any of them")
        labels = torch.arange(len(images)) % count
    return {"label": torch.arange(count)}, [[int(k)] for k in labels]


def _encoded(teacher: Pipeline, texts: list[str]) -> dict[str, Tensor]:
    """The conditions of texts, a few at a time, and last of no text."""
    with torch.no_grad():
        nothing = teacher.encode([""])
        parts = [teacher.encode(texts[k : k + _ENCODED]) for k in range(0, len(texts), _ENCODED)] + [nothing]
    return {name: torch.cat([part[name].cpu() for part in parts]) for name in nothing if name != "negative"}


def _latents(teacher: Pipeline, images: ImageSet, asked: CompressSettings, out: Path) -> Path:
    """The file of the latents of all pictures; made once."""
    file = out / TRAINING / "latents" / "latents.npy"
    space: Any = teacher.space
    key = {"teacher": asked.fingerprint, "images": images.fingerprint}
    _, partial = find_cache(file, key)
    if partial is not None:
        device = next(teacher.net.parameters()).device
        assert teacher.data is not None

        def encode(rows: range) -> Tensor:
            with torch.no_grad():
                mean, std = space.encode(images.batch(rows)[0].to(device))
            return torch.stack([mean.float().cpu(), std.float().cpu()], 1)

        with progress("images", transient=True) as bar:
            task = bar.add_task("encoding", total=len(images), note="")
            shape = (len(images), 2, *teacher.data.shape)
            fill(partial, shape, _ENCODED, encode, done=lambda rows: bar.update(task, completed=rows))
        keep_cache(file, partial, key)
    return file


class _Tuning(Task[nn.Module]):
    """Training of the student's network to predict what the teacher does, on `_Rows`."""

    by_rows = True

    def __init__(self, student: Denoiser, imitation: Imitation, rows: _Rows, config: TrainConfig, about: str) -> None:
        super().__init__(student.net, [student.net])
        self.student, self.imitation, self.rows, self.about = student, imitation, rows, about
        self.dropout = config.condition_dropout if isinstance(student, Pipeline) else 0.0
        self.times = TimeSampling("steps", None, student.process.schedule)

    def loss(
        self, x0: Tensor, labels: Tensor | None, draw: torch.Generator, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert labels is not None
        mean, std = x0.unbind(1)
        n, rows = self.whole(x0)
        small = on_cpu(draw)
        t = self.times.draw(n, small)[0][rows]
        noise = torch.randn((2, n, *mean.shape[1:]), generator=draw, device=mean.device)[:, rows]
        pick, dropped = torch.rand(n, generator=small)[rows], torch.rand(n, generator=small)[rows] < self.dropout
        cond = {name: value.to(mean.device) for name, value in self.rows.conditions(labels, pick, dropped).items()}
        return self.imitation(self.student, mean + std * noise[0], t, noise[1], **cond).mean(), {}

    def config(self) -> dict[str, Any]:
        return {"compressed": self.about}

    def save(self, model: nn.Module, out: Path, extra: dict[str, Any]) -> None:
        """Nothing but the trainer's state: the folder is written at the end."""


def _tune(teacher: Denoiser, student: Denoiser, asked: CompressSettings, rows: _Rows, out: Path, resume: bool) -> None:
    """Train the student's network on the predictions of the teacher; says what they differ by before and after."""
    device = next(student.net.parameters()).device
    train, held = split_rows(len(rows), _HELD_OUT, 0) if len(rows) > 1 else (torch.arange(1), torch.arange(1))
    config = TrainConfig(
        steps=asked.steps,
        minutes=asked.minutes,
        batch=asked.batch or _BATCH,
        learning_rate=asked.learning_rate or _RATE,
        precision=asked.precision,
        warmup=min(100, (asked.steps or 1000) // 10),
        checkpoint_every=asked.checkpoint_every,
        seed=asked.seed,
    )
    imitation = Imitation(teacher, choose_precision(asked.precision, device))
    task = _Tuning(student, imitation, rows, config, f"{asked.fingerprint} to {asked.macs} by {asked.criterion}")
    judge = _judge(student, imitation, rows.part(held[:_MOST_HELD_OUT]))
    before = judge()
    states = run_task(task, rows.part(train), config, out, resume)
    timed = config.minutes is not None
    began, steps = time.monotonic(), 0
    with progress("s" if timed else "steps") as bar:
        shown = bar.add_task("training", total=60 * config.minutes if timed else config.steps, note="")  # pyright: ignore
        for state in states:
            steps += 1
            bar.update(shown, completed=state.elapsed if timed else state.step, note=f"loss {state.loss:.4f}")
    after = judge()
    took = time.monotonic() - began
    say(f"{steps} steps in {took:.0f} s; error of held-out predictions {before:.4g}, now {after:.4g}")


def _judge(student: Denoiser, imitation: Imitation, rows: _Rows) -> Callable[[], float]:
    """The mean squared difference of the student's predictions from the teacher's, on fixed times and noise."""
    draw = torch.Generator().manual_seed(0)
    device = next(student.net.parameters()).device
    x0, which = rows.batch(range(len(rows)))
    t = ((torch.arange(len(x0)) + torch.rand(len(x0), generator=draw)) / len(x0)).clamp(min=1e-3).to(device)
    x0, z = x0[:, 0].to(device), torch.randn(x0[:, 0].shape, generator=draw).to(device)
    cond = {name: value.to(device) for name, value in rows.conditions(which).items()}

    def error() -> float:
        training = student.net.training
        student.net.eval()
        with torch.no_grad():
            found = float(imitation(student, x0, t, z, **cond).mean())
        student.net.train(training)
        return found

    return error

"""A face swap from nothing in minutes: trained on rendered faces, evaluated against the known truth, with a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ornstein.data import save_grid, save_mp4, to_uint8
from ornstein.denoiser import Denoiser
from ornstein.devices import Precision, choose_device, choose_precision
from ornstein.errors import UserError
from ornstein.evaluation import Clips, Panel, Report, Table, write_report
from ornstein.faces.identity import Distillation, IdentityNet
from ornstein.faces.photos import Photos, SourceFaces
from ornstein.faces.provenance.card import ModelCard, write_card
from ornstein.faces.swap.sampling import FaceModel, swap_crops
from ornstein.faces.train.runs import RECOGNISER
from ornstein.faces.world.dataset import Cases, cases, paintable, points, world_photos
from ornstein.faces.world.parameters import attributes, identities, motion
from ornstein.faces.world.scores import WorldScore, evaluate, pasted
from ornstein.faces.world.training import WorldTask, relit_denoiser
from ornstein.faces.world.views import Rendered, render
from ornstein.store import read_json
from ornstein.training import TrainConfig, run_task
from ornstein.training.state import has_state

__all__ = ["PHOTOS", "Demo", "clip_of", "demo", "sources", "swap_cases"]

PHOTOS = 8192
"""Rendered photos to train on."""
# shares of the time for the recogniser and the swap; the rest is for rendering and evaluation
_RECOGNISER, _SWAP = 0.05, 0.63
_PEOPLE, _STEPS, _FRAMES, _SHOWN = 100, 1, 48, 12
_TRAINED, _UNSEEN = 0, 1  # seeds of the people of the training, and of those of the evaluation
_WRITTEN = ("report.html", "clip.mp4", "swaps.png")

Tell = Callable[[str, float], object]


@dataclass(frozen=True)
class Demo:
    """The results of a demo: the model, the scores of it and of the baselines by name, the report."""

    model: FaceModel
    scores: dict[str, WorldScore]
    report: Path


def demo(
    out: str | Path,
    minutes: float = 6.0,
    size: int = 64,
    people: int = _PEOPLE,
    photos: int = PHOTOS,
    preset: str = "xs",
    frames: int = _FRAMES,
    seed: int = 0,
    tell: Tell = lambda stage, done: None,
    device: str | torch.device = "auto",
    precision: Precision = "auto",
) -> Demo:
    """Train on rendered faces, swap people that were not trained on, and write a report into the folder `out`.

    The source of a swap is one picture: the swap is shown the face, and what a small recogniser, which learns from
    renders what their people look like from the front, says about it. A demo that was interrupted is resumed;
    one that is done goes on if it is given more minutes.

    Args:
        out: the run directory.
        minutes: wall-clock time in all, about, on two cores.
        size: side of the pictures in pixels.
        people: people of the evaluation.
        photos: rendered photos to train on.
        preset: size of the network, of `nets.relit.PRESETS`.
        frames: of the clip in the report.
        seed: of the networks and the sampling.
        tell: called as tell(stage, fraction).
        device: where to compute, see `choose_device`.
        precision: see `choose_precision`.

    Raises:
        UserError: `out` holds a run of other settings, or files of something else.
        RunError: it cannot be written.
    """
    out, where = Path(out), choose_device(device)
    dtype = choose_precision(precision, where)
    if not (out / RECOGNISER).is_dir():
        for name in _WRITTEN:
            if (out / name).exists():
                raise UserError(f"{out / name} is not of a demo: choose another --out")
    tell("rendering photos", 0.0)
    train = world_photos(photos, size, _TRAINED)
    shared = {"seed": seed, "checkpoint_every": 200, "precision": precision}
    teach = TrainConfig(minutes=minutes * _RECOGNISER, batch=64, learning_rate=2e-3, warmup=50, **shared)
    if has_state(out):  # of a swap that has begun: it goes on with the recogniser that it knows, also for longer
        recogniser = IdentityNet.load(out / RECOGNISER).to(where)
    else:
        recogniser = _recogniser(train, out / RECOGNISER, teach, where, tell)
    known = train.known_as(recogniser.embed(train.batch(torch.arange(len(train)))[0]))
    config = TrainConfig(minutes=minutes * _SWAP, batch=32, optimizer="muon", learning_rate=3e-3, **shared)
    denoiser = _swap(known, recogniser, out, config, preset, where, tell)
    write_card(out, ModelCard(data=f"{photos} rendered faces of nobody: not for photographs"))
    model = FaceModel(denoiser, recogniser)
    tell("swapping", 0.0)
    unseen = cases(people, size, _UNSEEN)
    swaps = swap_cases(model, unseen, seed, precision=dtype)
    scores = evaluate(unseen, swaps, lambda done: tell("evaluating", done))
    tell("writing the report", 0.0)
    clip = clip_of(model, size, frames, seed, dtype)
    save_mp4(clip, out / "clip.mp4", fps=16, upscale=4)
    report = write_report(
        out / "report.html", _report(unseen, swaps, scores, clip, read_json(out / "config.json")["training"])
    )
    _sheet(unseen, swaps, out / "swaps.png")
    return Demo(model, scores, report)


def swap_cases(
    model: FaceModel,
    unseen: Cases,
    seed: int = 0,
    steps: int = _STEPS,
    guidance: float | None = None,
    precision: str | torch.dtype | None = None,
) -> Tensor:
    """The model's swaps of the cases, (N, 3, H, W) in [-1, 1] on the CPU: it is given one picture of each source."""
    return swap_crops(
        model,
        unseen.target.image,
        unseen.mask,
        points(unseen.target),
        sources(model, unseen.source),
        steps=steps,
        guidance=guidance,
        seed=seed,
        precision=precision,
    ).cpu()


def clip_of(model: FaceModel, size: int, frames: int, seed: int, precision: str | torch.dtype | None = None) -> Tensor:
    """A clip (3, F, H, 4 W) of source, target, swap and truth side by side: one noise for all of its frames."""
    source, target = identities(2, _UNSEEN, first=2 * _PEOPLE)
    states = motion(1, frames, _UNSEEN)[0]
    filmed, truth = (render(who.expand(frames, -1), states, size) for who in (target, source))
    still = render(source[None], attributes(1, _UNSEEN, first=2 * _PEOPLE), size)
    shape = (1, 3, size, size)
    z = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    start = model.denoiser.process.prior(shape, t=1.0).sample(z).expand(frames, -1, -1, -1)
    swapped = swap_crops(
        model,
        filmed.image,
        paintable(filmed),
        points(filmed),
        sources(model, still),
        steps=_STEPS,
        start=start,
        precision=precision,
    ).cpu()
    wide = torch.cat([still.image.expand(frames, -1, -1, -1), filmed.image, swapped, truth.image], dim=3)
    return wide.transpose(0, 1)


def sources(model: FaceModel, pictures: Rendered) -> SourceFaces:
    """Rendered faces as the sources of swaps: a picture is all that a swap is given of a person."""
    identity = model.recogniser.embed(pictures.image).cpu()
    return SourceFaces(identity, pictures.image, paintable(pictures), points(pictures))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Within, PyTorch computes on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _recogniser(photos: Photos, out: Path, config: TrainConfig, device: torch.device, tell: Tell) -> IdentityNet:
    with torch.random.fork_rng([]):
        torch.manual_seed(config.seed)
        net = IdentityNet(photos.embeddings.shape[1]).to(device)
    # shapes and colours are exact here, and what tells people apart: little augmentation
    task = Distillation(net, photos, relational=0.0, strength=0.15)
    # the net is small: PyTorch would share its operations out to threads that wait for each other
    with _one_thread():
        for state in run_task(task, photos, config, out, resume=out.is_dir()):
            tell("training the recogniser", state.progress)
    return task.model.eval().requires_grad_(False)


def _swap(
    photos: Photos,
    recogniser: IdentityNet,
    out: Path,
    config: TrainConfig,
    preset: str,
    device: torch.device,
    tell: Tell,
) -> Denoiser:
    with torch.random.fork_rng([]):
        torch.manual_seed(config.seed)
        denoiser = relit_denoiser(photos, preset).to(device)
    task = WorldTask(denoiser, recogniser, photos, torch.get_num_threads())
    with _one_thread():  # for each operation: the task shares out pairs
        for state in run_task(task, photos, config, out, resume=True):
            tell("training the swap", state.progress)
    return task.model


def _report(
    unseen: Cases, swaps: Tensor, scores: dict[str, WorldScore], clip: Tensor, settings: Mapping[str, Any]
) -> Report:
    n = min(_SHOWN, len(swaps))
    pictures = (unseen.source.image, unseen.target.image, swaps, unseen.truth.image, pasted(unseen))
    panel = Panel(
        "Swaps of people it has not seen",
        "The source's face in the target's pose, expression and light. The truth is a render of that; all the swap is "
        "given of the source is this one picture.",
        torch.stack([to_uint8(each[:n]) for each in pictures], 1),
        ("source", "target", "swap", "truth", "source pasted"),
    )
    table = Table(
        "Against the truth",
        f"Means over {len(swaps)} people in {len(swaps)} states, none of them trained on. PSNR and SSIM inside the "
        f"face; top-1: the nearest render among {len(swaps)} people is the source's; yaw, pitch, roll in degrees and "
        "expression as a share of its range, root mean square.",
        ("method", "PSNR, dB", "SSIM", "top-1", "pose error", "expression error"),
        [(name, *(round(value, 3) for value in asdict(score).values())) for name, score in scores.items()],
    )
    swap = scores["swap"]
    return Report(
        title="Face swap in the procedural world",
        lead=f"Faces of nobody, so that the answer is known: {swap.psnr:.1f} dB from it, and {swap.top1:.0%} of the "
        "swaps are nearest to their source.",
        tables=[table],
        panels=[panel],
        clips=Clips(to_uint8(clip)[None], fps=16),
        settings=settings,
    )


def _sheet(unseen: Cases, swaps: Tensor, path: Path) -> None:
    n = min(_SHOWN, len(swaps))
    rows = (unseen.source.image, unseen.target.image, swaps, unseen.truth.image)
    save_grid(torch.cat([each[:n] for each in rows]), path, columns=n, upscale=2, gap=2)

"""A swap from nothing in a few minutes: trained on procedural faces, judged where the truth is known, with a report."""

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
from ornstein.evaluation import Clips, Panel, Report, Table, write_report
from ornstein.faces.identity import Distillation, IdentityNet
from ornstein.faces.photos import Photos, SourceFaces
from ornstein.faces.provenance.card import ModelCard, write_card
from ornstein.faces.swap.sampling import FaceModel, swap_crops
from ornstein.faces.world.dataset import Cases, cases, region, world_photos
from ornstein.faces.world.parameters import attributes, identities, motion
from ornstein.faces.world.scores import WorldScore, judge, pasted
from ornstein.faces.world.training import WorldTask, relit_denoiser
from ornstein.faces.world.views import Rendered, render
from ornstein.store import read_json
from ornstein.training import TrainConfig, run_task

PHOTOS = 8192
# of the time: the recogniser, the swap; the rest is for rendering and judging
_RECOGNISER, _SWAP = 0.05, 0.63
_PEOPLE, _STEPS, _FRAMES, _SHOWN = 100, 1, 48, 12
_TRAINED, _UNSEEN = 0, 1  # seeds of the people that are trained on, and of those that are not

Tell = Callable[[str, float], object]


@dataclass(frozen=True)
class Demo:
    """What a demo leaves: the model, its scores and the baselines' by name, the report."""

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
) -> Demo:
    """Train on procedural faces, swap people that were not trained on, and write a report into the folder `out`.

    The source is a picture: the swap is shown its face, and what a small net, which learns from renders what their
    people look like from the front, says of it. About `minutes` of wall-clock time on two cores. A demo
    that was interrupted goes on where it was. `tell(stage, fraction)` is called as it goes.

    Raises UserError where `out` holds a run of other settings, RunError where it cannot be written.
    """
    out = Path(out)
    tell("rendering photos", 0.0)
    train = world_photos(photos, size, _TRAINED)
    recogniser = _recogniser(train, out / "recogniser", minutes * _RECOGNISER, seed, tell)
    known = train.known_as(recogniser.embed(train.batch(torch.arange(len(train)))[0]))
    denoiser = _swap(known, recogniser, out, minutes * _SWAP, preset, seed, tell)
    write_card(out, ModelCard(data=f"{photos} procedural faces, which are nobody's: not for photographs"))
    model = FaceModel(denoiser, recogniser)
    tell("swapping", 0.0)
    unseen = cases(people, size, _UNSEEN)
    swaps = swap_cases(model, unseen, seed)
    scores = judge(unseen, swaps, lambda done: tell("judging", done))
    tell("writing the report", 0.0)
    clip = moving(model, size, frames, seed)
    save_mp4(clip, out / "clip.mp4", fps=16, upscale=4)
    report = write_report(
        out / "report.html", _report(unseen, swaps, scores, clip, read_json(out / "config.json")["training"])
    )
    _sheet(unseen, swaps, out / "swaps.png")
    return Demo(model, scores, report)


def swap_cases(
    model: FaceModel, unseen: Cases, seed: int = 0, steps: int = _STEPS, guidance: float | None = None
) -> Tensor:
    """The model's swaps of the cases: all it gets of a source is its picture."""
    return swap_crops(
        model,
        unseen.target.image,
        unseen.mask,
        unseen.target.landmarks,
        shown(model, unseen.source),
        steps=steps,
        guidance=guidance,
        seed=seed,
    )


def moving(model: FaceModel, size: int, frames: int, seed: int) -> Tensor:
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
        region(filmed.mask),
        filmed.landmarks,
        shown(model, still),
        steps=_STEPS,
        start=start,
    )
    wide = torch.cat([still.image.expand(frames, -1, -1, -1), filmed.image, swapped, truth.image], dim=3)
    return wide.transpose(0, 1)


def shown(model: FaceModel, pictures: Rendered) -> SourceFaces:
    """Rendered faces as the sources of swaps: all that a swap is given of a person is a picture."""
    identity = model.recogniser.embed(pictures.image)
    return SourceFaces(identity, pictures.image, region(pictures.mask), pictures.landmarks)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes on one thread within."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _recogniser(photos: Photos, out: Path, minutes: float, seed: int, tell: Tell) -> IdentityNet:
    torch.manual_seed(seed)
    net = IdentityNet(photos.embeddings.shape[1])
    # shapes and colours are exact here, and what is to be told apart: little of them is disturbed
    task = Distillation(net, photos, relational=0.0, strength=0.15)
    config = TrainConfig(minutes=minutes, batch=64, learning_rate=2e-3, warmup=50, seed=seed, checkpoint_every=200)
    # it is small: torch would share its operations out to threads that wait for each other
    with one_thread():
        for state in run_task(task, photos, config, out, resume=out.is_dir()):
            tell("training the recogniser", state.progress)
    return task.model.eval().requires_grad_(False)


def _swap(
    photos: Photos, recogniser: IdentityNet, out: Path, minutes: float, preset: str, seed: int, tell: Tell
) -> Denoiser:
    torch.manual_seed(seed)
    task = WorldTask(relit_denoiser(photos, preset), recogniser, photos, torch.get_num_threads())
    config = TrainConfig(
        minutes=minutes, batch=32, optimizer="muon", learning_rate=3e-3, seed=seed, checkpoint_every=200
    )
    with one_thread():  # of each operation: the task shares out pairs
        for state in run_task(task, photos, config, out, resume=out.is_dir()):
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
    own = scores["swap"]
    return Report(
        title="Face swap in the procedural world",
        lead=f"Faces of nobody, so that the answer is known: {own.psnr:.1f} dB from it, and {own.top1:.0%} of the "
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

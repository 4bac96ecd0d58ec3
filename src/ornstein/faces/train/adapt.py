"""A swap adapted to one person: a LoRA on what the network knows of its source, from a few photos."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ornstein import checkpoint
from ornstein.data.entry import BadImage, nothing_usable
from ornstein.data.sources import open_source
from ornstein.devices import choose_precision
from ornstein.errors import RunError, UserError
from ornstein.faces.blaze import BlazeDetector
from ornstein.faces.detect import Face, FaceDetector, subject
from ornstein.faces.identity import IDENTITY
from ornstein.faces.photos import Photos
from ornstein.faces.provenance.card import read_card, write_card
from ornstein.faces.read import decode_photo
from ornstein.faces.recognise import SAME_PERSON, FaceRecogniser
from ornstein.faces.swap.sampling import FaceModel
from ornstein.faces.swap.swapper import Swapper, load_model
from ornstein.faces.train.objective import FaceSettings, FaceTask
from ornstein.interop.lora import parts_of, write_lora
from ornstein.nets.lora import Lora, LoraLayer, adapted, attach, base_hash, detach, merge, trainable
from ornstein.training.state import check_new
from ornstein.wrapper import device_of, network_precision

__all__ = ["LORA", "TARGETS", "Adapted", "Check", "adapt_swap"]

LORA = "lora.safetensors"
"""The file of the LoRA in the adapted run, whose weights have it merged in."""
TARGETS = ("who.0", "who.2", "tokens", "of_tokens", "carry.2")
"""The layers of `FaceUNet` that read the source: its vector, its tokens, their attention, and the laid-on face."""
_FEWEST = 3  # photos: two to make a pair of, and one that is held out
_HELD_OUT = 0.2
_CHECK_EVERY, _CHECK_ROWS = 20, 32
_KEPT = ("training", "faces")  # parts of the run's config that go on to the adapted one


@dataclass(frozen=True)
class Check:
    """The error of the held-out photos, on fixed noise and pairs, after so many steps."""

    step: int
    error: float


@dataclass(frozen=True)
class Adapted:
    """What `adapt_swap` did: the photos with a face, how many of them were held out, and the checks.

    shaped: the model begins with the face laid on by its shape; what it has learned shows at an onset above 0.
    """

    photos: int
    held_out: int
    checks: list[Check]
    skipped: list[tuple[str, str]]
    shaped: bool

    @property
    def best(self) -> Check:
        return _best(self.checks)


def adapt_swap(
    run: str | Path,
    source: str | Path,
    out: str | Path,
    minutes: float = 5.0,
    steps: int = 1000,
    rank: int = 4,
    batch: int = 16,
    learning_rate: float = 1e-3,
    patience: int = 6,
    seed: int = 0,
    device: str | torch.device = "auto",
    precision: str = "auto",
    tell: Callable[[float, Check], None] | None = None,
    detector: FaceDetector | None = None,
    recogniser: FaceRecogniser | None = None,
) -> Adapted:
    """Adapt the swap in `run` to the person in the photos `source`, and write it as the run `out`.

    Each photo is painted from another one of the person; a LoRA (E37) on the layers of `TARGETS` learns, the rest is
    frozen. A fifth of the photos, at least one, is held out, and the LoRA that paints these best is kept.

    Args:
        run: the run directory of a swap of photographs.
        source: a folder or an archive with photos of one person.
        out: the run directory to write.
        minutes, steps: of training at most.
        rank: of the LoRA.
        batch: faces a step.
        learning_rate: of AdamW.
        patience: checks, one in 20 steps, without a better one, after which it stops.
        seed: of everything random.
        device: see `choose_device`.
        precision: of the network, see `choose_precision`; not fp16, which gradients do not fit without scaling.
        tell: called as tell(share of the time, last check).
        detector, recogniser: as those of `Swapper`.

    Returns:
        The figures of the training.

    Raises:
        UserError: `run` is no swap of photographs; `source` has too few photos with a face, or two people; `out` is a
            run already.
        RunError: the held-out photos get no better.
    """
    check_new(Path(out))
    loaded = load_model(run, device)
    model = loaded.model
    dtype = choose_precision(precision, model.device)
    if dtype == torch.float16:
        raise UserError("the gradients of `faces adapt` do not fit fp16: take precision bf16 or float32")
    if model.relights:
        raise UserError(f"{run} is a swap of rendered faces: adapt one of photographs, of `ornstein faces train`")
    photos, skipped = _photos(source, Swapper(model, detector=detector or BlazeDetector(), recogniser=recogniser))
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(photos), generator=draw)
    held = order[: max(round(_HELD_OUT * len(photos)), 1)]
    settings = FaceSettings(begins=0.0, identity=0.1, swap=0.0, colour=0.0, swaps=0.0, dropout=0.0)
    task = FaceTask(model.denoiser.train(), model.recogniser, photos.select(order[len(held) :]), settings)
    net = model.denoiser.net
    trainable(net, TARGETS, rank, generator=draw)
    unseen = FaceTask(model.denoiser, model.recogniser, photos, replace(settings, begins=1.0))
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], learning_rate)
    checks: list[Check] = []
    best = _layers(net)
    began, step = time.monotonic(), 0
    with network_precision(model.denoiser, dtype):
        while True:
            done = max((time.monotonic() - began) / (60 * minutes), step / steps)
            if step % _CHECK_EVERY == 0:
                checks.append(Check(step, _error(unseen, held)))
                if checks[-1] == _best(checks):
                    best = _layers(net)
                if tell is not None:
                    tell(done, checks[-1])
            if done >= 1 or len(checks) - 1 - checks.index(_best(checks)) >= patience:
                break
            rows = torch.randint(len(task.photos), (batch,), generator=draw)
            x0, labels = task.photos.batch(rows)
            loss, _ = task.loss(x0.to(model.device), labels, draw, 1.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    made = Adapted(len(photos), len(held), checks, skipped, model.shaped)
    if made.best.step == 0:
        raise RunError(
            f"the held-out photos of {source} get no better by training: use {run} as it is, or give more photos"
        )
    _write(model, best, Path(run), Path(out), made)
    return made


def _best(checks: list[Check]) -> Check:
    return min(checks, key=lambda check: check.error)


def _photos(source: str | Path, swapper: Swapper) -> tuple[Photos, list[tuple[str, str]]]:
    """The main faces of the photos as a model sees them, and what was skipped. Raises UserError as `adapt_swap`."""
    found: list[tuple[str, Tensor, Face]] = []
    with open_source(Path(source)) as listing:
        if not listing.entries:
            raise nothing_usable(source, listing.skipped, listing.ignored, "photo")
        skipped = list(listing.skipped)
        for entry in listing.entries:
            try:
                image = decode_photo(entry.read())
            except BadImage as bad:
                skipped.append((entry.name, str(bad)))
                continue
            faces = swapper.detector(image)
            if faces:
                found.append((entry.name, image, subject(faces, image)))
            else:
                skipped.append((entry.name, "no face found"))
    if len(found) < _FEWEST:
        reasons = "; ".join(f"{name}: {why}" for name, why in skipped[:3])
        raise UserError(
            f"{source} has {len(found)} photos with a face: give {_FEWEST} or more of one person"
            + (f" ({reasons})" if reasons else "")
        )
    embeddings = torch.cat([swapper.recogniser(image, [face]) for _, image, face in found])
    apart = torch.cdist(embeddings, embeddings)
    middle = int(apart.sum(1).argmin())
    furthest = int(apart[middle].argmax())
    if float(apart[middle, furthest]) > SAME_PERSON:
        raise UserError(
            f"{source} seems to show two people: {found[middle][0]} and {found[furthest][0]} are "
            f"{float(apart[middle, furthest]):.2f} apart, more than {SAME_PERSON}: keep the photos of one"
        )
    seen = [swapper.aligned(image, face) for _, image, face in found]
    points = [each.points for each in seen if each.points is not None]
    photos = Photos(
        torch.stack([each.crop for each in seen]),
        torch.stack([(255 * each.mask).round().to(torch.uint8) for each in seen]),
        torch.stack([each.landmarks for each in seen]),
        torch.zeros(len(seen), dtype=torch.int64),
        swapper.model.recogniser.normalised(embeddings),
        points=torch.stack(points) if points else None,
    )
    return photos, skipped


@torch.no_grad()
def _error(task: FaceTask, held: Tensor) -> float:
    """The error of the held-out photos, with the same pairs and noise at every call."""
    rows = held.repeat(-(-_CHECK_ROWS // len(held)))[:_CHECK_ROWS]
    x0, labels = task.photos.batch(rows)
    draw = torch.Generator().manual_seed(0)
    return float(task.loss(x0.to(device_of(task.model)), labels, draw, 0.0)[0])


def _layers(net: nn.Module) -> dict[str, LoraLayer]:
    return {name: weight.layer for name, weight in adapted(net).items()}


def _write(model: FaceModel, best: dict[str, LoraLayer], run: Path, out: Path, made: Adapted) -> None:
    """The run with the LoRA in its weights, and the LoRA beside it."""
    denoiser = model.denoiser
    detach(denoiser.net)
    attach(denoiser.net, best)
    layers = {f"unet.{name}": layer for name, layer in best.items()}
    lora = Lora(layers, base_hash(parts_of(denoiser), layers), {"adapted": f"{made.photos} photos of one person"})
    merge(denoiser.net)
    before = {key: value for key, value in checkpoint.read_config(run).items() if key in _KEPT}
    model.recogniser.save(out / IDENTITY)
    checkpoint.save(denoiser, out, before | {"adapted": asdict(made)})
    write_lora(lora, out / LORA)
    card = read_card(run)
    write_card(out, replace(card, data=f"{card.data}; adapted to {made.photos} photos of one person"))

"""Swaps of photos: swapped, labelled, signed and logged."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ornstein.data.entry import IMAGE_SUFFIXES as PHOTOS
from ornstein.errors import UserError
from ornstein.faces.detect import Face
from ornstein.faces.provenance import log, manifest
from ornstein.faces.provenance.consent import Consent
from ornstein.faces.provenance.label import labelled
from ornstein.faces.swap.choose import Choice
from ornstein.faces.swap.picture import SUFFIXES, Picture, encode, read_picture
from ornstein.faces.swap.swapper import SwapModel, Swapper
from ornstein.progress import warn
from ornstein.store import atomic_write, write_error

__all__ = [
    "SUFFIXES",
    "Order",
    "beyond",
    "check_inputs",
    "check_output",
    "check_replaceable",
    "photos_in",
    "stated",
    "swap_photo",
]


@dataclass(frozen=True)
class Order:
    """The files of a swap, of a photo or a video, and the consent.

    Args:
        sources: the photos of each source, by the number that `Choice` gives it.
        target: the photo or video to change.
        out: the file to write.
        consent: who agreed.
        references: the photos of the people whom each source replaces, if any.
        log: a JSONL file; None is one beside `out`.
        overwrite: replace an `out` that is no swap of this machine.

    Raises:
        UserError: `out` is one of the inputs, or a file that is no swap of this machine.
    """

    sources: Sequence[Sequence[Path]]
    target: Path
    out: Path
    consent: Consent
    references: Sequence[Path] = ()
    log: Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        used = [path for photos in self.sources for path in photos]
        check_inputs([*used, self.target, *self.references], self.out)
        check_replaceable(self.out, self.overwrite)

    def described(self, every: str, order: str, indices: Sequence[int]) -> dict[str, Any] | str | list[str]:
        """Which faces are swapped: "all", "largest", those of reference photos, by their hashes, or numbers."""
        if self.references:
            return [log.sha256(path) for path in self.references]
        return {"order": order, "index": list(indices)} if indices else every

    def statement(self, model: SwapModel, settings: dict[str, Any]) -> dict[str, Any]:
        """What the manifest of the output states: consent, model, settings and the hashes of the inputs."""
        return {
            "consent": self.consent.statement,
            "model": {"sha256": model.sha256} | asdict(model.card),
            "settings": settings,
            "label": bool(settings["label"]),
            "sources": [[log.sha256(path) for path in photos] for photos in self.sources],
            "target": log.sha256(self.target),
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

    def record(self, statement: dict[str, Any], **results: Any) -> None:
        """Write one line in the log: the statement, the output's hash and the results."""
        path = self.log or self.out.parent / log.NAME
        files = {"file": self.out.name, "output": log.sha256(self.out)}
        log.append(path, statement | files | results)


def check_output(out: Path, suffixes: Sequence[str], target: Path) -> None:
    """Raises UserError if the name of the output is not of these kinds, or it is a folder."""
    if out.suffix.lower() not in suffixes:
        raise UserError(f"{out}: a swap of {target.name} is written as {', '.join(suffixes)}")
    if out.is_dir():
        raise UserError(f"{out} is a folder: give the name of the file to write")


def check_inputs(used: Sequence[Path], out: Path) -> None:
    """Raises UserError if the output is one of the files that are used."""
    if out.exists() and any(path.exists() and path.samefile(out) for path in used):
        raise UserError(f"{out} is one of the inputs: write the swap to another file")


def check_replaceable(out: Path, overwrite: bool) -> None:
    """Raises UserError if `out` exists and is no unchanged swap that this machine signed, unless `overwrite`."""
    if overwrite or not (out.exists() or out.is_symlink()):
        return
    try:
        there = manifest.read(out)
    except UserError:  # of a kind without manifests, or unreadable
        there = manifest.Provenance(manifest.UNSIGNED)
    if out.is_symlink() or there.state != manifest.INTACT or there.swap is None or not there.ours:
        raise UserError(f"{out} exists and is no swap made here: write to another file, or add --overwrite")


def stated(swapper: Swapper, order: Order, faces: Any, quality: int | None = None) -> dict[str, Any]:
    """The settings of a swap of a photo, for its statement. `faces`: see `Order.described`."""
    settings = asdict(swapper.settings) | {"faces": faces}
    return settings if quality is None else settings | {"quality": quality}


def swap_photo(
    swapper: Swapper,
    model: SwapModel,
    choice: Choice,
    order: Order,
    quality: int | None = None,
    frame: tuple[int, Tensor] | None = None,
    tell: Callable[[str], object] = warn,
) -> int:
    """Swap the faces of the photo `order.target` and write `order.out`; return how many were swapped.

    The output is labelled unless the settings say otherwise, signed, and complete or absent.

    Args:
        swapper: the model, and what finds faces.
        model: what is stated about the model in the manifest.
        choice: which faces become whose.
        order: the files, and the consent.
        quality: of a JPEG, from 1 to 100.
        frame: the number and the pixels uint8 (3, H, W) of a frame of `order.target`, which is a video.
        tell: called with a line for each face that is turned too far, and left as it is.

    Raises:
        UserError: a file cannot be used, has no face or a protected one, or all faces are turned too far.
        RunError: the output cannot be written.
    """
    out, suffix = order.out, order.out.suffix.lower()
    check_output(out, SUFFIXES, order.target)
    name = str(order.target)
    if frame is None:
        picture = read_picture(order.target)
    else:
        picture, name = Picture(frame[1], frame[1]), f"frame {frame[0] + 1} of {name}"
    chosen = swapper.choose(picture.shown, choice, name)
    away: list[str] = []

    def leave(face: Face, degrees: float) -> None:
        x, y = face.centre
        away.append(f"{name}: the face at {x:.0f},{y:.0f} is turned by {degrees:.0f} degrees against the source's, "
                    f"{beyond(swapper.settings.max_turn)}")  # fmt: skip

    pixels, alpha = swapper.picture(picture.pixels, picture.shown, chosen, choice, leave), picture.alpha
    if len(away) == len(chosen):
        raise UserError(away[0])
    for line in away:
        tell(line)
    settings = stated(swapper, order, order.described(choice.every, choice.order, choice.indices), quality)
    if frame is not None:
        settings["frame"] = frame[0] + 1
    if swapper.settings.label:
        pixels, (left, top, right, bottom) = labelled(pixels, _covered([face for face, _ in chosen]))
        if alpha is not None:
            alpha = alpha.clone()
            alpha[:, top:bottom, left:right] = 255
    data = encode(picture.painted(pixels, alpha), suffix, quality)
    statement = order.statement(model, settings)
    signed = BytesIO()
    manifest.sign(BytesIO(data), signed, suffix, out.name, order.target, statement)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(out, error) from error
    atomic_write(out, signed.getvalue())
    count = len(chosen) - len(away)
    order.record(statement, faces=count, **({"faces_turned": len(away)} if away else {}))
    return count


def beyond(limit: float) -> str:
    """What is said of a face that is turned further than `limit` degrees."""
    return f"the limit is {limit:g}: choose a photo of the source from that side, or raise --max-turn"


def _covered(faces: Sequence[Face]) -> Tensor:
    """Points (N, 2) all over the faces."""
    along = torch.linspace(-0.5, 0.5, 9, dtype=torch.float64)
    grid = torch.cartesian_prod(along, along)
    return torch.cat([torch.tensor(face.centre) + face.side * grid for face in faces])


def photos_in(path: Path) -> list[Path]:
    """The photo `path`, or the photos in a folder of that name. Raises UserError if there is none."""
    if not path.exists():
        raise UserError(f"there is no file {path}")
    if not path.is_dir():
        return [path]
    photos = sorted(each for each in path.iterdir() if each.suffix.lower() in PHOTOS and each.is_file())
    if not photos:
        raise UserError(f"there is no photo in the folder {path}")
    return photos

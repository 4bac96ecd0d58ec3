"""Pictures of the class, made by the base once and kept: what prior preservation by images trains on."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image
from torch import Tensor

from ornstein import processes
from ornstein.data import open_images
from ornstein.data.pixels import to_uint8
from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.personalization.pictures import Pictures
from ornstein.personalization.settings import PersonalizeSettings
from ornstein.progress import progress, say
from ornstein.sampling import sample
from ornstein.store import atomic_write, make_folder
from ornstein.wrapper import evaluation_mode

__all__ = ["class_pictures", "sampled"]

FOLDER = "class"
_STEPS, _AT_ONCE = 20, 8


def sampled(d: Denoiser, prompts: list[str], seed: int, guidance: float, first: int = 0) -> Tensor:
    """Pictures uint8 (B, C, H, W) of prompts, one each; picture i of a seed is the same in any batch."""
    assert d.data is not None
    cond = d.encode(prompts)  # pyright: ignore[reportCallIssue]  (a model of text)
    with evaluation_mode(d):
        x = sample(
            d, (len(prompts), *d.data.shape), steps=_STEPS, seed=seed, guidance=guidance, cond=cond, first=first,
            batch=_AT_ONCE,
        )  # fmt: skip
        return to_uint8(d.decode(x).float().cpu())


def class_pictures(d: Denoiser, settings: PersonalizeSettings, out: Path, given: Pictures) -> Pictures:
    """The pictures of the class in their folder; those that are missing are made by the base, the same ones anywhere.

    Their prompts are those of the pictures that are `given`, in turn, each without the placeholder.

    Raises:
        UserError: the folder holds pictures that cannot be used.
    """
    folder = make_folder(settings.class_folder or out / FOLDER)
    count, group = settings.class_images, processes.current()
    different = list(dict.fromkeys(settings.class_of(prompt) for texts in given.prompts for prompt in texts))
    prompts = [different[i % len(different)] for i in range(count)]
    there = len([f for f in folder.iterdir() if f.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")])
    files = [folder / f"{i:05d}.png" for i in range(count)]
    missing = [i for i, file in enumerate(files) if not file.is_file()][: max(0, count - there)]
    say(f"{folder}: {there} pictures of the class, {len(missing)} to make: {different[0]!r}")
    group.wait()  # all have counted before any is made
    mine = missing[len(missing) * group.rank // group.world : len(missing) * (group.rank + 1) // group.world]
    with progress("pictures", transient=True) as bar:
        task = bar.add_task("pictures of the class", total=len(mine), note="")
        for rows in _consecutive(mine):
            pixels = sampled(d, [prompts[i] for i in rows], settings.seed, settings.guidance, first=rows[0])
            for i, picture in zip(rows, pixels, strict=True):
                _write(files[i], picture)
            bar.advance(task, len(rows))
    group.wait()
    assert d.shape is not None
    channels, *size = d.shape
    opened = open_images(folder, (size[0], size[1]), channels, crop=settings.crop)
    if len(opened) < count:
        raise UserError(f"{folder} has {len(opened)} pictures that can be used, not {count}: take the others away")
    rows = list(opened.images[:count])
    return Pictures(opened.names[:count], rows, [(prompt,) for prompt in prompts], [None] * count)


def _consecutive(numbers: list[int]) -> list[list[int]]:
    """Rising numbers in runs without a gap, each short enough to be drawn at once."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1 and len(runs[-1]) < _AT_ONCE:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def _write(file: Path, pixels: Tensor) -> None:
    array = pixels[0].numpy() if len(pixels) == 1 else pixels.movedim(0, -1).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    atomic_write(file, buffer.getvalue())

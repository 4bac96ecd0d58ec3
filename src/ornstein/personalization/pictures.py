"""The pictures of a personalisation: those of what is new, those of its class, and those held out; as latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ornstein.data import open_buckets, open_images
from ornstein.data.captions import read_captions
from ornstein.data.decode import fit
from ornstein.data.framing import Framing
from ornstein.data.order import batch_indices
from ornstein.data.pixels import to_unit
from ornstein.data.sets import split_rows
from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.personalization.settings import PersonalizeSettings
from ornstein.settings import extent_of

__all__ = ["PictureSet", "Pictures", "open_pictures", "split"]

_HELD_OUT, _ENOUGH = 0.2, 5  # a share is held out of so many pictures
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass
class Pictures:
    """Pictures with their prompts: uint8 (C, H, W) each, of one or several sizes.

    prompts: one or several of each. masks: float (H, W) in [0, 1] each, or None. skipped: files that could not be used,
    and why. notes: lines to say.
    """

    names: list[str]
    pixels: list[Tensor]
    prompts: list[tuple[str, ...]]
    masks: list[Tensor | None]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, chosen: Sequence[int]) -> Pictures:
        """Some of them."""
        lists = ([each[i] for i in chosen] for each in (self.names, self.pixels, self.prompts, self.masks))
        names, pixels, prompts, masks = lists
        return Pictures(names, pixels, prompts, masks, self.skipped, self.notes)  # pyright: ignore[reportArgumentType]

    def mirrored(self) -> Pictures:
        """These and the same left to right."""
        masks = [None if m is None else m.flip(-1) for m in self.masks]
        return Pictures(
            self.names * 2, self.pixels + [p.flip(-1) for p in self.pixels], self.prompts * 2, self.masks + masks,
            self.skipped, self.notes,
        )  # fmt: skip


def open_pictures(path: str | Path, d: Denoiser, settings: PersonalizeSettings) -> Pictures:
    """The pictures at `path` in the size of the base or of the settings, with their prompts and masks.

    Raises:
        UserError: there are none that can be used; the first unreadable ones are named.
    """
    assert d.shape is not None
    channels, *own = d.shape
    extent = tuple(own) if settings.size is None else extent_of(settings.size)
    if len(own) != 2:
        raise UserError(f"{settings.base} is a model of clips: personalisation is for models of pictures")
    if settings.aspect == "buckets":
        opened = open_buckets(path, round((extent[0] * extent[1]) ** 0.5), channels, crop=settings.crop)
        sets = opened.buckets
    else:
        opened = open_images(path, (extent[0], extent[1]), channels, crop=settings.crop)
        sets = [opened]
    names = [name for each in sets for name in each.names]
    pixels = [picture for each in sets for picture in each.images]
    prompts = [(settings.prompt,)] * len(names)
    found = Pictures(names, pixels, prompts, [None] * len(names), list(opened.skipped))
    if settings.captions is not None:
        _caption(found, path, settings)
    if settings.masks is not None:
        found.masks = [_mask(settings, name, tuple(p.shape[-2:])) for name, p in zip(names, pixels, strict=True)]
        if all(m is None for m in found.masks):
            raise UserError(f"{settings.masks} holds no mask: put NAME.png there for a picture NAME.jpg")
        missing = sum(m is None for m in found.masks)
        if missing:
            found.notes.append(f"{missing} of {len(names)} pictures have no mask: all of them counts")
    return found


def _caption(pictures: Pictures, source: str | Path, settings: PersonalizeSettings) -> None:
    """Give each picture the prompts that are its captions."""
    found = read_captions(source, pictures.names, settings.captions or "auto")
    if not all(any(texts) for texts in found.texts):
        pictures.notes.append(f"{found.summary}: pictures without one have --prompt")
    pictures.prompts = [tuple(t for t in texts if t) or (settings.prompt,) for texts in found.texts]
    word = settings.word
    without = [n for n, p in zip(pictures.names, pictures.prompts, strict=True) if word and word not in p[0]]
    if without:
        pictures.notes.append(
            f"{len(without)} captions do not hold the placeholder {word}, such as that of {without[0]}"
        )


def _mask(settings: PersonalizeSettings, name: str, size: tuple[int, ...]) -> Tensor | None:
    """The mask of a picture, cut and resized as the picture is; None if there is no file."""
    assert settings.masks is not None
    stem = (settings.masks / name).with_suffix("")
    file = next((f for s in _SUFFIXES if (f := stem.with_name(stem.name + s)).is_file()), None)
    if file is None:
        return None
    try:
        with Image.open(file) as picture:
            grey = fit(picture.convert("L"), Framing((size[0], size[1]), settings.crop))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"the mask {file} cannot be read: {error}") from None
    return torch.from_numpy(np.asarray(grey, np.float32) / 255)


def split(pictures: Pictures, settings: PersonalizeSettings, d: Denoiser) -> tuple[Pictures, Pictures | None]:
    """The pictures to train on, and those held out: always the same ones, whatever the seed of the run is.

    Raises:
        UserError: one picture alone, and a share is to be held out.
    """
    if settings.held_out_images is not None:
        if settings.held_out:
            raise UserError("--held-out takes pictures away, and --held-out-images brings others: give one of them")
        return pictures, open_pictures(settings.held_out_images, d, settings)
    share = settings.held_out
    if share is None:
        share = _HELD_OUT if len(pictures) >= _ENOUGH else 0
    if not share:
        return pictures, None
    if len(pictures) < 2:
        raise UserError("one picture cannot be divided: give --held-out-images, or leave out --held-out")
    train, held_out = split_rows(len(pictures), share, 0)
    return pictures.rows(train.tolist()), pictures.rows(held_out.tolist())


class PictureSet:
    """What is trained on: latents of pictures, then of pictures of the class; a batch has half of each.

    Attributes:
        latents: mean and standard deviation of each picture's latents, (2, *); pixels with 0 where there are none.
        prompts: of each, one or several.
        masks: (1, h, w) of each in the size of its latents, mean 1 where there is one.
        own: how many are of what is new; the others are of the class.
    """

    def __init__(self, d: Denoiser, pictures: Pictures, of_class: Pictures | None, outside: float) -> None:
        both = [pictures] if of_class is None else [pictures, of_class]
        self.own = len(pictures)
        self.latents = [latent_of(d, pixels) for each in both for pixels in each.pixels]
        self.prompts = [prompt for each in both for prompt in each.prompts]
        masks = [mask for each in both for mask in each.masks]
        self.masks = [_shrunk(m, z, outside) for m, z in zip(masks, self.latents, strict=True)]

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def masked(self) -> bool:
        """Whether any picture has a mask."""
        return any(bool((mask != 1).any()) for mask in self.masks)

    def batch(self, indices: Tensor | Sequence[int], /) -> tuple[Tensor, Tensor | None]:
        """Latents float32 (B, 2, *), and the numbers of the rows, int64 (B,)."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return torch.stack([self.latents[i] for i in rows.tolist()]), rows

    def order(self, batch: int, step: int, seed: int) -> Tensor:
        """The rows of a step, int64 (batch,), of one size: every second one is of the class, if there are such."""
        if self.own < len(self):
            own = batch_indices(self.own, batch // 2, step, seed)
            other = self.own + batch_indices(len(self) - self.own, batch // 2, step, seed + 1)
            return torch.stack([own, other], 1).flatten()
        sizes = {z.shape for z in self.latents}
        if len(sizes) == 1:
            return batch_indices(len(self), batch, step, seed)
        first = int(batch_indices(len(self), 1, step, seed))
        alike = [i for i, z in enumerate(self.latents) if z.shape == self.latents[first].shape]
        others = batch_indices(len(alike), batch, step, seed + 2).tolist()
        return torch.tensor([first, *(alike[i] for i in others[1:])])


def latent_of(d: Denoiser, pixels: Tensor) -> Tensor:
    """Mean and standard deviation of the latents of a picture uint8 (C, H, W): (2, *) on the CPU."""
    x = to_unit(pixels)[None]
    if d.space is None:
        return torch.cat([x, torch.zeros_like(x)])
    encode = d.space.encode  # pyright: ignore[reportAttributeAccessIssue]  (spaces of models of pictures encode)
    return torch.cat([each.float().cpu() for each in encode(x.to(next(d.net.parameters()).device))])


def _shrunk(mask: Tensor | None, latent: Tensor, outside: float) -> Tensor:
    """A mask in the size of the latents, with `outside` for black and a mean of 1."""
    size = latent.shape[-2:]
    if mask is None:
        return torch.ones(1, *size)
    small = torch.nn.functional.interpolate(mask[None, None], size=size, mode="area")[0]
    weight = outside + (1 - outside) * small
    if float(weight.mean()) <= 0:
        raise UserError("a mask is black all over: nothing of its picture would be learned")
    return weight / weight.mean()

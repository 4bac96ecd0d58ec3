"""Edits of one picture or clip of any size: which part of it the model sees, and how what it made is set back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein import edit
from ornstein.denoiser import Denoiser
from ornstein.editing.windows import Canvas, Window, about, blended, resized, tiles
from ornstein.errors import UserError
from ornstein.inverse import Cut, Grey, Mask, Operator, Stacked
from ornstein.inverse.named import named_operator, reach_of, step_of
from ornstein.sampling import State, sample
from ornstein.video import sample_given
from ornstein.wrapper import device_of

__all__ = ["ROUNDING", "Editor", "check_editable"]

ROUNDING = 1 / (127.5 * 12**0.5)
"""The standard deviation of the rounding of 8-bit pixels, in values of [-1, 1]."""

_SAMPLER = ("solver", "steps", "seed", "batch", "precision")
_WORST_TILES = 4096  # of one picture
_WHOLE = 8  # times the model's size up to which a picture is filled as a whole
_LATENT_RIM = 1  # latents around a hole that its pixels reach through the encoder


def check_editable(model: Denoiser, name: object) -> None:
    """Raise UserError if a model cannot edit pictures: it has no sample spec, or makes no pictures by itself."""
    if model.data is None:
        raise UserError(f"{name} does not say what its samples look like; train it with `ornstein train`")
    if "identity" in model.conditions:
        raise UserError(f"{name} is a model of face swaps, which needs a source: `ornstein swap`")
    if model.distilled is not None:
        raise UserError(f"{name} is distilled and has no E[x_0 | x_t] to condition: edit with its teacher")
    autoencoder = getattr(getattr(model, "family", None), "autoencoder", "")
    if model.space is None and autoencoder:
        raise UserError(f"{name} makes latents, and its folder has no decoder ({autoencoder}): add it to the folder")


@dataclass
class Editor:
    """A model with the settings of its edits. Values are in [-1, 1]; answers are (n, *) of the size of the picture.

    Args:
        model: of pictures (C, H, W), in pixels or latents, or of clips (C, F, H, W).
        n: answers for each picture.
        fit: how a picture of another size is edited: "crop", a window about the mask; "resize", the whole of it;
            "tile", overlapping tiles; "native", the network at that size; "auto", what suits the edit: of a mask, the
            whole up to 8 times the model's size, since a part of a picture may look like none of the training.
        cond: conditions, one row.
        guidance: scale of classifier-free guidance.
        options: of `SampleRequest`, and of `ornstein.edit.restore`: method, particles, iterations.
        callback: called with the `State` after each step.
        notes: what was done to the picture that is not obvious, for people.
        number: of the next sample; it decides its noise together with the seed.
    """

    model: Denoiser
    n: int = 1
    fit: str = "auto"
    cond: dict[str, Any] = field(default_factory=dict)
    guidance: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    callback: Callable[[State], object] | None = None
    notes: list[str] = field(default_factory=list)
    number: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one picture or clip that the model makes."""
        shape = self.model.shape
        assert shape is not None
        return shape

    @property
    def clips(self) -> bool:
        return len(self.shape) == 4

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def inpaint(self, x: Tensor, hidden: Tensor, noise_std: float = 0.0) -> Tensor:
        """Fill what is hidden of x (C, H, W) or (C, F, H, W); the rest of it is returned to the bit.

        Args:
            hidden: bool (H, W), or (F, H, W) of a clip.
            noise_std: of the known values; above 0 they are drawn as well, inside the window.
        """
        self._check(x)
        if tuple(hidden.shape) != (*x.shape[1:-2], *x.shape[-2:]):
            raise UserError(f"the mask is {_extent(hidden.shape)}, the input {_extent(x.shape[1:])}: make them equal")
        if not bool(x[..., ~hidden].isfinite().all()):
            raise UserError("the input has values outside the mask that are not finite")
        if not bool(hidden.any()):
            self.note("the mask is empty: the input is returned as it is")
            return x[None].expand(self.n, *x.shape).clone()
        if bool(hidden.all()):
            self.note("the mask hides everything: these are samples of the model")
        x = torch.where(hidden, 0.0, x)
        if self.clips:
            return self._windows_of_frames(x, hidden, noise_std)
        return self._filled(x[None], hidden, noise_std)

    def _filled(self, x: Tensor, hidden: Tensor, noise_std: float) -> Tensor:
        """Answers for x (1, *), or one for each of x (n, *), whose windows are the model's number of frames long."""
        window, model = self._window(hidden), self._sized(hidden.shape[-2:])
        size = model.shape[-2:]  # pyright: ignore[reportOptionalSubscript]
        canvas = Canvas(window, (size[0], size[1]))
        if canvas.scale < 1:
            self.note(f"the window of {_extent(window)} was filled at {_extent(canvas.place)} and enlarged again")
        elif canvas.scale > 1:
            self.note(f"the picture was enlarged to {_extent(canvas.place)} for the model")
        each = self.n // len(x)
        made = self._fill(model, canvas.picture(x), canvas.hidden(hidden), each, noise_std)
        out = x.repeat_interleave(each, 0)
        back = canvas.back(made.to(out))
        open_ = window.cut(hidden).expand_as(back) if noise_std == 0 else torch.ones_like(back, dtype=torch.bool)
        window.cut(out).copy_(torch.where(open_, back, window.cut(out)))
        return out

    def _window(self, hidden: Tensor) -> Window:
        whole = Window(0, 0, hidden.shape[-2], hidden.shape[-1])
        if self.fit == "tile":
            raise UserError("a hole is filled in one window: leave out --fit tile")
        larger = max(side / own for side, own in zip(hidden.shape[-2:], self.shape[-2:], strict=True))
        as_a_whole = self.fit in ("resize", "native") or (self.fit == "auto" and larger <= _WHOLE)
        return whole if as_a_whole else about(hidden, self.shape[-2:])

    def _fill(self, model: Denoiser, y: Tensor, hidden: Tensor, n: int, noise_std: float) -> Tensor:
        """Answers (B n, *) for canvases y (B, *) of the model's own shape."""
        first, self.number = self.number, self.number + len(y) * n
        device = device_of(model)
        y, hidden = y.to(device), hidden.to(device)
        if model.space is not None:
            return model.space.decode(self._fill_latents(model, y, hidden, n, noise_std, first))
        of_frames = self.clips and bool((hidden.flatten(1).all(1) | ~hidden.flatten(1).any(1)).all())
        if of_frames and getattr(model.net, "config", {}).get("conditioning") and noise_std == 0:
            self.note("the network has learned to continue from given frames: it is used for that")
            cond = self._repeated(len(y) * n)
            options: dict[str, Any] = self._sampler() | {"guidance": self.guidance}
            known = ~hidden.flatten(1).any(1)
            return sample_given(
                model, y.repeat_interleave(n, 0), known, cond=cond, callback=self.callback, first=first, **options
            )
        return edit.inpaint(
            model, y, hidden.float(), n, noise_std=noise_std, first=first, cond=self._repeated(len(y)), **self._all()
        )

    def _fill_latents(self, model: Denoiser, y: Tensor, hidden: Tensor, n: int, noise_std: float, first: int) -> Tensor:
        """Answers in latents: by the channels that a network for inpainting has, or by projection."""
        native = _native(model, y, hidden)
        if native is not None:
            rows = native.repeat_interleave(n, 0)
            cond = self._repeated(len(y) * n) | {"inpaint": rows, "negative": {"inpaint": rows}}
            options = self._sampler() | {"guidance": self.guidance, "first": first, "callback": self.callback}
            self.note("the network has channels for the mask: it is used for that")
            assert model.data is not None
            return sample(model, (len(y) * n, *model.data.shape), cond=cond, **options)
        space: Any = model.space
        assert model.data is not None
        small = model.data.shape[-2:]
        if min(small) < 2:
            raise UserError("the latents of this model are vectors, which have no place for a mask: sdedit can vary it")
        # a hole is filled with the colour around it, so that what was there does not reach the latents beside it
        known = ~hidden.expand_as(y)
        mean = (y * known).flatten(2).sum(2) / known.flatten(2).sum(2).clamp(min=1)
        latents = space.encode(torch.where(known, y, mean[..., None, None]))[0]
        rim = 2 * _LATENT_RIM + 1
        coarse = F.adaptive_max_pool2d(hidden.float()[None, None], small)
        coarse = F.max_pool2d(coarse, rim, stride=1, padding=_LATENT_RIM)[0, 0]
        options = self._all() | {"first": first, "cond": self._repeated(len(y))}
        return edit.inpaint(model, latents, coarse, n, noise_std=noise_std, **options)

    def _windows_of_frames(self, x: Tensor, hidden: Tensor, noise_std: float) -> Tensor:
        """A clip of any length, the model's frames at a time; frames that are made already count as known."""
        length, total = self.shape[1], x.shape[1]
        if total < length:
            self.note(f"the model makes {length} frames: those after the input's {total} were made and left out")
            short = length - total
            x = torch.cat([x, x.new_zeros(x.shape[0], short, *x.shape[2:])], 1)
            hidden = torch.cat([hidden, hidden.new_ones(short, *hidden.shape[1:])])
        starts = _starts(length, x.shape[1])
        out, open_ = x[None].repeat(self.n, *[1] * x.ndim), hidden.clone()
        for start in starts:
            rows = slice(start, start + length)
            if bool(open_[rows].any()):
                out[:, :, rows] = self._filled(out[:, :, rows], open_[rows], noise_std)
                open_[rows] = False
        if len(starts) > 1:
            self.note(f"{total} frames, {length} at a time: each window goes on from the one before")
        return out[:, :, :total]

    def restore(self, y: Tensor, operator: str, noise_std: float, shape: Sequence[int] | None = None) -> Tensor:
        """Draws of what y was before `operator`, a text of `inverse.named_operator`, and noise.

        Args:
            y: the damaged picture (C', h, w), or clip (C', F', h, w), whose frames are damaged alike; for operators
                that give none, what they measured.
            shape: of the picture, where y does not say it.
        """
        if not bool(y.isfinite().all()):
            raise UserError("the input has values that are not finite")
        if reach_of(operator) is None:
            A = named_operator(operator, shape or self.shape)
            return self._restored(self._sized(A.shape[-2:]), A, y[None], noise_std)
        self._check_kind(y)
        if not self.clips or y.shape[1] <= self.shape[1]:
            return self._restored_picture(y, operator, noise_std)
        length, total = self.shape[1], y.shape[1]
        self.note(f"{total} frames, {length} at a time: each window goes on from the one before")
        out = self._restored_picture(y[:, :length], operator, noise_std)
        for start in _starts(length, total)[1:]:
            known = out[:, :, start:]
            new = y[:, start + known.shape[2] : start + length]
            made = self._restored_picture(new, operator, noise_std, known)
            out = torch.cat([out, made[:, :, known.shape[2] :]], 2)
        return out

    def _restored_picture(self, y: Tensor, operator: str, noise_std: float, known: Tensor | None = None) -> Tensor:
        """Answers for a picture, or a clip of the model's frames or less, in tiles.

        Args:
            known: the first frames of each answer (n, C, k, H, W), where y has those after them.
        """
        factor, step = step_of(operator)
        extent = (y.shape[-2] * factor, y.shape[-1] * factor)
        if self.fit in ("crop", "resize"):
            raise UserError(f"--fit {self.fit} is not for pictures whose damage is known: it would be another one")
        if extent[0] % step or extent[1] % step:
            raise UserError(f"the operator {operator} takes pictures whose sides {step} divides, not {_extent(extent)}")
        model = self._sized(extent)
        assert model.shape is not None
        size = model.shape[-2:]
        places = tiles(extent, size, step)
        if len(places) > _WORST_TILES:
            raise UserError(f"{_extent(extent)} pixels are {len(places):,} tiles of {_extent(size)}: give a part of it")
        if len(places) > 1:
            self.note(f"{len(places)} tiles of {_extent(size)}, each restored by itself and blended")
        parts = [(w, self._tile(model, w, y, operator, extent, noise_std, known)) for w in places]
        return parts[0][1] if len(parts) == 1 else blended(parts, extent)

    def _tile(
        self,
        model: Denoiser,
        place: Window,
        y: Tensor,
        operator: str,
        extent: tuple[int, int],
        noise_std: float,
        known: Tensor | None,
    ) -> Tensor:
        """Answers (n, C, [F,] h, w) for the part of y that the operator made of this window, in the model's frame."""
        factor, reach = step_of(operator)[0], reach_of(operator)
        assert model.shape is not None
        (channels, *frames), (height, width) = model.shape[:-2], model.shape[-2:]
        count = [] if not frames else [y.shape[1]]
        A = named_operator(operator, (channels, *count, place.height, place.width))
        part = Window(place.top // factor, place.left // factor, place.height // factor, place.width // factor).cut(y)
        if tuple(part.shape[-2:]) != tuple(A.measured[-2:]) or part.shape[0] != A.measured[0]:
            raise UserError(
                f"the operator {operator} gives {_counted(A.measured)}, but the input has {_counted(part.shape)}"
            )
        measured = A.read(part[None])
        top, left = (height - place.height) // 2, (width - place.width) // 2
        inside = (top, left, place.height, place.width, model.shape)
        first = 0 if known is None else known.shape[2]
        if A.shape != model.shape:
            A = A @ Cut(*inside, frames=(first, count[0]) if count else None)
        if (height, width) != (place.height, place.width):
            self.note(f"the picture is a part of the {_extent(model.shape)} that the model makes: the rest is unknown")
        if count and first + count[0] < frames[0]:
            self.note(f"the model makes {frames[0]} frames: those after the input's {count[0]} were left out")
        if reach:
            sure = _sure(measured.shape[-2:], place, extent, reach)
            if not bool(sure.all()):
                rounding = A.error
                A = Mask(sure, A.measured) @ _Exact(A)
                noise_std, measured = max(noise_std, rounding), measured * sure
        if known is not None:  # frames that are there already are exact up to their rounding
            A = Stacked(A, Cut(*inside, frames=(0, first)), max(1.0, noise_std / ROUNDING))
            measured = A.joined(measured.expand(self.n, *measured.shape[1:]), place.cut(known))
        made = self._restored(model, A, measured, noise_std)
        made = made[..., top : top + place.height, left : left + place.width]
        return made[:, :, : first + count[0]] if count else made

    def _restored(self, model: Denoiser, A: Operator, y: Tensor, noise_std: float) -> Tensor:
        """n answers for y (1, *), or one for each of y (n, *)."""
        first, self.number = self.number, self.number + self.n
        try:
            A.check(y)
        except ValueError as error:
            raise UserError(str(error)) from None
        options = self._all() | {"first": first, "cond": self._repeated(len(y))}
        if model.space is not None:  # a decoder is far from linear where x0_hat is blurred: small steps follow it
            options.setdefault("method", "dps")
        each = self.n // len(y)
        return model.decode(edit.restore(model, A, y.to(device_of(model)), noise_std, each, **options)).cpu()

    def colourise(self, y: Tensor, noise_std: float) -> Tensor:
        """Colours for a grey picture (1, H, W) or clip (1, F, H, W).

        By "resize" the colours are made at the model's size, and y is kept.
        """
        if self.shape[0] != 3:
            raise UserError(f"the model makes pictures of {_channels(self.shape[0])}: it has no colours to give")
        if self.fit == "crop":
            raise UserError("--fit crop is for masks: all of a grey picture is coloured")
        same = tuple(y.shape[-2:]) == self.shape[-2:]
        if self.fit in ("tile", "native") or same:
            return self.restore(y, "grey", noise_std)
        canvas = Canvas(Window(0, 0, y.shape[-2], y.shape[-1]), (self.shape[-2], self.shape[-1]))
        small = resized(y, canvas.place.height, canvas.place.width)
        self.note(f"the colours were made at {_extent(canvas.place)} and laid over the picture's own luma")
        made = Editor.restore(replace(self, fit="auto", notes=[]), small, "grey", noise_std)
        self.number += self.n
        colours = resized(made, y.shape[-2], y.shape[-1])
        return (colours + y - Grey(tuple(colours.shape[1:])).linear(colours)).clamp(-1, 1)

    def upscale(self, y: Tensor, factor: int | None, kind: str, noise_std: float) -> Tensor:
        """A picture (C, h, w) or clip larger by a whole factor: draws of what `kind` of downsampling makes y of."""
        self._check(y)
        if factor is None:
            factor = self.shape[-1] // y.shape[-1]
            if factor < 2 or (factor * y.shape[-2], factor * y.shape[-1]) != self.shape[-2:]:
                raise UserError(
                    f"{_extent(y.shape)} is no whole fraction of the model's {_extent(self.shape)}: give --factor"
                )
        return self.restore(y, f"{kind}:{factor}", noise_std)

    def sdedit(self, x: Tensor, strength: float) -> Tensor:
        """Variations of x (C, H, W), or of a clip (C, F, H, W) of the model's frames."""
        self._check(x)
        if self.clips and x.shape[1] != self.shape[1]:
            raise UserError(f"the model makes clips of {self.shape[1]} frames: {x.shape[1]} cannot be varied at once")
        if self.fit != "tile":
            model, x = self._framed(x)
            return self._varied(model, x, strength)
        if self.model.space is not None:
            raise UserError("--fit tile is for models of pixels: the latents of tiles do not join")
        places = tiles(x.shape[-2:], self.shape[-2:])
        if min(x.shape[-2] - self.shape[-2], x.shape[-1] - self.shape[-1]) < 0:
            raise UserError(f"tiles of {_extent(self.shape)} are larger than the picture: leave out --fit tile")
        self.note(f"{len(places)} tiles of {_extent(self.shape)}, each varied by itself and blended")
        return blended([(w, self._varied(self.model, w.cut(x), strength)) for w in places], x.shape[-2:])

    def _varied(self, model: Denoiser, x: Tensor, strength: float) -> Tensor:
        first, self.number = self.number, self.number + self.n
        options = self._sampler() | {"guidance": self.guidance, "callback": self.callback, "first": first}
        made = edit.sdedit(model, self._encoded(model, x[None]), strength, self.n, cond=self._repeated(1), **options)
        return model.decode(made).cpu()

    def interpolate(self, a: Tensor, b: Tensor, tolerance: float) -> Tensor:
        """A path of n pictures from a to b, each (C, H, W), at the model's size."""
        if self.clips:
            raise UserError("interpolate is for models of pictures: `ornstein edit inpaint` makes frames in between")
        self._check(a)
        self._check(b)
        model, a = self._framed(a)
        again, b = self._framed(b)
        if model.shape != again.shape:
            raise UserError("the two pictures have different sizes: leave out --fit native")
        options = {name: value for name, value in self._sampler().items() if name not in ("seed", "precision")}
        options["tolerance"] = tolerance
        if self.guidance not in (None, 1):
            raise UserError("a path follows the plain conditional model, which inverts exactly: leave out --guidance")
        ends = (self._encoded(model, each[None]) for each in (a, b))
        return model.decode(edit.interpolate(model, *ends, n=self.n, cond=self._repeated(1), **options)).cpu()

    def _framed(self, x: Tensor) -> tuple[Denoiser, Tensor]:
        """The model and the picture at one size: the network at the picture's, or the centre resized to the model's."""
        if self.fit == "native":
            return self._sized(x.shape[-2:]), x
        height, width = self.shape[-2:]
        if tuple(x.shape[-2:]) == (height, width):
            return self.model, x
        scale = min(x.shape[-2] / height, x.shape[-1] / width)
        h, w = min(x.shape[-2], round(scale * height)), min(x.shape[-1], round(scale * width))
        centre = Window((x.shape[-2] - h) // 2, (x.shape[-1] - w) // 2, h, w)
        self.note(f"the middle {_extent((h, w))} of {_extent(x.shape)} pixels, at the model's {_extent(self.shape)}")
        return self.model, resized(centre.cut(x), height, width)

    def _encoded(self, model: Denoiser, x: Tensor) -> Tensor:
        space: Any = model.space
        x = x.to(device_of(model))
        return x if space is None else space.encode(x)[0]

    def _sized(self, extent: Sequence[int]) -> Denoiser:
        """The model, at another size if that is asked for."""
        if self.fit != "native" or tuple(extent) == self.shape[-2:]:
            return self.model
        if self.clips:
            raise UserError("clips have the size of the training: leave out --fit native")
        self.note(f"the model was trained at {_extent(self.shape)}, not at {_extent(extent)}: it may not hold together")
        if hasattr(self.model, "sized") and self.model.space is not None:
            model: Any = self.model
            return model.sized(*extent)
        if self.model.space is not None:
            raise UserError("the latents of this model belong to one size of pictures: leave out --fit native")
        made = copy.copy(self.model)
        assert self.model.data is not None
        made.data = replace(self.model.data, shape=(self.shape[0], *extent))
        return made

    def _check(self, x: Tensor) -> None:
        if x.shape[0] != self.shape[0]:
            raise UserError(
                f"the input has {_channels(x.shape[0])}, the model makes {_channels(self.shape[0])}: convert it first"
            )
        self._check_kind(x)

    def _check_kind(self, x: Tensor) -> None:
        kinds = {3: "a picture", 4: "a clip"}
        if x.ndim != len(self.shape):
            known = kinds.get(x.ndim, f"an array of {x.ndim} axes")
            raise UserError(f"the input is {known}, the model makes {kinds[len(self.shape)][2:]}s")

    def _sampler(self) -> dict[str, Any]:
        return {name: self.options[name] for name in _SAMPLER if self.options.get(name) is not None}

    def _all(self) -> dict[str, Any]:
        return {k: v for k, v in self.options.items() if v is not None} | {
            "guidance": self.guidance,
            "callback": self.callback,
        }

    def _repeated(self, count: int) -> dict[str, Any]:
        """The conditions of `count` pictures."""
        return {name: value.expand(count, *value.shape[1:]) for name, value in self.cond.items()}


def _starts(length: int, total: int) -> list[int]:
    """Where windows of `length` frames begin in a clip of `total`, at least as many."""
    return sorted({*range(0, total - length, max(1, length // 2)), total - length})


def _sure(size: Sequence[int], place: Window, extent: Sequence[int], reach: int) -> Tensor:
    """0 where a measurement (h, w) of a tile depends on pixels of other tiles, at rims inside the picture; else 1."""
    sure = torch.ones(*size)
    sure[: reach if place.top else 0] = 0
    sure[:, : reach if place.left else 0] = 0
    sure[len(sure) - (reach if place.top + place.height < extent[0] else 0) :] = 0
    sure[:, sure.shape[1] - (reach if place.left + place.width < extent[1] else 0) :] = 0
    return sure


class _Exact(Operator):
    """The linear part of an operator that rounds, for another after it; the rounding counts as noise."""

    def __init__(self, inner: Operator) -> None:
        self.inner, self.shape = inner, inner.shape

    def linear(self, x: Tensor) -> Tensor:
        return self.inner.linear(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.inner.adjoint(y)


def _native(model: Any, y: Tensor, hidden: Tensor) -> Tensor | None:
    """The condition of a network with channels for a mask; None of any other."""
    if not hasattr(model, "inpainting") or not getattr(model, "has_mask_channels", False):
        return None
    mask = hidden.float().expand(len(y), 1, *hidden.shape)
    return model.inpainting(y, mask)


def _extent(size: Any) -> str:
    """Width and height of a shape or a window, as people write them."""
    height, width = (size.height, size.width) if isinstance(size, Window) else tuple(size)[-2:]
    return f"{width}x{height}"


def _channels(n: int) -> str:
    return f"{n} channel{'s' * (n > 1)}"


def _counted(shape: Sequence[int]) -> str:
    return f"{_channels(shape[0])} of {_extent(shape)}"

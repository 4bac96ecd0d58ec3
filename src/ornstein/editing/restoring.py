"""Damage that is known is undone: one picture or clip of any size, in tiles of the model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ornstein import edit
from ornstein.denoiser import Denoiser
from ornstein.editing.setup import Setup, channels, counted, pixels, window_starts
from ornstein.editing.windows import Canvas, Window, blended, resized, tiles
from ornstein.errors import UserError
from ornstein.inverse import Cut, Grey, Mask, Operator, Stacked
from ornstein.inverse.named import named_operator, reach_of, step_of
from ornstein.wrapper import device_of

__all__ = ["ROUNDING", "Restoring"]

ROUNDING = 1 / (127.5 * 12**0.5)
"""The standard deviation of the rounding of 8-bit pixels, in values of [-1, 1]."""

_WORST_TILES = 4096  # of one picture


class Restoring(Setup):
    """Pictures and clips are restored, enlarged and coloured."""

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
            return self._restored(self.sized(A.shape[-2:]), A, y[None], noise_std)
        self.check_kind(y)
        if not self.clips or y.shape[1] <= self.shape[1]:
            return self._restored_picture(y, operator, noise_std)
        length, total = self.shape[1], y.shape[1]
        self.note(f"{total} frames, {length} at a time: each window goes on from the one before")
        out = self._restored_picture(y[:, :length], operator, noise_std)
        for start in window_starts(length, total)[1:]:
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
            raise UserError(f"the operator {operator} takes pictures whose sides {step} divides, not {pixels(extent)}")
        model = self.sized(extent)
        assert model.shape is not None
        size = model.shape[-2:]
        places = tiles(extent, size, step)
        if len(places) > _WORST_TILES:
            raise UserError(f"{pixels(extent)} pixels are {len(places):,} tiles of {pixels(size)}: give a part of it")
        if len(places) > 1:
            self.note(f"{len(places)} tiles of {pixels(size)}, each restored by itself and blended")
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
                f"the operator {operator} gives {counted(A.measured)}, but the input has {counted(part.shape)}"
            )
        measured = A.read(part[None])
        top, left = (height - place.height) // 2, (width - place.width) // 2
        inside = (top, left, place.height, place.width, model.shape)
        first = 0 if known is None else known.shape[2]
        if A.shape != model.shape:
            A = A @ Cut(*inside, frames=(first, count[0]) if count else None)
        if (height, width) != (place.height, place.width):
            self.note(f"the picture is a part of the {pixels(model.shape)} that the model makes: the rest is unknown")
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
        options = self.all_options() | {"first": first, "cond": self.repeated(len(y))}
        if model.space is not None:  # a decoder is far from linear where x0_hat is blurred: small steps follow it
            options.setdefault("method", "dps")
        each = self.n // len(y)
        return model.decode(edit.restore(model, A, y.to(device_of(model)), noise_std, each, **options)).cpu()

    def colourise(self, y: Tensor, noise_std: float) -> Tensor:
        """Colours for a grey picture (1, H, W) or clip (1, F, H, W).

        By "resize" the colours are made at the model's size, and y is kept.
        """
        if self.shape[0] != 3:
            raise UserError(f"the model makes pictures of {channels(self.shape[0])}: it has no colours to give")
        if self.fit == "crop":
            raise UserError("--fit crop is for masks: all of a grey picture is coloured")
        same = tuple(y.shape[-2:]) == self.shape[-2:]
        if self.fit in ("tile", "native") or same:
            return self.restore(y, "grey", noise_std)
        canvas = Canvas(Window(0, 0, y.shape[-2], y.shape[-1]), (self.shape[-2], self.shape[-1]))
        small = resized(y, canvas.place.height, canvas.place.width)
        self.note(f"the colours were made at {pixels(canvas.place)} and laid over the picture's own luma")
        made = Restoring.restore(replace(self, fit="auto", notes=[]), small, "grey", noise_std)
        self.number += self.n
        colours = resized(made, y.shape[-2], y.shape[-1])
        return (colours + y - Grey(tuple(colours.shape[1:])).linear(colours)).clamp(-1, 1)

    def upscale(self, y: Tensor, factor: int | None, kind: str, noise_std: float) -> Tensor:
        """A picture (C, h, w) or clip larger by a whole factor: draws of what `kind` of downsampling makes y of."""
        self.check(y)
        if factor is None:
            factor = self.shape[-1] // y.shape[-1]
            if factor < 2 or (factor * y.shape[-2], factor * y.shape[-1]) != self.shape[-2:]:
                raise UserError(
                    f"{pixels(y.shape)} is no whole fraction of the model's {pixels(self.shape)}: give --factor"
                )
        return self.restore(y, f"{kind}:{factor}", noise_std)


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

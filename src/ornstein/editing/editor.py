"""All edits of one picture or clip of any size."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ornstein import edit
from ornstein.denoiser import Denoiser
from ornstein.editing.filling import Filling
from ornstein.editing.restoring import ROUNDING as ROUNDING
from ornstein.editing.restoring import Restoring
from ornstein.editing.setup import pixels
from ornstein.editing.windows import Window, blended, resized, tiles
from ornstein.errors import UserError
from ornstein.wrapper import device_of

__all__ = ["ROUNDING", "Editor", "check_editable"]


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


class Editor(Filling, Restoring):
    """Fills, restores, enlarges, colours, varies and joins pictures with one model; the settings are `Setup`'s."""

    def sdedit(self, x: Tensor, strength: float) -> Tensor:
        """Variations of x (C, H, W), or of a clip (C, F, H, W) of the model's frames."""
        self.check(x)
        if self.clips and x.shape[1] != self.shape[1]:
            raise UserError(f"the model makes clips of {self.shape[1]} frames: {x.shape[1]} cannot be varied at once")
        if self.fit != "tile":
            model, x = self._framed(x)
            return self._varied(model, x, strength)
        if self.model.space is not None:
            raise UserError("--fit tile is for models of pixels: the latents of tiles do not join")
        places = tiles(x.shape[-2:], self.shape[-2:])
        if min(x.shape[-2] - self.shape[-2], x.shape[-1] - self.shape[-1]) < 0:
            raise UserError(f"tiles of {pixels(self.shape)} are larger than the picture: leave out --fit tile")
        self.note(f"{len(places)} tiles of {pixels(self.shape)}, each varied by itself and blended")
        return blended([(w, self._varied(self.model, w.cut(x), strength)) for w in places], x.shape[-2:])

    def _varied(self, model: Denoiser, x: Tensor, strength: float) -> Tensor:
        first, self.number = self.number, self.number + self.n
        options = self.sampler() | {"guidance": self.guidance, "callback": self.callback, "first": first}
        made = edit.sdedit(model, self._encoded(model, x[None]), strength, self.n, cond=self.repeated(1), **options)
        return model.decode(made).cpu()

    def interpolate(self, a: Tensor, b: Tensor, tolerance: float) -> Tensor:
        """A path of n pictures from a to b, each (C, H, W), at the model's size."""
        if self.clips:
            raise UserError("interpolate is for models of pictures: `ornstein edit inpaint` makes frames in between")
        self.check(a)
        self.check(b)
        model, a = self._framed(a)
        again, b = self._framed(b)
        if model.shape != again.shape:
            raise UserError("the two pictures have different sizes: leave out --fit native")
        options = {name: value for name, value in self.sampler().items() if name not in ("seed", "precision")}
        options["tolerance"] = tolerance
        if self.guidance not in (None, 1):
            raise UserError("a path follows the plain conditional model, which inverts exactly: leave out --guidance")
        ends = (self._encoded(model, each[None]) for each in (a, b))
        return model.decode(edit.interpolate(model, *ends, n=self.n, cond=self.repeated(1), **options)).cpu()

    def _framed(self, x: Tensor) -> tuple[Denoiser, Tensor]:
        """The model and the picture at one size: the network at the picture's, or the centre resized to the model's."""
        if self.fit == "native":
            return self.sized(x.shape[-2:]), x
        height, width = self.shape[-2:]
        if tuple(x.shape[-2:]) == (height, width):
            return self.model, x
        scale = min(x.shape[-2] / height, x.shape[-1] / width)
        h, w = min(x.shape[-2], round(scale * height)), min(x.shape[-1], round(scale * width))
        centre = Window((x.shape[-2] - h) // 2, (x.shape[-1] - w) // 2, h, w)
        self.note(f"the middle {pixels((h, w))} of {pixels(x.shape)} pixels, at the model's {pixels(self.shape)}")
        return self.model, resized(centre.cut(x), height, width)

    def _encoded(self, model: Denoiser, x: Tensor) -> Tensor:
        space: Any = model.space
        x = x.to(device_of(model))
        return x if space is None else space.encode(x)[0]

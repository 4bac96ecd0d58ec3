"""Holes of one picture or clip of any size: which part of it the model sees, and how what it made is set back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein import edit
from ornstein.denoiser import Denoiser
from ornstein.editing.setup import Setup, pixels, window_starts
from ornstein.editing.windows import Canvas, Window, about
from ornstein.errors import UserError
from ornstein.sampling import sample
from ornstein.video import sample_given
from ornstein.wrapper import device_of

__all__ = ["Filling"]

_WHOLE = 8  # times the model's size up to which a picture is filled as a whole
_LATENT_RIM = 1  # latents around a hole that its pixels reach through the encoder


class Filling(Setup):
    """Holes are filled, and what is known is kept."""

    def inpaint(self, x: Tensor, hidden: Tensor, noise_std: float = 0.0) -> Tensor:
        """Fill what is hidden of x (C, H, W) or (C, F, H, W); the rest of it is returned to the bit.

        Args:
            hidden: bool (H, W), or (F, H, W) of a clip.
            noise_std: of the known values; above 0 they are drawn as well, inside the window.
        """
        self.check(x)
        if tuple(hidden.shape) != (*x.shape[1:-2], *x.shape[-2:]):
            raise UserError(f"the mask is {pixels(hidden.shape)}, the input {pixels(x.shape[1:])}: make them equal")
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
        window, model = self._window(hidden), self.sized(hidden.shape[-2:])
        size = model.shape[-2:]  # pyright: ignore[reportOptionalSubscript]
        canvas = Canvas(window, (size[0], size[1]))
        if canvas.scale < 1:
            self.note(f"the window of {pixels(window)} was filled at {pixels(canvas.place)} and enlarged again")
        elif canvas.scale > 1:
            self.note(f"the picture was enlarged to {pixels(canvas.place)} for the model")
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
            cond = self.repeated(len(y) * n)
            options: dict[str, Any] = self.sampler() | {"guidance": self.guidance}
            known = ~hidden.flatten(1).any(1)
            return sample_given(
                model, y.repeat_interleave(n, 0), known, cond=cond, callback=self.callback, first=first, **options
            )
        options = self.all_options() | {"first": first, "cond": self.repeated(len(y))}
        return edit.inpaint(model, y, hidden.float(), n, noise_std=noise_std, **options)

    def _fill_latents(self, model: Denoiser, y: Tensor, hidden: Tensor, n: int, noise_std: float, first: int) -> Tensor:
        """Answers in latents: by the channels that a network for inpainting has, or by projection."""
        native = _native(model, y, hidden)
        if native is not None:
            rows = native.repeat_interleave(n, 0)
            cond = self.repeated(len(y) * n) | {"inpaint": rows, "negative": {"inpaint": rows}}
            options = self.sampler() | {"guidance": self.guidance, "first": first, "callback": self.callback}
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
        options = self.all_options() | {"first": first, "cond": self.repeated(len(y))}
        return edit.inpaint(model, latents, coarse, n, noise_std=noise_std, **options)

    def _windows_of_frames(self, x: Tensor, hidden: Tensor, noise_std: float) -> Tensor:
        """A clip of any length, the model's frames at a time; frames that are made already count as known."""
        length, total = self.shape[1], x.shape[1]
        if total < length:
            self.note(f"the model makes {length} frames: those after the input's {total} were made and left out")
            short = length - total
            x = torch.cat([x, x.new_zeros(x.shape[0], short, *x.shape[2:])], 1)
            hidden = torch.cat([hidden, hidden.new_ones(short, *hidden.shape[1:])])
        starts = window_starts(length, x.shape[1])
        out, open_ = x[None].repeat(self.n, *[1] * x.ndim), hidden.clone()
        for start in starts:
            rows = slice(start, start + length)
            if bool(open_[rows].any()):
                out[:, :, rows] = self._filled(out[:, :, rows], open_[rows], noise_std)
                open_[rows] = False
        if len(starts) > 1:
            self.note(f"{total} frames, {length} at a time: each window goes on from the one before")
        return out[:, :, :total]


def _native(model: Any, y: Tensor, hidden: Tensor) -> Tensor | None:
    """The condition of a network with channels for a mask; None of any other."""
    if not hasattr(model, "inpainting") or not getattr(model, "has_mask_channels", False):
        return None
    mask = hidden.float().expand(len(y), 1, *hidden.shape)
    return model.inpainting(y, mask)

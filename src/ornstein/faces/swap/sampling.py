"""Swaps of aligned crops: the sampler, a denoiser that knows the target, and guidance towards somebody's face."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ornstein as orn
from ornstein import checkpoint
from ornstein.denoiser import Denoiser, Denoises
from ornstein.faces.conditions import lent, scene
from ornstein.faces.identity import IdentityNet, likeness
from ornstein.faces.nets import RelitUNet
from ornstein.faces.photos import SourceFaces
from ornstein.faces.train.objective import IDENTITY
from ornstein.process import Prediction, Process
from ornstein.schedules import Times
from ornstein.solvers import grids
from ornstein.wrapper import Conditioned

# The last step goes from here to the data. What little noise is left below it a net that was trained for hours does not
# take away, and hands on as grain; a prediction of x0 from here has none.
_LAST = 0.25
# Of photographs; beyond it swaps are found to be the source more often, and begin to hold their mouths as the source.
LEND = 0.5
GUIDANCE = 4.0  # of photographs: below it a swap keeps too much of its target


@dataclass(frozen=True)
class FaceModel:
    """A trained swap: the denoiser, and the recogniser whose normalised embeddings it takes.

    guidance: the scale that suits it. A net that is shown a blur of the target has to be drawn towards the source; one
    that was taught with the truth of every swap is where it should be.
    """

    denoiser: Denoiser
    recogniser: IdentityNet

    @classmethod
    def load(cls, folder: str | Path) -> FaceModel:
        """The model in a run folder. Raises UserError where there is none or a part of it is missing."""
        return cls(checkpoint.load(folder), IdentityNet.load(Path(folder) / IDENTITY))

    @property
    def guidance(self) -> float:
        return 1.0 if self.relights else GUIDANCE

    @property
    def relights(self) -> bool:
        """Whether it sees the target as it is, and moves the source's face itself: `RelitUNet`."""
        return isinstance(getattr(self.denoiser, "net", None), RelitUNet)

    @property
    def size(self) -> int:
        return self.denoiser.data.shape[-1] if self.denoiser.data is not None else 0


@dataclass(frozen=True)
class Inside:
    """A denoiser whose x0 is the target outside the mask: at every step the rest of the picture is noised anew.

    x0 = m x0 + (1 - m) y with the mask m (B, 1, H, W) and the target y; the noise is what then remains of x_t.
    Source: Lugmayr et al. 2022 (RePaint, arXiv:2201.09865), eq. 8, with the x0 of the known pixels in place of a draw.
    """

    denoiser: Denoises
    target: Tensor
    mask: Tensor

    @property
    def process(self) -> Process:
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Times, /, **cond: Any) -> Prediction:
        guess = self.denoiser(x_t, t, **cond)
        return _with_x0(guess, torch.lerp(self.target.to(x_t), guess.x0, self.mask.to(x_t)))


@dataclass(frozen=True)
class Between:
    """A denoiser between the target's own identity and the source's: x0 = own + strength (source - own).

    `own` are the conditions of the target's own face. Strength 0 keeps it, 1 is the source's, beyond 1 it goes further
    away from the target's. Without conditions it is the denoiser.
    """

    denoiser: Denoises
    own: dict[str, Tensor]
    strength: float

    @property
    def process(self) -> Process:
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Times, /, **cond: Any) -> Prediction:
        source = self.denoiser(x_t, t, **cond)
        if not cond:
            return source
        own = self.denoiser(x_t, t, **self.own)
        mixed = {name: torch.lerp(getattr(own, name), getattr(source, name), self.strength) for name in ("x0", "eps")}
        return replace(source, **mixed)


@dataclass(frozen=True)
class Towards:
    """A denoiser whose x0 is moved, inside the mask, so that a recogniser finds it more like `identity` (B, K).

    `steps` steps up the gradient of the cosine, each of root mean square `scale` a^2 over the mask: at high noise,
    where x0 is a blur, there is nothing to recognise. Only the recogniser is differentiated, not the denoiser.
    Source: Kim et al. 2022 (DiffFace, arXiv:2212.13344), eq. 9, the identity guidance.
    """

    denoiser: Denoises
    recogniser: IdentityNet
    identity: Tensor
    mask: Tensor
    scale: float
    steps: int = 1

    @property
    def process(self) -> Process:
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Times, /, **cond: Any) -> Prediction:
        guess = self.denoiser(x_t, t, **cond)
        a, _ = self.process.coefficients(t, x_t)
        x0 = guess.x0
        for _ in range(self.steps):
            with torch.enable_grad():
                moved = x0.detach().requires_grad_()
                like = likeness(self.recogniser(moved), self.identity).sum()
                (slope,) = torch.autograd.grad(like, moved)
            slope = slope * self.mask
            share = self.mask.square().mean((1, 2, 3), keepdim=True)
            size = (slope.square().mean((1, 2, 3), keepdim=True) / share.clamp(min=1e-6)).sqrt()
            x0 = x0 + self.scale * a.square() * slope / size.clamp(min=1e-12)
        return _with_x0(guess, x0)


def _with_x0(guess: Prediction, x0: Tensor) -> Prediction:
    """The prediction of another x0, and of the noise that is left of x_t with it."""
    process = guess.process
    a, s = process.coefficients(guess.t, guess.x_t)
    # at t = 0 there is no noise, and the prediction is x_t whatever it says
    eps = torch.where(s > 0, (guess.x_t - a * x0) / s.clamp(min=1e-12), guess.eps)
    return replace(guess, x0=x0, eps=eps)


@torch.no_grad()
def swap_crops(
    model: FaceModel,
    target: Tensor,
    mask: Tensor,
    landmarks: Tensor,
    source: SourceFaces,
    *,
    steps: int = 20,
    guidance: float | None = None,
    strength: float = 1.0,
    towards: float = 0.0,
    lend: float = LEND,
    own: Tensor | None = None,
    start: Tensor | None = None,
    seed: int = 0,
    first: int = 0,
    batch: int = 64,
) -> Tensor:
    """Target crops (B, 3, H, W) in [-1, 1] with their faces swapped: the same outside the mask to the last bit.

    Args:
        mask: (B, 1, H, W) in [0, 1], where the target's face is.
        landmarks: (B, K, 2) of the target, in pixels of the crop.
        source: B faces, or one for all; the identities are normalised as the recogniser's.
        steps: of DDIM.
        guidance: scale of classifier-free guidance, 1 for none; the target stays known to both sides of it. The
            model's own where it is not given.
        strength: 0 is the target's own identity, 1 the source's, beyond it further away from the target's.
        towards: root mean square, in units of the pixels, of a step of identity guidance; 0 for none.
        lend: share of the blurred face's features that are the source's, less where strength is below 1, and none at 0:
            see `conditions.lent`. A `RelitUNet` sees the target as it is, and is lent nothing.
        own: (B, K), the target's own identity for `strength`; by the model's recogniser where it is not given.
        start: (B, 3, H, W), the state at t = 1; one noise for all frames of a clip, say.
        seed, first: without it, sample i has the noise of (seed, first + i), whatever the batch.

    Raises ValueError where the shapes do not fit.
    """
    b = len(target)
    if len(source) not in (1, b):
        raise ValueError(f"{len(source)} sources for {b} targets: give one each, or one for all")
    source = source.repeat(b) if len(source) == 1 else source
    if strength == 1:
        own = None
    elif own is None:
        own = model.recogniser.embed(target)
    schedule = model.denoiser.process.schedule
    scale = model.guidance if guidance is None else guidance
    hidden = not model.relights
    grid = [1.0, 0.0] if steps == 1 else [*grids.make("logistic", schedule, (1.0, _LAST), steps - 1), 0.0]
    out = []
    for low in range(0, b, batch):
        rows = slice(low, min(low + batch, b))
        y, m, points, who = target[rows], mask[rows], landmarks[rows], source.select(rows)
        known = who.known(points, moved=hidden)
        shown = y
        if hidden:
            shown = torch.lerp(y, lent(y, known["appearance"], lend * min(strength, 1.0)), m)
        # filled in below the guidance, which drops the identity and keeps what is shown of the target
        d: Denoises = Conditioned(model.denoiser, {"scene": scene(shown, m, points, hidden=hidden)})
        if own is not None:
            d = Between(d, SourceFaces(own[rows], y, m, points).known(points, moved=hidden), strength)
        if scale != 1:
            d = orn.guidance.ClassifierFree(d, scale)
        d = Inside(d, y, m)
        if towards > 0:
            d = Towards(d, model.recogniser, who.identity, m, towards)
        begin = None if start is None else start[rows]
        x = orn.sample(d, tuple(y.shape), "ddim", grid=grid, seed=seed, cond=known, start=begin, first=first + low)
        # rounding is left outside the mask, and a mask of 0 is a promise
        out.append(torch.where(m > 0, x.clamp(-1, 1), y))
    return torch.cat(out)

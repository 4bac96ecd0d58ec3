"""Swaps of aligned crops: the sampler, a denoiser that knows the target, and guidance towards a source."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ornstein as orn
from ornstein import checkpoint
from ornstein.denoiser import Denoiser, Denoises
from ornstein.faces.conditions import SHAPED, blended_features, laid_on, scene
from ornstein.faces.identity import IDENTITY, Recognises, likeness, load_identity
from ornstein.faces.nets import FaceUNet, RelitUNet
from ornstein.faces.photos import SourceFaces
from ornstein.faces.shape import onto
from ornstein.process import Prediction
from ornstein.randomness import normal
from ornstein.schedules import Times
from ornstein.solvers import grids
from ornstein.wrapper import Conditioned, Wrapper, device_of

__all__ = [
    "GUIDANCE",
    "LEND",
    "LEND_SHAPED",
    "ONSET",
    "SHAPE",
    "Between",
    "FaceModel",
    "Inside",
    "Towards",
    "swap_crops",
]

# The last step goes from here to the data: a network that was trained for hours does not remove the little noise that
# is left below, and passes it on as grain; a prediction of x0 from here has none.
_LAST = 0.25
LEND = 0.5
"""The default blend weight of the source's blurred features, for photographs. Above it, swaps are recognised as the
source more often, and begin to copy the source's mouth."""
ONSET = 0.0
"""The default time at which a model that is `shaped` begins, with the source's face laid on: of 0, 0.25 and 0.5 the
laid-on face alone was recognised most often with the small networks that were measured (docs/faces.md)."""
SHAPE = 0.5
"""The default share of the source's own shape of the face."""
LEND_SHAPED = 1.0
"""The default blend weight of the laid-on face's blur, for a model that is `shaped`: the light is the source's then, in
the target's colours and contrast. Below it the target's light comes back, and with it the target's face."""
GUIDANCE = 4.0
"""The default guidance scale for photographs: below it a swap keeps too much of its target."""


@dataclass(frozen=True)
class FaceModel:
    """A trained swap: the denoiser, and the recogniser whose normalised embeddings it takes."""

    denoiser: Denoiser
    recogniser: Recognises

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> FaceModel:
        """The model in a run folder, on `device`.

        Raises:
            UserError: there is no model, or a part of it is missing.
        """
        return cls(checkpoint.load(folder), load_identity(Path(folder) / IDENTITY)).to(device)

    def to(self, device: str | torch.device) -> FaceModel:
        """The model with its networks moved to `device`."""
        return FaceModel(self.denoiser.to(device), self.recogniser.to(device))

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return device_of(self.denoiser)

    @property
    def guidance(self) -> float:
        """The guidance scale that suits the model.

        A network that sees a blur of the target must be drawn towards the source; one that was trained with the truth
        of every swap needs no guidance.
        """
        return 1.0 if self.relights else GUIDANCE

    @property
    def relights(self) -> bool:
        """Whether it sees the target as it is, and moves the source's face itself: `RelitUNet`."""
        return isinstance(getattr(self.denoiser, "net", None), RelitUNet)

    @property
    def shaped(self) -> bool:
        """Whether it needs the points of `ornstein.faces.shape` of source and target."""
        net = getattr(self.denoiser, "net", None)
        return isinstance(net, FaceUNet) and net.config["scene"] == SHAPED

    @property
    def size(self) -> int:
        """The side of its crops in pixels, 0 if it is unknown."""
        return self.denoiser.data.shape[-1] if self.denoiser.data is not None else 0


@dataclass(frozen=True)
class Inside(Wrapper):
    """A denoiser whose x0 is the target outside the mask: at every step the rest of the picture is noised again.

    x0 = m x0 + (1 - m) y with the mask m (B, 1, H, W) and the target y; the noise is what then remains of x_t.
    Source: Lugmayr et al. 2022 (RePaint, arXiv:2201.09865), eq. 8, with the x0 of the known pixels in place of a draw.
    """

    denoiser: Denoises
    target: Tensor
    mask: Tensor

    def __call__(self, x_t: Tensor, t: Times, /, **cond: Any) -> Prediction:
        guess = self.denoiser(x_t, t, **cond)
        return _with_x0(guess, torch.lerp(self.target.to(x_t), guess.x0, self.mask.to(x_t)))


@dataclass(frozen=True)
class Between(Wrapper):
    """A denoiser between the target's identity and the source's: x0 = target + strength (source - target).

    `target` are the conditions of the target's own face. Strength 0 keeps it, 1 is the source's, beyond 1 the result
    is further from the target's. Without conditions it is the inner denoiser.
    """

    denoiser: Denoises
    target: dict[str, Tensor]
    strength: float

    def __call__(self, x_t: Tensor, t: Times, /, **cond: Any) -> Prediction:
        source = self.denoiser(x_t, t, **cond)
        if not cond:
            return source
        target = self.denoiser(x_t, t, **{name: value.to(x_t.device) for name, value in self.target.items()})
        mixed = {n: torch.lerp(getattr(target, n), getattr(source, n), self.strength) for n in ("x0", "eps")}
        return replace(source, **mixed)


@dataclass(frozen=True)
class Towards(Wrapper):
    """A denoiser whose x0 is moved, inside the mask, so that a recogniser finds it more like `identity` (B, K).

    The recogniser cuts the face out along `landmarks` (B, K, 2), without them along the template's.
    `steps` steps up the gradient of the cosine, each of root mean square `scale` a^2 over the mask: at high noise,
    where x0 is a blur, there is nothing to recognise. Only the recogniser is differentiated, not the denoiser.
    Source: Kim et al. 2022 (DiffFace, arXiv:2212.13344), eq. 9, the identity guidance.
    """

    denoiser: Denoises
    recogniser: Recognises
    identity: Tensor
    mask: Tensor
    scale: float
    steps: int = 1
    landmarks: Tensor | None = None

    def __call__(self, x_t: Tensor, t: Times, /, **cond: Any) -> Prediction:
        guess = self.denoiser(x_t, t, **cond)
        a, _ = self.process.coefficients(t, x_t)
        x0, identity, mask = guess.x0, self.identity.to(x_t), self.mask.to(x_t)
        for _ in range(self.steps):
            with torch.enable_grad():
                moved = x0.detach().requires_grad_()
                like = likeness(self.recogniser(moved, self.landmarks), identity).sum()
                (slope,) = torch.autograd.grad(like, moved)
            slope = slope * mask
            share = mask.square().mean((1, 2, 3), keepdim=True)
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
    lend: float | None = None,
    points: Tensor | None = None,
    shape: float = SHAPE,
    onset: float | None = None,
    own: Tensor | None = None,
    start: Tensor | None = None,
    seed: int = 0,
    first: int = 0,
    batch: int = 64,
    precision: str | torch.dtype | None = None,
) -> Tensor:
    """Target crops with their faces swapped: the same outside the mask to the last bit.

    The arguments may be on any device; the result is on the model's.

    Args:
        model: the denoiser and the recogniser.
        target: (B, 3, H, W) in [-1, 1].
        mask: (B, 1, H, W) in [0, 1], where the target's face is.
        landmarks: (B, K, 2) of the target, in pixels of the crop.
        source: B faces, or one for all; the identities are normalised as the recogniser's.
        steps: of DDIM.
        guidance: scale of classifier-free guidance, 1 for none; the target stays known to both sides of it. None is
            the scale that suits the model.
        strength: 0 is the target's own identity, 1 the source's, beyond it further from the target's.
        towards: root mean square, in units of the pixels, of a step of identity guidance; 0 for none.
        lend: blend weight of the source's blurred features, smaller if `strength` is below 1, and 0 at 0: see
            `conditions.blended_features`. For a model that is `shaped` all of the blur is
            blended, with that of the laid-on face; None is `LEND`, or `LEND_SHAPED`. A `RelitUNet` sees the target as
            it is, and ignores it.
        points: (B, shape.POINTS, 3) of the target, for a model that is `shaped`; the source has them too then.
        onset: the time from which on a shaped model paints: the source's face is laid on by its shape and noised to
            this time first (Meng et al. 2022, SDEdit). 1 begins with noise, 0 is the laid-on face; None is `ONSET`.
        shape: share of the source's own shape in the face, the rest is the target's: see `shape.onto`.
        own: (B, K), the target's own identity for `strength`; None is what the model's recogniser finds.
        start: (B, 3, H, W), the state at t = 1, for example one noise for all frames of a clip. Without it sample i has
            the noise of (seed, first + i), whatever the batch.
        seed, first: see `start`.
        batch: crops that go through the network at once.
        precision: see `SampleRequest`.

    Returns:
        (B, 3, H, W) in [-1, 1].

    Raises:
        ValueError: the shapes do not fit.
    """
    b, device = len(target), model.device
    if len(source) not in (1, b):
        raise ValueError(f"{len(source)} sources for {b} targets: give one each, or one for all")
    if model.shaped and (points is None or source.points is None):
        raise ValueError("this model needs the points of the faces of source and target: see ornstein.faces.shape")
    target, mask, landmarks = target.to(device), mask.to(device), landmarks.to(device)
    source = (source.repeat(b) if len(source) == 1 else source).to(device)
    if strength == 1:
        own = None
    elif own is None:
        own = model.recogniser.embed(target, landmarks)
    schedule = model.denoiser.process.schedule
    scale = model.guidance if guidance is None else guidance
    hidden = not model.relights
    lent = (LEND_SHAPED if model.shaped else LEND) if lend is None else lend
    first_time = (ONSET if onset is None else onset) if model.shaped else 1.0
    last = min(_LAST, first_time / 2)
    grid = [first_time, 0.0]
    if steps > 1 and first_time > 0:
        grid = [*grids.make("logistic", schedule, (first_time, last), steps - 1), 0.0]
    out = []
    for low in range(0, b, batch):
        rows = slice(low, min(low + batch, b))
        y, m, five, who = target[rows], mask[rows], landmarks[rows], source.select(rows)
        there = here = None
        if model.shaped and points is not None and who.points is not None:
            here = points[rows].to(device)
            there = onto(who.points, here, shape * min(strength, 1.0))
        known = who.known(five, hidden, there, m)
        shown, laid = _shown(y, m, None if not hidden else known["appearance"], there is not None, lent, strength)
        if first_time == 0:
            out.append(torch.where(m > 0, laid.clamp(-1, 1), y))
            continue
        # filled in below the guidance, which drops the identity and keeps what is shown of the target
        d: Denoises = Conditioned(model.denoiser, {"scene": scene(shown, m, five, hidden=hidden, points=there)})
        if own is not None:
            mine = SourceFaces(own[rows].to(device), y, m, five, here)
            d = Between(d, mine.known(five, hidden, there, m), strength)
        if scale != 1:
            d = orn.guidance.ClassifierFree(d, scale)
        d = Inside(d, y, m)
        if towards > 0:
            d = Towards(d, model.recogniser, who.identity, m, towards, landmarks=five)
        z = None if start is None else start[rows].to(device)
        if first_time < 1:
            numbers = torch.arange(first + low, first + low + len(y))
            z = normal(tuple(y.shape), seed, numbers, 0, device=device) if z is None else z
            z = model.denoiser.process.add_noise(laid, first_time, z)
        x = orn.sample(
            d,
            tuple(y.shape),
            "ddim",
            grid=grid,
            seed=seed,
            cond=known,
            start=z,
            first=first + low,
            batch=len(y),
            precision=precision,
        )
        # rounding is left outside the mask, and a mask of 0 is a promise
        out.append(torch.where(m > 0, x.clamp(-1, 1), y))
    return torch.cat(out)


def _shown(
    target: Tensor, mask: Tensor, face: Tensor | None, shaped: bool, lent: float, strength: float
) -> tuple[Tensor, Tensor]:
    """The picture whose blur a network is shown, and the one in which it begins where it is told a shape.

    Args:
        target, mask: of `swap_crops`.
        face: the source's `appearance`; None for a network that sees the target as it is.
        shaped: the appearance was moved by the shape of the face.
        lent, strength: of `swap_crops`.
    """
    share = min(strength, 1.0)
    if face is None:
        return target, target
    if shaped:
        laid = laid_on(target, mask, face)
        return torch.lerp(target, laid, lent * share), torch.lerp(target, laid, share)
    return torch.lerp(target, blended_features(target, face, lent * share), mask), target

"""Evaluation of swaps in the face world against the truth: error, identity, pose and expression."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.evaluation.distortion import psnr, ssim
from ornstein.faces.align import Similarity, warp
from ornstein.faces.conditions import POINTS
from ornstein.faces.swap.colour import match_colour
from ornstein.faces.world.dataset import Cases
from ornstein.faces.world.parameters import ATTRIBUTES
from ornstein.faces.world.views import Rendered, rendered

__all__ = [
    "ANGLES",
    "EXPRESSION",
    "Attributes",
    "WorldScore",
    "evaluate",
    "nearest_people",
    "noisy",
    "pasted",
]

ANGLES = ("yaw", "pitch", "roll")
EXPRESSION = ("mouth_open", "smile", "eyes_closed", "brows_raised")
# The step of the derivative by each attribute, and its prior deviation: for a blur, or a picture of nobody, the
# estimate is drawn to 0.
_STEPS = dict.fromkeys(ANGLES, 0.05) | dict.fromkeys(EXPRESSION, 0.1)
_PRIOR = dict.fromkeys(ANGLES, 0.15) | dict.fromkeys(EXPRESSION, 0.4)
_AT_ONCE = 800  # renders
_NOISE = 0.15  # standard deviation of a pixel that no attribute explains
_WINDOW = 7  # pixels a side, of SSIM


def _image(out: Rendered) -> tuple[Tensor]:
    return (out.image,)


@dataclass(frozen=True)
class WorldScore:
    """The scores of a method, means over the cases.

    psnr: dB, and ssim: inside the truth's face. top1: share of pictures that are nearest to a render of the source
    among all people of the cases. angle: root mean square difference of yaw, pitch and roll from the target's, in
    degrees. expression: the same of mouth, smile, eyes and brows, as a share of their range.
    """

    psnr: float
    ssim: float
    top1: float
    angle: float
    expression: float


def nearest_people(
    methods: Mapping[str, Tensor], cases: Cases, tell: Callable[[float], object] = lambda done: None
) -> dict[str, Tensor]:
    """The person of the cases that each picture is most like, (B,), by method.

    Everybody is rendered in the state of the target; the least squared error over the pixels that a swap may paint
    wins. The renders serve all methods. `tell` is called with the fraction that is done.
    """
    n, size = len(cases.people), cases.truth.image.shape[-1]
    nearest: dict[str, list[Tensor]] = {name: [] for name in methods}
    group = max(1, _AT_ONCE // n)
    for low in range(0, n, group):
        states = cases.states[low : low + group]
        (everybody,) = rendered(cases.people.repeat(len(states), 1), states.repeat_interleave(n, 0), size, _image)
        everybody = everybody.unflatten(0, (len(states), n))
        for name, pictures in methods.items():
            for i, people in enumerate(everybody, low):
                error = ((people - pictures[i]).square() * cases.mask[i]).sum((1, 2, 3))
                nearest[name].append(error.argmin())
        tell((low + len(states)) / n)
    return {name: torch.stack(each) for name, each in nearest.items()}


class Attributes:
    """Estimates, to first order, of the error of pose and expression in pictures.

    With J the derivative of the render of `people` (B, K) by the attributes, at those of the target, the d that
    minimises |x - render - J d|^2 / s^2 + |d / prior|^2 over the truth's face.
    """

    def __init__(self, people: Tensor, cases: Cases) -> None:
        self.weight = cases.truth.mask.sqrt()
        names, rows = list(_STEPS), []
        for name, step in _STEPS.items():
            for sign in (1, -1):
                states = cases.states.clone()
                states[:, ATTRIBUTES.index(name)] += sign * step
                rows.append(states)
        every = torch.cat([*rows, cases.states])
        size = cases.truth.image.shape[-1]
        (pictures,) = rendered(people.repeat(len(rows) + 1, 1), every, size, _image)
        pictures = pictures.unflatten(0, (len(rows) + 1, -1))
        pictures = (pictures * self.weight).flatten(2)
        self.truth = pictures[-1]
        steps = torch.tensor([_STEPS[name] for name in names])
        self.slopes = ((pictures[:-1:2] - pictures[1:-1:2]) / (2 * steps[:, None, None])).permute(1, 2, 0)
        prior = torch.tensor([_PRIOR[name] for name in names])
        self.normal = self.slopes.mT @ self.slopes / _NOISE**2 + torch.diag(prior**-2)

    def errors(self, images: Tensor) -> Tensor:
        """d of images (B, 3, H, W): (B, 7), in radians and shares of the range."""
        rest = (images * self.weight).flatten(1) - self.truth
        return torch.linalg.solve(self.normal, (self.slopes.mT @ rest[..., None])[..., 0] / _NOISE**2)


def pasted(cases: Cases) -> Tensor:
    """The baseline: the source's face aligned with the target's by five landmarks, colour-matched, and pasted."""
    out = []
    size = cases.target.image.shape[-1]
    for i, target in enumerate(cases.target.image):
        move = Similarity.fit(cases.source.landmarks[i, :POINTS], cases.target.landmarks[i, :POINTS])
        face = warp(cases.source.image[i], move, (size, size))
        mask = cases.target.mask[i] * warp(cases.source.mask[i], move, (size, size), "zero").clamp(0, 1)
        if float(mask.sum()) > 0:
            face = 2 * match_colour((face + 1) / 2, (target + 1) / 2, mask) - 1
        out.append(torch.lerp(target, face, mask))
    return torch.stack(out).clamp(-1, 1)


def noisy(truth: Tensor, seed: int = 0) -> Tensor:
    """The truth with noise of one 8-bit level, rounded to 8 bits: as near as a picture file gets."""
    draw = torch.Generator().manual_seed(seed)
    levels = (truth + 1) * 127.5 + torch.randn(truth.shape, generator=draw)
    return levels.round().clamp(0, 255) / 127.5 - 1


def evaluate(cases: Cases, swaps: Tensor, tell: Callable[[float], object] = lambda done: None) -> dict[str, WorldScore]:
    """The scores of the swaps (N, 3, H, W) in [-1, 1] and of the three baselines, by name.

    `tell` is called with the fraction that is done.
    """
    methods = {
        "swap": swaps.cpu(),
        "target as it is": cases.target.image,
        "source pasted": pasted(cases),
        "truth, 8-bit noise": noisy(cases.truth.image),
    }
    nearest = nearest_people(methods, cases, tell)
    truly = torch.arange(len(cases.people))
    # the target as it is shows another person, in exactly its own pose
    targets, sources = Attributes(cases.targets, cases), Attributes(cases.people, cases)
    out = {}
    for name, pictures in methods.items():
        wrong = (targets if name == "target as it is" else sources).errors(pictures)
        angles, expression = wrong[:, : len(ANGLES)], wrong[:, len(ANGLES) :]
        out[name] = WorldScore(
            psnr=float(psnr(pictures, cases.truth.image, cases.truth.mask).mean()),
            ssim=float(ssim(pictures, cases.truth.image, cases.truth.mask, _WINDOW).mean()),
            top1=float((nearest[name] == truly).float().mean()),
            angle=math.degrees(float(angles.square().mean().sqrt())),
            expression=float(expression.square().mean().sqrt()),
        )
    return out

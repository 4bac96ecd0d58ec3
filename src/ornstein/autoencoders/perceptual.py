"""A distance between images in features: random ones by a fixed seed, or those of a TorchScript file."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.errors import UserError
from ornstein.randomness import normal

_FILTERS = 24  # of each octave
_SIDE = 3  # of a filter, in pixels of its octave
_LEAST = 8  # pixels: an octave at least this wide has another one below it
_SEED, _STREAM = 0, 0x50455243

# (x, x_hat) -> (B,)
Distance = Callable[[Tensor, Tensor], Tensor]


def open_perceptual(which: str) -> Distance:
    """The distance of that name: "random", or the path of a TorchScript file. UserError where it is neither."""
    return random_features if which == "random" else script_features(Path(which))


def random_features(x: Tensor, x_hat: Tensor) -> Tensor:
    """The mean absolute difference of random filter responses over the octaves of the images, (B,).

    On each octave, halved in size down to 4 pixels, 24 filters of 3x3 pixels, rectified; each sees no constant and has
    norm 1. Nothing is learned, nothing downloaded: texture at every scale counts, what it shows does not.
    """
    total = x.new_zeros(len(x))
    octave = 0
    both = torch.cat([x, x_hat])
    while True:
        padded = F.pad(both, (_SIDE // 2,) * 4, mode="reflect")
        a, b = F.leaky_relu(F.conv2d(padded, _filters(x, octave)), 0.2).chunk(2)
        total = total + (a - b).abs().flatten(1).mean(1)
        if min(both.shape[2:]) < _LEAST:
            return total / (octave + 1)
        both, octave = F.avg_pool2d(both, 2), octave + 1


def _filters(x: Tensor, octave: int) -> Tensor:
    shape = (_FILTERS, x.shape[1], _SIDE, _SIDE)
    w = normal(shape, _SEED, torch.arange(_FILTERS), octave, _STREAM, torch.float64)
    w = w - w.mean((1, 2, 3), keepdim=True)
    return (w / w.square().sum((1, 2, 3), keepdim=True).sqrt()).to(x)


def script_features(path: Path) -> Distance:
    """||f(x) - f(x_hat)||^2 / D with the features f of a TorchScript file, (B,).

    f takes float32 images (B, C, H, W) in [-1, 1] and gives (B, ...), D numbers a sample, through which a gradient
    passes. A TorchScript file is a program: open only what you trust. Raises UserError where there is no such file, it
    is no TorchScript, does not take these images, or gives no gradient.
    """
    if not path.is_file():
        raise UserError(f"unknown perceptual loss {str(path)!r}: give random or the path of a TorchScript file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the files that there are stay what they are
            module: Any = torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"{path} cannot be opened as TorchScript: {str(error).strip().splitlines()[0][:200]}"
        ) from error

    for parameter in module.parameters():
        parameter.requires_grad_(False)

    def distance(x: Tensor, x_hat: Tensor) -> Tensor:
        module.to(x.device)
        try:
            with torch.no_grad():
                target = module(x)
            features = module(x_hat)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1][:200]
            raise UserError(f"{path} does not take images of {tuple(x.shape[1:])}: {reason}") from error
        if x_hat.requires_grad and not features.requires_grad:
            raise UserError(f"{path} passes no gradient to its images: it cannot serve as a perceptual loss")
        return (features - target).flatten(1).square().mean(1)

    return distance

"""Perceptual distances between images: in random filter responses, or in features of a TorchScript file."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.errors import UserError
from ornstein.randomness import normal

__all__ = [
    "FILTERS",
    "Distance",
    "error_line",
    "octave_statistics",
    "octaves",
    "open_perceptual",
    "open_script",
    "random_features",
    "responses",
    "script_features",
]

FILTERS = 24  # of each octave
_SIDE = 3  # of a filter, in pixels of its octave
_LEAST = 8  # pixels: an octave at least this wide has another one below it
_THUMBNAIL = 4
_SEED, _STREAM = 0, 0x50455243

# (x, x_hat) -> (B,)
Distance = Callable[[Tensor, Tensor], Tensor]


def open_perceptual(which: str) -> Distance:
    """Open the distance named "random", or that of a TorchScript file. Raises UserError if it is neither."""
    return random_features if which == "random" else script_features(Path(which))


def random_features(x: Tensor, x_hat: Tensor) -> Tensor:
    """Mean absolute difference of rectified random filter responses over the octaves of the images, (B,).

    Nothing is learned or downloaded: the distance sees texture at every scale, but not what an image shows.
    """
    total = x.new_zeros(len(x))
    count = 0
    for octave, both in octaves(torch.cat([x, x_hat])):
        a, b = F.leaky_relu(responses(both, octave), 0.2).chunk(2)
        total = total + (a - b).abs().flatten(1).mean(1)
        count += 1
    return total / count


def octave_statistics(images: Tensor) -> Tensor:
    """What images (B, C, H, W) look like as a set, (B, D): differentiable features for distances of distributions.

    The picture at 4x4 pixels, and the mean and standard deviation over the positions of each rectified response on
    every octave.
    """
    parts = [F.adaptive_avg_pool2d(images, _THUMBNAIL).flatten(1)]
    for octave, part in octaves(images):
        response = F.leaky_relu(responses(part, octave), 0.2).flatten(2)
        parts += [response.mean(2), response.std(2)]
    return torch.cat(parts, 1)


def octaves(images: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield (octave, images): images (B, C, H, W), halved in size down to 4 pixels."""
    octave = 0
    while True:
        yield octave, images
        if min(images.shape[2:]) < _LEAST:
            return
        images, octave = F.avg_pool2d(images, 2), octave + 1


def responses(images: Tensor, octave: int, stream: int = _STREAM) -> Tensor:
    """Responses (B, 24, H, W) of images (B, C, H, W) to the random 3x3 filters of an octave.

    Each filter sums to 0 and has norm 1. The weights are addressed by (stream, filter, octave), so they are the same on
    every machine.
    """
    shape = (FILTERS, images.shape[1], _SIDE, _SIDE)
    w = normal(shape, _SEED, torch.arange(FILTERS), octave, stream, torch.float64)
    w = w - w.mean((1, 2, 3), keepdim=True)
    w = (w / w.square().sum((1, 2, 3), keepdim=True).sqrt()).to(images)
    return F.conv2d(F.pad(images, (_SIDE // 2,) * 4, mode="reflect"), w)


def script_features(path: Path) -> Distance:
    """||f(x) - f(x_hat)||^2 / D in the features f of a TorchScript file, (B,).

    f takes float32 images (B, C, H, W) in [-1, 1] and returns (B, ...), D numbers a sample. A gradient must pass
    through it. A TorchScript file is a program: open only what you trust.

    Raises:
        UserError: there is no such file, it is not TorchScript, does not take these images, or passes no gradient.
    """
    module = open_script(path, "perceptual loss", "random")
    for parameter in module.parameters():
        parameter.requires_grad_(False)

    def distance(x: Tensor, x_hat: Tensor) -> Tensor:
        module.to(x.device)
        try:
            with torch.no_grad():
                target = module(x)
            features = module(x_hat)
        except RuntimeError as error:
            raise UserError(f"{path} does not take images of {tuple(x.shape[1:])}: {error_line(error, -1)}") from error
        if x_hat.requires_grad and not features.requires_grad:
            raise UserError(f"{path} passes no gradient to its images: it cannot serve as a perceptual loss")
        return (features - target).flatten(1).square().mean(1)

    return distance


def open_script(path: Path, kind: str, names: str, device: torch.device | str = "cpu") -> Any:
    """Load a TorchScript module for evaluation.

    Args:
        path: the file.
        kind, names: for the error: what is unknown if there is no such file, and which names are known.
        device: where to load it.

    Raises:
        UserError: there is no such file, or it is not TorchScript.
    """
    if not path.is_file():
        raise UserError(f"unknown {kind} {str(path)!r}: give {names} or the path of a TorchScript file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit: existing files stay in that format
            return torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, OSError) as error:
        raise UserError(f"{path} cannot be opened as TorchScript: {error_line(error)}") from error


def error_line(error: BaseException, line: int = 0) -> str:
    """One line of an error message; a TorchScript program's own error has the reason in its last line, -1."""
    lines = [each.strip() for each in str(error).splitlines() if each.strip()]
    return lines[line][:200] if lines else type(error).__name__

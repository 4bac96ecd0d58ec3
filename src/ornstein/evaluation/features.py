"""Features in which samples are compared with real images: pixels, random convolutions, or any TorchScript file.

A distance between sets of images is only as good as the features that it is measured in, and says nothing without
their name: each kind has one that belongs beside every figure.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ornstein.data import to_unit
from ornstein.errors import UserError
from ornstein.randomness import normal

_BATCH = 128
_FILTERS = 24  # of each octave
_WIDTH = 3  # of a filter, in pixels of its octave
_LEAST_SIDE = 8  # an octave at least this wide has another one below it
_THUMBNAIL = 4
_SEED = 0
_STREAM = 0x46454154

# About one grey level: a feature that real images share is not blown up by what rounding leaves of its spread.
_LEAST_SPREAD = 0.01


@dataclass(frozen=True)
class Features:
    """A map from uint8 images (N, C, H, W) to features (N, D), and the name to print beside what is measured in it."""

    name: str
    compute: Callable[[Tensor], Tensor]

    def __call__(self, images: Tensor) -> Tensor:
        """Features (N, D), float32 on the CPU, batch by batch. ValueError where they are no (N, D) or not finite."""
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0:
            raise ValueError(
                f"features are of uint8 images (N, C, H, W), N > 0, got {images.dtype} {tuple(images.shape)}"
            )
        parts = []
        with torch.no_grad():
            for batch in images.split(_BATCH):
                out = self.compute(batch).detach().float().cpu().flatten(1)
                if len(out) != len(batch):
                    raise ValueError(f"{self.name} made {len(out)} rows of features from {len(batch)} images")
                if not bool(out.isfinite().all()):
                    raise ValueError(f"{self.name}: features with values that are not finite")
                parts.append(out)
        return torch.cat(parts)


def open_features(which: str, device: torch.device | str = "cpu") -> Callable[[Tensor], Features]:
    """Features by name, "pixels" or "conv", or by the path of a TorchScript file.

    What is returned makes them for a set of real images, uint8 (N, C, H, W), which "conv" is scaled by. Raises
    UserError for another name, a file that is not there or no TorchScript.
    """
    if which == "pixels":
        return lambda real: Features("pixels", lambda images: to_unit(images).flatten(1))
    if which == "conv":
        return random_convolutions
    features = script_file(Path(which), device)
    return lambda real: features


def random_convolutions(real: Tensor) -> Features:
    """Random filters by a fixed seed over a pyramid of octaves, scaled to unit spread over the images `real`.

    On each octave, halved in size down to 4 pixels, 24 filters of 3x3 pixels that see no constant: the mean and the
    standard deviation over the image of the modulus of each response. And the image itself at 4x4 pixels. Each number
    is divided by its standard deviation over `real`, at least a grey level. Nothing is learned, nothing downloaded.

    Chosen by measurement among pixels, one and two layers of filters, filters of whitened patches of the images, pooled
    over the image or its quarters, scaled or not. On digits and 32x32 photographs distances in these rose with every
    level of blur, noise, JPEG compression, blending of two images, swapped quarters and missing classes, and rose first
    for most of them (docs/evaluate.md). What an image shows they do not know.
    """
    raw = _responses(real.shape[1])
    # Deviations from the reference alone are scaled: distances do not see where the origin is.
    spread = Features("conv", raw)(real).double()
    mean, std = spread.mean(0).float(), spread.std(0).clamp(min=_LEAST_SPREAD).float()
    name = f"conv ({len(std)} random multi-scale features, seed {_SEED}, scaled on {len(real)} real images)"
    return Features(name, lambda images: (raw(images) - mean) / std)


def _responses(channels: int) -> Callable[[Tensor], Tensor]:
    shape = (_FILTERS, channels, _WIDTH, _WIDTH)

    def filters(octave: int) -> Tensor:
        w = normal(shape, _SEED, torch.arange(_FILTERS), octave, _STREAM, torch.float64)
        w = w - w.mean((1, 2, 3), keepdim=True)
        return (w / w.square().sum((1, 2, 3), keepdim=True).sqrt()).float()

    def compute(images: Tensor) -> Tensor:
        x = to_unit(images)
        parts = [functional.adaptive_avg_pool2d(x, _THUMBNAIL).flatten(1)]
        octave = 0
        while True:
            padded = functional.pad(x, (_WIDTH // 2,) * 4, mode="reflect")
            response = functional.conv2d(padded, filters(octave)).abs().flatten(2)
            parts += [response.mean(2), response.std(2)]
            if min(x.shape[2:]) < _LEAST_SIDE:
                return torch.cat(parts, 1)
            x, octave = functional.avg_pool2d(x, 2), octave + 1

    return compute


def script_file(path: Path, device: torch.device | str = "cpu") -> Features:
    """Features by a TorchScript file, named with the first digits of its SHA-256.

    A module whose forward takes `return_features`, as the public Inception file of StyleGAN's metrics does, is called
    with uint8 RGB images (N, 3, H, W), grey ones repeated, and return_features=True. Any other is called with float32
    images (N, C, H, W) in [-1, 1]. Output (N, D), or (N, D, 1, 1). A TorchScript file is a program: open only what you
    trust. Raises UserError where there is no such file or it is no TorchScript; what it says of an image of the wrong
    size comes as ValueError.
    """
    if not path.is_file():
        raise UserError(f"unknown features {str(path)!r}: give pixels, conv or the path of a TorchScript file")
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the files that there are stay what they are
            module: Any = torch.jit.load(str(path), map_location=device).eval()
        wants_bytes = "return_features" in [argument.name for argument in module.forward.schema.arguments]
    except (RuntimeError, OSError, AttributeError) as error:
        raise UserError(f"{path} cannot be opened as TorchScript: {_first_line(error)}") from error
    name = f"{path.name} (sha256 {digest})"

    def compute(images: Tensor) -> Tensor:
        try:
            if not wants_bytes:
                return module(to_unit(images).to(device))
            colour = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
            return module(colour.contiguous().to(device), return_features=True)
        except RuntimeError as error:
            shape = "x".join(str(n) for n in images.shape[1:])
            raise ValueError(f"{name} does not take images of {shape}: {_first_line(error, last=True)}") from error

    return Features(name, compute)


def _first_line(error: BaseException, last: bool = False) -> str:
    """One line of an error; TorchScript's own puts the reason last, after a traceback of its program."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1 if last else 0][:200] if lines else type(error).__name__

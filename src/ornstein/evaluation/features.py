"""Features in which samples are compared with real images: pixels, random convolutions, or any TorchScript file.

A distance between sets of images depends on its features and means nothing without their name. Every `Features` has a
name that is printed beside each figure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ornstein.autoencoders.perceptual import error_line, octaves, open_script, responses
from ornstein.data import to_unit

__all__ = ["Features", "open_features", "random_convolutions", "script_file"]

_BATCH = 128
_THUMBNAIL = 4
_STREAM = 0x46454154

# About one grey level: a feature that all real images share is not divided by a spread that is rounding alone.
_LEAST_SPREAD = 0.01


@dataclass(frozen=True)
class Features:
    """A map from uint8 images (N, C, H, W) to features (N, D), and the name to print beside its figures."""

    name: str
    compute: Callable[[Tensor], Tensor]

    def __call__(self, images: Tensor) -> Tensor:
        """Return features (N, D), float32 on the CPU, computed in batches.

        Raises:
            ValueError: images that are not uint8 (N, C, H, W), or features that are not (N, D) or not finite.
        """
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
    """Open features by name, "pixels" or "conv", or by the path of a TorchScript file.

    Args:
        which: the name or path.
        device: where a TorchScript file runs.

    Returns:
        A function from real images, uint8 (N, C, H, W), to `Features`. "conv" is scaled by these images.

    Raises:
        UserError: another name, no such file, or a file that is not TorchScript.
    """
    if which == "pixels":
        return lambda real: Features("pixels", lambda images: to_unit(images).flatten(1))
    if which == "conv":
        return random_convolutions
    features = script_file(Path(which), device)
    return lambda real: features


def random_convolutions(real: Tensor) -> Features:
    """Random filters over a pyramid of octaves, scaled to unit spread over the images `real`.

    On each octave, halved in size down to 4 pixels, there are 24 filters of 3x3 pixels that sum to 0. The features are
    the mean and standard deviation over the image of the absolute value of each response, and the image at 4x4 pixels.
    Each feature is divided by its standard deviation over `real`, at least one grey level. Nothing is learned or
    downloaded.

    The design was chosen by measurement among pixels, one and two layers of filters, filters of whitened patches of the
    images, pooled over the image or its quarters, scaled or not. On digits and 32x32 photographs distances in these
    features rise with every level of blur, noise, JPEG compression, blending of two images, swapped quarters and
    missing classes, and rise first for most of them (docs/evaluate.md). They do not know what an image shows.
    """
    # Only deviations are scaled: a distance does not depend on the origin.
    spread = Features("conv", _responses)(real).double()
    mean, std = spread.mean(0).float(), spread.std(0).clamp(min=_LEAST_SPREAD).float()
    name = f"conv ({len(std)} random multi-scale features, seed 0, scaled on {len(real)} real images)"
    return Features(name, lambda images: (_responses(images) - mean.to(images.device)) / std.to(images.device))


def _responses(images: Tensor) -> Tensor:
    x = to_unit(images)
    parts = [functional.adaptive_avg_pool2d(x, _THUMBNAIL).flatten(1)]
    for octave, part in octaves(x):
        response = responses(part, octave, _STREAM).abs().flatten(2)
        parts += [response.mean(2), response.std(2)]
    return torch.cat(parts, 1)


def script_file(path: Path, device: torch.device | str = "cpu") -> Features:
    """Features of a TorchScript file, named with the first digits of its SHA-256.

    A module whose forward takes `return_features`, such as the public Inception file of StyleGAN's metrics, gets uint8
    RGB images (N, 3, H, W), grey images repeated, and return_features=True. Any other module gets float32 images
    (N, C, H, W) in [-1, 1]. The output is (N, D) or (N, D, 1, 1). A TorchScript file is a program: open only what you
    trust.

    Raises:
        UserError: there is no such file, or it is not TorchScript. What the program says about an image of the wrong
            size is raised as ValueError when the features are computed.
    """
    module = open_script(path, "features", "pixels, conv", device)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    wants_bytes = "return_features" in [argument.name for argument in module.forward.schema.arguments]
    name = f"{path.name} (sha256 {digest})"

    def compute(images: Tensor) -> Tensor:
        try:
            if not wants_bytes:
                return module(to_unit(images).to(device))
            colour = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
            return module(colour.contiguous().to(device), return_features=True)
        except RuntimeError as error:
            shape = "x".join(str(n) for n in images.shape[1:])
            raise ValueError(f"{name} does not take images of {shape}: {error_line(error, -1)}") from error

    return Features(name, compute)

"""Error of an image against a reference image: PSNR and SSIM."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["psnr", "ssim"]

_SIGMA = 1.5  # pixels, of the Gaussian window
_WINDOW = 11
_K1, _K2 = 0.01, 0.03


def psnr(images: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in decibels, 10 log10(range^2 / mean squared error), (N,).

    Args:
        images, truth: (N, C, H, W), both uint8 (range 255) or both floats in [-1, 1] (range 2).
        mask: weights (N, 1, H, W) of the mean; all pixels count alike without one.

    Returns:
        (N,), float64 for uint8 images; infinite for equal images.

    Raises:
        ValueError: shapes or dtypes that differ.
    """
    x, y, peak = _intensities(images, truth)
    return 10 * torch.log10(peak**2 / _mean((x - y).square(), mask))


def ssim(images: Tensor, truth: Tensor, mask: Tensor | None = None, box: int | None = None) -> Tensor:
    """Structural similarity (Wang et al. 2004, eq. 13), (N,): 1 for equal images.

    Local moments are means over a Gaussian window of sigma 1.5 and 11x11 pixels. At the border the window is cut to the
    image. Without a mask the mean leaves out a rim of half a window, where it is cut.

    Args:
        images, truth: (N, C, H, W), both uint8 or both floats in [-1, 1].
        mask: weights (N, 1, H, W) of the mean over pixels.
        box: side of a uniform window in place of the Gaussian one, an odd number of pixels.

    Raises:
        ValueError: shapes or dtypes that differ.
    """
    x, y, peak = _intensities(images, truth)
    side = min(_WINDOW if box is None else box, *x.shape[-2:])
    side = side - 1 + side % 2
    at = torch.arange(side, dtype=x.dtype, device=x.device) - side // 2
    weights = torch.ones_like(at) if box is not None else torch.exp(-(at**2) / (2 * _SIGMA**2))
    covered = _windowed(torch.ones_like(x[:1, :1]), weights)

    def mean(values: Tensor) -> Tensor:
        return _windowed(values, weights) / covered

    a, b = mean(x), mean(y)
    covariance = mean(x * y) - a * b
    variances = (mean(x * x) - a * a) + (mean(y * y) - b * b)
    c1, c2 = (_K1 * peak) ** 2, (_K2 * peak) ** 2
    similarity = (2 * a * b + c1) * (2 * covariance + c2) / ((a * a + b * b + c1) * (variances + c2))
    rim = side // 2
    if mask is None and min(x.shape[-2:]) > 2 * rim:
        similarity = similarity[..., rim : x.shape[-2] - rim, rim : x.shape[-1] - rim]
    return _mean(similarity, mask)


def _windowed(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of values (N, C, H, W) over square windows, zero outside the image."""
    n, c, h, w = values.shape
    pad = len(weights) // 2
    rows = F.conv2d(values.reshape(n * c, 1, h, w), weights.view(1, 1, -1, 1), padding=(pad, 0))
    return F.conv2d(rows, weights.view(1, 1, 1, -1), padding=(0, pad)).view(n, c, h, w)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.flatten(1).mean(1)
    weight = mask.to(values).expand_as(values)
    return (values * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)


def _intensities(images: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, float]:
    """Both as floats from 0 (black) to the range, and the range: 255 for uint8, 2 for floats in [-1, 1]."""
    if images.shape != truth.shape or images.ndim != 4:
        raise ValueError(f"need images (N, C, H, W) of one shape, got {tuple(images.shape)} and {tuple(truth.shape)}")
    if images.dtype != truth.dtype or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ValueError(f"need images that are both uint8 or both floats, got {images.dtype} and {truth.dtype}")
    if images.dtype == torch.uint8:
        return images.double(), truth.double(), 255.0
    return images + 1, truth + 1, 2.0

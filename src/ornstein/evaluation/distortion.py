"""How far an image is from the one it should be: PSNR and SSIM."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def psnr(images: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio of uint8 images (N, C, H, W), in decibels: 10 log10(255^2/mean squared error), (N,).

    With a mask (N, 1, H, W) in [0, 1] the mean is weighted by it. Infinite for equal images. Raises ValueError where
    the shapes differ or the images are not uint8.
    """
    _check(images, truth)
    error = (images.double() - truth.double()).square()
    weight = torch.ones_like(error) if mask is None else mask.double().expand_as(error)
    mean = (error * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)
    return 10 * torch.log10(255**2 / mean)


def ssim(images: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Structural similarity of uint8 images (N, C, H, W), (N,); the mean over the mask (N, 1, H, W) where given.

    Gaussian windows of sigma 1.5 (Wang et al. 2004), by scikit-image; the mean leaves out a rim of 5 pixels, or what
    fits into images of less than 11 a side. Raises ValueError as `psnr`.
    """
    from skimage.metrics import structural_similarity  # brings SciPy's image functions

    _check(images, truth)
    side = min(11, *images.shape[-2:])
    window = side - 1 + side % 2
    found = []
    for i, (image, real) in enumerate(zip(images.numpy(), truth.numpy(), strict=True)):
        both: Any = structural_similarity(
            image,
            real,
            channel_axis=0,
            data_range=255,
            gaussian_weights=True,
            use_sample_covariance=False,
            full=True,
            win_size=window,
        )
        mean, pixels = both
        if mask is None:
            found.append(float(mean))
        else:
            weight = mask[i].double().expand(pixels.shape).numpy()
            found.append(float((pixels * weight).sum() / weight.sum()))
    return torch.tensor(found, dtype=torch.float64)


def _check(images: Tensor, truth: Tensor) -> None:
    if images.shape != truth.shape or images.ndim != 4:
        raise ValueError(f"need images (N, C, H, W) of one shape, got {tuple(images.shape)} and {tuple(truth.shape)}")
    if images.dtype != torch.uint8 or truth.dtype != torch.uint8:
        raise ValueError(f"need uint8 images, got {images.dtype} and {truth.dtype}")

"""How far an image is from the one it should be: PSNR and SSIM."""

from __future__ import annotations

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
    """Structural similarity of uint8 images (N, C, H, W), (N,); the mean over the mask (N, 1, H, W) if one is given.

    Gaussian windows of sigma 1.5, 11 pixels wide (Wang et al. 2004, doi 10.1109/TIP.2003.819861). Without a mask the
    mean leaves out a rim of 5 pixels, or of half the largest window that fits into images of less than 11 a side.

    Raises:
        ValueError: as `psnr`.
    """
    _check(images, truth)
    x, y = images.double(), truth.double()
    mean_x, mean_y = _window(x), _window(y)
    var_x, var_y = _window(x * x) - mean_x**2, _window(y * y) - mean_y**2
    covariance = _window(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    value = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    value = value / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    if mask is None:
        rim = (min(11, *images.shape[-2:]) - 1) // 2
        inner = value[..., rim : value.shape[-2] - rim, rim : value.shape[-1] - rim]
        return inner.flatten(1).mean(1)
    weight = mask.double().expand_as(value)
    return (value * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)


def _window(x: Tensor) -> Tensor:
    """The mean of (N, C, H, W) in Gaussian windows about each pixel; beyond the border the image is mirrored."""
    offsets = torch.arange(-5, 6)
    weight = torch.exp(-(offsets.double() ** 2) / (2 * 1.5**2))
    weight = (weight / weight.sum()).to(x.device)
    for dim in (-2, -1):
        size = x.shape[dim]
        place = (torch.arange(size)[:, None] + offsets).remainder(2 * size)  # the border pixel is repeated
        place = torch.where(place < size, place, 2 * size - 1 - place).to(x.device)
        x = x.movedim(dim, -1)[..., place].matmul(weight).movedim(-1, dim)
    return x


def _check(images: Tensor, truth: Tensor) -> None:
    if images.shape != truth.shape or images.ndim != 4:
        raise ValueError(f"need images (N, C, H, W) of one shape, got {tuple(images.shape)} and {tuple(truth.shape)}")
    if images.dtype != torch.uint8 or truth.dtype != torch.uint8:
        raise ValueError(f"need uint8 images, got {images.dtype} and {truth.dtype}")

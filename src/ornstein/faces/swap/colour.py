"""Perceptual colour (CIE L*a*b*), and the transfer of one face's colours to another."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["match_colour", "match_light", "to_lab", "to_rgb"]

# sRGB's primaries and its white, D65 (IEC 61966-2-1).
_TO_XYZ = torch.tensor(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]],
    dtype=torch.float64,
)
_WHITE = _TO_XYZ.sum(1)
_KNEE = 6 / 29
_DARK, _MOST = 0.01, 4.0  # of linear light: what is darker has no ratio; the largest ratio


def to_lab(rgb: Tensor) -> Tensor:
    """sRGB (..., 3, H, W) in [0, 1] to L* (0..100), a*, b*; values outside are extrapolated. CIE 15:2004."""
    xyz = _mix(_TO_XYZ / _WHITE[:, None], _linear(rgb))
    f = torch.where(xyz > _KNEE**3, xyz.clamp_min(0) ** (1 / 3), xyz / (3 * _KNEE**2) + 4 / 29)
    x, y, z = f.unbind(-3)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -3)


def to_rgb(lab: Tensor) -> Tensor:
    """The inverse of `to_lab`; colours outside sRGB's gamut leave [0, 1]."""
    lightness, a, b = lab.unbind(-3)
    y = (lightness + 16) / 116
    f = torch.stack([y + a / 500, y, y - b / 200], -3)
    xyz = torch.where(f > _KNEE, f**3, 3 * _KNEE**2 * (f - 4 / 29))
    return _coded(_mix(torch.linalg.inv(_TO_XYZ) * _WHITE, xyz))


def match_colour(source: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The source with the target's mean and standard deviation of L*, a* and b* within the mask.

    The result is not clamped: colours outside sRGB's gamut lie outside [0, 1].

    Args:
        source, target: (3, H, W) in [0, 1].
        mask: (1, H, W), the weight of each pixel.

    Raises:
        ValueError: the mask is empty.

    Source: Reinhard et al., "Color Transfer between Images", 2001, in L*a*b*.
    """
    if not mask.sum() > 0:
        raise ValueError("the mask is empty: there is no pixel to take colours from")
    ours, theirs, weight = to_lab(source.double()), to_lab(target.double()), mask.double()
    mean, deviation = _moments(ours, weight)
    wanted_mean, wanted_deviation = _moments(theirs, weight)
    # A flat source has no contrast that could be raised.
    gain = wanted_deviation / deviation.clamp_min(1e-3)
    return to_rgb((ours - mean) * gain + wanted_mean).to(source.dtype)


def match_light(source: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The source in the target's light: its colours times a smooth map of what the target is brighter, in linear light.

    The map is the ratio of both pictures, blurred over a quarter of the crop within the mask: shading and the tone of
    the skin come from the target, the features from the source. The result is not clamped.

    Args, raises: see `match_colour`.
    """
    if not mask.sum() > 0:
        raise ValueError("the mask is empty: there is no pixel to take light from")
    width = max(mask.shape[-1] // 4, 1) | 1

    def blurred(image: Tensor) -> Tensor:
        image = image[None]
        for _ in range(3):  # thrice a box is nearly a Gaussian
            image = F.avg_pool2d(F.pad(image, [width // 2] * 4, mode="replicate"), width, 1)
        return image[0]

    weight = mask.double() + 1e-4
    share = blurred(weight)
    ours, theirs = (blurred(_linear(each.double()) * weight) / share for each in (source, target))
    gain = ((theirs + _DARK) / (ours + _DARK)).clamp(1 / _MOST, _MOST)
    return _coded(_linear(source.double()) * gain).to(source.dtype)


def _linear(rgb: Tensor) -> Tensor:
    return torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clamp_min(0) + 0.055) / 1.055) ** 2.4)


def _coded(linear: Tensor) -> Tensor:
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp_min(0.0031308) ** (1 / 2.4) - 0.055)


def _mix(matrix: Tensor, channels: Tensor) -> Tensor:
    return torch.einsum("ij,...jhw->...ihw", matrix.to(channels), channels)


def _moments(image: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, (3, 1, 1)."""
    total = weight.sum()
    mean = (image * weight).sum((-2, -1), keepdim=True) / total
    variance = ((image - mean).square() * weight).sum((-2, -1), keepdim=True) / total
    return mean, variance.sqrt()

"""Motion of clips: correlation over frames, flicker, warp error, Fréchet distance; samples compared with data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.evaluation.frechet import FrechetScore, frechet_distance, real_floor

__all__ = [
    "CorrelationError",
    "MotionScore",
    "autocorrelation",
    "band_autocorrelation",
    "clip_features",
    "clip_frechet",
    "correlation_error",
    "flicker",
    "flicker_score",
    "motion_error",
    "warp_error",
]


@dataclass(frozen=True)
class CorrelationError:
    """Root mean square differences between the autocorrelations of samples and of data, and these themselves.

    by_lag: over lags 1..F-1. by_frequency: over these lags and the radial bands of spatial frequency in which the data
    vary. lags, data_lags: (F,); bands, data_bands: (bands, F).
    """

    by_lag: float
    by_frequency: float
    lags: Tensor
    data_lags: Tensor
    bands: Tensor
    data_bands: Tensor


@dataclass(frozen=True)
class MotionScore:
    """A figure of the samples, the same figure of the data, and their ratio: 1 if the samples move as the data do."""

    value: float
    data: float
    ratio: float


def autocorrelation(clips: Tensor) -> Tensor:
    """Correlation of frames by lag, (F,) float64, 1 at lag 0; clips (N, C, F, H, W), floats.

    rho(l) = mean x_t x_{t+l} / mean x_t^2 with the mean image of all clips and frames subtracted from x, over all
    pixels, clips and the F - l pairs of frames.

    Raises:
        ValueError: clips of another shape, not finite or constant.
    """
    x = _centred(clips)
    return _by_lag(x.movedim(2, -1).flatten(0, -2))


def band_autocorrelation(clips: Tensor, bands: int = 8) -> Tensor:
    """Correlation of frames by spatial frequency and lag, (bands, F) float64, NaN in bands without variance.

    As `autocorrelation`, of the coefficients of the 2-D Fourier transform of each frame, in equally wide bands of
    |k| from 0 to the corner of the spectrum.

    Raises:
        ValueError: as `autocorrelation`, and for bands < 1.
    """
    if bands < 1:
        raise ValueError(f"bands must be at least 1, not {bands}")
    x = _centred(clips)
    spectrum = torch.fft.fft2(x, norm="ortho").movedim(2, -1)  # (N, C, H, W, F)
    height, width = x.shape[-2:]
    radius = torch.fft.fftfreq(height)[:, None].hypot(torch.fft.fftfreq(width)[None]) / math.sqrt(0.5)
    band = (radius * bands).long().clamp(max=bands - 1)
    # real and imaginary part side by side: Re(conj(a) b) is the product of two real vectors
    parts = torch.view_as_real(spectrum).movedim(-1, 0).movedim((3, 4), (0, 1)).flatten(2, -2)  # (H, W, *, F)
    total = x.square().mean()
    out = torch.full((bands, x.shape[2]), math.nan, dtype=torch.float64)
    for b in range(bands):
        inside = parts[band == b].flatten(0, 1)
        if len(inside) and float(inside.square().mean()) > 1e-12 * float(total):
            out[b] = _by_lag(inside)
    return out


def correlation_error(samples: Tensor, data: Tensor, bands: int = 8) -> CorrelationError:
    """Difference between the correlations over frames of samples and of data, both floats (N, C, F, H, W).

    Raises:
        ValueError: as `autocorrelation`, and for shapes that differ or fewer than 2 frames.
    """
    _same_shape(samples, data)
    lags, data_lags = autocorrelation(samples), autocorrelation(data)
    if len(lags) < 2:
        raise ValueError("a correlation over frames needs clips of at least 2 frames")
    by_band, data_by_band = band_autocorrelation(samples, bands), band_autocorrelation(data, bands)
    # a band in which the samples do not vary counts as one without correlation
    gap = (by_band.nan_to_num(0.0) - data_by_band)[~data_by_band[:, 0].isnan(), 1:]
    return CorrelationError(
        by_lag=float((lags - data_lags)[1:].square().mean().sqrt()),
        by_frequency=float(gap.square().mean().sqrt()),
        lags=lags,
        data_lags=data_lags,
        bands=by_band,
        data_bands=data_by_band,
    )


def flicker(clips: Tensor) -> float:
    """E|x_{t+1} - 2 x_t + x_{t-1}|^2 / E|x_{t+1} - x_t|^2 of clips (N, C, F, H, W): how jerky the motion is.

    It is 3 for frames without correlation, 3 - rho for AR(1) frames of correlation rho, near 0 for smooth motion, 4 for
    frames that alternate.

    Raises:
        ValueError: fewer than 3 frames, clips that stand still, or values that are not finite.
    """
    x = _checked(clips).double()
    if x.shape[2] < 3:
        raise ValueError(f"flicker needs clips of at least 3 frames, got {x.shape[2]}")
    first = x.diff(dim=2).square().mean()
    if not float(first) > 0:
        raise ValueError("flicker is not defined for clips that stand still")
    return float(x.diff(n=2, dim=2).square().mean() / first)


def flicker_score(samples: Tensor, data: Tensor) -> MotionScore:
    """`flicker` of samples and of data, both (N, C, F, H, W); ValueError as there."""
    _same_shape(samples, data)
    value, reference = flicker(samples), flicker(data)
    return MotionScore(value, reference, value / reference)


def warp_error(clips: Tensor, flow: Tensor) -> Tensor:
    """Mean square of x_{t+1}(p + flow_t(p)) - x_t(p) over pixels that stay in the frame, (N,); in squared pixel units.

    It is zero for content that moves by whole pixels; for other flows compare it with the error of the data, since
    frames are interpolated (bicubic).

    Args:
        clips: (N, C, F, H, W).
        flow: (N, F - 1, 2, H, W) in pixels a frame, x then y.

    Raises:
        ValueError: shapes that do not fit, or a flow that leads every pixel of a clip out of the frame.
    """
    x = _checked(clips)
    n, _, f, height, width = x.shape
    if flow.shape != (n, f - 1, 2, height, width):
        raise ValueError(f"the flow must be {(n, f - 1, 2, height, width)} for these clips, got {tuple(flow.shape)}")
    flow = flow.to(x).flatten(0, 1)
    rows, columns = torch.meshgrid(
        torch.arange(height, device=x.device), torch.arange(width, device=x.device), indexing="ij"
    )
    to_x, to_y = columns + flow[:, 0], rows + flow[:, 1]
    inside = (to_x >= 0) & (to_x <= width - 1) & (to_y >= 0) & (to_y <= height - 1)
    if not bool(inside.view(n, -1).any(1).all()):
        raise ValueError("the flow leads every pixel of a clip out of the frame")
    at = torch.stack([2 * to_x / max(width - 1, 1) - 1, 2 * to_y / max(height - 1, 1) - 1], -1)
    later, now = (part.transpose(1, 2).flatten(0, 1) for part in (x[:, :, 1:], x[:, :, :-1]))
    warped = F.grid_sample(later, at, mode="bicubic", padding_mode="border", align_corners=True)
    error = (warped - now).square().mean(1) * inside
    return error.view(n, -1).sum(1) / inside.view(n, -1).sum(1)


def motion_error(flow: Tensor, wanted: Tensor) -> Tensor:
    """The mean end-point error |flow - wanted| of each clip in pixels a frame, (N,), over the pixels that are to move.

    Args:
        flow: of samples, as estimated from them, (N, F - 1, 2, H, W).
        wanted: the flow that they were asked for. A clip that is to stand still counts all of its pixels.

    Raises:
        ValueError: shapes that differ.
    """
    if flow.ndim != 5 or flow.shape[2] != 2 or flow.shape != wanted.shape:
        raise ValueError(f"flows are (N, F - 1, 2, H, W), got {tuple(flow.shape)} and {tuple(wanted.shape)}")
    moving = wanted.norm(dim=2) > 0
    still = ~moving.flatten(1).any(1)
    counted = (moving | still.view(-1, 1, 1, 1)).to(flow)
    apart = (flow - wanted).norm(dim=2) * counted
    return apart.flatten(1).sum(1) / counted.flatten(1).sum(1).clamp(min=1)


def clip_features(clips: Tensor, side: int = 8, dim: int = 64, seed: int = 0) -> Tensor:
    """The default features of clips (N, C, F, H, W) for `clip_frechet`: (N, dim), float64.

    Each frame is averaged down to `side` x `side` pixels. These D numbers, the pixels and their differences from frame
    to frame, are projected by one matrix of N(0, 1/D) entries fixed by `seed`. The features see layout and motion, not
    detail. Distances are comparable only for the same shape, side, dim and seed.
    """
    x = _checked(clips).double()
    small = F.adaptive_avg_pool3d(x, (x.shape[2], min(side, x.shape[3]), min(side, x.shape[4])))
    features = torch.cat([small.flatten(1), small.diff(dim=2).flatten(1)], dim=1)
    generator = torch.Generator().manual_seed(seed)
    projection = torch.randn(features.shape[1], dim, generator=generator, dtype=torch.float64)
    return features @ (projection / math.sqrt(features.shape[1])).to(features.device)


def clip_frechet(
    samples: Tensor, real: Tensor, features: Callable[[Tensor], Tensor] = clip_features, seed: int = 0
) -> FrechetScore:
    """Fréchet distance of clips in `features`, a map (N, C, F, H, W) -> (N, D), with its floor (`real_floor`).

    Raises:
        ValueError: clips of different shapes, or fewer than two samples and four real clips.
    """
    _same_shape(samples, real)
    ours, theirs = features(samples), features(real)
    name = "projected pixels and differences" if features is clip_features else getattr(features, "__name__", "given")
    return FrechetScore(
        name=f"Frechet distance of clips, {name} ({theirs.shape[1]}-D)",
        value=frechet_distance(ours, theirs),
        floor=real_floor(theirs, seed),
    )


def _checked(clips: Tensor) -> Tensor:
    if clips.ndim != 5 or 0 in clips.shape or not clips.is_floating_point():
        raise ValueError(f"clips must be floats (N, C, F, H, W), got {clips.dtype} of shape {tuple(clips.shape)}")
    if not bool(clips.isfinite().all()):
        raise ValueError("the clips hold values that are not finite")
    return clips.detach()


def _centred(clips: Tensor) -> Tensor:
    x = _checked(clips).double()
    x = x - x.mean((0, 2), keepdim=True)
    if not float(x.square().mean()) > 1e-14:
        raise ValueError("the clips do not vary: their correlation is not defined")
    return x


def _by_lag(x: Tensor) -> Tensor:
    """Correlations (F,) of series x (N, F) of mean zero."""
    frames = x.shape[-1]
    products = torch.stack([(x[:, : frames - lag] * x[:, lag:]).mean() for lag in range(frames)])
    return products / products[0]


def _same_shape(samples: Tensor, data: Tensor) -> None:
    if samples.shape[1:] != data.shape[1:]:
        raise ValueError(f"clips differ in shape: {tuple(samples.shape[1:])} against {tuple(data.shape[1:])}")

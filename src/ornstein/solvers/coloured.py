"""Stochastic steps whose share of fresh noise depends on spatial frequency and time: noise of a colour."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.noise import Covariance, FrameCovariance, Identity, Kronecker, SpectralAR1, Spectrum
from ornstein.solvers.stepping import Noise, knots

__all__ = ["COLOURS", "coloured", "with_colour"]

COLOURS: dict[str, list[list[float]]] = {
    "blue": [[0.0, 1.0]],
    "red": [[1.0, 0.0]],
    "settling": [[0.0, 1.0], [1.0, 1.0]],
}
"""Tables of `coloured` by name. "settling": all at first, fine detail alone towards the end."""


def coloured(
    d: Denoises, x: Tensor, times: Tensor, noise: Noise, table: Tensor | Sequence[Sequence[float]]
) -> Iterator[Tensor]:
    """`ddim` with an eta for each spatial frequency and time: x_s = a_s x0_hat + (s_s^2 - S^2)^(1/2) eps_hat + S R z.

    S = F* diag(eta(t, |k|)) F times the standard deviation of the ancestral step, over the last two axes. Whatever eta
    is, x_s has the covariance s_s^2 C given x_0, as long as C does not mix spatial frequencies: noise over frames,
    white noise, a `Spectrum`. So no model has to be trained anew. A table of ones is `ddim` with eta = 1, of zeros with
    eta = 0.

    Args:
        d, x, times, noise: as for every solver; x is (B, *, H, W).
        table: eta in [0, 1], (T, K): rows evenly spaced in t from 0 to 1, columns in |k| from 0 to the corner of the
            spectrum; linear between.

    Raises:
        ValueError: a table of another shape or with values outside [0, 1]; samples that are no images or clips; noise
            that mixes spatial frequencies.

    Source: the idea is that of Colored Noise Sampling (arXiv:2605.30332); the step is E24 for each frequency.
    """
    eta = torch.as_tensor(table, dtype=torch.float64)
    if eta.ndim != 2 or 0 in eta.shape or not bool(((eta >= 0) & (eta <= 1)).all()):
        raise ValueError("a table of shares of noise is (T, K), each in [0, 1]")
    if x.ndim < 4:
        raise ValueError(f"noise has a colour over pixels, (B, *, H, W); got shape {tuple(x.shape)}")
    p = d.process
    if not _by_frequency(p.noise):
        raise ValueError(f"noise has a colour where it does not mix spatial frequencies, as {p.noise} does")
    size = (int(x.shape[-2]), int(x.shape[-1]))
    y, w = torch.fft.fftfreq(size[0], dtype=torch.float64), torch.fft.rfftfreq(size[1], dtype=torch.float64)
    column = y[:, None].hypot(w[None]) / math.sqrt(0.5)
    for k, (start, end) in enumerate(knots(p, times, down=True)):
        prediction = d(x, start.t)
        largest = end.s * math.sqrt(-math.expm1(start.log_snr - end.log_snr))
        share = (largest * _between(_between(eta, torch.tensor(start.t)), column)).to(x)
        keep = (end.s**2 - share.double().square()).clamp(min=0).sqrt().to(x)
        x = end.a * prediction.x0 + _filtered(prediction.eps, keep, size)
        if end.s > 0:
            x = x + _filtered(p.noise.color(noise(k)), share, size)
        yield x


def with_colour(colour: str | Tensor | Sequence[Sequence[float]], solver: object = None) -> partial[Iterator[Tensor]]:
    """The solver `coloured` with a table, or the name of one.

    Args:
        colour: a name of `COLOURS`, or a table.
        solver: what was asked for besides; None, "ddim" and "ddpm" are what this is.

    Raises:
        ValueError: an unknown name, or another solver.
    """
    if solver not in (None, "ddim", "ddpm"):
        raise ValueError(f"fresh noise has a colour in the steps of ddim, not of {solver}: leave out the solver")
    if not isinstance(colour, str):
        return partial(coloured, table=colour)
    if colour not in COLOURS:
        raise ValueError(f"unknown colour of noise {colour!r}; known: {', '.join(COLOURS)}, or a table")
    return partial(coloured, table=COLOURS[colour])


def _by_frequency(noise: Covariance) -> bool:
    """Whether C is diagonal over the spatial frequencies of a frame."""
    if isinstance(noise, Kronecker):
        return noise.space is None or isinstance(noise.space, Spectrum)
    return isinstance(noise, Identity | FrameCovariance | Spectrum | SpectralAR1)


def _between(values: Tensor, at: Tensor) -> Tensor:
    """`values` along its first axis, spaced evenly over [0, 1], at places `at`; linear between."""
    last = len(values) - 1
    place = (at.double() * last).clamp(0, last)
    low = place.floor().long().clamp(max=max(0, last - 1))
    part = place - low
    high = (low + 1).clamp(max=last)
    part = part.reshape(part.shape + (1,) * (values.ndim - 1))
    return (1 - part) * values[low] + part * values[high]


def _filtered(x: Tensor, factor: Tensor, size: tuple[int, int]) -> Tensor:
    """F* diag(factor) F x over the last two axes."""
    return torch.fft.irfft2(torch.fft.rfft2(x) * factor, s=size)

"""How much noise is left in samples: what part of their spectrum is that of the noise that sampling starts from."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.evaluation.sections import Score
from ornstein.noise import Carried
from ornstein.randomness import normal

__all__ = ["STILL_NOISE", "noise_score", "noise_share", "noise_warning", "spectrum"]

STILL_NOISE = 0.5  # share of the variance from which samples are called noise

_BANDS = 8  # of spatial frequency
_ALIKE = 0.97  # cosine between the spectra of data and noise, from which the two cannot be told apart
_NOISES, _STREAM = 64, 0x4C454654


def spectrum(x: Tensor) -> Tensor:
    """Mean power of images (N, C, H, W) or clips (N, C, F, H, W), float64 (temporal frequencies, 8), of sum 1.

    The second axis holds equally wide bands of spatial frequency, from above 0 to the corner of the spectrum: the mean
    of a frame has no part in it. Images have one temporal frequency.
    """
    clips = (x if x.ndim == 5 else x.unsqueeze(2)).detach().cpu().double()
    power = torch.fft.fftn(clips, dim=(2, 3, 4), norm="ortho").abs().square().mean((0, 1))
    frames, height, width = power.shape
    folded = torch.zeros(frames // 2 + 1, height, width, dtype=torch.float64)
    at = torch.arange(frames)
    folded.index_add_(0, torch.minimum(at, frames - at), power)  # k and F - k are one frequency
    radius = torch.fft.fftfreq(height)[:, None].hypot(torch.fft.fftfreq(width)[None]) / math.sqrt(0.5)
    band = torch.where(radius > 0, (radius * _BANDS).long().clamp(max=_BANDS - 1), _BANDS)
    out = torch.zeros(len(folded), _BANDS + 1, dtype=torch.float64)
    out.index_add_(1, band.flatten(), folded.flatten(1))
    total = out[:, :_BANDS].sum()
    return out[:, :_BANDS] / (total if float(total) > 0 else 1.0)


def noise_share(samples: Tensor, data: Tensor, noise: Tensor) -> float | None:
    """Share of the variance of samples that has the spectrum of the noise and not that of the data, in [0, 1].

    The spectrum of the samples is fitted by a mixture of the other two with weights >= 0, by least squares of errors
    relative to both. Images are (N, C, H, W) and clips (N, C, F, H, W), on one scale.

    Returns:
        The share; None if data and noise have nearly the same spectrum, or the samples are constant.
    """
    s, d, n = (spectrum(x).flatten() for x in (samples, data, noise))
    if min(float(s.sum()), float(d.sum())) == 0:
        return None
    if float(d @ n) > _ALIKE * float(d.norm() * n.norm()):
        return None
    weight = 1 / (d + n).clamp(min=1e-12)
    s, d, n = s * weight, d * weight, n * weight
    # the least-squares weights of both, or those of one if the other's would be negative
    gram = torch.stack([torch.stack([d @ d, d @ n]), torch.stack([d @ n, n @ n])])
    a, b = torch.linalg.solve(gram, torch.stack([d @ s, n @ s])).tolist()
    if b <= 0:
        return 0.0
    if a <= 0:
        return 1.0
    return b / (a + b)


def noise_score(d: Denoises, samples: Tensor, real: Tensor, train: Tensor) -> tuple[float | None, list[Score]]:
    """The share of noise in samples of a denoiser, and its row in the table of scores.

    Args:
        d: the model; its process says how the noise is correlated.
        samples, real, train: samples, held-out and training data, (N, C, H, W) or (N, C, F, H, W) in [-1, 1].

    Returns:
        The share and one score, or None and no score if it cannot be measured (see `noise_share`).
    """
    shape = (_NOISES, *real.shape[1:])
    white = normal(shape, 0, torch.arange(_NOISES), 0, _STREAM, torch.float64)
    # each frame of carried noise is white, and its motion is that of the clip: there is no spectrum to tell it by
    noise = white if isinstance(d.process.noise, Carried) else d.process.noise.color(white)
    share = noise_share(samples, real, noise)
    reference = noise_share(train, real, noise)
    if share is None or reference is None:
        return None, []
    meaning = (
        "share of the variance of the samples with the spectrum of the noise that sampling starts from, not that of "
        "the held-out data"
    )
    return share, [Score("Noise left in the samples", f"{share:.1%}", meaning, f"{reference:.1%} in training data")]


def noise_warning(share: float | None) -> str | None:
    """The sentence for samples that are still noise; None for others."""
    if share is None or share < STILL_NOISE:
        return None
    return (
        f"The samples are still noise: {share:.0%} of their variance has the spectrum of noise. The model has not "
        "learned the data yet, whatever the other scores say: train for longer."
    )

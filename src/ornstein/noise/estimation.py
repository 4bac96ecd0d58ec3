"""The covariance of clips over their frames, estimated in one pass and constant memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.noise.ar1 import AR1
from ornstein.noise.covariance import Covariance, Identity
from ornstein.noise.frames import FrameCovariance
from ornstein.noise.kronecker import Kronecker
from ornstein.noise.mixed import Mixed
from ornstein.noise.spectral import SpectralAR1, conjugates, radial_bands
from ornstein.noise.spectrum import Spectrum
from ornstein.noise.toeplitz import Toeplitz

__all__ = [
    "MOST",
    "ClipStatistics",
    "Summary",
    "blue",
    "fit_ar1",
    "fit_blend",
    "fit_mixed",
    "fit_spectral",
    "fit_toeplitz",
    "log_snr_shift",
    "positive_row",
    "summary",
]

# Static clips would give a singular covariance: a fitted correlation is limited to this size.
MOST = 0.999

# Variance below this share of the mean square is rounding, not variance.
_CONSTANT = 1e-12

# Clips that go through the Fourier transform at once.
_CHUNK = 4

Clips = Tensor | Iterable[Tensor]


class ClipStatistics:
    """Second moments of clips (B, C, F, H, W) over their frames, in radial bands of spatial frequency.

    `update` takes a batch; memory is that of a few clips, whatever their number. The model: clips are independent draws
    of a process stationary over frames, with the same covariance in each channel. The mean over all clips is subtracted
    for each pixel, channel and frame. The factor clips/(clips - 1) corrects for this estimated mean, so that the
    covariance of frames t and t', and its mean r_tau over the F - tau pairs of a lag, are unbiased.

    Args:
        bands: radial bands of equal width, by default min(H, W)/2 and at most 16.
        device: where clips are transformed and multiplied; sums are float64 on the CPU.
        dtype: of the transforms, float64 or float32.
    """

    def __init__(
        self,
        bands: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        if bands is not None and bands < 1:
            raise ValueError(f"at least one band of spatial frequency is needed, got {bands}")
        self.bands = bands or 0
        self.device = device or torch.device("cpu")
        self.dtype = dtype
        self.clips = 0
        self._shape: tuple[int, ...] = ()
        self._products = torch.zeros(0, dtype=torch.float64)
        self._sum = torch.zeros(0, dtype=torch.complex128)

    @staticmethod
    def of(clips: Clips, bands: int | None = None) -> ClipStatistics:
        """The statistics of a tensor (N, C, F, H, W), or of an iterable of such batches."""
        statistics = ClipStatistics(bands)
        for batch in [clips] if isinstance(clips, Tensor) else clips:
            statistics.update(batch)
        return statistics

    def update(self, clips: Tensor) -> None:
        """Add a batch of clips.

        Args:
            clips: (B, C, F, H, W), F >= 2.

        Raises:
            ValueError: the shape differs from that of earlier batches, clips have one frame, or values are not finite.
        """
        if clips.ndim != 5:
            raise ValueError(f"clips have shape (B, C, F, H, W), got {tuple(clips.shape)}")
        shape = tuple(clips.shape[1:])
        if shape[1] < 2:
            raise ValueError(f"a covariance over frames needs clips of at least 2 frames, got {shape[1]}")
        if self._shape and shape != self._shape:
            raise ValueError(f"all clips must have the same shape: {shape} came after {self._shape}")
        if not bool(torch.isfinite(clips).all()):
            raise ValueError(
                f"a clip among {self.clips + 1} to {self.clips + len(clips)} has values that are not finite"
            )
        channels, frames, height, width = shape
        if not self._shape:
            self._shape = shape
            self.bands = self.bands or max(1, min(16, min(height, width) // 2))
            self._products = torch.zeros(self.bands, frames, frames, dtype=torch.float64)
            self._sum = torch.zeros(channels, frames, height, width // 2 + 1, dtype=torch.complex128)
        for part in clips.split(_CHUNK) if len(clips) else ():
            f = torch.fft.rfft2(part.to(self.device, self.dtype), norm="ortho")
            self._sum += f.sum(0).cpu()
            self._products += self._by_band(f)
        self.clips += len(clips)

    def _by_band(self, f: Tensor) -> Tensor:
        """Products of frames summed over the modes of a band and all else: (*, C, F, H, W//2+1) -> (bands, F, F)."""
        band = radial_bands(*self.size, self.bands).flatten()
        f = (f * conjugates(*self.size).sqrt().to(f.device, f.real.dtype)).flatten(-2)
        members = [(band == b).nonzero().flatten().to(f.device) for b in range(self.bands)]
        modes = [torch.view_as_real(f[..., each]).flatten(-2).flatten(0, -3) for each in members]
        return torch.stack([(m @ m.mT).sum(0) for m in modes]).cpu()

    @property
    def frames(self) -> int:
        self._check_clips()
        return self._shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self._shape[2], self._shape[3]

    def _check_clips(self) -> None:
        if self.clips < 2:
            raise ValueError(f"a covariance needs at least 2 clips, got {self.clips}")

    def covariance(self) -> Tensor:
        """The covariance of frames t and t', summed over the modes of each band: (bands, F, F) float64.

        Raises:
            ValueError: there are fewer than two clips, or the clips have no variance.
        """
        self._check_clips()
        centred = self._products - self._by_band(self._sum) / self.clips
        covariance = centred / ((self.clips - 1) * self._shape[0])
        if float(_lags(centred)[:, 0].sum()) <= _CONSTANT * float(_lags(self._products)[:, 0].sum()):
            raise ValueError(
                "the clips do not differ from one another in any pixel: there is no covariance to estimate"
            )
        return covariance

    def correlation(self) -> Tensor:
        """The autocorrelation of a pixel by lag, (F,) float64, r_0 = 1."""
        row = _lags(self.covariance().sum(0))
        return row / row[0]

    def band_correlation(self) -> tuple[Tensor, Tensor]:
        """The autocorrelation by lag (bands, F) and the share of the variance (bands,) of each radial band.

        A band without variance gets the correlation of the whole.
        """
        rows = _lags(self.covariance())
        share = (rows[:, 0] / rows[:, 0].sum()).clamp(min=0)
        used = (share > _CONSTANT)[:, None]
        return torch.where(used, rows / torch.where(used, rows[:, :1], 1.0), self.correlation()), share

    def ar1(self) -> AR1:
        """AR1 with the correlation of neighbouring frames, rho = r_1/r_0, at most 0.999 in size."""
        return AR1(self.frames, _limited(float(self.correlation()[1])))

    def mixed(self) -> Mixed:
        """Mixed with the mean correlation of two different frames: the closest such matrix in the Frobenius norm."""
        pairs = self.frames - torch.arange(1, self.frames, dtype=torch.float64)
        c = float((pairs * self.correlation()[1:]).sum() / pairs.sum())
        return Mixed(self.frames, max(min(c, MOST), -MOST / (self.frames - 1)))

    def toeplitz(self, shrinkage: float = 0.01) -> Toeplitz:
        """Toeplitz with the whole autocorrelation, tapered if it is not positive, and shrunk towards I.

        r_tau (1 - s tau/F) with the smallest s in [0, 1] that leaves no eigenvalue below zero; s = 1 is the classical
        biased estimate. Then (1 - shrinkage) r + shrinkage I, which has no eigenvalue below `shrinkage`.

        Args:
            shrinkage: share of white noise in [0, 1].
        """
        return Toeplitz(positive_row(self.correlation(), shrinkage))

    def spectral(self) -> SpectralAR1:
        """SpectralAR1 with the correlation of neighbouring frames in each radial band of spatial frequency."""
        rho = [_limited(float(r)) for r in self.band_correlation()[0][:, 1]]
        return SpectralAR1(self.frames, rho, size=self.size)

    def blend(self, gamma: float, shrinkage: float = 0.01) -> Covariance:
        """C_gamma = (1 - gamma) I + gamma Sigma with Sigma the Toeplitz estimate; 0 <= gamma <= 1."""
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma is the share of the data's covariance, in [0, 1], got {gamma}")
        sigma = self.toeplitz(shrinkage)
        return sigma if gamma == 1 else sigma.floored(1 - gamma)

    def equal_snr(self, shrinkage: float = 0.01) -> Spectrum:
        """Spectrum with the power of the data by spatial frequency, in its radial bands (E41).

        Every frequency then has the same log-SNR at every t. The mean image is subtracted, as in every fit; the power
        is (1 - shrinkage) P + shrinkage of its mean, so that it has an inverse.
        """
        if not 0 <= shrinkage <= 1:
            raise ValueError(f"shrinkage is a share of white noise in [0, 1], got {shrinkage}")
        total = _lags(self.covariance())[:, 0].clamp(min=0)
        height, width = self.size
        half = radial_bands(height, width, self.bands)
        modes = torch.zeros(self.bands, dtype=torch.float64)
        modes.index_add_(0, half.flatten(), conjugates(height, width).double().expand(half.shape).flatten())
        band = (total / modes.clamp(min=1))[half]  # of one mode, (H, W//2 + 1)
        row, column = torch.arange(height)[:, None], torch.arange(width)[None]
        mirrored = column > width // 2
        power = band[torch.where(mirrored, -row % height, row), torch.where(mirrored, width - column, column)]
        return Spectrum((1 - shrinkage) * power / power.mean() + shrinkage)

    def kappa(self, noise: Covariance, shrinkage: float = 0.01) -> tuple[float, float]:
        """The condition number of C^-1 Sigma: the ratio of the largest to the smallest SNR of the data's modes.

        Returns:
            Over frames: Sigma is the covariance of a pixel's frames (nan for SpectralAR1, which is not a matrix over
            frames). By spatial frequency: the largest eigenvalue of C^-1 Sigma in any radial band over the smallest in
            any, with the variance of each band scaled to 1: no covariance over frames changes how the variance falls
            with spatial frequency. Sigma is regularised as in the fits, (1 - shrinkage) Sigma + shrinkage I.
        """
        covariance = self.covariance()
        share = self.band_correlation()[1]
        used = (share > _CONSTANT).nonzero()[:, 0].tolist()
        frames = math.nan
        if isinstance(noise, SpectralAR1):
            chains = [AR1(self.frames, float(rho)) for rho in noise.band_rho(self.bands)]
            by_band = [c if noise.white == 0 else c.floored(noise.white) for c in chains]
        else:
            by_band = [noise] * self.bands
            frames = _spread([_relative(noise, covariance.sum(0), shrinkage)])
        return frames, _spread([_relative(by_band[b], covariance[b], shrinkage) for b in used])


@dataclass(frozen=True)
class Summary:
    """Correlations of clips by lag (F,) and by band and lag (bands, F); every fitted covariance and its kappas."""

    clips: int
    correlation: Tensor
    band_correlation: Tensor
    band_share: Tensor
    fits: dict[str, Covariance]
    kappa: dict[str, tuple[float, float]]


def summary(
    statistics: ClipStatistics, gammas: Iterable[float] = (0.25, 0.5, 0.75), shrinkage: float = 0.01
) -> Summary:
    """Fit every covariance to the statistics, with kappa(C^-1 Sigma) over frames and by spatial frequency."""
    fits: dict[str, Covariance] = {
        "white": Identity(),
        "mixed": statistics.mixed(),
        "ar1": statistics.ar1(),
        "toeplitz": statistics.toeplitz(shrinkage),
        "spectral": statistics.spectral(),
        **{f"blend:{gamma:g}": statistics.blend(gamma, shrinkage) for gamma in gammas},
    }
    kappa = {name: statistics.kappa(c, shrinkage) for name, c in fits.items()}
    # over pixels alone: there is no condition number over frames
    power = statistics.equal_snr(shrinkage)
    fits |= {"equal-snr": power, "blue": blue(statistics.size)}
    fits |= {f"{name}-equal-snr": Kronecker(over_frames, power) for name, over_frames in _over_frames(fits).items()}
    bands, share = statistics.band_correlation()
    return Summary(statistics.clips, statistics.correlation(), bands, share, fits, kappa)


def _over_frames(fits: dict[str, Covariance]) -> dict[str, FrameCovariance]:
    """The fits over frames that go with a spectrum over pixels."""
    return {name: c for name in ("ar1", "toeplitz") if isinstance(c := fits[name], FrameCovariance)}


def blue(size: tuple[int, int]) -> Spectrum:
    """Blue noise over frames of `size` (H, W): power as |k|, at k = 0 as at the lowest frequency (E41)."""
    y, x = (torch.fft.fftfreq(n, dtype=torch.float64) for n in size)
    return Spectrum(y[:, None].hypot(x[None]).clamp(min=1 / max(size)))


def positive_row(correlation: Tensor, shrinkage: float) -> Tensor:
    """The first row of a correlation matrix nearest to the estimate (F,); see `ClipStatistics.toeplitz`."""
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage is a share of white noise in [0, 1], got {shrinkage}")
    lags = torch.arange(len(correlation), dtype=torch.float64)
    distance = (lags[:, None] - lags[None]).abs().long()
    row = correlation
    for taper in torch.linspace(0, 1, 21, dtype=torch.float64):
        row = correlation * (1 - taper * lags / len(correlation))
        if float(torch.linalg.eigvalsh(row[distance])[0]) >= 0:
            break
    row = (1 - shrinkage) * row
    row[0] = 1
    return row


def _limited(rho: float) -> float:
    return max(-MOST, min(MOST, rho))


def _lags(covariance: Tensor) -> Tensor:
    """The mean over the pairs of frames of each lag: (*, F, F) -> (*, F)."""
    frames = covariance.shape[-1]
    return torch.stack([covariance.diagonal(lag, -2, -1).mean(-1) for lag in range(frames)], dim=-1)


def _relative(noise: Covariance, covariance: Tensor, shrinkage: float) -> Tensor:
    """The eigenvalues of C^-1 Sigma, ascending; Sigma (F, F) scaled to unit variance."""
    sigma = (1 - shrinkage) * covariance / covariance.diagonal().mean()
    sigma.diagonal().add_(shrinkage)
    half = noise.whiten(sigma)  # rows are samples: Sigma R^-T
    return torch.linalg.eigvalsh(noise.whiten(half.mT.contiguous()))


def _spread(eigenvalues: list[Tensor]) -> float:
    smallest = min(float(values[0]) for values in eigenvalues)
    return max(float(values[-1]) for values in eigenvalues) / smallest if smallest > 0 else math.inf


def log_snr_shift(noise: Covariance, data: Covariance, shape: tuple[int, ...]) -> float:
    """The mean of log r_k, r_k the eigenvalues of C^-1 Sigma: logdet(C^-1 Sigma) over the elements of a sample.

    The log-SNR of mode k is lambda(t) + log r_k; `schedules.Shifted` by minus this value centres them.

    Args:
        noise: C.
        data: Sigma.
        shape: of one sample, (N,) or (C, F, H, W).

    Raises:
        SingularCovarianceError: one of the two has no inverse.
    """
    return (data.logdet(shape) - noise.logdet(shape)) / math.prod(shape)


def fit_ar1(clips: Clips) -> AR1:
    """AR1 from clips, a tensor (N, C, F, H, W) or an iterable of batches, by the correlation of neighbouring frames."""
    return ClipStatistics.of(clips).ar1()


def fit_mixed(clips: Clips) -> Mixed:
    """Mixed from clips, by the mean correlation of two different frames."""
    return ClipStatistics.of(clips).mixed()


def fit_toeplitz(clips: Clips, shrinkage: float = 0.01) -> Toeplitz:
    """Toeplitz from clips, by the whole autocorrelation; `shrinkage` is its share of white noise."""
    return ClipStatistics.of(clips).toeplitz(shrinkage)


def fit_spectral(clips: Clips, bands: int | None = None) -> SpectralAR1:
    """SpectralAR1 from clips, one correlation for each of `bands` radial bands of spatial frequency."""
    return ClipStatistics.of(clips, bands).spectral()


def fit_blend(clips: Clips, gamma: float, shrinkage: float = 0.01) -> Covariance:
    """C_gamma = (1 - gamma) I + gamma Sigma from clips, Sigma the Toeplitz estimate."""
    return ClipStatistics.of(clips).blend(gamma, shrinkage)

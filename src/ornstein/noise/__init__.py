"""Noise with any covariance C = R R^T over the axes of a sample."""

from ornstein.noise.ar1 import AR1, OU
from ornstein.noise.carried import Carried, carry
from ornstein.noise.config import from_config, parse, to_config
from ornstein.noise.covariance import Covariance, Identity, SingularCovarianceError
from ornstein.noise.estimation import (
    ClipStatistics,
    fit_ar1,
    fit_blend,
    fit_mixed,
    fit_spectral,
    fit_toeplitz,
    log_snr_shift,
)
from ornstein.noise.frames import FrameCovariance, Matrix
from ornstein.noise.kronecker import Kronecker
from ornstein.noise.lowrank import LowRank
from ornstein.noise.mixed import Mixed
from ornstein.noise.spectral import SpectralAR1
from ornstein.noise.spectrum import Spectrum
from ornstein.noise.toeplitz import Toeplitz
from ornstein.noise.warped import Warped

__all__ = [
    "AR1",
    "OU",
    "Carried",
    "ClipStatistics",
    "Covariance",
    "FrameCovariance",
    "Identity",
    "Kronecker",
    "LowRank",
    "Matrix",
    "Mixed",
    "SingularCovarianceError",
    "SpectralAR1",
    "Spectrum",
    "Toeplitz",
    "Warped",
    "carry",
    "fit_ar1",
    "fit_blend",
    "fit_mixed",
    "fit_spectral",
    "fit_toeplitz",
    "from_config",
    "log_snr_shift",
    "parse",
    "to_config",
]

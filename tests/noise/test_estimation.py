"""Estimates from synthetic clips of known covariance, over several seeds, and what is refused."""

import json
import math

import pytest
import torch
from torch import Tensor

from ornstein.noise import (
    AR1,
    ClipStatistics,
    Covariance,
    Identity,
    Mixed,
    SpectralAR1,
    Toeplitz,
    fit_ar1,
    fit_blend,
    fit_mixed,
    fit_spectral,
    fit_toeplitz,
    from_config,
    to_config,
)
from ornstein.noise.estimation import positive_row, summary

SEEDS = pytest.mark.parametrize("seed", range(4))
SHAPE = (64, 2, 8, 12, 12)  # 64 clips of 2 channels, 8 frames of 12x12


def clips(c: Covariance, seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Clips of covariance 0.04 C about an image that is nothing like zero."""
    generator = torch.Generator().manual_seed(seed)
    image = 5 * torch.randn(shape[1], 1, *shape[3:], generator=generator)
    return image + 0.2 * c.sample(shape, generator=generator)


@SEEDS
@pytest.mark.parametrize("rho", [0.9, 0.3, -0.5, 0.0])
def test_ar1_is_recovered(rho: float, seed: int):
    """Within 0.01: four standard errors of a correlation over 64 x 2 x 144 series of 8 frames."""
    fitted = fit_ar1(clips(AR1(8, rho), seed))
    assert fitted.length == 8
    assert fitted.rho == pytest.approx(rho, abs=0.01)


@SEEDS
@pytest.mark.parametrize("c", [0.5, 0.9, -0.1])
def test_mixed_is_recovered(c: float, seed: int):
    fitted = fit_mixed(clips(Mixed(8, c), seed))
    assert fitted.c == pytest.approx(c, abs=0.015)
    assert not fitted.singular


@SEEDS
def test_toeplitz_is_recovered(seed: int):
    """Every lag within 0.02, at the shrinkage that was asked for."""
    row = torch.tensor([1.0, 0.6, 0.1, -0.2, -0.1, 0.0, 0.0, 0.1], dtype=torch.float64)
    x = clips(Toeplitz(row), seed)
    torch.testing.assert_close(fit_toeplitz(x, shrinkage=0.0).dense()[0], row, rtol=0, atol=0.02)
    shrunk = fit_toeplitz(x, shrinkage=0.2).dense()[0]
    torch.testing.assert_close(shrunk[1:], 0.8 * fit_toeplitz(x, shrinkage=0.0).dense()[0, 1:])
    assert float(shrunk[0]) == 1
    blend = fit_blend(x, 0.5, shrinkage=0.0).dense()[0]
    torch.testing.assert_close(blend[1:], 0.5 * fit_toeplitz(x, shrinkage=0.0).dense()[0, 1:])
    assert float(blend[0]) == pytest.approx(1)


@SEEDS
def test_spectral_is_recovered(seed: int):
    """Each of 6 bands within 0.06: four standard errors of the narrowest, 64 x 2 clips of 9 modes of 8 frames."""
    rho = [0.95, 0.8, 0.6, 0.4, 0.0, -0.3]
    fitted = fit_spectral(clips(SpectralAR1(8, rho, size=(12, 12)), seed), bands=6)
    assert fitted.frame == (12, 12)
    torch.testing.assert_close(torch.as_tensor(fitted.rho), torch.tensor(rho).double(), rtol=0, atol=0.06)


def test_the_autocovariance_is_unbiased_with_few_clips():
    """Three clips each, 400 times: the mean of the covariances is the truth, though the mean was estimated too."""
    c, total = AR1(5, 0.8), torch.zeros(5, dtype=torch.float64)
    for seed in range(400):
        total += ClipStatistics.of(clips(c, seed, (3, 1, 5, 6, 6))).covariance().sum(0)[0]
    expected = 36 * 0.04 * 0.8 ** torch.arange(5, dtype=torch.float64)
    torch.testing.assert_close(total / 400, expected, rtol=0, atol=4 * 0.04 * math.sqrt(2 * 36 / 800))


def test_the_covariance_against_the_plain_formula():
    """By Parseval the bands sum to the sample covariance of frames over pixels, for even and odd sides."""
    for height, width in ((6, 6), (5, 7), (4, 5)):
        x = clips(AR1(4, 0.5), 1, (5, 2, 4, height, width)).double()
        centred = (x - x.mean(0)).movedim(2, 0).flatten(1)
        expected = centred @ centred.mT / (4 * 2)
        torch.testing.assert_close(ClipStatistics.of(x).covariance().sum(0), expected, rtol=1e-9, atol=1e-12)


def test_statistics_of_batches_equal_those_of_all_clips():
    x = clips(AR1(8, 0.5), 0)
    whole = ClipStatistics.of(x)
    stream = ClipStatistics.of(part for part in x.split(7))
    assert stream.clips == whole.clips == 64
    torch.testing.assert_close(stream.covariance(), whole.covariance(), rtol=1e-10, atol=1e-12)
    # What is kept does not grow with the clips.
    held = [v.numel() for v in vars(stream).values() if isinstance(v, Tensor)]
    stream.update(x)
    assert held == [v.numel() for v in vars(stream).values() if isinstance(v, Tensor)]


def test_estimates_ignore_offset_and_scale_of_the_clips():
    x = clips(AR1(8, 0.7), 0)
    assert fit_ar1(3 * x - 100).rho == pytest.approx(fit_ar1(x).rho, abs=1e-4)


def test_a_row_that_is_not_positive_is_tapered_least():
    row = torch.tensor([1.0, 0.9, 0.2, -0.5], dtype=torch.float64)
    distance = (torch.arange(4)[:, None] - torch.arange(4)).abs()
    assert float(torch.linalg.eigvalsh(row[distance])[0]) < 0
    tapered = positive_row(row, 0.0)
    assert float(torch.linalg.eigvalsh(tapered[distance])[0]) >= 0
    taper = 1 - tapered / row
    assert 0 < float(taper[1]) < 1 / 4  # less than the biased estimate takes off
    torch.testing.assert_close(taper, float(taper[1]) * torch.arange(4).double())
    good = 0.5 ** torch.arange(4, dtype=torch.float64)
    assert torch.equal(positive_row(good, 0.0), good)
    assert float(torch.linalg.eigvalsh(positive_row(row, 0.1)[distance])[0]) >= 0.1 - 1e-12


def test_kappa_of_known_covariances():
    """The matched covariance leaves 1, up to the estimation error; white noise leaves that of the data."""
    c = AR1(8, 0.8)
    statistics = ClipStatistics.of(clips(c, 0))
    condition = float(torch.linalg.cond(c.dense()))
    for noise, low, high in ((c, 1.0, 1.2), (Identity(), 0.7 * condition, 1.1 * condition)):
        frames, bands = statistics.kappa(noise, shrinkage=0.0)
        assert low <= frames <= high
        assert frames <= bands <= 1.6 * high
    spectral = SpectralAR1(8, [0.95, 0.7, 0.4, 0.2, 0.0, -0.3], size=(12, 12))
    statistics = ClipStatistics.of(clips(spectral, 0))
    assert math.isnan(statistics.kappa(spectral)[0])
    assert statistics.kappa(spectral)[1] < 2
    assert statistics.kappa(spectral.floored(0.5))[1] > 5
    assert statistics.kappa(statistics.toeplitz())[1] > 50
    assert statistics.kappa(statistics.spectral())[1] < 2


_SPECTRA = ["equal-snr", "blue", "ar1-equal-snr", "toeplitz-equal-snr"]


def test_summary():
    s = summary(ClipStatistics.of(clips(AR1(8, 0.8), 2)), gammas=(0.5,))
    assert list(s.kappa) == ["white", "mixed", "ar1", "toeplitz", "spectral", "blend:0.5"]
    assert set(s.fits) == {*s.kappa, *_SPECTRA}
    assert s.clips == 64
    assert s.correlation.shape == (8,)
    assert s.band_correlation.shape == (6, 8)
    assert float(s.band_share.sum()) == pytest.approx(1)
    torch.testing.assert_close(s.band_share @ s.band_correlation, s.correlation)
    by_bands = {name: kappa[1] for name, kappa in s.kappa.items()}
    assert by_bands["white"] > by_bands["blend:0.5"] > by_bands["ar1"] < by_bands["mixed"]
    for name, fit in s.fits.items():
        text = json.dumps(to_config(fit))
        assert len(text) < 1000 or name in _SPECTRA  # which have a number a frequency
        assert from_config(json.loads(text)) == fit


def test_static_clips_stay_invertible():
    x = torch.randn(6, 1, 1, 8, 8, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 4, -1, -1)
    assert fit_ar1(x).rho == 0.999
    assert fit_mixed(x).c == 0.999
    for c in (fit_ar1(x), fit_mixed(x), fit_toeplitz(x), fit_spectral(x), fit_blend(x, 0.5)):
        assert math.isfinite(c.logdet((1, 4, 8, 8)))


def test_a_band_without_variance_takes_the_correlation_of_the_whole():
    flat = AR1(6, 0.6).sample((40, 1, 6, 1, 1), generator=torch.Generator().manual_seed(0)).expand(-1, -1, -1, 8, 8)
    fitted = ClipStatistics.of(flat.double())
    rho = torch.as_tensor(fitted.spectral().rho)
    torch.testing.assert_close(rho, torch.full_like(rho, fitted.ar1().rho))
    assert math.isfinite(fitted.kappa(fitted.spectral())[1])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(4, 1, 4, 4), r"\(B, C, F, H, W\), got \(4, 1, 4, 4\)"),
        (torch.zeros(4, 1, 1, 4, 4), "at least 2 frames, got 1"),
        (torch.zeros(1, 1, 3, 4, 4), "at least 2 clips, got 1"),
        (torch.zeros(0, 1, 3, 4, 4), "at least 2 clips, got 0"),
        ([], "at least 2 clips, got 0"),
        (torch.full((4, 1, 3, 4, 4), 0.3), "do not differ"),
        (torch.full((4, 1, 3, 4, 4), math.nan), "a clip among 1 to 4 has values that are not finite"),
        ([torch.ones(2, 1, 3, 4, 4), torch.ones(2, 1, 3, 4, 5)], r"\(1, 3, 4, 5\) came after \(1, 3, 4, 4\)"),
    ],
)
def test_what_is_refused(x: Tensor | list[Tensor], message: str):
    for fit in (fit_ar1, fit_mixed, fit_toeplitz, fit_spectral):
        with pytest.raises(ValueError, match=message) as error:
            fit(x)
        assert "\n" not in str(error.value)


def test_bad_settings():
    x = clips(AR1(3, 0.5), 0, (4, 1, 3, 4, 4))
    for call, message in (
        (lambda: fit_toeplitz(x, shrinkage=1.5), r"shrinkage is a share of white noise in \[0, 1\]"),
        (lambda: fit_blend(x, -0.1), "gamma"),
        (lambda: fit_spectral(x, bands=0), "at least one band"),
    ):
        with pytest.raises(ValueError, match=message):
            call()

"""Metrics of motion against closed forms: AR(1) noise, translations, drifting waves."""

import math

import pytest
import torch

from ornstein.data import open_clips
from ornstein.evaluation.motion import (
    autocorrelation,
    band_autocorrelation,
    clip_features,
    clip_frechet,
    correlation_error,
    flicker,
    flicker_score,
    warp_error,
)
from ornstein.noise import AR1, Identity, SpectralAR1


def noise(c, shape=(96, 1, 6, 16, 16), seed=0):
    return c.sample(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rho", [0.0, 0.7, 0.95, -0.5])
def test_ar1_has_its_correlation_and_its_flicker(rho):
    x = 0.3 * noise(AR1(6, rho)) + 2.0  # neither the mean nor the scale matters
    lags = rho ** torch.arange(6.0, dtype=torch.float64)
    torch.testing.assert_close(autocorrelation(x), lags, atol=0.03, rtol=0)
    torch.testing.assert_close(band_autocorrelation(x, 4), lags.expand(4, 6), atol=0.12, rtol=0)
    assert flicker(x) == pytest.approx(3 - rho, rel=0.01)


def test_bands_have_their_own_correlations():
    rho = torch.tensor([0.95, 0.8, 0.5, 0.1])
    bands = band_autocorrelation(noise(SpectralAR1(6, rho, size=(16, 16))), 4)
    torch.testing.assert_close(bands[:, 1].float(), rho, atol=0.04, rtol=0)
    torch.testing.assert_close(bands[:, 2].float(), rho**2, atol=0.06, rtol=0)


def test_a_band_without_variance_is_not_a_number_and_not_an_error():
    x = noise(AR1(6, 0.8))
    low = torch.fft.fft2(x)
    radius = torch.fft.fftfreq(16)[:, None].hypot(torch.fft.fftfreq(16)) / math.sqrt(0.5)
    low = torch.fft.ifft2(low * (radius < 0.5)).real
    bands = band_autocorrelation(low, 4)
    assert bands[:2].isfinite().all() and bands[2:].isnan().all()
    assert correlation_error(low, low, 4).by_frequency == 0
    # samples that lack what the data have are as wrong as uncorrelated ones there
    error = correlation_error(low, x, 4).by_frequency
    expected = torch.tensor([0.8**lag for lag in range(1, 6)]).square().mean().mul(0.5).sqrt()
    assert error == pytest.approx(float(expected), abs=0.06)


def test_correlation_error_is_the_distance_of_the_two_curves():
    error = correlation_error(noise(AR1(6, 0.5)), noise(AR1(6, 0.9), seed=1))
    gap = torch.tensor([0.9**lag - 0.5**lag for lag in range(1, 6)])
    assert error.by_lag == pytest.approx(float(gap.square().mean().sqrt()), abs=0.02)
    assert error.by_frequency == pytest.approx(error.by_lag, abs=0.05)
    same = correlation_error(noise(AR1(6, 0.9)), noise(AR1(6, 0.9), seed=1))
    assert same.by_lag < 0.03 and same.by_frequency < 0.08


def test_flicker_of_smooth_and_of_alternating_clips():
    t = torch.arange(9.0).view(1, 1, 9, 1, 1)
    wave = torch.cos(0.4 * t + torch.linspace(0, 6.3, 64).view(1, 1, 1, 8, 8))
    # each difference multiplies a wave's power by |1 - e^iw|^2 = 2 - 2 cos w; the sample is finite
    assert flicker(wave) == pytest.approx(2 - 2 * math.cos(0.4), rel=0.05)
    assert flicker(3 * t + torch.zeros(1, 1, 9, 2, 2)) == pytest.approx(0, abs=1e-12)
    assert flicker((-1) ** t * torch.ones(1, 1, 9, 2, 2)) == pytest.approx(4)
    score = flicker_score(noise(Identity()), noise(AR1(6, 0.9)))
    assert score.value == pytest.approx(3, rel=0.02) and score.data == pytest.approx(2.1, rel=0.02)
    assert score.ratio == pytest.approx(score.value / score.data)


def test_warp_error_of_whole_pixel_translations_is_zero():
    picture = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    clips = torch.stack([picture.roll((2 * t, -t), (2, 3)) for t in range(4)], 2)  # down 2, left 1
    flow = torch.tensor([-1.0, 2.0]).view(1, 1, 2, 1, 1).expand(2, 3, 2, 24, 24)
    cut = clips[..., 6:18, 6:18]  # away from where the picture wraps
    assert warp_error(cut, flow[..., 6:18, 6:18]).max() < 1e-10
    # any other flow compares pixels that have nothing to do with each other: twice the variance of U(0, 1)
    assert warp_error(cut, -flow[..., 6:18, 6:18]).mean() == pytest.approx(2 / 12, rel=0.15)
    still = clips[:, :, :1].expand(-1, -1, 4, -1, -1)
    assert warp_error(still, torch.zeros_like(flow)).max() < 1e-10


def test_warp_error_counts_only_pixels_that_stay():
    clips = torch.zeros(1, 1, 2, 8, 8)
    clips[:, :, 1] = 1
    flow = torch.zeros(1, 1, 2, 8, 8)
    flow[:, :, 0, :, 4:] = 100.0
    assert warp_error(clips, flow).item() == pytest.approx(1)
    clips[:, :, 0, :, 4:] = 50.0
    assert warp_error(clips, flow).item() == pytest.approx(1)
    with pytest.raises(ValueError, match="every pixel of a clip out of the frame"):
        warp_error(clips, flow + 100)


def test_frechet_sees_motion_as_well_as_looks():
    clips = open_clips("drifting-textures", frames=6, size=16)
    real, fresh = clips.batch(range(600))[0], clips.batch(range(1000, 1300))[0]
    order = torch.stack([torch.randperm(6, generator=torch.Generator().manual_seed(i)) for i in range(300)])
    shuffled = fresh.gather(2, order.view(300, 1, 6, 1, 1).expand_as(fresh))
    good, bad = clip_frechet(fresh, real), clip_frechet(shuffled, real)
    assert good.floor > 0 and good.value < 1.5 * good.floor
    assert bad.value > 1.5 * good.value and bad.floor == good.floor
    assert "64-D" in good.name


def test_features_are_fixed_and_pluggable():
    x = noise(AR1(6, 0.5))[:20]
    assert clip_features(x).shape == (20, 64)
    assert torch.equal(clip_features(x)[3:7], clip_features(x[3:7]))
    assert not torch.allclose(clip_features(x), clip_features(x, seed=1))
    torch.testing.assert_close(clip_features(2 * x), 2 * clip_features(x))

    def means(clips):
        return clips.mean((3, 4)).flatten(1)

    score = clip_frechet(x, x, features=means)
    assert score.value == pytest.approx(0, abs=1e-9) and "means" in score.name and "6-D" in score.name


def test_wrong_clips():
    x = noise(AR1(6, 0.5))[:4]
    for wrong, message in (
        (x[:, :, 0], r"floats \(N, C, F, H, W\)"),
        ((x * 9).to(torch.uint8), "must be floats"),
        (x * math.nan, "not finite"),
        (torch.ones(2, 1, 4, 3, 3), "do not vary"),
    ):
        with pytest.raises(ValueError, match=message):
            autocorrelation(wrong)
    with pytest.raises(ValueError, match="stand still"):
        flicker(torch.ones(2, 1, 4, 3, 3))
    with pytest.raises(ValueError, match="at least 3 frames"):
        flicker(x[:, :, :2])
    with pytest.raises(ValueError, match="at least 2 frames"):
        correlation_error(x[:, :, :1], x[:, :, :1])
    with pytest.raises(ValueError, match="differ in shape"):
        flicker_score(x, x[:, :, :4])
    with pytest.raises(ValueError, match=r"flow must be \(4, 5, 2, 16, 16\)"):
        warp_error(x, torch.zeros(4, 5, 2, 8, 8))
    with pytest.raises(ValueError, match="bands must be at least 1"):
        band_autocorrelation(x, 0)

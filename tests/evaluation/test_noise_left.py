"""The share of noise in samples: on noise, on real data, on mixtures, and on models on their way."""

import pytest
import torch

import ornstein as orn
from ornstein.data import open_clips, open_images, to_unit
from ornstein.evaluation.noise_left import STILL_NOISE, noise_score, noise_share, noise_warning, spectrum
from ornstein.evaluation.run import draw
from ornstein.nets import VideoUNet

CLIPS = (1, 8, 16, 16)


def draws(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=["drifting-textures", "bouncing-balls", "moving-digits", "digits"])
def data(request):
    """Held-out and training data of one kind, and noise of their shape."""
    if request.param == "digits":
        train, held_out = open_images("digits").split(0.1, 0)
        both = to_unit(held_out.images), to_unit(train.images[:200])
    else:
        clips = open_clips(request.param, frames=8, size=16)
        both = clips.batch(range(48))[0], clips.batch(range(100, 148))[0]
    return *both, draws(both[0].shape, 0)


def test_real_data_hold_none(data):
    real, train, noise = data
    assert noise_share(train, real, noise) < 0.05
    assert noise_warning(noise_share(train, real, noise)) is None


def test_noise_is_all_noise(data):
    real, _, noise = data
    for seed, scale in ((1, 1.0), (2, 0.2)):
        share = noise_share((scale * draws(real.shape, seed)).clamp(-1, 1), real, noise)
        assert share > 0.9
        assert "still noise" in (noise_warning(share) or "")


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.8])
def test_a_mixture_has_its_share(data, share):
    """Noise of that part of the variance; the mean of a frame has no part in it."""
    real, train, noise = data
    flat = train - train.mean((-2, -1), keepdim=True)
    mixture = (1 - share) ** 0.5 * flat + share**0.5 * flat.std() * draws(flat.shape, 3)
    measured = noise_share(mixture, real, noise)
    assert measured == pytest.approx(share, abs=0.06)
    assert (noise_warning(measured) is not None) == (share > STILL_NOISE)


def test_what_cannot_be_told_apart_is_not_claimed():
    noise = draws((64, *CLIPS), 0)
    assert noise_share(draws((64, *CLIPS), 1), draws((64, *CLIPS), 2), noise) is None
    assert noise_share(torch.zeros(4, *CLIPS), draws((64, *CLIPS), 2), noise) is None
    assert noise_warning(None) is None


def test_the_spectrum_is_of_sum_one_and_blind_to_means():
    x = draws((4, *CLIPS), 0)
    assert spectrum(x).shape == (5, 8) and float(spectrum(x).sum()) == pytest.approx(1)
    torch.testing.assert_close(spectrum(x + 3), spectrum(x))
    assert spectrum(draws((4, 3, 8, 8), 0)).shape == (1, 8)
    constant = torch.ones(2, *CLIPS)
    assert float(spectrum(constant).sum()) == 0
    # a wave of one spatial frequency and one temporal one fills one cell
    t, column = torch.arange(8.0).view(1, 1, 8, 1, 1), torch.arange(16.0)
    wave = torch.cos(2 * torch.pi * (2 * t / 8 + column / 16)).expand(1, 1, 8, 16, 16)
    assert float(spectrum(wave)[2].max()) == pytest.approx(1)


@pytest.mark.parametrize("noise", [orn.noise.Identity(), orn.noise.AR1(8, 0.9)])
def test_an_untrained_model_makes_noise_and_a_model_that_knows_the_data_does_not(noise):
    """Its noise has the correlation of the process: over frames, too."""
    clips = open_clips("drifting-textures", frames=8, size=16)
    real, train = clips.batch(range(48))[0], clips.batch(range(100, 148))[0]
    torch.manual_seed(0)
    net = VideoUNet.preset("xs", channels=1, size=16, frames=8)
    d = orn.Denoiser(net, orn.Process(orn.schedules.Cosine(), noise), "v", data=orn.SampleSpec(CLIPS))
    samples = to_unit(draw(d.eval(), None, 24, steps=4))
    share, (score,) = noise_score(d, samples, real, train)
    assert share > 0.85 and score.name == "Noise left in the samples"
    assert noise_score(d, train, real, train)[0] < 0.05
    # half way: what the network has removed of the noise is gone from the share
    half = noise_score(d, 0.7 * train[:24] + 0.3 * samples, real, train)[0]
    assert 0.02 < half < STILL_NOISE

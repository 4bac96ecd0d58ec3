"""The decoders of 8-bit pixels are distributions over the 256 values."""

import pytest
import torch

from ornstein import Process
from ornstein.data.pixels import to_unit
from ornstein.likelihood.decoders import discrete, discretised_gaussian, gaussian, log_bins, pixel_indices, vdm
from ornstein.noise import AR1
from ornstein.process import Prediction
from ornstein.schedules import VE, LinearBeta


def prediction(p: Process, x0_hat: torch.Tensor, x_t: torch.Tensor, t: float) -> Prediction:
    return p.convert(x_t, t, x0=x0_hat)


ALL = torch.arange(256).double()[:, None] / 127.5 - 1


@pytest.mark.parametrize("std", [1e-4, 0.004, 0.1, 3.0])
@pytest.mark.parametrize("mean", [-3.0, -1.0, 0.0013, 0.7, 1.0, 40.0])
def test_bins_sum_to_one(mean: float, std: float):
    bins = log_bins(torch.tensor(mean).double(), torch.tensor(std).double())
    assert bins.shape == (256,)
    assert float(torch.logsumexp(bins, 0)) == pytest.approx(0.0, abs=1e-10)
    own = discretised_gaussian(torch.arange(256), torch.full((256,), mean).double(), torch.tensor(std).double())
    torch.testing.assert_close(own, bins, rtol=1e-7, atol=1e-9)


def test_a_bin_far_in_the_tail():
    """log(Phi(b) - Phi(a)) at 100 standard deviations, where Phi is 1 to every digit: near the density there."""
    low = float(log_bins(torch.tensor(-1.0).double(), torch.tensor(0.01).double())[200])
    mirrored = float(log_bins(torch.tensor(1.0).double(), torch.tensor(0.01).double())[55])
    assert low == pytest.approx(mirrored, rel=1e-9)
    edge = (199.5 / 127.5) / 0.01
    assert -0.5 * edge**2 - 10 < low < -0.5 * edge**2


@pytest.mark.parametrize("decoder", [discrete, vdm])
@pytest.mark.parametrize("p", [Process(LinearBeta()), Process(VE(), AR1(1, 0.3))])
def test_decoders_sum_to_one(decoder, p: Process):
    t = 0.03
    for x0_hat, x_t in ((0.2, 0.25), (-1.0, -1.1), (0.98, 1.0)):
        given = prediction(p, torch.full((256, 1), x0_hat).double(), torch.full((256, 1), x_t).double(), t)
        assert float(torch.logsumexp(decoder(given, ALL, t), 0)) == pytest.approx(0.0, abs=1e-9)


def test_vdm_is_bayes_rule_with_equal_pixels():
    p, t = Process(LinearBeta()), 0.05
    a, s = p.schedule.alpha(t), p.schedule.sigma(t)
    x_t = torch.full((256, 1), 0.31).double()
    likelihood = torch.distributions.Normal(a * ALL, s).log_prob(x_t)
    expected = (likelihood - torch.logsumexp(likelihood, 0))[:, 0]
    torch.testing.assert_close(vdm(prediction(p, ALL, x_t, t), ALL, t), expected, rtol=1e-9, atol=1e-9)


def test_pixels_are_independent():
    x0, t, p = to_unit(torch.tensor([[10, 200], [0, 255]], dtype=torch.uint8)).double(), 0.02, Process(LinearBeta())
    x_t, guess = x0 + 0.01, x0 - 0.02
    for decoder in (discrete, vdm):
        whole = decoder(prediction(p, guess, x_t, t), x0, t)
        parts = [decoder(prediction(p, guess[:, [i]], x_t[:, [i]], t), x0[:, [i]], t) for i in (0, 1)]
        torch.testing.assert_close(whole, parts[0] + parts[1])


def test_gaussian_has_the_covariance_of_the_noise():
    p, t, x0 = Process(VE(), AR1(3, 0.5)), 0.1, torch.ones(2, 3).double()
    ratio = p.schedule.sigma(t) / p.schedule.alpha(t)
    truth = torch.distributions.MultivariateNormal(0.3 * x0, ratio**2 * p.noise.dense()).log_prob(x0)
    torch.testing.assert_close(gaussian(prediction(p, 0.3 * x0, x0, t), x0, t), truth)


def test_what_is_a_pixel():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert pixel_indices(to_unit(pixels)).tolist() == list(range(256))
    for wrong in (1.01, -1.0 + 0.5 / 127.5, 0.0):
        with pytest.raises(ValueError, match="not 8-bit pixels"):
            pixel_indices(torch.tensor([wrong]))

"""E29's special case: a hierarchy with fixed linear-Gaussian inference and equal dimensions is the diffusion chain."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ornstein import Process
from ornstein.autoencoders import DiffusionChain, Elbo, addressed, path_rates
from ornstein.likelihood import vlb
from ornstein.likelihood.model import STREAM
from ornstein.noise import AR1
from ornstein.oracles import GaussianMixture
from ornstein.randomness import normal
from ornstein.schedules import Cosine, LinearBeta

MIXTURE = GaussianMixture(
    [0.3, 0.7], [[1.0, 0.0], [-1.0, 0.5]], [[[0.2, 0.05], [0.05, 0.3]], [[0.3, 0.0], [0.0, 0.15]]]
)
CORRELATED = Process(LinearBeta(), AR1(2, 0.6))
SEED = 3


def draws(n: int) -> Tensor:
    return MIXTURE.sample(n, torch.Generator().manual_seed(0))


def noise_of_vlb(n: int) -> Any:
    """The noise that `vlb` gives x_1, and x_2, x_3, ...: its streams of the reconstruction and of the later states."""
    index = torch.arange(n)

    def noise(layer: int, shape: tuple[int, ...]) -> Tensor:
        step, stream = (0, STREAM) if layer == 1 else (layer - 2, STREAM + 2)
        return normal(shape, SEED, index, step, stream, torch.float64)

    return noise


@pytest.mark.parametrize("process", [CORRELATED, Process(Cosine())])
@pytest.mark.parametrize("variance", ["upper", "lower"])
@pytest.mark.parametrize("steps", [1, 2, 12])
def test_the_hierarchy_s_bound_is_e11_number_for_number(process: Process, variance: Any, steps: int):
    d, x0 = MIXTURE.denoiser(process), draws(20)
    elbo = DiffusionChain(d, steps, variance).bound(x0, noise_of_vlb(20))
    bound = vlb(d, x0, steps, "matching", "gaussian", variance=variance, seed=SEED)
    torch.testing.assert_close(elbo.reconstruction, bound.reconstruction, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(elbo.rates[:-1].sum(0), bound.diffusion, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(elbo.rates[-1], bound.prior, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(elbo.total, bound.total, rtol=1e-10, atol=1e-10)
    assert elbo.rates.shape == (steps, 20)


def test_so_it_is_for_pixels():
    levels = torch.tensor([[0, 0], [255, 100], [30, 200]]).double() / 127.5 - 1
    d = GaussianMixture([0.2, 0.3, 0.5], levels, 1e-3 * torch.eye(2).expand(3, 2, 2)).denoiser(Process(Cosine()))
    elbo = DiffusionChain(d, 10, "lower").bound(levels, noise_of_vlb(3), decoder="discrete")
    torch.testing.assert_close(elbo.total, vlb(d, levels, 10, seed=SEED).total, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("steps", [2, 10])
def test_along_a_path_it_is_e11_in_expectation(steps: int):
    """The log-ratios of the general hierarchy, which know nothing of q(z_l | z_{l+1}, x), against the divergences."""
    n = 6000
    d, x0 = MIXTURE.denoiser(CORRELATED), draws(n)
    path = DiffusionChain(d, steps).bound(x0, addressed(1, torch.arange(n), dtype=torch.float64), "path").total
    bound = vlb(d, x0, steps, "matching", "gaussian", variance="upper", batch=6000).total
    difference = path - bound
    error = float(difference.std()) / math.sqrt(n)
    assert error < 0.05
    assert abs(float(difference.mean())) < 4 * error
    above = path + d.log_prob(x0, 0.0)
    assert float(above.mean()) > -4 * float(above.std()) / math.sqrt(n)


def test_a_path_is_a_draw_of_the_forward_process():
    """z_L of the hierarchy has the law of x_1, and z_1 that of x_{1/L}."""
    chain, x = DiffusionChain(MIXTURE.denoiser(CORRELATED), 5), torch.full((20_000, 2), 0.7).double()
    z, rates = path_rates(chain, x, addressed(0, torch.arange(20_000), dtype=torch.float64))
    truth = CORRELATED.marginal(x[:1], 0.2)
    torch.testing.assert_close(z.mean(0), truth.mean[0], atol=4 * float(truth.std) / 20_000**0.5, rtol=0)
    covariance = float(truth.std) ** 2 * CORRELATED.noise.dense()
    torch.testing.assert_close(torch.cov(z.mT), covariance, atol=0.03 * float(covariance.max()), rtol=0)
    assert rates.shape == (5, 20_000)


def test_a_wrong_chain_is_another_number():
    """Negative control: a chain of other length, or a denoiser that does not see the data, has another bound."""
    x0 = draws(20)
    truth = DiffusionChain(MIXTURE.denoiser(CORRELATED), 12).bound(x0, noise_of_vlb(20)).total
    short = DiffusionChain(MIXTURE.denoiser(CORRELATED), 6).bound(x0, noise_of_vlb(20)).total
    blind = GaussianMixture([1.0], [[3.0, 3.0]], 0.1 * torch.eye(2)[None]).denoiser(CORRELATED)
    assert bool(((short - truth).abs() > 1e-3).all())
    assert float((DiffusionChain(blind, 12).bound(x0, noise_of_vlb(20)).total - truth).mean()) > 5


def test_bad_arguments():
    d = MIXTURE.denoiser(CORRELATED)
    with pytest.raises(ValueError, match="at least 1 layer"):
        DiffusionChain(d, 0)
    with pytest.raises(ValueError, match=r"upper.*got 'middle'"):
        DiffusionChain(d, 3, "middle")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="form is one of path, matching"):
        DiffusionChain(d, 3).bound(draws(2), noise_of_vlb(2), form="forward")  # type: ignore[arg-type]


def test_the_bound_adds_up():
    elbo = Elbo(torch.ones(2), torch.full((3, 2), 2.0))
    assert elbo.total.tolist() == [7.0, 7.0]

"""What the solver tests share: data whose laws are closed forms, and a solver run from end to end."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ornstein.oracles import GaussianMixture


def _covariance(seed: int) -> Tensor:
    b = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return b @ b.mT / 3 + 0.1 * torch.eye(3, dtype=torch.float64)


@pytest.fixture(scope="session")
def gauss() -> GaussianMixture:
    """One correlated Gaussian in three dimensions."""
    return GaussianMixture([1.0], [[0.3, -0.5, 0.1]], _covariance(0)[None])


@pytest.fixture(scope="session")
def mixture() -> GaussianMixture:
    """Three components; none of their covariances commutes with another or with that of AR1 noise."""
    covs = 0.3 * torch.stack([_covariance(i) for i in (1, 2, 3)])
    return GaussianMixture([0.5, 0.3, 0.2], [[1.0, -0.5, 0.2], [-1.0, 0.4, 1.0], [0.3, 1.0, -1.2]], covs)


def _no_noise(step: int, draw: int = 0) -> Tensor:
    raise AssertionError("a deterministic solver asked for noise")


def _final(solver, d, x: Tensor, times: Tensor, noise=_no_noise) -> Tensor:
    states = list(solver(d, x, times, noise))
    assert len(states) == len(times) - 1
    return states[-1]


@pytest.fixture(scope="session")
def final() -> Callable[..., Tensor]:
    """The last state of a solver; noise that a deterministic one asks for is an error."""
    return _final


@pytest.fixture(scope="session")
def law() -> Callable[..., tuple[Tensor, Tensor]]:
    """(mean, covariance) of a solver's output for an input N(mean, cov), when its denoiser is affine in x.

    The output is then affine in the input and in the noise of every step; one run on unit vectors reads it all off.
    """

    def law(solver, d, times: Tensor, mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
        n, steps = len(mean), len(times) - 1
        x = torch.zeros(1 + n + steps * n, n, dtype=torch.float64)
        x[1 : 1 + n] = torch.eye(n)

        def noise(step: int, draw: int = 0) -> Tensor:
            assert draw == 0
            z = torch.zeros_like(x)
            z[1 + n + step * n : 1 + n + (step + 1) * n] = torch.eye(n)
            return z

        out = _final(solver, d, x, times, noise)
        responses = (out[1:] - out[0]).mT
        from_input, from_noise = responses[:, :n], responses[:, n:]
        return from_input @ mean + out[0], from_input @ cov @ from_input.mT + from_noise @ from_noise.mT

    return law


@pytest.fixture(scope="session")
def order() -> Callable[[list[int], list[float]], float]:
    """The least-squares slope of -log error on log steps."""

    def order(steps: list[int], errors: list[float]) -> float:
        x, y = torch.tensor(steps).double().log(), torch.tensor(errors).double().log()
        x = x - x.mean()
        return -float((x * y).sum() / (x * x).sum())

    return order

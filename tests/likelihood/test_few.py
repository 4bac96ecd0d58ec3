"""log p(x_0) in a few evaluations (E32), against densities that are known."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ornstein import Process
from ornstein.errors import UserError
from ornstein.likelihood import FewSteps, fit_few
from ornstein.noise import AR1, Identity
from ornstein.oracles import GaussianMixture
from ornstein.schedules import VE, Cosine, LinearBeta, Rectified

ONE = GaussianMixture([1.0], [[0.3, -0.2, 0.5]], [[[0.2, 0.1, 0.0], [0.1, 0.4, 0.05], [0.0, 0.05, 0.01]]])
TWO = GaussianMixture([0.3, 0.7], [[1.0, 0.0], [-1.0, 0.5]], [[[0.2, 0.05], [0.05, 0.3]], [[0.3, 0.0], [0.0, 0.15]]])


def draws(mixture: GaussianMixture, n: int, seed: int = 0) -> Tensor:
    return mixture.sample(n, torch.Generator().manual_seed(seed))


def with_moments_of(mixture: GaussianMixture, n: int) -> Tensor:
    """Samples whose mean and covariance are those of the one Gaussian to the last digits."""
    z = torch.randn(n, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(z.T)), (z - z.mean(0)).T, upper=False)
    return mixture.means[0] + z.T @ torch.linalg.cholesky(mixture.covs[0]).T


@pytest.mark.parametrize("p", [Process(Cosine(), AR1(3, 0.7)), Process(Rectified()), Process(VE())], ids=str)
def test_one_gaussian_is_exact(p: Process) -> None:
    """Its flow stands still: two evaluations are as good as thousands."""
    d, x = ONE.denoiser(p), draws(ONE, 12)
    few = fit_few(d, x, 2, data=with_moments_of(ONE, 50))
    found = few(d, x)
    # the state at t = 1, by the linear map of one Gaussian; sampling starts from another law than the marginal there
    end = d.ode_map(x, 0.0, 1.0)
    start = p.prior(tuple(x.shape), torch.float64, 1.0, x.device)
    exact = d.log_prob(x, 0.0) + start.log_prob(end) - d.log_prob(end, 1.0)
    torch.testing.assert_close(found.value, exact, rtol=0, atol=1e-6)
    assert found.evaluations.tolist() == [2] * 12


@pytest.mark.parametrize("p", [Process(Cosine(), Identity()), Process(LinearBeta(), AR1(2, 0.6))], ids=str)
def test_a_mixture_to_a_hundredth_of_a_nat(p: Process) -> None:
    d = TWO.denoiser(p)
    few = fit_few(d, draws(TWO, 160), 8, batch=160)
    x = draws(TWO, 200, 1)
    found = few(d, x)
    wrong = (found.value - d.log_prob(x, 0.0)).abs()
    assert float(wrong.mean()) < 1e-2  # with the prior's own error, a few thousandths
    assert 0 < few.spread < 1e-2 and float(found.error[0]) == few.spread


def test_more_evaluations_are_nearer_and_a_batch_changes_nothing() -> None:
    d = TWO.denoiser(Process(Cosine(), AR1(2, 0.6)))
    x = draws(TWO, 64)
    assert fit_few(d, x, 12, batch=64).spread < 0.5 * fit_few(d, x, 4, batch=64).spread
    few = fit_few(d, x, 4, divergence="hutchinson", seed=3)
    whole = few(d, x, probes=2, seed=1).value
    parts = torch.cat([few(d, x[k : k + 16], probes=2, seed=1, first=k).value for k in range(0, 64, 16)])
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=1e-12)


def test_a_random_probe_has_no_spread_on_one_gaussian_and_the_right_mean() -> None:
    p = Process(Cosine(), AR1(3, 0.7))
    d, x = ONE.denoiser(p), draws(ONE, 12)
    data = with_moments_of(ONE, 50)
    exact, random = (fit_few(d, x, 2, data=data, divergence=k, batch=12) for k in ("exact", "hutchinson"))
    torch.testing.assert_close(random(d, x, probes=2).value, exact(d, x).value, rtol=0, atol=1e-6)
    d, x = TWO.denoiser(p.__class__(Cosine(), AR1(2, 0.6))), draws(TWO, 48)
    exact, random = (fit_few(d, x, 8, divergence=k, batch=48) for k in ("exact", "hutchinson"))
    many = random(d, x, probes=64)
    off = (many.value - exact(d, x).value).abs()
    assert bool((off < 5 * (many.error - many.solver_error) + 0.1).all())


def test_kept_in_a_folder(tmp_path: Path) -> None:
    d, x = TWO.denoiser(Process(Cosine())), draws(TWO, 32)
    few = fit_few(d, x, 3)
    with pytest.raises(UserError, match=r"tune .* --likelihood"):
        FewSteps.load(tmp_path, "m")
    few.save(tmp_path, "m")
    assert torch.equal(FewSteps.load(tmp_path, "m")(d, x).value, few(d, x).value)
    with pytest.raises(UserError, match="another model"):
        FewSteps.load(tmp_path, "other")
    (tmp_path / "likelihood.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be used"):
        FewSteps.load(tmp_path, "m")


def test_mistakes() -> None:
    d, x = TWO.denoiser(Process(Cosine())), draws(TWO, 16)
    with pytest.raises(ValueError, match="2 evaluations or more, got 1"):
        fit_few(d, x, 1)
    with pytest.raises(ValueError, match="8 samples or more, got 4"):
        fit_few(d, x[:4])
    few = fit_few(d, x, 2)
    with pytest.raises(ValueError, match="samples of 2 numbers"):
        few(ONE.denoiser(Process(Cosine())), draws(ONE, 4))
    with pytest.raises(ValueError, match="probes must be >= 1"):
        few(d, x, probes=0)

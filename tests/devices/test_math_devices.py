"""Noise, schedules, oracles and solvers on a GPU: matrices move there once, and arguments may be on the CPU."""

import pytest
import torch
from pretend import PretendedGPU

import ornstein as orn
from ornstein.likelihood import ode
from ornstein.noise import AR1, OU, Covariance, Kronecker, LowRank, Mixed, SpectralAR1, Spectrum, Toeplitz
from ornstein.oracles import GaussianMixture
from ornstein.solvers import SOLVERS, Counted, grids

DRAW = torch.Generator().manual_seed(0)
ROW = 0.8 ** torch.arange(70.0)
NOISES: list[tuple[Covariance, tuple[int, ...]]] = [
    (AR1(5, 0.6), (2, 5)),
    (AR1(70, 0.6), (2, 70)),
    (AR1(5, 0.6).floored(0.1), (2, 3, 5, 2, 2)),
    (OU([0.0, 1.0, 3.0], 0.4), (2, 3)),
    (Mixed(70, 0.3), (2, 70)),
    (Toeplitz(ROW), (2, 70)),
    (LowRank(torch.rand(70, generator=DRAW) + 0.1, torch.randn(70, 2, generator=DRAW)), (2, 70)),
    (LowRank([0.0, 1.0, 2.0], torch.ones(3, 1)), (2, 3)),
    (Kronecker(AR1(3, 0.5), (AR1(2, 0.1), Mixed(4, 0.2))), (2, 1, 3, 2, 4)),
    (Kronecker(AR1(3, 0.5)).floored(0.2), (2, 1, 3, 2, 4)),
    (SpectralAR1(3, [0.9, 0.1], size=(2, 4)).floored(0.1), (2, 1, 3, 2, 4)),
    (Spectrum(torch.ones(2, 4)), (2, 1, 2, 4)),
]


@pytest.mark.parametrize(("noise", "shape"), NOISES, ids=lambda v: repr(v) if isinstance(v, Covariance) else "")
def test_a_covariance_moves_once(gpu: PretendedGPU, noise: Covariance, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    operations = (noise.color, noise.matvec, noise.whiten, noise.solve, noise.mahalanobis)
    wanted = [f(x) for f in operations]
    there = x.to("cuda")
    for f, value in zip(operations, wanted, strict=True):
        torch.testing.assert_close(f(there).cpu(), value, rtol=1e-4, atol=1e-4)
    gpu.reset()
    for f in operations:
        f(there)
    assert gpu.syncs == gpu.copies == 0, gpu.report()
    drawn = noise.sample(shape, torch.Generator().manual_seed(2), device="cuda")
    torch.testing.assert_close(drawn.cpu(), noise.sample(shape, torch.Generator().manual_seed(2)), rtol=1e-4, atol=1e-4)


def mixture(device: str = "cpu") -> GaussianMixture:
    covs = torch.diag_embed(torch.tensor([[0.1, 0.3, 0.2], [0.05, 0.1, 0.4]])).to(device)
    means = torch.tensor([[1.0, -0.5, 0.2], [-1.0, 0.4, 1.0]]).to(device)
    return GaussianMixture(torch.tensor([0.5, 0.5]).to(device), means, covs)


@pytest.mark.parametrize("given", ["cpu", "cuda"])
def test_an_oracle(gpu: PretendedGPU, given: str) -> None:
    p = orn.Process(orn.schedules.Discrete(torch.linspace(1e-3, 0.2, 50).to(given)), AR1(3, 0.5))
    here, d = mixture().denoiser(p), mixture(given).denoiser(p)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 1, 0])
    for t in (0.3, torch.tensor([0.1, 0.4, 0.7, 1.0]), torch.tensor([0.1, 0.4, 0.7, 1.0]).to("cuda")):
        on_cpu = t.cpu() if isinstance(t, torch.Tensor) else t
        for label in (None, labels, labels.tolist(), labels.to("cuda")):
            wanted = here(x, on_cpu, label=label.cpu() if isinstance(label, torch.Tensor) else label)
            prediction = d(x.to("cuda"), t, label=label)
            for form in ("x0", "eps", "v", "score", "flow"):
                value = getattr(prediction, form)
                assert value.is_cuda
                torch.testing.assert_close(value.cpu(), getattr(wanted, form), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(d.log_prob(x.to("cuda"), t).cpu(), here.log_prob(x, on_cpu))
    drawn = mixture(given).sample(5, torch.Generator("cuda").manual_seed(0))
    assert drawn.shape == (5, 3) and drawn.device.type == "cpu"


@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_of_an_oracle_wait_for_nothing(gpu: PretendedGPU, solver: str) -> None:
    p = orn.Process(orn.schedules.LinearBeta(), AR1(3, 0.5))
    d, times = Counted(mixture().denoiser(p)), grids.make("logistic", p.schedule, (1.0, 0.0), 4)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))

    def noise(step: int, draw: int = 0) -> torch.Tensor:
        z = torch.randn(4, 3, generator=torch.Generator().manual_seed(10 * step + draw))
        return z.to("cuda")

    *_, wanted = SOLVERS[solver](d, x, times, lambda step, draw=0: noise(step, draw).cpu())
    calls = d.calls
    start = x.to("cuda")
    gpu.reset()
    *_, out = SOLVERS[solver](d, start, times, noise)
    # rk45 reads the error of each attempted step, of six evaluations.
    assert gpu.syncs <= (calls // 6 if solver == "rk45" else 0), gpu.report()
    torch.testing.assert_close(out.cpu(), wanted, rtol=1e-3, atol=1e-3)


def test_the_likelihood_of_an_oracle(gpu: PretendedGPU) -> None:
    p = orn.Process(orn.schedules.Rectified(), AR1(3, 0.5))
    d = mixture().denoiser(p)
    x = mixture().sample(3, torch.Generator().manual_seed(0))
    wanted = ode(d, x)
    torch.testing.assert_close(ode(d, x.to("cuda")).value, wanted.value, rtol=1e-6, atol=1e-6)

"""C-diffusion on x is I-diffusion on R^-1 x, pathwise, for every covariance (EQUATIONS: exact oracles)."""

import math

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein.noise import AR1, OU, Covariance, Identity, Kronecker, LowRank, Mixed, SpectralAR1, Toeplitz
from ornstein.oracles import GaussianMixture

VECTORS = (6,)
CLIP = (1, 3, 2, 2)

CASES: list[tuple[Covariance, tuple[int, ...]]] = [
    (AR1(6, 0.7), VECTORS),
    (OU([0.0, 0.1, 1.0, 1.5, 3.0, 3.2], 0.8), VECTORS),
    (Mixed(6, 0.6), VECTORS),
    (Toeplitz([2.0, 1.0, 0.5, 0.1, 0.0, 0.0]), VECTORS),
    (LowRank([0.5, 0.2, 1.0, 0.3, 0.0, 0.4], [[1.0], [0.5], [-1.0], [0.2], [2.0], [0.0]]), VECTORS),
    (Kronecker(AR1(3, 0.6), (Mixed(2, 0.3), AR1(2, -0.4))), CLIP),
    (Kronecker(AR1(3, 1.0), (Mixed(2, 0.3), AR1(2, -0.4))).floored(0.2), CLIP),
    (SpectralAR1(3, [0.9, 0.2], size=(2, 2)), CLIP),
    (SpectralAR1(3, [1.0, -0.5], size=(2, 2)).floored(0.3), CLIP),
]


def mixture(root: Tensor, shape: tuple[int, ...]) -> GaussianMixture:
    """Two Gaussians seen through the linear map `root`."""
    n = math.prod(shape)
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(2, n, generator=generator, dtype=torch.float64) @ root.mT
    a = torch.randn(2, n, n, generator=generator, dtype=torch.float64) / math.sqrt(n)
    covs = root @ (a @ a.mT + 0.1 * torch.eye(n)) @ root.mT
    return GaussianMixture([0.3, 0.7], means.reshape(2, *shape), covs)


@pytest.mark.parametrize(("c", "shape"), CASES, ids=lambda v: str(v) if isinstance(v, Covariance) else "")
def test_diffusion_in_whitened_coordinates(c: Covariance, shape: tuple[int, ...]):
    n = math.prod(shape)
    root = c.color(torch.eye(n, dtype=torch.float64).reshape(n, *shape)).reshape(n, n).mT
    coloured = mixture(root, shape)
    white = mixture(torch.eye(n, dtype=torch.float64), shape)
    schedule = orn.schedules.Cosine()
    p_c, p_i = orn.Process(schedule, c), orn.Process(schedule, Identity())

    start = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    paths: dict[str, list[Tensor]] = {"c": [], "i": []}
    for name, d, x in (("c", coloured.denoiser(p_c), c.color(start)), ("i", white.denoiser(p_i), start)):
        orn.sample(
            d, x.shape, solver="ddpm", steps=7, start=x, seed=3, callback=lambda s, to=name: paths[to].append(s.x)
        )
    assert len(paths["c"]) == len(paths["i"]) == 8
    assert float((paths["c"][-1] - paths["c"][0]).abs().max()) > 0.1
    for x_c, x_i in zip(paths["c"], paths["i"], strict=True):
        torch.testing.assert_close(x_c, c.color(x_i), rtol=1e-7, atol=1e-7)

    # Densities of the two differ by the volume of R, and the kernels' own densities agree with that.
    x = c.color(start)
    half = 0.5 * c.logdet(shape)
    torch.testing.assert_close(
        coloured.log_prob(x, p_c, 0.5), white.log_prob(start, p_i, 0.5) - half, rtol=1e-7, atol=1e-7
    )
    prior_c, prior_i = (p.prior((4, *shape), torch.float64) for p in (p_c, p_i))
    torch.testing.assert_close(prior_c.log_prob(x), prior_i.log_prob(start) - half, rtol=1e-8, atol=1e-8)

"""The second stage of tuning: the distance of sets of samples, and what a solver learns from it (E33)."""

from dataclasses import replace
from itertools import combinations
from typing import cast

import pytest
import torch

from ornstein import Process
from ornstein.autoencoders.perceptual import octave_statistics
from ornstein.denoiser import Denoises
from ornstein.evaluation.frechet import frechet_distance
from ornstein.few_steps import tuning
from ornstein.few_steps.matching import FeatureDistance, KernelDistance, Matching
from ornstein.noise import AR1
from ornstein.oracles import GaussianMixture
from ornstein.schedules import Cosine


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_distance_is_the_frechet_distance_in_scaled_features() -> None:
    real, x = draws(200, 5) * torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0]), draws(60, 5, seed=1) + 0.3
    mean, std = real.mean(0), real.std(0)
    expected = frechet_distance((x - mean) / std, (real - mean) / std)
    assert float(FeatureDistance(real)(x)) == pytest.approx(expected, rel=1e-9)
    pictures, others = draws(50, 1, 8, 8), 0.7 * draws(40, 1, 8, 8, seed=1)
    f, g = octave_statistics(pictures), octave_statistics(others)
    mean, std = f.mean(0), f.std(0).clamp(min=0.01)
    expected = frechet_distance((g - mean) / std, (f - mean) / std)
    assert float(FeatureDistance(pictures, octave_statistics)(others)) == pytest.approx(expected, rel=1e-6)


def test_its_gradient() -> None:
    distance, x = FeatureDistance(draws(40, 3)), (1.5 * draws(12, 3, seed=1)).requires_grad_()
    assert torch.autograd.gradcheck(distance, (x,), eps=1e-6, atol=1e-5)


def test_samples_near_the_given_ones_and_each_end_near_its_fine_solution() -> None:
    """The model is wrong: its data are further apart. The set comes nearer, and the ends stay in reach."""
    p = Process(Cosine(), AR1(3, 0.7))
    covs = 0.05 * torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    means = torch.tensor([[1.0, -0.5, 0.2], [-1.0, 0.4, 1.0]], dtype=torch.float64)
    data, wrong = GaussianMixture([0.5, 0.5], means, covs), GaussianMixture([0.5, 0.5], 1.3 * means, covs)
    d = cast(Denoises, wrong.denoiser(p))
    parts = []
    for seed in (0, 1):
        x = p.prior((64, 3), dtype=torch.float64).sample(draws(64, 3, seed=seed))
        parts.append((d, x, tuning.fine(d, x)))
    learn, new = parts[:1], parts[1:]
    distance = FeatureDistance(data.sample(2000, torch.Generator().manual_seed(0)))
    plain = tuning.tune(learn, 3, 40)
    matched = tuning.tune(learn, 3, 40, match=Matching(distance, iterations=20))

    def far(solver: tuning.Tuned) -> float:
        times = torch.tensor(solver.times, dtype=torch.float64)
        return float(distance(list(solver(d, learn[0][1], times, lambda step, draw=0: torch.zeros(())))[-1]))

    assert far(matched) < 0.99 * far(plain)
    error = tuning.judged(matched, new)
    assert tuning.judged(plain, new).error < error.error < error.untuned


def test_a_range_of_guidance_scales(tmp_path) -> None:
    solver = tuning.untuned_solver(Cosine(), 3, tuning.Start("flow", 3, 0.35))
    assert solver.serves(1.0) and not solver.serves(1.1) and solver.scales == "1"
    wide = replace(solver, guidance=1.0, until=7.5)
    assert wide.serves(1.0) and wide.serves(4.2) and wide.serves(7.5) and not wide.serves(7.6) and not wide.serves(0.9)
    assert tuning.Tuned.from_config(wide.to_config()) == wide and wide.scales == "1 to 7.5"
    assert "until" not in solver.to_config()


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="needs two samples or more"):
        FeatureDistance(draws(1, 3))
    with pytest.raises(ValueError, match=r"samples of \(4,\) are compared with samples of \(3,\)"):
        FeatureDistance(draws(5, 3))(draws(5, 4))


def test_the_kernel_distance_is_unbiased_and_by_its_definition() -> None:
    """Against a double loop; and the mean over all pairs of some samples is that of the samples, as of any U-statistic.

    The Fréchet distance of pairs is not that of the whole.
    """
    g = torch.Generator().manual_seed(0)
    real, x = torch.randn(30, 4, generator=g), 1.5 * torch.randn(6, 4, generator=g) + 0.3
    distance = KernelDistance(real)
    mean, std = real.double().mean(0), real.double().std(0)
    f, r = (x.double() - mean) / std, (real.double() - mean) / std

    def k(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a @ b / 4 + 1) ** 3)

    inside = [k(a, b) for i, a in enumerate(f) for j, b in enumerate(f) if i != j]
    own = [k(a, b) for i, a in enumerate(r) for j, b in enumerate(r) if i != j]
    cross = [k(a, b) for a in f for b in r]
    exact = sum(inside) / len(inside) + sum(own) / len(own) - 2 * sum(cross) / len(cross)
    assert float(distance(x)) == pytest.approx(exact, rel=1e-4)
    pairs = list(combinations(range(6), 2))
    assert sum(float(distance(x[list(p)])) for p in pairs) / len(pairs) == pytest.approx(exact, rel=1e-4)
    frechet = FeatureDistance(real)
    assert sum(float(frechet(x[list(p)])) for p in pairs) / len(pairs) > 1.5 * float(frechet(x))
    with pytest.raises(ValueError, match="two samples"):
        KernelDistance(real[:1])


def test_its_gradient_brings_samples_near() -> None:
    """Steps along it bring mean and spread of samples to those of the given ones, batch by batch of 8."""
    g = torch.Generator().manual_seed(0)
    real = torch.randn(500, 2, generator=g) * torch.tensor([1.0, 2.0]) + torch.tensor([0.5, -1.0])
    distance = KernelDistance(real)
    shift, scale = torch.zeros(2, requires_grad=True), torch.full((2,), 0.3, requires_grad=True)
    optimizer = torch.optim.Adam([shift, scale], lr=0.02)
    for _ in range(600):
        optimizer.zero_grad()
        distance(shift + scale * torch.randn(8, 2, generator=g)).backward()
        optimizer.step()
    torch.testing.assert_close(shift.detach(), torch.tensor([0.5, -1.0]), rtol=0, atol=0.3)
    torch.testing.assert_close(scale.detach().abs(), torch.tensor([1.0, 2.0]), rtol=0.2, atol=0)

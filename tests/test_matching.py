"""The second stage of tuning: the distance of sets of samples, and what a solver learns from it (E33)."""

from dataclasses import replace
from typing import cast

import pytest
import torch

from ornstein import Process
from ornstein.autoencoders.perceptual import octave_statistics
from ornstein.denoiser import Denoises
from ornstein.evaluation.frechet import frechet_distance
from ornstein.few_steps import tuning
from ornstein.few_steps.matching import FeatureDistance, Matching
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

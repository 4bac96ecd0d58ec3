"""Soft targets of tuning (E33): the ball in which a start may move, and what a solver learns from them."""

import math
from pathlib import Path
from typing import cast

import pytest
import torch

from ornstein import Process
from ornstein.denoiser import Denoises
from ornstein.few_steps import tuning
from ornstein.noise import AR1
from ornstein.oracles import GaussianMixture
from ornstein.schedules import VE, Cosine
from running import ornstein, refused

C = AR1(3, 0.7)


@pytest.mark.parametrize("schedule", [Cosine(), VE()])
def test_a_start_stays_in_its_ball_in_the_norm_of_the_noise(schedule) -> None:
    p, x = Process(schedule, C), torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
    s = p.at(1.0)[1]
    for size in (0.0, 0.1, 1.0, 1e6):
        v = size * torch.eye(4, 3, dtype=torch.float64)
        far = C.mahalanobis(tuning.moved(p, x, v, 0.2) - x).sqrt()
        expected = 0.2 * math.sqrt(3) * s * v.norm(dim=1) / (1 + v.norm(dim=1) ** 2).sqrt()
        torch.testing.assert_close(far, expected, rtol=1e-9, atol=1e-12)
        assert bool((far <= 0.2 * math.sqrt(3) * s * (1 + 1e-12)).all())


def parts(count: int = 24) -> tuning.Trajectories:
    p = Process(Cosine(), C)
    covs = 0.05 * torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    data = GaussianMixture([0.5, 0.5], [[1.0, -0.5, 0.2], [-1.0, 0.4, 1.0]], covs)
    d = cast(Denoises, data.denoiser(p))
    g = torch.Generator().manual_seed(0)
    x = p.prior((count, 3), dtype=torch.float64).sample(torch.randn(count, 3, generator=g, dtype=torch.float64))
    return [(d, x, tuning.fine(d, x))]


def test_a_larger_ball_is_met_more_closely_and_the_solver_is_still_better_than_untuned() -> None:
    learn = parts()
    errors: dict[float, list[float]] = {0.0: [], 0.05: []}
    tuned = {r: tuning.tune(learn, 3, 40, lambda done, e, r=r: errors[r].append(e), r) for r in errors}
    assert min(errors[0.05]) < 0.9 * min(errors[0.0])  # with the starts moved
    hard, soft = (tuning.judged(t, learn) for t in tuned.values())
    assert hard.error < soft.error < soft.untuned  # and not


def test_mistakes(tmp_path: Path) -> None:
    for radius in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="the radius of soft targets is a number >= 0"):
            tuning.tune(parts(2), 3, 0, radius=radius)
    refused(ornstein("tune", tmp_path, "--radius", "2"), "--radius must lie between 0 and 1, not 2")

"""Modes, their histogram, and what the data of the contrast are."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from ornstein.contrast.autoregressive import to_levels
from ornstein.contrast.judges import NearestCentre, NearestScan, mode_counts, modes_covered, reverse_kl
from ornstein.contrast.models import build, denoiser_network, target_parameters
from ornstein.contrast.networks import fitted, parameter_count
from ornstein.contrast.problems import Problem, mixture, open_problem
from ornstein.contrast.settings import MODELS
from ornstein.contrast.training import score
from ornstein.errors import UserError


def test_reverse_kl_of_known_histograms() -> None:
    even = torch.full((8,), 1 / 8).double()
    assert reverse_kl(torch.full((8,), 5), even) == pytest.approx(0, abs=1e-12)
    assert reverse_kl(torch.tensor([9, 9, 0, 0, 0, 0, 0, 0]), even) == pytest.approx(math.log(4))
    p, counts = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([1, 1, 2])
    expected = 0.25 * math.log(0.25 / 0.5) + 0.25 * math.log(0.25 / 0.3) + 0.5 * math.log(0.5 / 0.2)
    assert reverse_kl(counts, p) == pytest.approx(expected)
    assert reverse_kl(torch.tensor([1, 1]), torch.tensor([1.0, 0.0])) == math.inf
    with pytest.raises(ValueError, match="probabilities"):
        reverse_kl(counts, even)


def test_the_reverse_kl_of_a_perfect_model() -> None:
    draw, n, k = torch.Generator().manual_seed(0), 2500, 25
    found = [
        reverse_kl(mode_counts(torch.randint(k, (n,), generator=draw), k), torch.full((k,), 1 / k)) for _ in range(200)
    ]
    assert sum(found) / 200 == pytest.approx((k - 1) / (2 * n), rel=0.1)


def test_counting_modes() -> None:
    counts = mode_counts(torch.tensor([0, 2, 2, 5]), 6)
    assert counts.tolist() == [1, 0, 2, 0, 0, 1]
    assert modes_covered(counts, torch.full((6,), 1 / 6)) == 3
    assert modes_covered(counts, torch.tensor([0.0, 0.5, 0.5, 0, 0, 0])) == 1


def test_the_nearest_centre() -> None:
    judge = NearestCentre(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), 0.1)
    mode, good = judge(torch.tensor([[0.29, 0.0], [0.31, 0.0], [0.9, 0.2], [1.0, 5.0]]))
    assert mode.tolist() == [0, 0, 1, 1] and good.tolist() == [True, False, True, False]


def test_the_nearest_scan_reads_stacks_digit_by_digit() -> None:
    scans = torch.eye(10).reshape(10, 1, 2, 5)
    judge = NearestScan.fit(scans, torch.arange(10), scans + 0.01, 10)
    stack = torch.stack([scans[7, 0], scans[0, 0], scans[4, 0]])[None]
    mode, good = judge(torch.cat([stack, stack + 0.5]))
    assert mode[0] == 704 and good.tolist() == [True, False]
    assert judge.accuracy(scans, torch.arange(10)) == 1


@pytest.mark.parametrize(
    ("data", "modes"), [("gaussians-8", 8), ("gaussians-25", 25), ("digits", 10), ("stacked-digits", 1000)]
)
def test_the_data_score_as_data_should(data: str, modes: int) -> None:
    problem = open_problem(data)
    n = 20_000 if modes == 1000 else 4000
    x = problem.draw(n, torch.Generator().manual_seed(0))
    assert x.shape == (n, *problem.shape) and float(x.abs().max()) <= 1
    found = score(problem, x)
    assert (found.n, found.finite, found.modes) == (n, n, modes)
    assert found.good > 0.98
    assert found.reverse_kl is not None and found.reverse_kl < 4 * modes / (2 * n) + 0.002
    assert found.frechet is not None and found.floor is not None and found.frechet < 1.5
    assert problem.probabilities is not None and float(problem.probabilities.sum()) == pytest.approx(1)
    held_out = score(problem, problem.held_out, distances=False)
    assert held_out.good > 0.97


def test_samples_that_are_not_finite_are_bad() -> None:
    problem = open_problem("gaussians-8")
    x = problem.draw(100, torch.Generator().manual_seed(0))
    whole = score(problem, x)
    x[:50] = math.nan
    half = score(problem, x)
    assert (half.n, half.finite) == (100, 50) and half.good <= 0.5 < whole.good
    none = score(problem, torch.full((5, 2), math.inf))
    assert (none.modes, none.good, none.reverse_kl, none.frechet) == (0, 0, None, None)


def test_the_entropy_of_points_is_that_of_their_law() -> None:
    for data, std, k in (("gaussians-8", 0.02 / 2.2, 8), ("gaussians-25", 0.05 / 4.4, 25)):
        expected = (math.log(k) + math.log(2 * math.pi * math.e * std**2)) / (2 * math.log(2)) + 7
        entropy = open_problem(data).entropy
        assert entropy == pytest.approx(expected, abs=4 / (2 * math.log(2)) / 1000**0.5)  # log p has a spread of 1 nat
    assert len(mixture("gaussians-25").means) == 25
    with pytest.raises(UserError, match="gaussians-7"):
        open_problem("gaussians-7")


def test_scans_are_spread_within_their_bins() -> None:
    problem = open_problem("digits")
    x = problem.draw(500, torch.Generator().manual_seed(0))
    spread = problem.spread(x, torch.Generator().manual_seed(1))
    assert torch.equal(to_levels(spread, 17), to_levels(x, 17))
    assert float((spread - x).std()) == pytest.approx(2 / 17 / 12**0.5, rel=0.02)


def without_judge(shape: tuple[int, ...]) -> Problem:
    x = torch.zeros(8, *shape)
    return Problem("zeros", shape, 256, lambda n, draw: torch.zeros(n, *shape), x, x, None, None, 10, "")


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8), (3, 8, 8), (1, 16, 16), (3, 16, 16)])
def test_all_models_have_the_same_number_of_parameters_within_a_tenth(shape: tuple[int, ...]) -> None:
    problem = without_judge(shape)
    target = target_parameters(problem)
    assert target == parameter_count(denoiser_network(problem))
    for name in (*MODELS, "patchwise-2"):
        assert abs(build(name, problem, 0).parameters - target) <= 0.1 * target, name


def test_a_number_of_parameters_out_of_reach() -> None:
    with pytest.raises(ValueError, match="within 10 %"):
        fitted(lambda width: (torch.nn.Linear(width, width),), 10, range(20, 30))


def test_a_folder_with_classes_and_one_without(tmp_path: Path) -> None:
    import ornstein as orn

    draw = torch.Generator().manual_seed(0)
    for name, level in (("dark", -0.8), ("light", 0.8)):
        for k in range(20):
            (tmp_path / "both" / name).mkdir(parents=True, exist_ok=True)
            image = (level + 0.1 * torch.randn(3, 8, 8, generator=draw)).clamp(-1, 1)
            orn.data.save_grid(image[None], tmp_path / "both" / name / f"{k}.png")
    problem = open_problem(str(tmp_path / "both"))
    assert problem.shape == (3, 8, 8) and problem.probabilities is not None and len(problem.probabilities) == 2
    assert score(problem, problem.draw(200, draw)).modes == 2
    alone = open_problem(str(tmp_path / "both" / "dark"), 16)
    assert alone.shape == (3, 16, 16) and alone.probabilities is None
    found = score(alone, alone.draw(50, draw))
    assert found.reverse_kl is None and found.good == 1
    with pytest.raises(UserError, match="nowhere"):
        open_problem(str(tmp_path / "nowhere"))

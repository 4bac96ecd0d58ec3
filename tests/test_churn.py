"""Tuned churn: the law of a biased denoiser in closed form, what the search finds of it, and what is stored."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ornstein import Data, Denoiser, Process, checkpoint, sample
from ornstein.errors import UserError
from ornstein.few_steps.choice import Choice
from ornstein.few_steps.churn import Churn, difference, nearest_churn, tune_churn
from ornstein.few_steps.free_solver import Start
from ornstein.few_steps.matching import KernelDistance
from ornstein.schedules import Cosine
from ornstein.solvers import SOLVERS, ddim, grids, heun, multistep, named
from running import ornstein, refused
from test_choice import model

P = Process(Cosine())
V = 0.25  # the variance of the data


class Biased(nn.Module):
    """E[x0 | x_t] of data N(0, V), times `scale` at the levels 0.3 < s/a < 3."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale, self.nothing = scale, nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        rho = torch.exp(-log_snr.double() / 2)
        a = 1 / (1 + rho**2).sqrt()
        factor = V / (a * (V + rho**2)) * torch.where((rho > 0.3) & (rho < 3), self.scale, 1.0)
        return factor.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)) * x


def biased(scale: float) -> Denoiser:
    return Denoiser(Biased(scale), P, "x0", data=Data((1,))).eval()


def variance(scale: float, tau: float, steps: int) -> float:
    """Of the samples: the solver is linear in its start and in the noise of each step, so unit vectors read it off."""
    x = torch.eye(steps + 1, dtype=torch.float64)[:, :1] * P.at(1.0)[1]

    def noise(step: int, draw: int = 0) -> Tensor:
        return torch.eye(steps + 1, dtype=torch.float64)[:, step + 1 : step + 2]

    times = grids.make("logistic", P.schedule, (1.0, 0.0), steps)
    *_, end = named(f"sa-3m:{tau}")(biased(scale), x, times, noise)
    return float(end.square().sum())


def limit(scale: float, tau: float) -> float:
    """The same for steps of no length, by the variance alone: with k = x0/x at a = 1 and q = tau^2,

    dV/drho = 2 (1 + q) (1 - k)/rho V - 2 q rho, from rho = infinity: V/rho^2 = 1 there.
    """
    v, log_rho = math.exp(2 * 8.0), torch.linspace(8.0, -9.0, 40_001, dtype=torch.float64).tolist()
    q = tau**2

    def slope(log_rho: float, v: float) -> float:
        rho = math.exp(log_rho)
        k = V / (V + rho**2) * (scale if 0.3 < rho < 3 else 1.0)
        return 2 * (1 + q) * (1 - k) * v - 2 * q * rho**2

    for start, end in pairwise(log_rho):
        h = end - start
        middle = slope((start + end) / 2, v + h / 2 * slope(start, v))
        v += h * middle
    return v


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_any_churn_keeps_the_law_and_contracts_an_error_as_its_differential_equation_says(tau: float) -> None:
    assert limit(1.0, tau) == pytest.approx(V, rel=1e-3)
    assert variance(1.0, tau, 160) == pytest.approx(V, rel=5e-3)
    assert variance(0.7, tau, 320) == pytest.approx(limit(0.7, tau), rel=2e-2)


def test_more_churn_leaves_less_of_an_early_error() -> None:
    off = [abs(limit(0.7, tau) / V - 1) for tau in (0.0, 0.5, 1.0)]
    assert off[0] > off[1] > off[2] and off[2] < 0.9 * off[0]


@pytest.fixture(scope="module")
def distance() -> KernelDistance:
    """From images N(0, V). Of Gaussians of other variances v it is 3 (v/V - 1)^2 in the mean: E fg = 0, E f^2 g^2."""
    z = torch.randn(3000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return KernelDistance(((z - z.mean()) / z.std() * math.sqrt(V)).float())


def test_the_search_finds_the_optimum_of_the_closed_form(distance: KernelDistance) -> None:
    """Ten steps of a biased denoiser have too small a variance without fresh noise, too large a one with much of it."""
    off = [variance(0.7, tau, 10) / V - 1 for tau in torch.linspace(0, 1, 101).tolist()]
    assert off[0] < -0.1 and off[-1] > 0.1 and all(a < b for a, b in pairwise(off))
    best = min(range(101), key=lambda i: abs(off[i])) / 100
    found = tune_churn(biased(0.7), distance, 10, count=3000)
    assert abs(found.tau - best) <= 0.125 + 0.03  # the spacing of what is tried, and the error of the samples' variance
    exact = 3 * (off[0] ** 2 - (variance(0.7, found.tau, 10) / V - 1) ** 2)
    assert found.gain == pytest.approx(exact, abs=4 * found.error) and found.gain > 2 * found.error > 0
    assert (found.steps, found.guidance, found.solver) == (10, 1.0, f"sa-3m:{found.tau:g}")
    assert tune_churn(biased(0.7), distance, 10, count=200) == tune_churn(
        biased(0.7), distance, 10, count=200, batch=67
    )


def test_without_a_gain_there_is_no_churn(distance: KernelDistance) -> None:
    """An exact denoiser in 40 steps: every tau has the law of the data. In 6 steps fresh noise makes it worse."""
    found = tune_churn(biased(1.0), distance, 40, count=300)
    assert found.tau == 0 and abs(found.gain) <= 2 * found.error
    assert tune_churn(biased(1.0), distance, 6, count=3000).tau == 0


def test_the_standard_error_of_a_difference_is_the_jackknife() -> None:
    """Against leaving out one sample after the other; and pairs have less of it than two sets of other samples."""
    g = torch.Generator().manual_seed(1)
    distance = KernelDistance(torch.randn(50, 3, generator=g))
    x = torch.randn(12, 3, generator=g)
    y, other = 1.1 * x + 0.1, 1.1 * torch.randn(12, 3, generator=g) + 0.1
    gain, error = difference(distance.shares(x), distance.shares(y))
    assert gain == pytest.approx(float(distance(x) - distance(y)), rel=1e-4)
    rows = [[j for j in range(12) if j != i] for i in range(12)]
    without = torch.tensor([float(distance(x[r]) - distance(y[r])) for r in rows], dtype=torch.float64)
    assert error == pytest.approx(float((11 / 12 * (without - without.mean()).square().sum()).sqrt()), rel=1e-3)
    assert error < 0.7 * difference(distance.shares(x), distance.shares(other))[1]


def test_names_with_an_amount() -> None:
    """They are the solvers with that argument, and 0 of it is the ODE's."""
    x, times = torch.ones(2, 1), grids.make("logistic", P.schedule, (1.0, 0.0), 4)

    def end(solver: Callable[..., object]) -> Tensor:
        z = torch.randn(9, 2, 1, generator=torch.Generator().manual_seed(0))
        *_, last = solver(biased(1.0), x, times, lambda step, draw=0: z[step])  # pyright: ignore
        return last

    sa = partial(multistep, order=3, corrected=True, stochastic=0.3)
    for name, same in (
        *(("sa-3m:0.3", sa), ("sa-3m:0", SOLVERS["unipc"]), ("ddim:1", partial(ddim, eta=1.0)), ("ddim", ddim)),
        *(("heun-churn:2", partial(heun, churn=2.0)), ("dpmpp-2m-sde:0", SOLVERS["dpmpp-2m"])),
    ):
        if name != "dpmpp-2m-sde:0":  # whose first step is corrected without noise alone: the same solver, too
            assert torch.equal(end(named(name)), end(same)), name
    torch.testing.assert_close(end(named("dpmpp-2m-sde:0")), end(SOLVERS["dpmpp-2m"]))
    for bad, words in (
        ("magic:1", "unknown solver 'magic:1'; known: "),
        ("flow-3m:0.5", "flow-3m takes no amount of fresh noise; ddim, "),
        *((f"sa-3m:{text}", "a number at least 0, such as sa-3m:0.5") for text in ("-0.1", "", "nan", "inf", "much")),
        ("ddim:1.5", "a number from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=words):
            named(bad)


def test_mistakes(distance: KernelDistance) -> None:
    with pytest.raises(ValueError, match="no sample spec"):
        tune_churn(Denoiser(Biased(1.0), P, "x0"), distance, 5)
    with pytest.raises(ValueError, match="three samples or more, got 2"):
        tune_churn(biased(1.0), distance, 5, count=2)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        tune_churn(biased(1.0), distance, 0, count=4)


def test_which_churn_serves_which_request() -> None:
    made = [Churn(n, g, 0.5, 1.0, 0.1) for n in (10, 20) for g in (1.0, 4.0)]

    def of(steps: int, guidance: float) -> int | None:
        found = nearest_churn(made, steps, guidance)
        return found and found.steps

    assert (of(10, 1), of(13, 1), of(15, 4), of(30, 1), of(7, 1)) == (10, 10, 20, 20, 10)
    assert of(6, 1) is None and of(31, 1) is None and of(10, 2) is None and nearest_churn([], 10, 1) is None


def test_it_is_kept_beside_the_choices_for_these_weights(tmp_path: Path) -> None:
    d = model()
    d.save(tmp_path)
    choice, churn = Choice(5, 1.0, Start("x0", 2, 0.25), 0.1, 0.2), Churn(5, 1.0, 0.375, 0.2, 0.05)
    assert checkpoint.load_churn(tmp_path) == []
    checkpoint.save_chosen(tmp_path, [choice])  # the file of an older version has no churn
    file = tmp_path / checkpoint.CHOSEN
    assert "churn" not in json.loads(file.read_text()) and checkpoint.load_churn(tmp_path) == []
    checkpoint.save_churn(tmp_path, [churn])
    checkpoint.save_churn(tmp_path, [replace(churn, tau=0.5), replace(churn, steps=3)])
    checkpoint.save_chosen(tmp_path, [choice])  # a report of the same weights
    assert checkpoint.load_churn(tmp_path) == [replace(churn, steps=3), replace(churn, tau=0.5)]
    assert checkpoint.load_chosen(tmp_path, 5, 1.0) is not None
    loaded, shape = checkpoint.load(tmp_path), (2, 1, 8, 8)
    cond = {"label": torch.tensor([0, 1])}
    own = sample(loaded, shape, "churned", 5, cond=cond)
    assert torch.equal(own, sample(loaded, shape, "sa-3m:0.5", 5, cond=cond))
    assert not torch.equal(own, sample(loaded, shape, steps=5, cond=cond))  # the chosen one: churn is asked for
    for settings in ({"steps": 9}, {"steps": 5, "guidance": 2.0}, {"steps": 5, "grid": "uniform"}):
        with pytest.raises(ValueError, match="churn"):
            sample(loaded, shape, "churned", cond=cond, **settings)  # pyright: ignore[reportArgumentType]
    for broken in ([{"steps": 5}], [churn.to_config() | {"tau": -1}], 3):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"churn": broken}))
        with pytest.raises(UserError, match=r"solver\.json cannot be used"):
            checkpoint.load_churn(tmp_path)
    checkpoint.save_chosen(tmp_path, [choice])
    file.unlink()
    checkpoint.save_churn(tmp_path, [churn])
    with torch.no_grad():
        next(d.parameters()).add_(0.01)
    d.save(tmp_path)
    assert checkpoint.load_churn(tmp_path) == []
    with pytest.raises(ValueError, match="no churn tuned for 5 steps"):
        sample(checkpoint.load(tmp_path), shape, "churned", 5, cond=cond)
    checkpoint.save_chosen(tmp_path, [choice])  # what was another model's goes
    assert "churn" not in json.loads(file.read_text())


def test_the_commands(tmp_path: Path) -> None:
    run = tmp_path / "run"
    model().save(run)
    tune = ("tune", run, "--churn", "--trajectories", 16, "--steps", "3,30")
    refused(ornstein(*tune), "which images it was trained on: give --data")
    said = ornstein(*tune, "--data", "digits", "--guidance", 1)
    assert said.exit_code == 0 and "3 steps: " in said.output and "30 steps: " in said.output, said.output
    found = checkpoint.load_churn(run)
    assert [(c.steps, c.guidance) for c in found] == [(3, 1.0), (30, 1.0)] and all(c.error > 0 for c in found)
    exact = ("-n", 2, "--steps", 3, "--precision", "float32")
    for name, solver in (("a", "churned"), ("b", found[0].solver), ("c", "sa-3m:0.9")):
        made = ornstein("sample", run, *exact, "--solver", solver, "--out", tmp_path / name)
        assert made.exit_code == 0, made.output
    a, b, c = ((tmp_path / f / "00001.png").read_bytes() for f in "abc")
    assert a == b != c
    refused(ornstein("sample", run, "--solver", "churned", "--steps", 12), "no churn tuned for 12 steps", "3 (guidance")
    refused(ornstein("sample", run, "--solver", "churned", "--steps", 3, "--grid", "uniform"), "leave out --grid")
    refused(ornstein("sample", run, "--solver", "sa-3m:-1"), "a number at least 0")
    refused(ornstein("sample", run, "--solver", "flow-3m:1"), "takes no amount of fresh noise")
    refused(ornstein(*tune, "--data", "digits", "--match", "data"), "--match does nothing here")
    refused(ornstein(*tune, "--likelihood", 3), "give one of them")
    refused(ornstein("tune", run, "--churn", "--steps", 1), "--steps must be at least 2, not 1")
    refused(ornstein("tune", run, "--churn", "--data", "digits", "--trajectories", 3), "must be at least 16")
    refused(ornstein("tune", run, "--steps", 30), "--steps must lie between 2 and 24, not 30")

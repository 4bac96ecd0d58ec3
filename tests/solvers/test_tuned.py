"""A tuned solver as a solver: what it starts from, its times, and its form on disk."""

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import ornstein as orn
from ornstein import Data, Denoiser, Process
from ornstein.few_steps import tuning
from ornstein.few_steps.following import Path
from ornstein.few_steps.tuning import fine, judged, trajectories, tune
from ornstein.noise import AR1
from ornstein.oracles import GaussianMixture
from ornstein.schedules import Cosine, Discrete, LinearBeta, Schedule
from ornstein.solvers import Counted, Tuned, grids, multistep
from ornstein.solvers.coefficients import Form

C = AR1(3, 0.7)


class Linear(nn.Module):
    """x0 = 0.5 x + 0.1 tanh x, and the number of samples that went through it."""

    def __init__(self) -> None:
        super().__init__()
        self.slope, self.rows = nn.Parameter(torch.tensor(0.5)), 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.rows += len(x)
        return self.slope * x + 0.1 * torch.tanh(x)


def batch(d, n: int, seed: int) -> list[tuple]:
    z = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = d.process.prior((n, 3), dtype=torch.float64).sample(z)
    return [(d, x, fine(d, x, 100))]


def no_noise(step: int, draw: int = 0) -> Tensor:
    raise AssertionError


@pytest.mark.parametrize(
    "schedule",
    [LinearBeta(), Cosine(), Cosine(None), Discrete.linear(1000)],
    ids=lambda s: f"{type(s).__name__}{s.zero_terminal_snr:d}",
)
@pytest.mark.parametrize("steps", [2, 3, 9])
@pytest.mark.parametrize(("form", "order"), [("flow", 3), ("flow", 4), ("x0", 2), ("x0", 3)])
def test_without_iterations_the_tuned_solver_is_its_multistep_start(
    mixture: GaussianMixture, schedule: Schedule, steps: int, form: Form, order: int, monkeypatch: pytest.MonkeyPatch
):
    """Its coefficients at the start are those of the multistep solver, the correction of the first step included."""
    monkeypatch.setattr(tuning, "best_start", lambda parts, steps: tuning.Start(form, order, 0.35))
    d = mixture.denoiser(Process(schedule, C))
    parts = batch(d, 4, 0)
    start = tune(parts, steps, iterations=0)
    assert start.form == form
    assert start.times == pytest.approx(grids.make("logistic", schedule, (1.0, 0.0), steps).tolist(), abs=1e-9)
    x = parts[0][1]
    times = torch.tensor(start.times, dtype=torch.float64)
    for ours, theirs in zip(start(d, x, times, no_noise), multistep(d, x, times, no_noise, order, form), strict=True):
        # The two correct the first state at different moments: the first of them is told only at the second step.
        last = ours, theirs
    torch.testing.assert_close(*last, rtol=0, atol=1e-8)


def test_tuning_starts_from_the_best_candidate_on_its_own_grid(oracle):
    parts, times = batch(oracle, 50, 4), {}
    error = {}
    schedules = [(slope, 0.0) for slope in (0.25, 0.3, 0.35, 0.42)]
    schedules += [(0.1, 0.02), (0.2, 0.02), (0.2, 0.05), (0.35, 0.1), (0.5, 0.1), (0.0, 0.0)]
    for form, order in (("flow", 3), ("flow", 4), ("x0", 3)):
        for slope, floor in schedules:
            first = torch.sigmoid(-slope * oracle.process.schedule.log_snr(1.0))
            u = first * torch.linspace(1, 0, 6, dtype=torch.float64)
            if floor:  # equal steps down to that level, and one into the data
                last = torch.tensor(floor, dtype=torch.float64) ** (2 * slope)
                u[:-1] = torch.lerp(first, last / (1 + last), torch.linspace(0, 1, 5, dtype=torch.float64))
            uniform = torch.linspace(1, 0, 6, dtype=torch.float64)
            grid = oracle.process.schedule.time(-torch.logit(u) / slope) if slope else uniform
            grid[0] = 1.0  # not only up to rounding
            times[form, order, slope, floor] = grid
            *_, end = multistep(oracle, parts[0][1], grid, no_noise, order, form)
            error[form, order, slope, floor] = float((end - parts[0][2]).square().mean())
    best = min(error, key=lambda k: error[k])
    start = tune(parts, 5, iterations=0)
    assert start.form == best[0] and start.times == pytest.approx(times[best].tolist(), abs=1e-9)
    result = judged(start, parts)
    assert result.error == pytest.approx(error[best] ** 0.5, rel=1e-6)


@pytest.fixture(scope="module")
def oracle(mixture: GaussianMixture):
    return mixture.denoiser(Process(LinearBeta(), C))


@pytest.fixture(scope="module")
def tuned(oracle) -> Tuned:
    return tune(batch(oracle, 400, 1), 5, iterations=50)


def test_tuning_halves_the_error_at_equal_nfe(oracle, tuned: Tuned):
    """On noise that it has not seen."""
    result = judged(tuned, batch(oracle, 400, 2))
    assert 0 < result.error < 0.5 * result.untuned
    d, x = Counted(oracle), torch.zeros(7, 3, dtype=torch.float64)
    orn.sample(d, (7, 3), solver=tuned, start=x)
    assert d.calls == 5
    assert tuned.numbers == 4 + 10 + (0 + 1 + 2 + 3 + 4) < 200


def test_a_few_trajectories_that_end_elsewhere_count_less_than_their_squares(oracle, monkeypatch: pytest.MonkeyPatch):
    """One target in twenty is another sample: the solver is still good for all others."""
    (d, x, end), *_ = batch(oracle, 200, 1)
    wrong = end.clone()
    wrong[::20] = end[::20].flip(0)
    others = batch(oracle, 400, 2)
    robust = judged(tune([(d, x, wrong)], 5, iterations=30), others)
    monkeypatch.setattr(tuning, "_cost", lambda relative: relative)
    squares = judged(tune([(d, x, wrong)], 5, iterations=30), others)
    assert robust.error < 0.8 * squares.error


def test_what_is_tuned_is_never_worse_elsewhere_than_where_it_started(oracle):
    """Numbers fitted to two trajectories do not suit others: the untuned solver comes back."""
    learn, others = batch(oracle, 2, 1), batch(oracle, 200, 2)
    start = judged(tune(learn, 3, 0), others)
    assert judged(tune(learn, 3, 20), others).error > start.error
    kept = tune(learn, 3, 20, held_out=others)
    assert judged(kept, others).error <= start.error


@pytest.mark.parametrize("count", [16, 5])
def test_the_fine_solutions_are_followed_once_for_all_numbers_of_steps(oracle, count: int):
    """The same solvers as without them, at so many fewer evaluations."""
    net = Linear()
    model = Denoiser(net, oracle.process, "x0", data=Data((3,)))
    paths: list[Path] = []
    parts = trajectories(model, count, batch=2, paths=paths)
    assert net.rows == 100 * count and len(parts) == -(-count // 2)
    quarter = 2 * len(paths)  # trajectories
    assert len(paths) == -(-len(parts) // 4)
    for path, (_, x, end) in zip(paths, parts, strict=False):
        assert torch.equal(path.states[0], x) and torch.equal(path.states[-1], end) and path.states.shape[0] == 51
    calls = {}
    for shared in (None, paths):
        before = net.rows
        solvers = [tune(parts, n, 4, paths=shared) for n in (2, 3, 4)]
        calls[shared is None] = net.rows - before, solvers
    (least, theirs), (most, ours) = calls[False], calls[True]
    assert most - least == 3 * 100 * quarter and ours == theirs
    with pytest.raises(ValueError, match=f"follow the fine solutions of {len(paths)} parts, but only {len(paths) - 1}"):
        tune(parts, 3, 4, paths=paths[1:])


def test_24_steps_have_fewer_than_200_numbers(oracle):
    assert tune(batch(oracle, 2, 0), 24, iterations=0).numbers < 200


def test_sample_uses_the_times_of_a_tuned_solver(oracle, tuned: Tuned):
    start = torch.randn(6, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    seen: list[float] = []
    out = orn.sample(oracle, (6, 3), solver=tuned, steps=99, start=start, callback=lambda s: seen.append(s.t))
    assert seen == list(tuned.times)
    torch.testing.assert_close(orn.sample(oracle, (6, 3), solver=tuned, start=start, batch=4), out, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="tuned for 5 steps at its own times"):
        list(tuned(oracle, start, torch.linspace(1, 0, 6, dtype=torch.float64), no_noise))


def test_tuned_solvers_round_trip_through_json(tuned: Tuned):
    again = Tuned.from_config(json.loads(json.dumps(replace(tuned, guidance=2.0, error=0.1, untuned=0.3).to_config())))
    assert again.times == tuned.times and again.steps == tuned.steps and again.form == tuned.form
    old = {k: v for k, v in tuned.to_config().items() if k != "form"}  # before there was a choice
    assert Tuned.from_config(old).form == "x0"
    assert (again.guidance, again.error, again.untuned) == (2.0, 0.1, 0.3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"times": [1.0, 0.5, 0.6, 0.3, 0.1, 0.0]}, "do not fall from 1 to 0"),
        ({"times": [1.0, 0.0]}, "do not fall"),
        ({"times": [0.9, 0.5, 0.4, 0.3, 0.1, 0.0]}, "do not fall"),
        ({"steps": None}, "missing or wrong"),
        ({"guidance": None}, "missing or wrong"),
        ({"form": "v"}, "its form 'v' is none of x0, eps, flow"),
    ],
)
def test_bad_configs_of_tuned_solvers(tuned: Tuned, change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Tuned.from_config(tuned.to_config() | change)


@pytest.mark.parametrize("steps", [1, 25])
def test_steps_that_are_not_tuned_for(oracle, steps: int):
    with pytest.raises(ValueError, match=f"2 to 24 steps, got {steps}"):
        tune(batch(oracle, 2, 0), steps)


def test_no_trajectories(oracle):
    with pytest.raises(ValueError, match="none were given"):
        tune([], 5)
    with pytest.raises(ValueError, match="no sample spec"):
        trajectories(orn.Denoiser(torch.nn.Identity(), Process(Cosine())), 3)

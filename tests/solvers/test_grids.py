"""Every grid of every schedule: strictly monotone from its start to its end, and spaced as it says."""

import math

import pytest
import torch
from torch import Tensor

from ornstein.schedules import EDM, VE, Cosine, Discrete, LinearBeta, Rectified, Schedule
from ornstein.solvers.grids import GRIDS, make

FINITE: list[Schedule] = [Cosine(), LinearBeta(), Discrete.linear(1000), Discrete.cosine(1000), VE(), EDM()]
ZERO: list[Schedule] = [Cosine(None), Rectified(), Discrete.linear(1000).zero_terminal()]
IN_LOG_SNR = {"log-snr", "karras"}
each = pytest.mark.parametrize("schedule", FINITE + ZERO, ids=lambda s: f"{type(s).__name__}{s.zero_terminal_snr:d}")


@each
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("times", [(1.0, 0.0), (0.0, 1.0), (1.0, 0.05), (0.6, 0.0), (0.2, 0.9)], ids=str)
def test_grids_run_strictly_from_start_to_end(schedule: Schedule, grid: str, times: tuple[float, float]):
    if grid in IN_LOG_SNR and schedule.zero_terminal_snr and 1.0 in times:
        with pytest.raises(ValueError, match="-inf at t = 1 of this schedule; use another"):
            make(grid, schedule, times, 10)
        return
    sign = 1 if times[0] < times[1] else -1
    for steps in range(1, 101):
        t = make(grid, schedule, times, steps)
        assert t.shape == (steps + 1,) and t.dtype == torch.float64
        assert (float(t[0]), float(t[-1])) == times
        assert bool((t.diff() * sign > 0).all()), (steps, t)


@each
@pytest.mark.parametrize("grid", GRIDS)
def test_a_grid_up_is_the_grid_down_reversed(schedule: Schedule, grid: str):
    if grid in IN_LOG_SNR and schedule.zero_terminal_snr:
        return
    up, down = make(grid, schedule, (0.0, 1.0), 8), make(grid, schedule, (1.0, 0.0), 8)
    torch.testing.assert_close(up.flip(0), down, rtol=0, atol=1e-12)


def assert_even(values: Tensor, tolerance: float = 1e-8) -> None:
    torch.testing.assert_close(values.diff(), values.diff()[:1].expand(len(values) - 1), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("schedule", FINITE, ids=lambda s: type(s).__name__)
def test_spacing(schedule: Schedule):
    def levels(grid: str, end: float) -> Tensor:
        return schedule.log_snr(make(grid, schedule, (1.0, end), 9))

    assert_even(make("uniform", schedule, (1.0, 0.0), 9))
    assert_even(levels("log-snr", 0.1))
    assert_even(torch.exp(-levels("karras", 0.1) / 14))  # (s/a)^(1/7)
    assert_even(torch.sigmoid(-0.35 * levels("logistic", 0.1)))
    assert_even(torch.sigmoid(-0.35 * levels("logistic", 0.0)))
    # All the way to the data: the last step starts where the noise is 0.002 of the data.
    for grid in IN_LOG_SNR:
        to_data = levels(grid, 0.0)
        assert float(torch.exp(-to_data[-2] / 2)) == pytest.approx(0.002, rel=1e-6)
        assert math.isinf(float(to_data[-1]))
    assert_even(levels("log-snr", 0.0)[:-1])


@pytest.mark.parametrize("steps", [1, 3, 16, 20, 37, 1000])
def test_trailing_times_are_steps_of_the_chain(steps: int):
    t = make("trailing", Discrete.linear(1000), (1.0, 0.0), steps)
    node = t * 1000
    torch.testing.assert_close(node, node.round(), rtol=0, atol=1e-9)
    # Lin et al. 2024, table 2: round(arange(T, 0, -T/S)), counted from 1.
    expected = [round(1000 - i * 1000 / steps) for i in range(steps)]
    assert node.round().int().tolist() == [*expected, 0]


def test_trailing_is_uniform_for_continuous_schedules():
    assert_even(make("trailing", Cosine(), (1.0, 0.0), 7))


def test_more_steps_than_the_chain_has():
    assert len(make("trailing", Discrete.linear(20), (1.0, 0.0), 20)) == 21
    with pytest.raises(ValueError, match="20 steps between t = 1 and 0; 21 were asked for"):
        make("trailing", Discrete.linear(20), (1.0, 0.0), 21)
    with pytest.raises(ValueError, match=r"10 steps between t = 1 and 0\.5; 11 were asked for"):
        make("trailing", Discrete.linear(20), (1.0, 0.5), 11)


@pytest.mark.parametrize("times", [(0.94, 0.04), (0.87, 0.13), (0.13, 0.87)], ids=str)
def test_trailing_between_times_off_the_chain(times: tuple[float, float]):
    """Every number of steps that the chain has room for gives a grid."""
    schedule = Discrete.linear(10)
    for steps in range(1, round(10 * abs(times[0] - times[1])) + 1):
        inner = make("trailing", schedule, times, steps)[1:-1] * 10
        torch.testing.assert_close(inner, inner.round(), rtol=0, atol=1e-9)


def test_explicit_grids():
    given = [1.0, 0.4, 0.39, 0.0]
    for grid in (given, tuple(given), torch.tensor(given, dtype=torch.float64)):
        assert make(grid, Cosine(), (1.0, 0.0), 50).tolist() == given
    assert make(given[::-1], Cosine(), (1.0, 0.0), 50).tolist() == given[::-1]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("quadratic", "unknown grid 'quadratic'; known: logistic, uniform, log-snr, karras, trailing"),
        ([1.0, 0.5, 0.5, 0.0], "strictly one way"),
        ([1.0, 0.2, 0.5, 0.0], "strictly one way"),
        ([1.0, math.nan, 0.0], "strictly one way"),
        ([1.5, 0.0], r"within \[0, 1\]"),
        ([0.5, -0.1], r"within \[0, 1\]"),
        ([0.5], "at least two times"),
        ([], "at least two times"),
    ],
)
def test_bad_grids(grid: str | list[float], message: str):
    with pytest.raises(ValueError, match=message):
        make(grid, Cosine(), (1.0, 0.0), 10)


@pytest.mark.parametrize("steps", [0, -3])
def test_fewer_than_one_step_is_refused(steps: int):
    with pytest.raises(ValueError, match=f"steps must be at least 1, got {steps}"):
        make("logistic", Cosine(), (1.0, 0.0), steps)


@pytest.mark.parametrize("times", [(1.0, 1.0), (1.2, 0.0), (1.0, -0.1), (math.nan, 0.0), (1.0, math.nan)], ids=str)
def test_bad_times(times: tuple[float, float]):
    with pytest.raises(ValueError, match=r"from one to another within \[0, 1\]"):
        make("logistic", Cosine(), times, 10)

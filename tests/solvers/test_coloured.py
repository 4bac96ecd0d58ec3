"""Stochastic steps whose noise has a colour: against ddim, and their law on data that are one point."""

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein import request
from ornstein.noise import AR1, Covariance, Identity, Kronecker, Warped
from ornstein.process import Prediction
from ornstein.randomness import normal
from ornstein.solvers import COLOURS, coloured, ddim, with_colour

TIMES = torch.tensor([1.0, 0.7, 0.4, 0.15], dtype=torch.float64)
BLUE = [[0.1, 0.9], [1.0, 0.0], [0.3, 0.6]]


class Point:
    """The exact denoiser of data that are one clip."""

    def __init__(self, noise: Covariance) -> None:
        self.process = orn.Process(orn.schedules.Cosine(), noise)
        self.data = torch.linspace(-1, 1, 4 * 6 * 5, dtype=torch.float64).view(1, 1, 4, 6, 5)

    def __call__(self, x: Tensor, t: float, **cond: object) -> Prediction:
        return self.process.convert(x, t, x0=self.data.expand_as(x))


def run(d: Point, table: object, count: int) -> Tensor:
    shape = (count, 1, 4, 6, 5)
    index = torch.arange(count)
    draw = lambda step, draw=0: normal(shape, 0, index, step + 1, dtype=torch.float64)  # noqa: E731
    x = d.process.prior(shape, dtype=torch.float64).sample(normal(shape, 0, index, 0, dtype=torch.float64))
    solver = (lambda *a: ddim(*a, eta=table)) if isinstance(table, float) else (lambda *a: coloured(*a, table=table))
    *_, x = solver(d, x, TIMES, draw)
    return x


@pytest.mark.parametrize("noise", [Identity(), AR1(4, 0.8)])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_one_eta_for_all_is_ddim(noise: Covariance, eta: float) -> None:
    torch.testing.assert_close(run(Point(noise), [[eta] * 3] * 2, 4), run(Point(noise), eta, 4), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("noise", [Identity(), AR1(4, 0.8)])
def test_the_law_is_that_of_the_process_whatever_the_table(noise: Covariance) -> None:
    d = Point(noise)
    a, s = (float(f(TIMES[-1])) for f in (d.process.schedule.alpha, d.process.schedule.sigma))
    x = (run(d, BLUE, 4000) - a * d.data) / s
    power = torch.fft.fft2(noise.whiten(x), norm="ortho").abs().square().mean((0, 1, 2))
    torch.testing.assert_close(power, torch.ones_like(power), rtol=0.06, atol=0)
    assert float(x.mean().abs()) < 0.02


@pytest.mark.parametrize("table", [[[0.5, 1.2]], [[float("nan")]], [0.5], []])
def test_wrong_tables(table: object) -> None:
    with pytest.raises(ValueError, match="table of shares"):
        run(Point(Identity()), table, 1)


def test_a_colour_by_name_is_its_table() -> None:
    assert tuple(COLOURS) == request.COLOURS
    d, shape = Point(AR1(4, 0.8)), (3, 1, 4, 6, 5)
    for name, table in COLOURS.items():
        one = orn.sample(d, shape, coloured=name, steps=4)
        other = orn.sample(d, shape, solver=with_colour(table), steps=4)
        assert torch.equal(one, other)
        assert torch.equal(one, orn.sample(d, shape, coloured=table, steps=4, solver="ddim", batch=2))


def test_what_has_no_colour_is_refused() -> None:
    d = Point(Identity())
    with pytest.raises(ValueError, match="leave out the solver"):
        orn.sample(d, (1, 1, 4, 6, 5), solver="heun", coloured="blue")
    with pytest.raises(ValueError, match="unknown colour"):
        orn.sample(d, (1, 1, 4, 6, 5), coloured="green")
    for noise in (Warped(torch.zeros(3, 2, 6, 5)), Kronecker(space=(AR1(6, 0.5), AR1(5, 0.5)))):
        with pytest.raises(ValueError, match="mix spatial frequencies"):
            orn.sample(Point(noise), (1, 1, 4, 6, 5), coloured="red", steps=2)

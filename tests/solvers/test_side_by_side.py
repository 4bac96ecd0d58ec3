"""Two evaluations side by side: the order and the fixed point of the solver, its calls, and the rows of conditions."""

from typing import Any

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein import Process
from ornstein.noise import AR1
from ornstein.oracles import GaussianMixture
from ornstein.schedules import Cosine, LinearBeta, Schedule
from ornstein.solvers import SOLVERS, Counted, grids, side_by_side
from ornstein.wrapper import Wrapper


def starts(p: Process, n: int) -> Tensor:
    z = torch.randn(n, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return p.prior((n, 3), dtype=torch.float64).sample(z)


@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine(None)], ids=repr)
def test_order_4_on_a_gaussian_and_nearer_for_its_calls(gauss: GaussianMixture, schedule: Schedule, final, order):
    p = Process(schedule, AR1(3, 0.7))
    d, x = gauss.denoiser(p), starts(p, 8)
    exact, steps = gauss.ode_map(x, p, 1.0, 0.0), [32, 64, 128]
    errors: dict[Any, list[float]] = {side_by_side: [], SOLVERS["flow-3m"]: []}
    for solver, found in errors.items():
        for n in steps:
            times = grids.make("logistic", schedule, (1.0, 0.0), n)
            found.append(float((final(solver, d, x, times) - exact).square().mean().sqrt()))
    assert order(steps, errors[side_by_side]) > 3.6, errors
    for own, other in zip(errors[side_by_side], errors[SOLVERS["flow-3m"]], strict=True):
        assert own < other / 50  # as many calls, one after the other


def test_order_4_on_a_mixture(mixture: GaussianMixture, final, order):
    p = Process(LinearBeta(), AR1(3, 0.7))
    d, x = mixture.denoiser(p), starts(p, 8)
    fine = final(SOLVERS["rk4"], d, x, grids.make("logistic", p.schedule, (1.0, 0.05), 1024))
    steps, errors = [64, 128, 256], []
    for n in steps:
        times = grids.make("logistic", p.schedule, (1.0, 0.05), n)
        errors.append(float((final(side_by_side, d, x, times) - fine).square().mean().sqrt()))
    assert order(steps, errors) > 3.6, errors


def test_calls_and_rows(mixture: GaussianMixture):
    """A step is one call of two rows a sample; the condition of a row is that of its sample, under guidance too."""
    p = Process(LinearBeta())
    d = Counted(mixture.denoiser(p))
    list(side_by_side(d, starts(p, 5), grids.make("logistic", p.schedule, (1.0, 0.0), 7), lambda step, draw=0: 0))  # pyright: ignore
    assert (d.calls, d.evaluations) == (8, 5 + 7 * 10)

    class Shifted(Wrapper):
        denoiser = mixture.denoiser(p)

        def __call__(self, x_t: Tensor, t: Any, /, label: Tensor | None = None, **cond: Any):
            shift = 0.0 if label is None else label[:, None].to(x_t)
            x0 = self.denoiser(x_t, t).x0 + shift
            return p.convert(x_t, t, x0=x0)

    together = orn.sample(Shifted(), (3, 3), "side-by-side", 6, guidance=2.0, cond={"label": torch.tensor([0, 1, 5])})
    for i, label in enumerate((0, 1, 5)):
        alone = orn.sample(
            Shifted(), (1, 3), "side-by-side", 6, guidance=2.0, cond={"label": torch.tensor([label])}, first=i
        )
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)

"""E23: the density from the Fokker-Planck equation on a grid against the mixture's exact density.

dp/dt = -div(f x p) + 1/2 g^2 div(C grad p), by central differences of fourth order and RK4 on a grid wide enough that
nothing reaches its edge. Drift and diffusion are the process's own (E18).
"""

import pytest
import torch
from torch import Tensor

from ornstein import Process
from ornstein.noise import AR1
from ornstein.oracles import GaussianMixture
from ornstein.schedules import VE, LinearBeta, Schedule

START, END = 0.05, 0.6


def difference(p: Tensor, h: float, axis: int) -> Tensor:
    """dp/dx along an axis, periodic: the density is zero at both ends."""
    near = p.roll(-1, axis) - p.roll(1, axis)
    far = p.roll(-2, axis) - p.roll(2, axis)
    return (8 * near - far) / (12 * h)


def second_difference(p: Tensor, h: float, axis: int) -> Tensor:
    near = p.roll(-1, axis) + p.roll(1, axis)
    far = p.roll(-2, axis) + p.roll(2, axis)
    return (16 * near - far - 30 * p) / (12 * h * h)


def evolve(p: Process, density: Tensor, points: Tensor, h: float, c: Tensor, steps: int) -> Tensor:
    """The density at END from that at START; points (*grid, D) are the nodes, c (D, D) the covariance of the noise."""
    dims, one = points.shape[-1], torch.ones(1, 1, dtype=torch.float64)

    def slope(q: Tensor, t: float) -> Tensor:
        f, g2 = float(p.drift(one, t)), float(p.diffusion(t, one)) ** 2
        out = torch.zeros_like(q)
        for i in range(dims):
            out -= difference(f * points[..., i] * q, h, i)
            out += 0.5 * g2 * c[i, i] * second_difference(q, h, i)
            for j in range(i):
                out += g2 * c[i, j] * difference(difference(q, h, i), h, j)
        return out

    dt = (END - START) / steps
    for k in range(steps):
        t = START + k * dt
        k1 = slope(density, t)
        k2 = slope(density + dt / 2 * k1, t + dt / 2)
        k3 = slope(density + dt / 2 * k2, t + dt / 2)
        k4 = slope(density + dt * k3, t + dt)
        density = density + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return density


@pytest.mark.parametrize("schedule", [LinearBeta(0.5, 3.0), VE(0.3, 1.5)], ids=str)
def test_one_dimension(schedule: Schedule):
    mixture = GaussianMixture([0.3, 0.7], [[-1.5], [1.0]], [[[0.1]], [[0.3]]])
    p, h = Process(schedule), 0.04
    grid = torch.arange(-200, 201, dtype=torch.float64)[:, None] * h

    def exact(t: float) -> Tensor:
        return mixture.log_prob(grid, p, t).exp()

    density = evolve(p, exact(START), grid, h, torch.ones(1, 1), steps=1000)
    assert (density - exact(END)).abs().max() < 2e-5 * exact(END).max()
    assert float(density.sum() * h) == pytest.approx(1, abs=1e-8)
    assert (exact(START) - exact(END)).abs().max() > 0.2 * exact(END).max()


@pytest.fixture(scope="module")
def plane() -> tuple[GaussianMixture, Tensor, float]:
    covs = [[[0.5, 0.2], [0.2, 0.3]], [[0.3, -0.1], [-0.1, 0.4]]]
    mixture = GaussianMixture([0.4, 0.6], [[-1.0, 0.5], [1.0, -0.5]], covs)
    h = 0.12
    axis = torch.arange(-50, 51, dtype=torch.float64) * h
    return mixture, torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1), h


def error(plane: tuple[GaussianMixture, Tensor, float], used: Tensor) -> float:
    """The largest error, as a share of the density's peak, when the equation's C is `used` and the truth is AR1."""
    mixture, points, h = plane
    p = Process(LinearBeta(0.5, 3.0), AR1(2, 0.7))

    def exact(t: float) -> Tensor:
        return mixture.log_prob(points.reshape(-1, 2), p, t).exp().reshape(points.shape[:2])

    density = evolve(p, exact(START), points, h, used, steps=260)
    return float((density - exact(END)).abs().max() / exact(END).max())


def test_two_dimensions_with_correlated_noise(plane: tuple[GaussianMixture, Tensor, float]):
    assert error(plane, AR1(2, 0.7).dense()) < 5e-4


def test_negative_control_without_the_correlation(plane: tuple[GaussianMixture, Tensor, float]):
    assert error(plane, torch.eye(2)) > 0.05

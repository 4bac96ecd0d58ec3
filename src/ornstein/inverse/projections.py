"""Methods without derivatives: what was measured replaces the prediction's part, direction by direction.

With A A^T = U diag(k) U^T the prediction moves by A^T U diag(g_k / k) U^T (y - A x0_hat): g is the share of the
measurement that is believed, a function of the eigenvalue k, the noise of y and the level rho = s/a. For diagonalisable
operators. No covariance of the data enters, so that what was not measured is not moved: the samples need many steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.inverse.operators import reciprocal
from ornstein.inverse.posterior import Posterior
from ornstein.schedules import Times
from ornstein.solvers import Noise, ddpm
from ornstein.solvers.stepping import pairs

__all__ = ["DDNM", "DDRM", "DiffPIR", "repaint"]


@dataclass(frozen=True, eq=False)
class DDNM(Posterior):
    """g = 1: the measured part is the measurement's (Wang et al. 2023, arXiv:2212.00490); replacement for a mask."""

    def posterior_mean(self, x_t: Tensor, t: Times, y: Tensor, cond: dict[str, Any]) -> Tensor:
        x0 = self.denoiser(x_t, t, **cond).x0
        level = self.ratio(x_t, t).flatten()[0]
        residual = y - self.A.linear(x0)
        return x0 + self.A.adjoint(self.A.gram(residual, lambda k: reciprocal(k) * self.share(k, level)))

    def share(self, k: Tensor, level: Tensor) -> Tensor:
        """g for the eigenvalues k at rho = `level`."""
        return torch.ones_like(k)


@dataclass(frozen=True, eq=False)
class DDRM(DDNM):
    """g = min(1, rho sqrt(k)/noise_std): a measurement counts in whole while it is less noisy than x_t.

    The mean of DDRM's update (Kawar et al. 2022, arXiv:2201.11793, eqs. 7 and 8).
    """

    def share(self, k: Tensor, level: Tensor) -> Tensor:
        return torch.ones_like(k) if self.noise_std == 0 else (level * k.sqrt() / self.noise_std).clamp(max=1)


@dataclass(frozen=True, eq=False)
class DiffPIR(DDNM):
    """g = k / (k + strength noise_std^2/rho^2): the proximal step of DiffPIR (Zhu et al. 2023, arXiv:2305.08995).

    Args:
        strength: lambda, the weight of the prior.
    """

    strength: float = 1.0

    def share(self, k: Tensor, level: Tensor) -> Tensor:
        return k / (k + self.strength * self.noise_std**2 / level.clamp(min=1e-6) ** 2).clamp(min=1e-30)


def repaint(d: Denoises, x: Tensor, times: Tensor, noise: Noise, repeats: int = 5) -> Iterator[Tensor]:
    """Ancestral steps, each taken `repeats` times with a step back up between (RePaint, Lugmayr et al. 2022, alg. 1).

    A solver for `DDNM`: the repeats let what is made agree with what is known. `repeats` evaluations a step.

    Raises:
        ValueError: fewer than 1 repeat.
    """
    if repeats < 1:
        raise ValueError(f"a step is taken at least once, got {repeats}")
    p, draws = d.process, 2 * repeats
    for k, (t, s) in enumerate(pairs(times, down=True)):
        here = times[k : k + 2]
        for again in range(repeats if s > 0 else 1):
            if again:
                x = p.transition(x, s, t).sample(noise(k, draws + again))

            def of_this_repeat(step: int, draw: int = 0, k: int = k, again: int = again) -> Tensor:
                return noise(k, 1 + again)

            (x,) = ddpm(d, x, here, of_this_repeat)
        yield x

"""Methods that follow the gradient of the residual through the network: DPS and PiGDM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ornstein.inverse.posterior import Posterior
from ornstein.schedules import Times

__all__ = ["DPS", "PiGDM"]


@dataclass(frozen=True, eq=False)
class DPS(Posterior):
    """x0_hat + scale (s^2/a) C J^T A^T r / (noise_std^2 + |r|^2/M), r = y - A x0_hat, of M measured numbers.

    p(y | x_t) is taken as p(y | x_0 = x0_hat), and the step is divided by the size of the residual (Chung et al. 2023,
    arXiv:2209.14687). A heuristic: Cov[x_0 | x_t] is left out, so that its samples spread too little or too much.

    Args:
        scale: length of the step.
    """

    scale: float = 1.0

    def posterior_mean(self, x_t: Tensor, t: Times, y: Tensor, cond: dict[str, Any]) -> Tensor:
        p = self.linearised(x_t, t, cond)
        A, value = self.A.at(p.x0)
        r = y - value
        spread = r.square().mean(tuple(range(1, r.ndim)), keepdim=True) + self.noise_std**2
        weighted = A.adjoint(r / spread.clamp(min=1e-12))
        return p.x0 + self.scale * p.times_cov(weighted)


@dataclass(frozen=True, eq=False)
class PiGDM(Posterior):
    """x0_hat + (s^2/a) C J^T A^T (noise_std^2 + v A A^T)^-1 (y - A x0_hat), v = data_var s^2/(a^2 data_var + s^2).

    Cov[x_0 | x_t] is taken as v I inside the inverse, the exact one for white data of variance `data_var` under white
    noise (Song et al. 2023, "Pseudoinverse-guided diffusion models"). For diagonalisable operators.

    Args:
        data_var: variance of the data.
    """

    data_var: float = 0.25

    def posterior_mean(self, x_t: Tensor, t: Times, y: Tensor, cond: dict[str, Any]) -> Tensor:
        p = self.linearised(x_t, t, cond)
        variance = self.data_var * p.s**2 / (p.a**2 * self.data_var + p.s**2)
        r = y - self.A.linear(p.x0)
        # one number a sample: divided out, so that the operator sees one function of its eigenvalues
        noise = self.noise_std**2 / variance.flatten()[0]
        weighted = self.A.gram(r, lambda values: 1 / (noise + values).clamp(min=1e-9)) / variance
        return p.x0 + p.times_cov(self.A.adjoint(weighted))

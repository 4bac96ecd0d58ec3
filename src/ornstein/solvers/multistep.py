"""Exponential multistep solvers of the probability-flow ODE: one core, the family of DPM-Solver++.

With rho = s/a the ODE (E20) integrates exactly to  x_s = (s_s/s_t) x_t + s_s int_{rho_s}^{rho_t} x0(rho) / rho^2 drho.
Only x0 along the path is approximated: by the polynomial through its last values, in the variable log(rho + 1/2).
DPM-Solver++ (Lu et al. 2022) interpolates in log rho, which is infinite at the data, so that its last step falls back
to order 1; the offset keeps the variable finite, and the last step has the order of the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.solvers.stepping import Noise, pairs

# Gauss-Legendre nodes on [0, 1]: the weights of a step are exact to rounding.
_ORDER = 32
_OFFSET = 0.5


def _gauss_legendre(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1] from the eigenvalues of the Jacobi matrix (Golub & Welsch 1969)."""
    k = torch.arange(1, n, dtype=torch.float64)
    off = k / torch.sqrt(4 * k**2 - 1)
    nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return (nodes + 1) / 2, vectors[0] ** 2


_NODES, _WEIGHTS = _gauss_legendre(_ORDER)


def weights(rho_from: float, rho_to: float, known: list[float]) -> list[float]:
    """w_j with rho_to int_{rho_to}^{rho_from} x0/rho^2 drho = sum_j w_j x0(known_j), x0 the polynomial through `known`.

    Written over u = rho_to/rho in [rho_to/rho_from, 1], where the integrand is x0 itself; rho_to = 0 gives x0(0).
    """
    low = rho_to / rho_from
    if low == 0:  # into the data, or out of pure noise, where x0 is one value
        rho, mass = torch.tensor([rho_to], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    else:
        # Equal spread in log u resolves a step over many octaves.
        span = -math.log(low)
        u = torch.exp(-span * _NODES)
        rho, mass = rho_to / u, span * _WEIGHTS * u
    place = torch.log(rho + _OFFSET)
    nodes = [math.log(r + _OFFSET) for r in known]
    out = []
    for j, node in enumerate(nodes):
        basis = torch.ones_like(place)
        for i, other in enumerate(nodes):
            if i != j:
                basis = basis * (place - other) / (node - other)
        out.append(float((mass * basis).sum()))
    return out


def multistep(d: Denoises, x: Tensor, times: Tensor, noise: Noise, order: int = 3) -> Iterator[Tensor]:
    """Order 1 (DDIM), 2 (DPM-Solver++ 2M) or 3 (3M): one evaluation a step.

    The first step has one value of x0 to go by and order 1; the value that the second step needs anyway then corrects
    it to order 2, without which the whole would not reach order 3.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"the multistep order is 1, 2 or 3, got {order}")
    schedule = d.process.schedule
    known: list[tuple[float, Tensor]] = []
    start = x

    def rho(t: float) -> float:
        return math.exp(-float(schedule.log_snr(t)) / 2)

    def step(x: Tensor, t: float, s: float, values: list[tuple[float, Tensor]]) -> Tensor:
        a, sigma_ratio = float(schedule.alpha(s)), float(schedule.sigma(s) / schedule.sigma(t))
        combined = torch.zeros_like(x)
        for w, (_, x0) in zip(weights(rho(t), rho(s), [r for r, _ in values]), values, strict=True):
            combined = combined + w * x0
        return sigma_ratio * x + a * combined

    for k, (t, s) in enumerate(pairs(times, down=True)):
        # A value at zero SNR, rho infinite, is no node of a polynomial; it serves only while there is no other.
        known = [(rho(t), d(x, t).x0), *(v for v in known if v[0] < math.inf)][: max(order, 2)]
        if k == 1 and order > 1:
            x = step(start, float(times[0]), t, known)
        x = step(x, t, s, known[:order])
        yield x

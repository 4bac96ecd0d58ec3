"""Weights of the multistep solvers, in float64: integrals of the polynomial that interpolates past predictions.

With rho = s/a and u = s/(a + s) the probability-flow ODE (E20) is solved exactly by any of

    x_s = (s_s/s_t) x_t + s_s int_{rho_s}^{rho_t} x0(rho)/rho^2 drho
    x_s/a_s = x_t/a_t + int_{rho_t}^{rho_s} eps(rho) drho
    x_s/(a_s + s_s) = x_t/(a_t + s_t) + int_{u_t}^{u_s} w(u) du,   w = eps - x0

Only the prediction along the path is approximated, by a polynomial that interpolates its last values: x0 and eps in the
variable log(rho + 1/2), the straight flow w in u. DPM-Solver++ (Lu et al. 2022) and DEIS (Zhang & Chen 2023)
interpolate in log rho, which is infinite at the data, so that their last step falls back to order 1; the offset keeps
the variable finite, and the last step has the order of the others. u is finite at both ends, the data (0) and pure
noise (1), and w is bounded at both, so the third form has no special cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Form", "Level", "adams", "weights"]

Form = Literal["x0", "eps", "flow"]
Level = float | Tensor

# Gauss-Legendre nodes on [0, 1]: the weights of a step are exact to rounding.
_ORDER = 32
_OFFSET = 0.5

# Adams-Bashforth weights, newest value first, by order: exact for polynomials at equal steps.
_ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def _gauss_legendre(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1] from the eigenvalues of the Jacobi matrix (Golub & Welsch 1969)."""
    k = torch.arange(1, n, dtype=torch.float64)
    off = k / torch.sqrt(4 * k**2 - 1)
    nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return (nodes + 1) / 2, vectors[0] ** 2


_NODES, _WEIGHTS = _gauss_legendre(_ORDER)


def weights(rho_from: Level, rho_to: Level, known: Sequence[Level], form: Form = "x0", power: float = 1) -> Tensor:
    """Weights w (len(known),) such that the integral of the interpolating polynomial m is sum_j w_j m(known_j).

    Args:
        rho_from, rho_to: the noise levels s/a at which the step starts and ends.
        known: the levels of the past predictions that m interpolates.
        form: the integral:
            "x0": rho_to^p int_{rho_to}^{rho_from} p x0/rho^(p+1) drho, which is x0(0) for rho_to = 0.
            "eps": int_{rho_from}^{rho_to} eps drho.
            "flow": (1 + rho_to) int w du from u(rho_from) to u(rho_to).
        power: p, 1 for the ODE, 2 for the reverse SDE and 1 + tau^2 in general.

    Returns:
        float64, differentiable in every level.
    """
    start, end = _level(rho_from), _level(rho_to)
    if form == "flow":
        low, high = _share(start), _share(end)
        place, mass = torch.lerp(low, high, _NODES), (1 + end) * (high - low) * _WEIGHTS
        return _integrals(place, mass, [_share(_level(r)) for r in known])
    if form == "eps":
        low, high = torch.log(start + _OFFSET), torch.log(end + _OFFSET)
        place = torch.lerp(low, high, _NODES)
        mass = (high - low) * _WEIGHTS * torch.exp(place)
    elif bool(end == 0) or bool(start.isinf()):  # to the data, or from pure noise: x0 is constant
        place, mass = torch.log(end + _OFFSET)[None], torch.ones(1, dtype=torch.float64)
    else:
        # Over u = rho_to/rho the integrand is x0 itself; equal spread in log u resolves a step over many octaves.
        span = torch.log(start / end)
        u = torch.exp(-span * _NODES)
        place, mass = torch.log(end / u + _OFFSET), power * span * _WEIGHTS * u**power
    return _integrals(place, mass, [torch.log(_level(r) + _OFFSET) for r in known])


def _integrals(place: Tensor, mass: Tensor, nodes: Sequence[Tensor]) -> Tensor:
    """The integral of each Lagrange basis polynomial on `nodes`, by quadrature points `place` of weights `mass`."""
    out = []
    for j, node in enumerate(nodes):
        basis = torch.ones_like(place)
        for i, other in enumerate(nodes):
            if i != j:
                basis = basis * (place - other) / (node - other)
        out.append((mass * basis).sum())
    return torch.stack(out)


def adams(rho_from: Level, rho_to: Level, known: Sequence[Level]) -> Tensor:
    """Adams-Bashforth weights of "eps", of order at most 4: those for equal steps, times rho_to - rho_from."""
    return (_level(rho_to) - _level(rho_from)) * torch.tensor(_ADAMS[len(known) - 1], dtype=torch.float64)


def _share(rho: Tensor) -> Tensor:
    """u = rho/(1 + rho), from 0 at the data to 1 where rho is infinite."""
    return 1 - 1 / (1 + rho)


def _level(rho: Level) -> Tensor:
    return torch.as_tensor(rho, dtype=torch.float64)

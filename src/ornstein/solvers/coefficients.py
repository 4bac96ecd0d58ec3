"""Weights of the multistep family, in float64: integrals of a polynomial through the predictions that are known.

With rho = s/a and u = s/(a + s) the probability-flow ODE (E20) is solved exactly by any of

    x_s = (s_s/s_t) x_t + s_s int_{rho_s}^{rho_t} x0(rho)/rho^2 drho
    x_s/a_s = x_t/a_t + int_{rho_t}^{rho_s} eps(rho) drho
    x_s/(a_s + s_s) = x_t/(a_t + s_t) + int_{u_t}^{u_s} w(u) du,   w = eps - x0

Only the prediction along the path is approximated, by the polynomial through its last values: of x0 and eps in
log(rho + 1/2), of the straight flow w in u. DPM-Solver++ (Lu et al. 2022) and DEIS (Zhang & Chen 2023) interpolate in
log rho, which is infinite at the data, so that their last step falls back to order 1; the offset keeps the variable
finite, and the last step has the order of the others. u is finite at both ends, the data (0) and pure noise (1), and w
is bounded at both: the third form needs no exception anywhere.
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

# Adams & Bashforth: the mean over the next of equal steps of the polynomial through the last values.
_ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def _gauss_legendre(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1] from the eigenvalues of the Jacobi matrix (Golub & Welsch 1969)."""
    k = torch.arange(1, n, dtype=torch.float64)
    off = k / torch.sqrt(4 * k**2 - 1)
    nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return (nodes + 1) / 2, vectors[0] ** 2


_NODES, _WEIGHTS = _gauss_legendre(_ORDER)


def weights(rho_from: Level, rho_to: Level, known: Sequence[Level], form: Form = "x0", power: int = 1) -> Tensor:
    """w (len(known),) with the integral = sum_j w_j m(known_j), m the polynomial through the values at `known`.

    "x0": rho_to^p int_{rho_to}^{rho_from} p x0/rho^(p+1) drho; p = 1 belongs to the ODE, p = 2 to the reverse SDE. Into
    the data, rho_to = 0, it is x0(0). "eps": int_{rho_from}^{rho_to} eps drho. "flow": (1 + rho_to) int w du.
    Differentiable in every level.
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
    elif bool(end == 0) or bool(start.isinf()):  # into the data, or out of pure noise, where x0 is one value
        place, mass = torch.log(end + _OFFSET)[None], torch.ones(1, dtype=torch.float64)
    else:
        # Over u = rho_to/rho the integrand is x0 itself; equal spread in log u resolves a step over many octaves.
        span = torch.log(start / end)
        u = torch.exp(-span * _NODES)
        place, mass = torch.log(end / u + _OFFSET), power * span * _WEIGHTS * u**power
    return _integrals(place, mass, [torch.log(_level(r) + _OFFSET) for r in known])


def _integrals(place: Tensor, mass: Tensor, nodes: Sequence[Tensor]) -> Tensor:
    """Of each basis polynomial of Lagrange on `nodes`: sums over the quadrature points `place` of weight `mass`."""
    out = []
    for j, node in enumerate(nodes):
        basis = torch.ones_like(place)
        for i, other in enumerate(nodes):
            if i != j:
                basis = basis * (place - other) / (node - other)
        out.append((mass * basis).sum())
    return torch.stack(out)


def adams(rho_from: Level, rho_to: Level, known: Sequence[Level]) -> Tensor:
    """The weights of "eps" as if the steps were equal: (rho_to - rho_from) times Adams & Bashforth's, at most four."""
    return (_level(rho_to) - _level(rho_from)) * torch.tensor(_ADAMS[len(known) - 1], dtype=torch.float64)


def _share(rho: Tensor) -> Tensor:
    """u = rho/(1 + rho), from 0 at the data to 1 where rho is infinite."""
    return 1 - 1 / (1 + rho)


def _level(rho: Level) -> Tensor:
    return torch.as_tensor(rho, dtype=torch.float64)

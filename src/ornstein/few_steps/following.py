"""Coefficients of a solver by least squares, one step after the other: where tuning starts.

The step from t_k to t_k+1 is linear in its coefficients,

    x_k+1 = c_0 a x0_k + c_1 s eps_k + a sum_j p_j (m_j - m_k),

so those for which the states of many trajectories come nearest to the fine solution at t_k+1 are the solution of a
least-squares problem of at most 8 unknowns (E43). Each step starts from the states that the steps before it made, and
corrects their errors where it can. It costs one run of the solver, and no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.devices import in_float64
from ornstein.few_steps.free_solver import FreeSolver
from ornstein.process import Process
from ornstein.solvers.multistep import interpolated
from ornstein.solvers.tuned import PAST, Step

__all__ = ["Path", "follow"]

_RIDGE = 1e-6  # of each feature's own mean square: coefficients that change nothing stay where they were
_NODES = 4


@dataclass(frozen=True)
class Path:
    """The fine solution from t = 1 to 0: its times (S + 1,), falling, and states (S + 1, B, *) there."""

    d: Denoises
    times: Tensor
    states: Tensor

    def at(self, t: float) -> Tensor:
        """The state (B, *) at t, in float64: the cubic through four of its states, as x/(a + s) over u = s/(a + s)."""
        p = self.d.process
        u, here = _share(p, self.times), _share(p, torch.tensor([t], dtype=torch.float64))
        first = min(max(int((u > here).sum()) - _NODES // 2, 0), len(u) - _NODES)
        near = range(first, first + _NODES)
        out = torch.zeros_like(in_float64(self.states[0]))
        for i in near:
            share = torch.stack([(here[0] - u[j]) / (u[i] - u[j]) for j in near if j != i]).prod()
            out += in_float64(self.states[i]) * float(share / sum(p.at(float(self.times[i]))[:2]))
        return out * float(sum(p.at(t)[:2]))


def _share(p: Process, times: Tensor) -> Tensor:
    rho = torch.exp(-p.schedule.log_snr(times.double()) / 2)
    return 1 - 1 / (1 + rho)


@torch.no_grad()
def follow(free: FreeSolver, paths: list[Path], weights: list[float]) -> list[Tensor]:
    """Set the coefficients of `free`, on its present times, by least squares on paths; each counts by its weight.

    Returns:
        The ends (B, *) of each path by the solver.
    """
    times, table = free.solver()
    states, before = [path.states[0] for path in paths], [list[Tensor]() for _ in paths]
    for k, step in enumerate(table):
        t, s = float(times[k]), float(times[k + 1])
        start = torch.tensor([*(1 + float(v) for v in step.scale), *map(float, step.past)], dtype=torch.float64)
        products, targets, made = torch.zeros(len(start), len(start), dtype=torch.float64), torch.zeros_like(start), []
        for i, path in enumerate(paths):
            now = path.d(states[i], t)
            own = interpolated(now, free.start.form)
            a, std, _ = now.process.at(s)
            features = [a * now.x0, std * now.eps, *(a * (past - own) for past in before[i])]
            rows = torch.stack([in_float64(f).flatten() for f in features])
            left = path.at(s).flatten() - start.to(rows.device) @ rows
            products += weights[i] * (rows @ rows.T).cpu()
            targets += weights[i] * (rows @ left).cpu()
            made.append((now, own))
        change = _solved(products, targets)
        free.scale[k] += change[:2]
        if k:
            free.past[k - 1] += change[2:]
        chosen = [float(v) for v in start + change]
        for i, (now, own) in enumerate(made):
            taken = Step((chosen[0] - 1, chosen[1] - 1), tuple(chosen[2:]))
            states[i] = taken.apply(now, own, s, before[i])
            before[i] = [own, *before[i]][:PAST]
    return states


def _solved(products: Tensor, targets: Tensor) -> Tensor:
    """The least change that the data asks for; 0 of a feature that is 0, as the noise is at the data."""
    size = products.diagonal().sqrt()
    inverse = torch.where(size > 0, 1 / size, 0.0)
    unit = products * torch.outer(inverse, inverse) + _RIDGE * torch.eye(len(size), dtype=torch.float64)
    return inverse * torch.linalg.solve(unit, inverse * targets)

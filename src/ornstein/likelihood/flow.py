"""log p(x_0) by the probability-flow ODE and the instantaneous change of variables (E20, E21)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.likelihood.dequantise import Dequantisation, check_dequantisation, dequantise
from ornstein.likelihood.model import STREAM, Model, chunks, dimensions, open_model
from ornstein.randomness import normal
from ornstein.solvers.runge_kutta import Path, Slope, Step, column, dormand_prince, rk4
from ornstein.wrapper import evaluation_mode

__all__ = ["TOLERANCE", "LogProb", "ode"]

_PROBE = STREAM + 8

TOLERANCE = 1e-5
"""The default tolerance of log p(x_0), in nats a dimension."""

# A step may take this share of the tolerance: most paths take 20 to 40 steps, few of them at their limit.
_STEP_SHARE = 1 / 50

# The smallest steps by the dtype of the network, a length and a share of the distance from the nearer end: below them
# the error is that of its rounding. Its slope at the data is taken at the first of the two.
_SMALLEST = {torch.float64: (1e-9, 1e-5), torch.float32: (1e-4, 0.05)}
_SMALLEST_HALF = (1e-3, 0.2)

# The reported error is this multiple of the sum of the estimates: the difference of the two orders is by chance smaller
# than the error at single steps. With it the bound held on hundreds of samples of random mixtures.
_SAFETY = 5.0

STEPS = 64
"""The default number of steps of "rk4"."""


@dataclass(frozen=True)
class LogProb:
    """log p(x_0) of each sample and its error, float64 in nats.

    Attributes:
        value: log p(x_0), (B,).
        error: a bound on the error of the ODE solver plus the standard error over the probes of the divergence, (B,).
            NaN for a single probe, whose standard error is unknown, and for "rk4" with a single step.
        dequantisation: how pixels became continuous: "none", "uniform" or "variational".
        evaluations: calls of the denoiser for each sample, (B,).
        solver_error: the part of `error` that the ODE solver has, (B,).
    """

    value: Tensor
    error: Tensor
    dequantisation: str
    evaluations: Tensor
    solver_error: Tensor


def ode(
    d: Denoises,
    x0: Tensor,
    divergence: Literal["exact", "hutchinson"] = "exact",
    *,
    solver: Literal["rk4", "rk45"] | None = None,
    steps: int | None = None,
    tolerance: float = TOLERANCE,
    probes: int = 4,
    probe: Literal["rademacher", "gaussian"] = "rademacher",
    t_min: float = 0.0,
    prior: Callable[[Tensor], Tensor] | None = None,
    dequantisation: Dequantisation = "none",
    seed: int = 0,
    first: int = 0,
    batch: int = 64,
    cond: dict[str, Any] | None = None,
) -> LogProb:
    """log p(x_0) = log p_1(x_1) + int_0^1 div v dt along dx/dt = v, the flow (E21), for x0 (B, *) under any C.

    State and divergence are float64, the network keeps its own dtype (Chen et al. 2018, arXiv:1806.07366; Song et al.
    2021, arXiv:2011.13456, appendix D).

    The default solver chooses the steps of each sample. The local error of a step, from the embedded pair, changes the
    result by grad log p . e_x + e_q to first order, since log p_t is what remains to be computed from there; the steps
    keep this below a share of the tolerance, and its sum, with a bound on the second order, is `LogProb.error`.

    Args:
        divergence: "exact", one backward pass for each of the N numbers of a sample; "hutchinson", w^T (dv/dx) w for
            `probes` random w, each fixed along the whole trajectory: unbiased.
        solver: "rk45", the pair of Dormand and Prince with steps chosen by `tolerance`; "rk4", `steps` equal steps in
            u, s/a = u/(1-u), whose error is estimated from half as many. Default: "rk45", and "rk4" if steps are given.
        steps: of "rk4", 64 by default.
        tolerance: of "rk45", in nats a dimension over the whole trajectory.
        t_min: the time to start from. At 0 the density is that of x_0. Above, it is the density of x_0 plus noise of
            level s/a, at x0: for networks that were not trained at smaller times, and data without a density.
        prior: the log-density at t = 1, (B, *) -> (B,), in place of log N(0, s_1^2 C) from which sampling starts.
        dequantisation: "uniform" spreads 8-bit pixels evenly over their bins of width 2/256 in [-1, 1]; log p and
            `bits_per_dim` then bound the probability of the pixels (Theis et al. 2016, arXiv:1511.01844). A
            `Dequantiser` (from `fit_dequantiser`) spreads them by its q(u|x), and log q is subtracted (Ho et al. 2019,
            arXiv:1902.00275, eq. 12).
        seed, first: probes and dequantisation are addressed by (seed, first + row): the same in any batch.
        batch: samples that go through the network at once.

    Raises:
        ValueError: wrong arguments; there are no samples, or they are not finite or not the model's; C is singular; or
            the trajectory diverges (the message names the time).
    """
    if divergence not in ("exact", "hutchinson"):
        raise ValueError(f'divergence is "exact" or "hutchinson", got {divergence!r}')
    solver = solver or ("rk45" if steps is None else "rk4")
    if solver not in ("rk4", "rk45"):
        raise ValueError(f'solver is "rk4" or "rk45", got {solver!r}')
    if solver == "rk45" and steps is not None:
        raise ValueError("rk45 chooses its steps by the tolerance: leave steps out, or take rk4")
    if probe not in ("rademacher", "gaussian"):
        raise ValueError(f'probe is "rademacher" or "gaussian", got {probe!r}')
    name = check_dequantisation(dequantisation)
    steps = STEPS if steps is None else steps
    if steps < 1 or probes < 1 or not 0 < tolerance < math.inf:
        raise ValueError(f"steps and probes must be >= 1 and tolerance > 0, got {steps}, {probes} and {tolerance}")
    if not 0 <= t_min < 1:
        raise ValueError(f"t_min lies in [0, 1), got {t_min}")
    model = open_model(d, x0, cond)
    values, errors, evaluations, solver_errors = [], [], [], []
    with evaluation_mode(d):
        for rows in chunks(len(x0), batch):
            index = rows + first
            x, log_q = dequantise(x0[rows.to(x0.device)].to(model.exact), dequantisation, seed, index)
            flow = _Flow(model, _probes(x, index, divergence, probe, probes, seed), rows)
            with torch.no_grad():
                value, error, calls = _integrate(flow, x, t_min, prior, None if solver == "rk45" else steps, tolerance)
            value = value.cpu() - log_q.cpu()[:, None]
            values.append(value.mean(1))
            solver_errors.append(error.cpu())
            errors.append(_standard_error(value, divergence == "exact") + error.cpu())
            evaluations.append(calls)
    value, error, calls, solver_error = (torch.cat(parts) for parts in (values, errors, evaluations, solver_errors))
    return LogProb(value, error, name, calls, solver_error)


def _probes(x: Tensor, index: Tensor, divergence: str, probe: str, count: int, seed: int) -> Tensor | None:
    """The random vectors w of Hutchinson's estimate, (K, B, *); None for the exact divergence."""
    if divergence == "exact":
        return None
    z = torch.stack([normal(tuple(x.shape), seed, index, k, _PROBE, torch.float64, x.device) for k in range(count)])
    return z.sign() if probe == "rademacher" else z


def _integrate(
    flow: _Flow, x0: Tensor, t_min: float, prior: Callable[[Tensor], Tensor] | None, steps: int | None, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x0) by each probe (B, K), the solver's error (B,) and the evaluations (B,); steps=None for "rk45"."""
    start, end = flow.place(t_min), flow.place(1.0)
    # The flow's own coordinates are x_t over sqrt(a^2 + s^2); the data are x_t/a.
    log_scale = 0.5 * math.log((1 - start) ** 2 / (start**2 + (1 - start) ** 2))
    x, n = x0 * math.exp(log_scale), dimensions(x0)

    def value(path: Path) -> Tensor:
        return flow.log_prior(path.x, prior)[:, None] + path.integral + n * log_scale

    if steps is None:
        limit = n * tolerance * _STEP_SHARE
        path = dormand_prince(flow, x, start, end, limit, flow.error_of, smallest=flow.smallest)
        return value(path), _SAFETY * path.error, path.evaluations
    path = rk4(flow, x, start, end, steps)
    if steps == 1:
        return value(path), path.error, path.evaluations
    coarse = rk4(flow, x, start, end, steps // 2)
    error = (value(path) - value(coarse)).mean(1).abs()
    return value(path), error, path.evaluations + coarse.evaluations


def _standard_error(values: Tensor, exact: bool) -> Tensor:
    probes = values.shape[1]
    if exact or probes == 1:
        return torch.full((len(values),), 0.0 if exact else torch.nan, dtype=values.dtype)
    return values.std(1) / probes**0.5


@dataclass(frozen=True)
class _Flow:
    """The probability-flow ODE for x = x_t/sqrt(a^2 + s^2) in u, s/a = u/(1-u), and the divergence along it.

    With tan(angle) = s/a it is dx/d angle = cos eps_hat - sin x0_hat for every schedule, and the angle is analytic in u
    up to both ends: the data and, at a zero terminal SNR, pure noise.
    `probes` (K, B, *) estimate the divergence; without them it is exact. `rows` are the numbers of the samples.
    """

    model: Model
    probes: Tensor | None
    rows: Tensor

    def place(self, t: float) -> float:
        """u at time t."""
        return float(torch.sigmoid(-self.model.process.schedule.log_snr(t) / 2))

    @property
    def smallest(self) -> tuple[float, float]:
        """The smallest steps: a length, and a share of the distance from the nearer end."""
        return _SMALLEST.get(self.model.dtype, _SMALLEST_HALF)

    def time(self, u: Tensor) -> Tensor:
        """t at u."""
        return self.model.process.schedule.time(-2 * torch.logit(u)).clamp(0, 1)

    def __call__(self, u: Tensor, x: Tensor, rows: Tensor) -> Slope:
        if self.model.dtype != torch.float64:
            # An exact flow stands still at the data. A network's does not, and a jump there would cost many steps.
            u = u.clamp(min=self.smallest[0])
        if bool((u == 0).all()):
            return Slope(torch.zeros_like(x), x.new_zeros(len(x), 1 if self.probes is None else len(self.probes)))
        norm = torch.sqrt(u**2 + (1 - u) ** 2)
        t = self.time(u)
        schedule = self.model.process.schedule
        scale = torch.sqrt(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2)
        # norm^-2 is d angle/du.
        packed = torch.stack([(1 - u) / norm, u / norm, norm**-2, scale]).to(x.device, non_blocking=True)
        cosine, sine, speed, scale = (column(c, x) for c in packed)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            prediction = self.model(leaf * scale, t, self.rows[rows])
            velocity = cosine * prediction.eps - sine * prediction.x0
            divergence = self._divergence(velocity, leaf, rows)
        gradient = -self.model.process.noise.solve(prediction.eps.detach()) / sine
        return Slope(velocity.detach() * speed, divergence * speed.reshape(-1, 1), gradient)

    def error_of(self, step: Step) -> Tensor:
        """How much the local error of a step changes log p(x_0), to second order, in nats, (R,).

        The density from the end of the step on is log p_u(x): its gradient is the score, and its curvature at most that
        of the noise, C^-1/sin^2, which every marginal contains. Rounding of x counts as well.
        """
        assert step.end.gradient is not None
        sine = step.u / torch.sqrt(step.u**2 + (1 - step.u) ** 2)
        gradient, error = step.end.gradient.flatten(1), step.error.flatten(1)
        # Apart, since at a step that is much too long the two may cancel by chance.
        first_order = (gradient * error).sum(1).abs() + step.q_error.mean(1).abs()
        white = self.model.process.noise.whiten(step.error).flatten(1).square().sum(1)
        second_order = 0.5 * white / column(sine**2, white)
        rounding = (gradient * step.after.flatten(1)).abs().sum(1) + step.integral.mean(1).abs() + 1
        return first_order + second_order + torch.finfo(torch.float64).eps * rounding

    def _divergence(self, velocity: Tensor, x: Tensor, rows: Tensor) -> Tensor:
        if self.probes is None:
            total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
            outputs = velocity.flatten(1)
            for k in range(outputs.shape[1]):
                (row,) = torch.autograd.grad(outputs[:, k].sum(), x, retain_graph=True)
                total += row.flatten(1)[:, k]
            return total[:, None]
        estimates = []
        every = len(rows) == self.probes.shape[1]
        for w in self.probes if every else self.probes[:, rows.to(x.device)]:
            (pulled,) = torch.autograd.grad(velocity, x, w, retain_graph=True)
            estimates.append((pulled * w).flatten(1).sum(1))
        return torch.stack(estimates, 1)

    def log_prior(self, x: Tensor, prior: Callable[[Tensor], Tensor] | None) -> Tensor:
        """The log-density of x = x_1/sqrt(a^2 + s^2), from that of x_1."""
        process = self.model.process
        a, s = process.coefficients(1.0, x)
        scale = torch.sqrt(a**2 + s**2)
        log_density = process.prior(tuple(x.shape), x.dtype, 1.0, x.device).log_prob if prior is None else prior
        return log_density(x * scale) + dimensions(x) * float(scale.log())

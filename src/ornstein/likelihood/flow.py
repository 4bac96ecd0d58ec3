"""log p(x_0) by the probability-flow ODE and the instantaneous change of variables (E20, E21)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.likelihood.dequantise import Dequantisation, check_dequantisation, dequantise
from ornstein.likelihood.model import STREAM, Model, chunks, column, dimensions, open_model
from ornstein.randomness import normal
from ornstein.solvers.runge_kutta import dormand_prince, rk4
from ornstein.wrapper import evaluation_mode

_PROBE = STREAM + 8


@dataclass(frozen=True)
class LogProb:
    """value = log p(x_0), (B,) float64 in nats, and error, its standard error over the probes of the divergence.

    error is 0 where the divergence is exact, NaN for a single probe. `dequantisation` names how pixels were made
    continuous ("none", "uniform", "variational"); `evaluations` counts the calls of the denoiser for each sample, (B,).
    """

    value: Tensor
    error: Tensor
    dequantisation: str
    evaluations: Tensor


def ode(
    d: Denoises,
    x0: Tensor,
    divergence: Literal["exact", "hutchinson"] = "exact",
    *,
    solver: Literal["rk4", "rk45"] = "rk4",
    steps: int = 64,
    tolerance: float = 1e-6,
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

    State and divergence are float64, the network in its own dtype (Chen et al. 2018; Song et al. 2021, appendix D).

    Args:
        divergence: "exact", one backward pass for each of the N numbers of a sample; "hutchinson", w^T (dv/dx) w for
            `probes` random w, each fixed along the whole trajectory: unbiased.
        solver: "rk4", `steps` equal steps in u, s/a = u/(1-u); "rk45", Dormand and Prince's pair with steps chosen
            for each sample by itself, so that no error exceeds `tolerance` (absolute and relative) a step.
        t_min: where to start. At 0 the density is that of x_0. Above, it is the density of x_0 with noise s/a added,
            at x0: for networks that know nothing of smaller times, and data that have no density.
        prior: the log-density at t = 1, (B, *) -> (B,), in place of log N(0, s_1^2 C) from which sampling starts.
        dequantisation: "uniform" spreads 8-bit pixels evenly over their bins of width 2/256 in [-1, 1]; log p and
            `bits_per_dim` then bound the probability of the pixels (Theis et al. 2016). A `Dequantiser` (from
            `fit_dequantiser`) spreads them by its q(u|x), and log q is taken off the value (Ho et al. 2019, eq. 12).
        seed, first: probes and dequantisation are addressed by (seed, first + row): the same in any batch.
        batch: samples that go through the network at once.

    Raises ValueError for wrong arguments, samples that are none, not finite or not the model's, a singular C, and a
    trajectory that diverges (it says at which time).
    """
    if divergence not in ("exact", "hutchinson"):
        raise ValueError(f'divergence is "exact" or "hutchinson", got {divergence!r}')
    if solver not in ("rk4", "rk45"):
        raise ValueError(f'solver is "rk4" or "rk45", got {solver!r}')
    if probe not in ("rademacher", "gaussian"):
        raise ValueError(f'probe is "rademacher" or "gaussian", got {probe!r}')
    name = check_dequantisation(dequantisation)
    if steps < 1 or probes < 1 or not tolerance > 0:
        raise ValueError(f"steps and probes must be >= 1 and tolerance > 0, got {steps}, {probes} and {tolerance}")
    if not 0 <= t_min < 1:
        raise ValueError(f"t_min lies in [0, 1), got {t_min}")
    model = open_model(d, x0, cond)
    values, errors, evaluations = [], [], []
    with evaluation_mode(d):
        for own in chunks(len(x0), batch):
            index = own + first
            x, log_q = dequantise(x0[own], dequantisation, seed, index)
            x = x.to(model.device)
            if divergence == "exact":
                w = None
            else:
                shape = tuple(x.shape)
                z = [normal(shape, seed, index, k, _PROBE, torch.float64, x.device) for k in range(probes)]
                w = torch.stack(z).sign() if probe == "rademacher" else torch.stack(z)
            flow = _Flow(model, w, own)
            start, end = (float(flow.place(t)) for t in (t_min, 1.0))
            # The flow's own coordinates are x_t over sqrt(a^2 + s^2); the data are x_t/a.
            log_scale = -0.5 * torch.nn.functional.softplus(-flow.log_snr(torch.tensor(start, dtype=torch.float64)))
            x = x * float(log_scale.exp())
            with torch.no_grad():
                if solver == "rk4":
                    x, integral, calls = rk4(flow, x, start, end, steps)
                else:
                    x, integral, calls = dormand_prince(flow, x, start, end, tolerance)
                log_p1 = flow.log_prior(x, prior)
            n = dimensions(x)
            value = log_p1[:, None] + integral + n * float(log_scale)
            values.append(value.mean(1).cpu() - log_q.cpu())
            errors.append(_standard_error(value, exact=w is None).cpu())
            evaluations.append(calls.cpu())
    return LogProb(torch.cat(values), torch.cat(errors), name, torch.cat(evaluations))


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
    `probes` (K, B, *) estimate the divergence; without them it is exact.
    """

    model: Model
    probes: Tensor | None
    rows: Tensor

    def place(self, t: float) -> Tensor:
        """u at time t."""
        return torch.sigmoid(-self.model.process.schedule.log_snr(t) / 2)

    def log_snr(self, u: Tensor) -> Tensor:
        return -2 * torch.logit(u)

    def time(self, u: Tensor) -> Tensor:
        return self.model.process.schedule.time(self.log_snr(u)).clamp(0, 1)

    def __call__(self, u: Tensor, x: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """dx/du (B, *) and its divergence (B, K), for x (B, *) at u (B,), the rows `active` (B,) of the whole."""
        norm = torch.sqrt(u**2 + (1 - u) ** 2)
        cosine, sine = column((1 - u) / norm, x), column(u / norm, x)
        # At the data the flow stands still; the value asked for elsewhere falls away.
        speed = torch.where(u == 0, 0.0, norm**-2)  # d angle/du
        t = self.time(torch.where(u == 0, 0.5, u))
        schedule = self.model.process.schedule
        scale = column(torch.sqrt(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2), x)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            prediction = self.model(leaf * scale, t, self.rows[active.cpu()])
            velocity = cosine * prediction.eps - sine * prediction.x0
            divergence = self._divergence(velocity, leaf, active)
        return velocity.detach() * column(speed, x), divergence * speed[:, None]

    def _divergence(self, velocity: Tensor, x: Tensor, active: Tensor) -> Tensor:
        if self.probes is None:
            total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
            outputs = velocity.flatten(1)
            for k in range(outputs.shape[1]):
                (row,) = torch.autograd.grad(outputs[:, k].sum(), x, retain_graph=True)
                total += row.flatten(1)[:, k]
            return total[:, None]
        found = []
        for w in self.probes[:, active]:
            (pulled,) = torch.autograd.grad(velocity, x, w, retain_graph=True)
            found.append((pulled * w).flatten(1).sum(1))
        return torch.stack(found, 1)

    def log_prior(self, x: Tensor, prior: Callable[[Tensor], Tensor] | None) -> Tensor:
        """log-density of x = x_1/sqrt(a^2 + s^2), from that of x_1."""
        process = self.model.process
        a, s = process.coefficients(1.0, x)
        scale = torch.sqrt(a**2 + s**2)
        x1 = x * scale
        log_density = process.prior(tuple(x.shape), x.dtype, 1.0, x.device).log_prob if prior is None else prior
        return log_density(x1) + dimensions(x) * float(scale.log())

"""Exponential multistep solvers: one core, and the family as its settings.

A step from t to s begins with the DDIM step on the prediction at t, and adds what the earlier predictions say of the
curve: with m = x0, eps or the straight flow eps - x0, r = (s_s a_t)/(a_s s_t) and the weights w_j of
`solvers.coefficients`

    ODE:  x_s = a_s x0_t + s_s eps_t + a_s sum_j w_j (m_j - m_t)
    SDE:  x_s = a_s x0_t + s_s (r^q eps_t + sqrt(1 - r^2q) R z) + a_s sum_j w_j (x0_j - x0_t),   q = tau^2

The SDEs of every tau have the marginals of the process; tau = 0 is the ODE and 1 the reverse SDE (E19). Their x0
enters as r_s^p int p x0/rho^(p+1) drho with p = 1 + tau^2 (SA-Solver, proposition 4.2).

| solver         | m    | weights                        | source |
|----------------|------|--------------------------------|---|
| `flow-3m`      | flow | polynomial of order 3          | Adams & Bashforth on rectified time |
| `dpmpp-2m, 3m` | x0   | polynomial of order 2, 3       | DPM-Solver++, Lu et al. 2022 |
| `unipc`        | x0   | the same, every step corrected | UniPC, Zhao et al. 2023 |
| `deis`         | eps  | polynomial of order 3          | DEIS, Zhang & Chen 2023 |
| `ipndm`        | eps  | Adams & Bashforth's of order 4 | PNDM, Liu et al. 2022; iPNDM in Zhang & Chen 2023 |
| `dpmpp-2m-sde` | x0   | polynomial of order 2, tau 1   | SDE-DPM-Solver++ 2M, Lu et al. 2022 |
| `sa-3m`        | x0   | order 3, tau 1/2, corrected    | SA-Solver, Xue et al. 2023 |
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.process import Prediction, Process
from ornstein.schedules import Times
from ornstein.solvers.coefficients import Form, Level, adams, weights
from ornstein.solvers.stepping import Noise, pairs

__all__ = ["Value", "advance", "combine", "interpolated", "level", "multistep", "singlestep"]


@dataclass(frozen=True)
class Value:
    """A prediction m (B, *) and the level rho = s/a at which it was made."""

    rho: float
    m: Tensor


def level(p: Process, t: float) -> float:
    """rho = s/a, from 0 at the data to infinity at zero SNR."""
    return math.exp(-p.at(t)[2] / 2)


def interpolated(prediction: Prediction, form: Form) -> Tensor:
    """m: the quantity that the polynomial interpolates."""
    return prediction.eps - prediction.x0 if form == "flow" else getattr(prediction, form)


def _with_value(p: Process, x: Tensor, t: float, form: Form, m: Tensor) -> Prediction:
    """The prediction at a state x (B, *) whose interpolated quantity is m."""
    if form != "flow":
        return p.convert(x, t, **{form: m})
    a, s = p.coefficients(t, x)
    return p.convert(x, t, x0=(x - s * m) / (a + s))


def combine(
    base: Prediction,
    s: Times,
    here: Tensor,
    values: Sequence[tuple[Level, Tensor]],
    eta: float = 0.0,
    scale: tuple[Level, Level] = (0.0, 0.0),
) -> Tensor:
    """The step from base.t to s: DDIM plus a_s sum_j w_j (m_j - here).

    With numbers for all coefficients it is one pass over the samples for each term, into one tensor.

    Args:
        base: the prediction that the step starts from.
        s: where the step ends.
        here: the interpolated quantity m of `base`.
        values: (w_j, m_j).
        eta: q = tau^2; the step keeps the share r^q of eps: all of it for 0, that of the ancestral step for 1.
        scale: learned parts of the factors of x0 and eps, 1 + scale.
    """
    p, x = base.process, base.x_t
    keep = (level(p, float(s)) / level(p, float(base.t))) ** eta if eta else 1.0
    past = [(w, m) for w, m in values if m is not here]
    if isinstance(s, Tensor) or any(isinstance(w, Tensor) for w in (*scale, *(w for w, _ in past))):
        a, std = p.coefficients(s, x)
        out = (a * (1 + scale[0])) * base.x0 + (keep * std * (1 + scale[1])) * base.eps
        for w, m in past:
            out = out + (a * w) * (m - here)
        return out
    a, std, _ = p.at(s)
    of_x0, of_eps = (1 + float(each) for each in scale)
    out = torch.add((a * of_x0) * base.x0, base.eps, alpha=keep * std * of_eps)
    for w, m in past:
        out.add_(m, alpha=a * float(w))
    return out.sub_(here, alpha=a * sum(float(w) for w, _ in past)) if past else out


@lru_cache(4096)
def _weights(
    rho_from: float, rho_to: float, known: tuple[float, ...], form: Form, power: float, equal: bool
) -> list[float]:
    """`weights`, or those of `adams`, as numbers: every batch on the same times has the same."""
    w = adams(rho_from, rho_to, known) if equal else weights(rho_from, rho_to, known, form, power)
    return w.tolist()


def advance(p: Process, x: Tensor, t: float, s: float, values: Sequence[Value]) -> Tensor:
    """x (B, *) from t to s on the straight flow, along the polynomial through `values`, newest first."""
    here = values[0].m
    w = _weights(level(p, t), level(p, s), tuple(v.rho for v in values), "flow", 1, False)
    past = list(zip(w, [v.m for v in values], strict=True))
    return combine(_with_value(p, x, t, "flow", here), s, here, past)


def multistep(
    d: Denoises,
    x: Tensor,
    times: Tensor,
    noise: Noise,
    order: int = 3,
    form: Form = "x0",
    equal: bool = False,
    corrected: bool = False,
    stochastic: float = 0.0,
) -> Iterator[Tensor]:
    """One evaluation a step, with the polynomial through the last `order` predictions.

    The first step has one value and order 1. In the ODE the second evaluation corrects it; without this the whole would
    not reach order 3.

    Args:
        d, x, times, noise: as for every solver.
        order: values of the polynomial, 1 to 4.
        form: the quantity that the polynomial interpolates.
        equal: Adams & Bashforth's fixed weights; only for "eps".
        corrected: the evaluation at the start of a step first corrects the step before it, with one more value.
        stochastic: tau, from 0, the ODE, to 1, the reverse SDE, and beyond; only for "x0". A corrected step keeps its
            noise.

    Raises:
        ValueError: these settings do not go together.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"the multistep order is 1, 2, 3 or 4, got {order}")
    if equal and form != "eps":
        raise ValueError("Adams-Bashforth weights are those of eps, not of x0")
    if not 0 <= stochastic < math.inf:
        raise ValueError(f"tau is a number >= 0, got {stochastic}")
    if stochastic and form != "x0":
        raise ValueError("the stochastic step is written for x0")
    p, eta = d.process, float(stochastic) ** 2
    rho = dict(zip(times.tolist(), torch.exp(-p.schedule.log_snr(times.cpu().double()) / 2).tolist(), strict=True))
    known: list[Value] = []
    base: tuple[Prediction, Tensor] | None = None
    drawn: Tensor | None = None  # the noise of the step before

    def step(base: Prediction, here: Tensor, s: float, values: list[Value]) -> Tensor:
        start, end = rho[float(base.t)], rho[s]
        if form == "eps" and math.isinf(start):
            return combine(base, s, here, [])  # no integral over rho begins there
        w = _weights(start, end, tuple(v.rho for v in values), form, 1 + eta, equal)
        return combine(base, s, here, list(zip(w, [v.m for v in values], strict=True)), eta)

    for k, (t, s) in enumerate(pairs(times, down=True)):
        now = d(x, t)
        # At zero SNR log rho is infinite: such a value is no node of a polynomial, and serves while it is alone.
        before = [v for v in known if form == "flow" or v.rho < math.inf]
        known = [Value(rho[t], interpolated(now, form)), *before][: max(order, 2) + 1]
        again = corrected or (k == 1 and order > 1 and not stochastic)
        if base is not None and again:
            x = step(*base, t, known[: order + 1 if corrected else 2])
            if drawn is not None:
                x = x + drawn
            now = _with_value(p, x, t, form, known[0].m)
        x = step(now, known[0].m, s, known[:order])
        if stochastic and s > 0:
            share = 1 - (rho[s] / rho[t]) ** (2 * eta)
            drawn = math.sqrt(share) * p.at(s)[1] * p.noise.color(noise(k))
            x = x + drawn
        base = now, known[0].m
        yield x


def singlestep(d: Denoises, x: Tensor, times: Tensor, noise: Noise) -> Iterator[Tensor]:
    """DPM-Solver++ 2S (Lu et al. 2022, algorithm 1): the midpoint of each step, order 2, two evaluations a step.

    The middle is taken in log(rho + 1/2). A step out of pure noise, which has no middle, is DDIM's.
    """
    p = d.process
    for t, s in pairs(times, down=True):
        now, start, end = d(x, t), level(p, t), level(p, s)
        if math.isinf(start):
            x = combine(now, s, now.x0, [])
        else:
            middle = math.sqrt((start + 0.5) * (end + 0.5)) - 0.5
            at = float(p.schedule.time(torch.tensor(-2 * math.log(middle), dtype=torch.float64)))
            ahead = d(combine(now, at, now.x0, []), at)
            w = weights(start, end, [start, middle])
            x = combine(now, s, now.x0, [(float(w[1]), ahead.x0)])
        yield x

"""log p(x_0) in a few evaluations: a flow map and its density, learned for one model (E32).

Along the probability-flow ODE log p_s(x_s) = log p_t(x_t) - int_t^s div v du. Most of v is the flow of one Gaussian:
with C = R R^T and Sigma = U diag(l) U^T the covariance of the whitened data R^-1 x_0,

    x_t/sqrt(a^2 + s^2) = R (cos m + U D y),  D = sqrt(cos^2 l + sin^2),  tan(angle) = s/a

y stands still if the data are N(R m, R Sigma R^T), and the log-determinant of D is known. What is left, dy/dq and its
divergence, is small and smooth. A few evaluations at fixed places q give slopes f_k and divergences g_k; each state is
y_0 plus a linear combination of the slopes before it, and

    log p(x_0) = log p_1(x_1) + sum log D_1/D_0 + sum_k w_k g_k - sum_k c_k <y_1, f_k>

where -<y_1, f_k> is what a slope changes log p_1 by. All weights are linear least squares against fine solutions, one
state after the other. On one Gaussian every slope and divergence is 0, and the result exact, whatever the weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.errors import UserError
from ornstein.likelihood.dequantise import Dequantisation, check_dequantisation, dequantise
from ornstein.likelihood.flow import LogProb
from ornstein.likelihood.gaussian_flow import Coordinates, GaussianFlow, gaussian_of
from ornstein.likelihood.model import STREAM, chunks, dimensions, open_model
from ornstein.randomness import normal
from ornstein.store import atomic_save_tensors, atomic_write, read_json
from ornstein.wrapper import evaluation_mode

__all__ = ["FewSteps", "fit_few"]

_PROBE = STREAM + 9
_EXACT = 16  # numbers of a sample up to which the divergence is exact by default

# Places: midpoints of equal steps in q, q/(1-q) = (s/a)^(2 slope). Which slope is best depends on the data.
_SLOPES = (0.2, 0.35, 0.5, 0.6)
_STATE_RIDGE = 1e-6
_HELD_OUT = 4  # one sample in so many is not learned from: the error is measured on it

_FILE, _CONFIG, _FORMAT = "likelihood.safetensors", "likelihood.json", 1
_TENSORS = ("mean", "basis", "variances", "states", "divergences", "ends")


@dataclass(frozen=True)
class FewSteps:
    """log p(x_0) in a few evaluations, as `fit_few` learned it for one model.

    Attributes:
        mean, variances: of the whitened data in the basis, (N,) float64.
        basis: its columns are the basis, (N, N); (0, 0) for the numbers themselves.
        slope: of the places.
        states: weights of the slopes before it, for each state and the end, (K + 1, K).
        divergences, ends: the weights w and c, (K,).
        spread: root mean square error of log p on samples that nothing was learned from, in nats.
        exact: whether the divergence was exact.
    """

    mean: Tensor
    basis: Tensor
    variances: Tensor
    slope: float
    states: Tensor
    divergences: Tensor
    ends: Tensor
    spread: float
    exact: bool

    @property
    def evaluations(self) -> int:
        return len(self.divergences)

    def __call__(
        self,
        d: Denoises,
        x0: Tensor,
        *,
        probes: int = 1,
        dequantisation: Dequantisation = "none",
        seed: int = 0,
        first: int = 0,
        batch: int = 64,
        cond: dict[str, Any] | None = None,
    ) -> LogProb:
        """log p(x_0) of samples x0 (B, *). The arguments are those of `likelihood.ode`.

        `LogProb.error` is the spread, plus the standard error over the probes of the divergence.

        Raises:
            ValueError: wrong arguments, or samples that are not the model's.
        """
        name = check_dequantisation(dequantisation)
        if probes < 1:
            raise ValueError(f"probes must be >= 1, got {probes}")
        model = open_model(d, x0, cond)
        if dimensions(x0) != len(self.mean):
            raise ValueError(f"this was learned for samples of {len(self.mean)} numbers, got {tuple(x0.shape)}")
        values, errors = [], []
        with evaluation_mode(d):
            for rows in chunks(len(x0), batch):
                x, log_q = dequantise(x0[rows.to(x0.device)].to(model.exact), dequantisation, seed, rows + first)
                each = []
                for k in range(1 if self.exact else probes):
                    probe = _probe(x, rows + first, seed, k, self.exact)
                    flow = GaussianFlow(model, self.coordinates, rows, probe, tuple(x.shape))
                    base, change = self._follow(flow, x)
                    each.append(base + change @ self._weights.to(x) - log_q)
                value = torch.stack(each, 1).cpu()
                spread = torch.full((len(x),), self.spread, dtype=torch.float64)
                if not self.exact:
                    spread = spread + (value.std(1) / probes**0.5 if probes > 1 else math.nan)
                values.append(value.mean(1))
                errors.append(spread)
        value = torch.cat(values)
        solver = torch.full_like(value, self.spread)
        return LogProb(value, torch.cat(errors), name, torch.full((len(x0),), self.evaluations), solver)

    def _follow(self, flow: GaussianFlow, x0: Tensor) -> tuple[Tensor, Tensor]:
        """log p_1 with the log-determinant (B,), and what the weights multiply, (B, 2 K)."""
        y = flow.start(x0)
        at, slopes, divergences = y, [], []
        for q, weights in zip(flow.places(self.evaluations), self.states[1:].tolist(), strict=True):
            slope, divergence = flow(q, at)
            slopes.append(slope)
            divergences.append(divergence)
            at = y + sum(w * f for w, f in zip(weights, slopes, strict=False))
        return flow.log_prob(at), torch.stack([*divergences, *(-(at * f).sum(1) for f in slopes)], 1)

    @property
    def coordinates(self) -> Coordinates:
        return Coordinates(self.mean, self.basis, self.variances, self.slope)

    @property
    def _weights(self) -> Tensor:
        return torch.cat([self.divergences, self.ends])

    def save(self, folder: str | Path, model: str) -> None:
        """Write likelihood.safetensors and likelihood.json into a folder. `model`: the fingerprint of its model.

        Raises:
            RunError: the folder cannot be written.
        """
        config = {"format": _FORMAT, "model": model, "slope": self.slope, "spread": self.spread, "exact": self.exact}
        atomic_save_tensors(Path(folder) / _FILE, {name: getattr(self, name).cpu() for name in _TENSORS}, {})
        atomic_write(Path(folder) / _CONFIG, (json.dumps(config, indent=1) + "\n").encode())

    @classmethod
    def load(cls, folder: str | Path, model: str) -> FewSteps:
        """What `save` wrote.

        Raises:
            UserError: there is none, it is damaged, or it was learned for another model.
        """
        file = Path(folder) / _CONFIG
        if not file.is_file():
            raise UserError(f"{folder} has no likelihood of few steps: `ornstein tune {folder} --likelihood 8`")
        config = read_json(file)
        try:
            if config["format"] != _FORMAT:
                raise ValueError(f"format {config['format']} is not {_FORMAT}")
            tensors = load_tensors((Path(folder) / _FILE).read_bytes())
            found = cls(
                **{name: tensors[name] for name in _TENSORS},
                slope=float(config["slope"]),
                spread=float(config["spread"]),
                exact=bool(config["exact"]),
            )
            found._check()
        except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
            raise UserError(f"{file} cannot be used: {error!r}; run `ornstein tune {folder} --likelihood 8`") from error
        if config["model"] != model:
            raise UserError(f"{file} was learned for another model: run `ornstein tune {folder} --likelihood 8` again")
        return found

    def _check(self) -> None:
        n, k = len(self.mean), self.evaluations
        shapes = {"variances": (n,), "states": (k + 1, k), "ends": (k,), "mean": (n,), "divergences": (k,)}
        for name in _TENSORS:
            value: Tensor = getattr(self, name)
            right = value.shape in ((n, n), (0, 0)) if name == "basis" else value.shape == shapes[name]
            if not right or value.dtype != torch.float64 or not bool(value.isfinite().all()):
                raise ValueError(f"{name} has shape {tuple(value.shape)}, or values that are not finite")
        if not (0 < self.slope < math.inf and 0 <= self.spread < math.inf and bool((self.variances > 0).all())):
            raise ValueError("slope, spread or variances are out of range")


def fit_few(
    d: Denoises,
    x0: Tensor,
    evaluations: int = 8,
    *,
    data: Tensor | None = None,
    divergence: Literal["exact", "hutchinson"] | None = None,
    dequantisation: Literal["none", "uniform"] = "none",
    seed: int = 0,
    batch: int = 32,
    cond: dict[str, Any] | None = None,
    advance: Callable[[int, int], object] = lambda done, total: None,
) -> FewSteps:
    """Learn the log-density of a model in a few evaluations. The network's weights do not change.

    Of each of four sets of places the fine solutions are computed, by 4 steps of Runge-Kutta between two places, and
    the weights fitted to three quarters of the samples; the places with the least error on the last quarter are kept.

    Args:
        x0: samples (B, *) to learn from.
        evaluations: of the network for one sample, 2 or more.
        data: samples (M, *) whose mean and covariance are taken; x0 by default.
        divergence: "exact" or by one random probe ("hutchinson"); by default exact up to 16 numbers a sample.
        dequantisation: of both sets, as for `ode`.
        seed: of probes and dequantisation.
        batch: samples through the network at once.
        cond: conditions, one a sample of x0.
        advance: called with the samples followed and their number.

    Raises:
        ValueError: wrong arguments, fewer than 8 samples, or trajectories that are not finite.
    """
    if evaluations < 2:
        raise ValueError(f"a likelihood of few steps takes 2 evaluations or more, got {evaluations}")
    if divergence not in (None, "exact", "hutchinson"):
        raise ValueError(f'divergence is "exact" or "hutchinson", got {divergence!r}')
    if len(x0) < 2 * _HELD_OUT:
        raise ValueError(f"a likelihood of few steps is learned from {2 * _HELD_OUT} samples or more, got {len(x0)}")
    model = open_model(d, x0, cond)
    exact = divergence == "exact" or (divergence is None and dimensions(x0) <= _EXACT)
    x, _ = dequantise(x0.to(model.exact), dequantisation, seed, torch.arange(len(x0)))
    known = x if data is None else dequantise(data.to(model.exact), dequantisation, seed, torch.arange(len(data)))[0]
    moments = gaussian_of(model.process.noise.whiten(known).flatten(1))
    empty = torch.zeros(evaluations, dtype=torch.float64)
    best: FewSteps | None = None
    with evaluation_mode(d):
        for i, slope in enumerate(_SLOPES):
            start = FewSteps(
                *moments, slope, empty.new_zeros(evaluations + 1, evaluations), empty, empty, math.inf, exact
            )
            flows = []
            for rows in chunks(len(x0), batch):
                flow = GaussianFlow(
                    model, start.coordinates, rows, _probe(x[rows], rows, seed, 0, exact), tuple(x[rows].shape)
                )
                flows.append((flow, *flow.fine(x[rows], evaluations)))
                advance(i * len(x0) + int(rows[-1]) + 1, len(_SLOPES) * len(x0))
            found = _fitted(start, x, flows)
            if best is None or found.spread < best.spread:
                best = found
    assert best is not None
    if not math.isfinite(best.spread):
        raise ValueError("the flow of this model diverged: its likelihood cannot be learned")
    return best


def _probe(x: Tensor, index: Tensor, seed: int, k: int, exact: bool) -> Tensor | None:
    """Random signs (B, N) for Hutchinson's estimate; None for the exact divergence."""
    if exact:
        return None
    return normal(tuple(x.shape), seed, index, k, _PROBE, torch.float64, x.device).flatten(1).sign()


def _fitted(start: FewSteps, x: Tensor, flows: list[tuple[GaussianFlow, Tensor, Tensor]]) -> FewSteps:
    """The weights of all states, then those of the log-density, by least squares on three quarters of the samples."""
    learn = torch.arange(len(x)) % _HELD_OUT != 0
    y = torch.cat([flow.start(x[flow.rows]) for flow, _, _ in flows])
    truth, states = torch.cat([value for _, value, _ in flows]), torch.cat([path for _, _, path in flows])
    slopes: list[Tensor] = []
    divergences: list[Tensor] = []
    weights = torch.zeros_like(start.states)
    count = start.evaluations
    at = y
    for k in range(count + 1):
        if slopes:
            seen = torch.stack([f[learn].flatten() for f in slopes], 1)
            weights[k, :k] = _least_squares(seen, (states[learn, k] - y[learn]).flatten(), _STATE_RIDGE)
            at = y + sum(w * f for w, f in zip(weights[k], slopes, strict=False))
        if k == count:
            break
        q = flows[0][0].places(count)[k]
        parts = [flow(q, at[flow.rows]) for flow, _, _ in flows]
        slopes.append(torch.cat([f for f, _ in parts]))
        divergences.append(torch.cat([g for _, g in parts]))
    base = torch.cat([flow.log_prob(at[flow.rows]) for flow, _, _ in flows])
    change = torch.stack([*divergences, *(-(at * f).sum(1) for f in slopes)], 1)
    # Towards equal weights of the divergences, and none of the ends: what the rule of midpoints has.
    span = flows[0][0].span
    rule = torch.cat([torch.full((count,), span / count), torch.zeros(count)]).to(change)
    found = rule + _least_squares(change[learn], (truth - base - change @ rule)[learn], 1 / int(learn.sum()))
    wrong = (base + change @ found - truth)[~learn]
    spread = float(wrong.square().mean().sqrt())
    return FewSteps(
        start.mean, start.basis, start.variances, start.slope, weights, found[:count], found[count:],
        spread if math.isfinite(spread) else math.inf, start.exact,
    )  # fmt: skip


def _least_squares(a: Tensor, b: Tensor, ridge: float) -> Tensor:
    """The w of least |a w - b|^2 + ridge |w|^2, columns of a (M, K) scaled to one size; 0 for columns of rounding."""
    size = a.square().mean(0).sqrt()
    size = torch.where(size > 1e-12 * max(1.0, float(b.abs().max())), size, torch.inf)
    a = a / size
    square = a.T @ a / len(a) + ridge * torch.eye(a.shape[1], dtype=a.dtype, device=a.device)
    return torch.linalg.solve(square, a.T @ b / len(a)) / size

"""Guidance: a denoiser that wraps a denoiser and moves its prediction towards its condition (E38).

Guidance compares two predictions: with the conditions of a call, and without. What "without" means is the call's own
condition `negative`: a dict of conditions (those of a negative prompt, say) for that side; if there is none, the
denoiser is called without conditions. A denoiser that is not guided ignores `negative`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ornstein.denoiser import Denoiser, Denoises
from ornstein.process import Prediction, check_times
from ornstein.schedules import Times
from ornstein.wrapper import Wrapper, module_of, one_a_sample

__all__ = ["AdaptiveProjected", "ClassifierFree", "both_sides"]


@dataclass(frozen=True)
class _Guided(Wrapper):
    """Two predictions combined by `_combined`, at the times of `interval`."""

    denoiser: Denoises
    scale: float
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise ValueError(f"a guidance interval lies in [0, 1] with low < high, got {self.interval}")

    def __call__(self, x_t: Tensor, t: Times, /, negative: dict[str, Any] | None = None, **cond: Any) -> Prediction:
        if all(value is None for value in cond.values()):
            raise ValueError("guidance needs a condition, such as label=...; none was given")
        factor: float | Tensor = self.scale - 1
        if factor and self.interval != (0.0, 1.0):
            low, high = self.interval
            times = check_times(t, x_t)
            inside = (times >= low) & (times <= high)
            if times.device.type == "cpu" and not bool(inside.any()):  # known without waiting for a device
                factor = 0.0
            else:
                factor = (factor * inside.to(x_t)).reshape(-1, *[1] * (x_t.ndim - 1))
        if isinstance(factor, float | int) and factor == 0:
            return self.denoiser(x_t, t, **cond)
        return self._combined(*both_sides(self.denoiser, x_t, t, cond, negative or {}), factor)

    def _combined(self, conditional: Prediction, other: Prediction, factor: float | Tensor) -> Prediction:
        """The guided prediction; factor is scale - 1, or (B, 1, ...) with zeros outside the interval."""
        raise NotImplementedError


@dataclass(frozen=True)
class ClassifierFree(_Guided):
    """Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598): x0 = u + scale (c - u) (E38).

    c is the prediction with the condition, u the one of the `negative` side. A learned variance (E9) is the
    conditional model's. On Gaussian data the effect is a closed form: for two sides with the means m_c, m_u and one
    covariance, the guided model is exactly that of the mean m_u + scale (m_c - m_u).

    Args:
        denoiser: a model that was trained with and without its condition.
        scale: 1 is the plain conditional model, 0 the unconditional one.
        interval: guidance applies to times low <= t <= high (Kynkaanniemi et al. 2024, arXiv:2404.07724); outside, the
            prediction is the conditional model's.
        rescale: 0 to 1, how far the standard deviation of the guided output of each sample is brought back to that of
            the conditional one (Lin et al. 2024, arXiv:2305.08891, eq. 15-16). The output is the quantity that the
            network predicts; x0 for an exact denoiser or the prediction "edm".

    Raises:
        ValueError: an interval or a rescale outside [0, 1]; a call without a condition.
    """

    rescale: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"guidance is rescaled by a share from 0 to 1, got {self.rescale}")

    def _combined(self, conditional: Prediction, other: Prediction, factor: float | Tensor) -> Prediction:
        guided = replace(
            conditional,
            x0=conditional.x0 + factor * (conditional.x0 - other.x0),
            eps=conditional.eps + factor * (conditional.eps - other.eps),
        )
        if self.rescale == 0:
            return guided
        module = module_of(self.denoiser)
        kind = module.prediction if isinstance(module, Denoiser) and module.prediction != "edm" else "x0"
        wanted, got = (_std(getattr(side, kind)) for side in (conditional, guided))
        output = getattr(guided, kind) * (1 + self.rescale * (wanted / got - 1))
        return _again(conditional, **{kind: output})


@dataclass(frozen=True)
class AdaptiveProjected(_Guided):
    """Adaptive projected guidance (Sadat et al. 2024, arXiv:2410.02416): x0 = c + (scale - 1) (d - (1 - eta) d_par).

    d = c - u of the predicted x0, made no longer than `norm`, and d_par its part along c, which is what oversaturates.
    With eta 1 and no bound on the norm it is classifier-free guidance. The paper's momentum between the steps is left
    out: a denoiser is a function of x_t and t, whatever solver calls it.

    Args:
        denoiser, scale, interval: as for `ClassifierFree`.
        eta: the share of d_par that is kept; the paper takes 0.
        norm: the largest length of d, of a whole sample; the paper takes 2.5 to 20 for latents of 4 x 64 x 64 and up.

    Raises:
        ValueError: an interval outside [0, 1], a norm that is not positive; a call without a condition.
    """

    eta: float = 0.0
    norm: float = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.norm > 0:
            raise ValueError(f"the largest norm of a guidance step is positive, got {self.norm}")

    def _combined(self, conditional: Prediction, other: Prediction, factor: float | Tensor) -> Prediction:
        axes = tuple(range(1, conditional.x0.ndim))
        step = conditional.x0 - other.x0
        if self.norm < math.inf:
            # the smallest positive number: a step of zero stays zero
            length = torch.linalg.vector_norm(step, dim=axes, keepdim=True).clamp(min=torch.finfo(step.dtype).tiny)
            step = step * (self.norm / length).clamp(max=1)
        c = conditional.x0
        along = (step * c).sum(axes, keepdim=True) / c.square().sum(axes, keepdim=True) * c
        return _again(conditional, x0=c + factor * (step - (1 - self.eta) * along))


def both_sides(
    d: Denoises, x_t: Tensor, t: Times, cond: dict[str, Any], negative: dict[str, Any]
) -> tuple[Prediction, Prediction]:
    """The predictions with `cond` and with `negative`: in one call of a network where their shapes agree."""
    # a wrapper may hold tensors with a row a sample, and would not know what to do with twice the rows
    joined = _joined(cond, negative) if isinstance(d, Denoiser) else None
    if joined is None:
        return d(x_t, t, **cond), d(x_t, t, **negative)
    twice = torch.cat([t, t]) if isinstance(t, Tensor) and t.ndim else t
    both = d(torch.cat([x_t, x_t]), twice, **joined)
    n = len(x_t)

    def side(rows: slice) -> Prediction:
        mix = None if both.variance_mix is None else both.variance_mix[rows]
        return Prediction(both.process, x_t, t, both.x0[rows], both.eps[rows], mix)

    return side(slice(0, n)), side(slice(n, None))


def _joined(cond: dict[str, Any], negative: dict[str, Any]) -> dict[str, Any] | None:
    """The conditions of one call for both sides, one after the other; None if it takes two."""
    sides = [{k: v for k, v in side.items() if v is not None} for side in (cond, negative)]
    if sides[0].keys() != sides[1].keys():
        return None
    joined: dict[str, Any] = {}
    for name, a in sides[0].items():
        b = sides[1][name]
        if a is b and not one_a_sample(a):
            joined[name] = a
        elif isinstance(a, Tensor) and isinstance(b, Tensor) and one_a_sample(a) and a.shape == b.shape:
            joined[name] = torch.cat([a, b])
        else:
            return None
    return joined


def _again(conditional: Prediction, **quantity: Tensor) -> Prediction:
    """The prediction in which one quantity has a new value; the variance stays."""
    made = conditional.process.convert(conditional.x_t, conditional.t, **quantity)
    return replace(made, variance_mix=conditional.variance_mix)


def _std(x: Tensor) -> Tensor:
    """The standard deviation of each sample's values, (B, 1, ...)."""
    return x.std(dim=tuple(range(1, x.ndim)), keepdim=True)

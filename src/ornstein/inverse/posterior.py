"""Denoisers of the posterior p(x_0 | y): what every method shares (E39).

A method is a wrapper: a denoiser of p(x_0) goes in, one of p(x_0 | y) comes out, so that every solver, covariance,
guidance and batch option works with it. For y = A x_0 + noise_std n the score of x_t given y is that of x_t plus the
gradient of log p(y | x_t), and so the prediction moves by

    E[x_0 | x_t, y] = x0_hat + (s^2/a) C grad log p(y | x_t),   Cov[x_0 | x_t] = (s^2/a) J C,   J = d x0_hat / d x_t.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ornstein.denoiser import Denoiser, Denoises
from ornstein.inverse.operators import Operator
from ornstein.process import Prediction, check_times, expand
from ornstein.schedules import Times
from ornstein.wrapper import Wrapper, module_of

__all__ = ["Linearised", "Posterior"]

# Below this a/s a sample holds nothing of the data that its derivative could show: E[x_0 | x_t] is linearised here.
_LEAST_RATIO = 0.01


@dataclass(frozen=True, eq=False)
class Posterior(Wrapper):
    """Base of the methods: the denoiser of x_0 given y = A x_0 + noise_std n. A subclass implements `posterior_mean`.

    Args:
        denoiser: the prior's denoiser.
        A: the operator.
        y: the measurement, (1, *) for all samples or (B, *); None if each call has it as the condition `y`.
        noise_std: the standard deviation of the noise in y.

    Raises:
        ValueError: a noise_std that is negative or not finite, or a y that does not fit the operator.
    """

    denoiser: Denoises
    A: Operator
    y: Tensor | None = None
    noise_std: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.noise_std < math.inf:
            raise ValueError(f"noise_std is a standard deviation, >= 0 and finite, got {self.noise_std}")
        if self.y is not None:
            self.A.check(self.y)
        if self.A.error and self.noise_std < self.A.error:
            if self.noise_std == 0:
                name = type(self.A).__name__
                warnings.warn(
                    f"{name} rounds, so y is not exact though noise_std is 0: its own error, {self.A.error:.3g}, is "
                    "taken as the noise",
                    UserWarning,
                    stacklevel=3,
                )
            object.__setattr__(self, "noise_std", math.hypot(self.noise_std, self.A.error))

    def __call__(self, x_t: Tensor, t: Times, /, *, y: Tensor | None = None, **cond: Any) -> Prediction:
        y = self.y if y is None else y
        if y is None:
            raise ValueError("there is no measurement: give y to the wrapper or as a condition")
        if len(y) not in (1, len(x_t)):
            raise ValueError(f"y has {len(y)} measurements for {len(x_t)} samples")
        y = y.to(x_t.device).to(x_t.dtype)
        x0 = self.posterior_mean(x_t, t, y, cond)
        model = module_of(self)
        spec = model.data if isinstance(model, Denoiser) and model.space is None else None
        # a mean of values lies among them; the first-order step of a network may not
        return self.process.convert(x_t, t, x0=x0 if spec is None else x0.clamp(*spec.value_range))

    def posterior_mean(self, x_t: Tensor, t: Times, y: Tensor, cond: dict[str, Any]) -> Tensor:
        """The method's E[x_0 | x_t, y], (B, *)."""
        raise NotImplementedError

    def ratio(self, x_t: Tensor, t: Times) -> Tensor:
        """rho = s/a, to multiply x_t; at zero SNR that of the smallest a/s."""
        log_snr = self.process.schedule.log_snr(check_times(t, x_t))
        return expand(torch.exp(-log_snr.clamp(min=2 * math.log(_LEAST_RATIO)) / 2), x_t)

    def linearised(self, x_t: Tensor, t: Times, cond: dict[str, Any]) -> Linearised:
        """E[x_0 | x_t] with its derivative."""
        return Linearised(self.denoiser, x_t, t, cond)


class Linearised:
    """x0_hat at x_t, (B, *), and products with its derivative J; `times_cov` is Cov[x_0 | x_t] (E39).

    At a/s below 0.01, as at zero SNR, the time at which a/s is 0.01 is taken, and x_t is scaled by the noise levels.
    """

    def __init__(self, d: Denoises, x_t: Tensor, t: Times, cond: dict[str, Any]) -> None:
        self.process = d.process
        schedule, t = d.process.schedule, check_times(t, x_t)
        limit = 2 * math.log(_LEAST_RATIO)
        early = schedule.log_snr(t) < limit
        time = torch.where(early, schedule.time(torch.full_like(t, limit)), t)
        scale = torch.where(early, schedule.sigma(time) / schedule.sigma(t), 1.0)
        self.a, self.s = self.process.coefficients(time, x_t)
        with torch.enable_grad():
            self.x = (x_t * expand(scale, x_t)).detach().requires_grad_()
            self._x0 = d(self.x, time, **cond).x0
        self.x0 = self._x0.detach()

    def pull(self, v: Tensor) -> Tensor:
        """J^T v, (B, *)."""
        (out,) = torch.autograd.grad(self._x0, self.x, v.expand_as(self._x0), retain_graph=True)
        return out

    def times_cov(self, v: Tensor) -> Tensor:
        """Cov[x_0 | x_t] v = (s^2/a) C J^T v, which is symmetric for an exact denoiser."""
        return (self.s**2 / self.a) * self.process.noise.matvec(self.pull(v))

"""What a noise schedule is: a(t), s(t) and what follows from them."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ornstein.devices import has_float64

__all__ = ["Schedule", "Times"]

Times = float | Tensor


def _elementwise(f: Callable[[Tensor], Tensor], t: Times) -> Tensor:
    """f in float64, returned in the dtype and on the device of `t` (float64 on the CPU for a Python number)."""
    if not isinstance(t, Tensor):
        return f(torch.tensor(t, dtype=torch.float64))
    dtype = t.dtype if t.is_floating_point() else torch.float64
    if not has_float64(t.device):
        return f(t.cpu().double()).to(torch.float32 if dtype == torch.float64 else dtype).to(t.device)
    return f(t.double()).to(dtype)


class Schedule:
    """a(t), s(t) and what follows from them, for t in [0, 1] with t = 0 the data.

    Subclasses give the float64 functions `_alpha`, `_sigma`, `_alpha_dot`, `_sigma_dot`, `_drift`, `_g2` and `_time`.
    """

    def _alpha(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def _sigma(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def _alpha_dot(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def _sigma_dot(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def _drift(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def _g2(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def _time(self, log_snr: Tensor) -> Tensor:
        raise NotImplementedError

    def _log_snr(self, t: Tensor) -> Tensor:
        return 2 * (torch.log(self._alpha(t)) - torch.log(self._sigma(t)))

    def alpha(self, t: Times) -> Tensor:
        """a(t), the factor of the data; a(0) = 1."""
        return _elementwise(self._alpha, t)

    def sigma(self, t: Times) -> Tensor:
        """s(t), the standard deviation of the noise; s(0) = 0."""
        return _elementwise(self._sigma, t)

    def log_snr(self, t: Times) -> Tensor:
        """lambda(t) = log a^2/s^2, strictly decreasing from +inf at t = 0."""
        return _elementwise(self._log_snr, t)

    def time(self, log_snr: Times) -> Tensor:
        """The t at which the log-SNR is `log_snr`: the exact inverse of `log_snr`."""
        return _elementwise(self._time, log_snr)

    def alpha_dot(self, t: Times) -> Tensor:
        """da/dt."""
        return _elementwise(self._alpha_dot, t)

    def sigma_dot(self, t: Times) -> Tensor:
        """ds/dt; +inf at t = 0 where s grows as a square root."""
        return _elementwise(self._sigma_dot, t)

    def drift(self, t: Times) -> Tensor:
        """f(t) = d log a/dt, the factor of the linear drift of E18 (-beta/2 for a variance-preserving schedule)."""
        return _elementwise(self._drift, t)

    def g2(self, t: Times) -> Tensor:
        """g^2(t) = ds^2/dt - 2 f s^2, the squared diffusion of E18 (beta for a variance-preserving schedule)."""
        return _elementwise(self._g2, t)

    # The curve (a, s) as a function of a parameter u in which it is smooth, for Runge-Kutta steps of the flow (E20):
    # dx/du = (da/du) x0 + (ds/du) eps. In t itself the flow may be singular (s grows as sqrt(t)), kinked (a chain of
    # betas) or spread over decades of noise (exploding variance).

    def curve(self, t: float) -> float:
        """The parameter u of the curve (a, s) at time t. Here t itself."""
        return t

    def curve_time(self, u: float) -> float:
        """The time t at the parameter u: the inverse of `curve`."""
        return u

    def curve_tangent(self, u: float) -> tuple[float, float]:
        """(da/du, ds/du) at the parameter u."""
        return float(self.alpha_dot(u)), float(self.sigma_dot(u))

    def _time_at_ratio(self, ratio: float) -> float:
        """The time at which s/a is `ratio`."""
        if ratio <= 0:
            return 0.0
        return min(max(float(self.time(-2 * math.log(ratio))), 0.0), 1.0)

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether a(1) = 0: x_1 is then pure noise, and noise or score predictions there do not determine x_0."""
        return float(self.alpha(1.0)) <= 1e-12

    @property
    def variance_preserving(self) -> bool:
        """Whether a^2 + s^2 = 1."""
        return False

    def betas(self, T: int) -> Tensor:
        """(T,) float64: beta_n = 1 - abar_n/abar_{n-1} of the T-step chain on the grid n/T (E1, E2).

        Raises:
            ValueError: the schedule does not preserve variance (it has no such chain), or T < 1.
        """
        if not self.variance_preserving:
            raise ValueError(f"{type(self).__name__} does not preserve variance: it has no chain of betas")
        if T < 1:
            raise ValueError(f"a chain needs at least one step, got T={T}")
        t = torch.arange(T + 1, dtype=torch.float64) / T
        log_snr = self._log_snr(t)
        return -(self._sigma(t[1:]) ** 2) * torch.expm1(log_snr[1:] - log_snr[:-1])

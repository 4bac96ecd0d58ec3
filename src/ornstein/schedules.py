"""Noise schedules: a(t) and s(t) of x_t = a(t) x_0 + s(t) R z, for t in [0, 1] with t = 0 the data.

Everything is elementwise, computed in float64 and returned in the dtype of `t`. All schedules have s(0) = 0 exactly,
so the log-SNR at t = 0 is +inf; `time` inverts `log_snr`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Times = float | Tensor


def _elementwise(f: Callable[[Tensor], Tensor], t: Times) -> Tensor:
    """f in float64, returned in the dtype of `t` (float64 for a Python number)."""
    t = torch.as_tensor(t, dtype=None if isinstance(t, Tensor) else torch.float64)
    dtype = t.dtype if t.is_floating_point() else torch.float64
    return f(t.double()).to(dtype)


class Schedule:
    """a(t), s(t) and what follows from them. Subclasses give the float64 functions, `_alpha`, `_sigma` and so on."""

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

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether nothing of the data is left at t = 1, a(1) = 0: noise and score then say nothing of x_0 there."""
        return float(self.alpha(1.0)) <= 1e-12

    @property
    def variance_preserving(self) -> bool:
        """Whether a^2 + s^2 = 1."""
        return isinstance(self, VariancePreserving)

    def betas(self, T: int) -> Tensor:
        """(T,) float64: beta_n = 1 - abar_n/abar_{n-1} of the T-step chain on the grid n/T (E1, E2).

        Raises ValueError for schedules that do not preserve variance: they have no such chain.
        """
        if not self.variance_preserving:
            raise ValueError(f"{type(self).__name__} does not preserve variance: it has no chain of betas")
        if T < 1:
            raise ValueError(f"a chain needs at least one step, got T={T}")
        t = torch.arange(T + 1, dtype=torch.float64) / T
        log_snr = self._log_snr(t)
        return -(self._sigma(t[1:]) ** 2) * torch.expm1(log_snr[1:] - log_snr[:-1])


class VariancePreserving(Schedule):
    """a^2 = exp(-B), s^2 = 1 - a^2 with B(t) the integral of beta. Subclasses give `_integral` (B) and `_beta`."""

    def _integral(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def _beta(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self._integral(t) / 2)

    def _sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._integral(t)))

    def _log_snr(self, t: Tensor) -> Tensor:
        integral = self._integral(t)
        return -integral - torch.log(-torch.expm1(-integral))

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return -self._beta(t) * self._alpha(t) / 2

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return self._beta(t) * self._alpha(t) ** 2 / (2 * self._sigma(t))

    def _drift(self, t: Tensor) -> Tensor:
        return -self._beta(t) / 2

    def _g2(self, t: Tensor) -> Tensor:
        return self._beta(t)


@dataclass(frozen=True)
class LinearBeta(VariancePreserving):
    """VP-SDE with beta(t) = beta_min + t (beta_max - beta_min) (E18; Song et al. 2021)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise ValueError(f"LinearBeta needs 0 < beta_min <= beta_max, got {self.beta_min} and {self.beta_max}")

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _integral(self, t: Tensor) -> Tensor:
        return t * (self.beta_min + t * (self.beta_max - self.beta_min) / 2)

    def _time(self, log_snr: Tensor) -> Tensor:
        integral = torch.logaddexp(torch.zeros_like(log_snr), -log_snr)  # a^2 = sigmoid(log-SNR)
        # The root of the quadratic written so that nothing cancels near t = 0.
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * integral))


@dataclass(frozen=True)
class Cosine(VariancePreserving):
    """a = cos(w t), s = sin(w t) (Nichol & Dhariwal 2021, continuous): lambda(t) = -2 log tan(w t).

    w is set by the log-SNR at t = 1; `log_snr_min=None` takes w = pi/2, a zero terminal SNR.
    """

    log_snr_min: float | None = -10.0

    def __post_init__(self) -> None:
        if self.log_snr_min is not None and not math.isfinite(self.log_snr_min):
            raise ValueError("log_snr_min must be finite; None stands for a zero terminal SNR")

    @property
    def _frequency(self) -> float:
        return math.pi / 2 if self.log_snr_min is None else math.atan(math.exp(-self.log_snr_min / 2))

    def _angle(self, t: Tensor) -> Tensor:
        return self._frequency * t

    def _alpha(self, t: Tensor) -> Tensor:
        a = torch.cos(self._angle(t))
        # cos(pi/2) is 6e-17 in floating point; a zero terminal SNR is meant to be exact.
        return torch.where(t == 1, 0.0, a) if self.log_snr_min is None else a

    def _sigma(self, t: Tensor) -> Tensor:
        return torch.sin(self._angle(t))

    def _log_snr(self, t: Tensor) -> Tensor:
        return 2 * (torch.log(self._alpha(t)) - torch.log(self._sigma(t)))

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return -self._frequency * self._sigma(t)

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return self._frequency * self._alpha(t)

    def _beta(self, t: Tensor) -> Tensor:
        return 2 * self._frequency * self._sigma(t) / self._alpha(t)

    def _integral(self, t: Tensor) -> Tensor:
        return -2 * torch.log(self._alpha(t))

    def _time(self, log_snr: Tensor) -> Tensor:
        return torch.atan(torch.exp(-log_snr / 2)) / self._frequency


@dataclass(frozen=True)
class Discrete(VariancePreserving):
    """A chain of T steps with the given betas (E1, E2): t = n/T is its step n, abar_0 = 1 at t = 0.

    Between two steps abar is linear in t, so that a^2 + s^2 = 1 everywhere and a last beta of 1 (zero terminal SNR) is
    allowed. A model trained on integer timesteps k = 0..T-1 sees timestep k at t = (k + 1)/T.
    """

    steps: tuple[float, ...]
    _abar: Tensor = field(init=False, repr=False, compare=False)
    _sbar: Tensor = field(init=False, repr=False, compare=False)
    _nodes: Tensor = field(init=False, repr=False, compare=False)

    def __init__(self, steps: Sequence[float] | Tensor) -> None:
        betas = torch.as_tensor(steps, dtype=torch.float64).flatten()
        if betas.numel() == 0 or not bool(((betas > 0) & (betas <= 1)).all()) or bool((betas[:-1] == 1).any()):
            raise ValueError("betas must lie in (0, 1); only the last may be 1 (zero terminal SNR)")
        log_abar = torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-betas).cumsum(0)])
        object.__setattr__(self, "steps", tuple(betas.tolist()))
        object.__setattr__(self, "_abar", torch.exp(log_abar))
        object.__setattr__(self, "_sbar", -torch.expm1(log_abar))  # 1 - abar without cancellation near t = 0
        object.__setattr__(self, "_nodes", torch.log(self._abar) - torch.log(self._sbar))

    @classmethod
    def linear(cls, T: int = 1000, start: float = 1e-4, end: float = 0.02) -> "Discrete":
        """DDPM's chain: betas linear from `start` to `end` (Ho et al. 2020)."""
        return cls(torch.linspace(start, end, T, dtype=torch.float64))

    @classmethod
    def cosine(cls, T: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> "Discrete":
        """The cosine chain: abar_n = cos^2((n/T + o)/(1 + o) pi/2), betas clipped (Nichol & Dhariwal 2021, eq. 17)."""
        n = torch.arange(T + 1, dtype=torch.float64)
        abar = torch.cos((n / T + offset) / (1 + offset) * math.pi / 2) ** 2
        return cls((1 - abar[1:] / abar[:-1]).clamp(max=max_beta))

    def zero_terminal(self) -> "Discrete":
        """The same chain with sqrt(abar) shifted and scaled so that abar_T = 0 (Lin et al. 2024)."""
        root = torch.sqrt(self._abar[1:])
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        abar = torch.cat([torch.ones(1, dtype=torch.float64), root**2])
        return Discrete(1 - abar[1:] / abar[:-1])

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor]:
        position = t.clamp(0, 1) * len(self.steps)
        n = position.floor().clamp(max=len(self.steps) - 1)
        return n.long(), position - n

    def _interpolate(self, values: Tensor, t: Tensor) -> Tensor:
        values = values.to(t.device)
        n, u = self._segment(t)
        return torch.lerp(values[n], values[n + 1], u)

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.sqrt(self._interpolate(self._abar, t))

    def _sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(self._interpolate(self._sbar, t))

    def _log_snr(self, t: Tensor) -> Tensor:
        return torch.log(self._interpolate(self._abar, t)) - torch.log(self._interpolate(self._sbar, t))

    def _integral(self, t: Tensor) -> Tensor:
        return -torch.log(self._interpolate(self._abar, t))

    def _fall(self, t: Tensor) -> Tensor:
        """-d abar/dt, constant within a step."""
        n, _ = self._segment(t)
        abar = self._abar.to(t.device)
        return (abar[n] - abar[n + 1]) * len(self.steps)

    # The derivatives from abar itself: through beta they would be inf * 0 at a zero terminal SNR.
    def _alpha_dot(self, t: Tensor) -> Tensor:
        return -self._fall(t) / (2 * self._alpha(t))

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return self._fall(t) / (2 * self._sigma(t))

    def _beta(self, t: Tensor) -> Tensor:
        return self._fall(t) / self._interpolate(self._abar, t)

    def _time(self, log_snr: Tensor) -> Tensor:
        # abar = sigmoid(log-SNR) is linear within a segment; solve on whichever of abar and 1 - abar is the smaller.
        nodes, abar, sbar = (v.to(log_snr.device) for v in (self._nodes, self._abar, self._sbar))
        n = torch.searchsorted(-nodes, -log_snr.contiguous(), right=True).clamp(1, len(self.steps)) - 1
        from_noise = (torch.sigmoid(-log_snr) - sbar[n]) / (sbar[n + 1] - sbar[n])
        from_data = (torch.sigmoid(log_snr) - abar[n]) / (abar[n + 1] - abar[n])
        u = torch.where(log_snr > 0, from_noise, from_data)
        return ((n + u.clamp(0, 1)) / len(self.steps)).clamp(0, 1)


@dataclass(frozen=True)
class VE(Schedule):
    """Variance exploding: a = 1, s^2 = sigma_min^2 ((sigma_max/sigma_min)^{2t} - 1).

    This is the exact kernel of Song et al.'s VE-SDE started at the data: s^2(t) of theirs less s^2(0), so s(0) = 0.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        _check_sigmas(self.sigma_min, self.sigma_max)

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.sqrt(torch.expm1(2 * self._rate * t))

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return self._g2(t) / (2 * self._sigma(t))

    def _drift(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _g2(self, t: Tensor) -> Tensor:
        return 2 * self._rate * self.sigma_min**2 * torch.exp(2 * self._rate * t)

    def _time(self, log_snr: Tensor) -> Tensor:
        return torch.log1p(torch.exp(-log_snr) / self.sigma_min**2) / (2 * self._rate)


@dataclass(frozen=True)
class EDM(Schedule):
    """a = 1 and noise levels warped as in Karras et al. (2022): k(t) = (m + t (M - m))^rho, m and M the rho-th roots
    of sigma_min and sigma_max. As for `VE`, s^2 = k^2 - sigma_min^2 starts at the data, so s(0) = 0.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        _check_sigmas(self.sigma_min, self.sigma_max)
        if not 0 < self.rho < math.inf:
            raise ValueError(f"rho must be positive and finite, got {self.rho}")

    @property
    def _slope(self) -> float:
        return (self.sigma_max / self.sigma_min) ** (1 / self.rho) - 1

    def _level(self, t: Tensor) -> Tensor:
        return self.sigma_min * (1 + self._slope * t) ** self.rho

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _sigma(self, t: Tensor) -> Tensor:
        # k^2 - sigma_min^2 by expm1: no cancellation near t = 0.
        return self.sigma_min * torch.sqrt(torch.expm1(2 * self.rho * torch.log1p(self._slope * t)))

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return self._g2(t) / (2 * self._sigma(t))

    def _drift(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _g2(self, t: Tensor) -> Tensor:
        return 2 * self.rho * self._slope * self._level(t) ** 2 / (1 + self._slope * t)

    def _time(self, log_snr: Tensor) -> Tensor:
        growth = torch.log1p(torch.exp(-log_snr) / self.sigma_min**2) / (2 * self.rho)
        return torch.expm1(growth) / self._slope


@dataclass(frozen=True)
class Rectified(Schedule):
    """Straight paths: a = 1 - t, s = t (Liu et al. 2023; flow matching). Zero terminal SNR; its flow is R z - x_0."""

    def _alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def _sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _drift(self, t: Tensor) -> Tensor:
        return -1 / (1 - t)

    def _g2(self, t: Tensor) -> Tensor:
        return 2 * t / (1 - t)

    def _time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2)


def _check_sigmas(low: float, high: float) -> None:
    if not 0 < low < high < math.inf:
        raise ValueError(f"noise levels need 0 < sigma_min < sigma_max, got {low} and {high}")


TYPES: dict[str, type[Schedule]] = {c.__name__: c for c in (Cosine, LinearBeta, Discrete, VE, Rectified, EDM)}


def to_config(schedule: Schedule) -> dict:
    """The schedule as a JSON-able dict, `{"type": ..., its arguments}`."""
    arguments = {k: v for k, v in vars(schedule).items() if not k.startswith("_")}
    return {
        "type": type(schedule).__name__,
        **{k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()},
    }


def from_config(config: dict) -> Schedule:
    """The schedule that `to_config` described; ValueError for an unknown type or wrong arguments."""
    arguments = dict(config)
    name = arguments.pop("type", None)
    if not isinstance(name, str) or name not in TYPES:
        raise ValueError(f"unknown schedule {name!r}; known: {', '.join(TYPES)}")
    try:
        return TYPES[name](**arguments)
    except TypeError as e:
        raise ValueError(f"wrong arguments for the schedule {name}: {sorted(arguments)}") from e

"""Schedules that preserve variance, a^2 + s^2 = 1: the VP-SDE, the cosine, and chains of given betas."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ornstein.schedules.schedule import Schedule

__all__ = ["Cosine", "Discrete", "LinearBeta", "VariancePreserving"]


class VariancePreserving(Schedule):
    """a^2 = exp(-B), s^2 = 1 - a^2 with B(t) the integral of beta. Subclasses give `_integral` (B) and `_beta`.

    The curve (a, s) is the unit circle; its parameter is the angle, u = atan(s/a).
    """

    @property
    def variance_preserving(self) -> bool:
        return True

    def curve(self, t: float) -> float:
        return math.atan2(float(self.sigma(t)), float(self.alpha(t)))

    def curve_time(self, u: float) -> float:
        return self._time_at_ratio(math.tan(u))

    def curve_tangent(self, u: float) -> tuple[float, float]:
        return -math.sin(u), math.cos(u)

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

    Args:
        log_snr_min: the log-SNR at t = 1, which sets w. None takes w = pi/2, a zero terminal SNR.
    """

    log_snr_min: float | None = -10.0

    def __post_init__(self) -> None:
        if self.log_snr_min is not None and not math.isfinite(self.log_snr_min):
            raise ValueError("log_snr_min must be finite; give None for a zero terminal SNR")

    @property
    def _frequency(self) -> float:
        return math.pi / 2 if self.log_snr_min is None else math.atan(math.exp(-self.log_snr_min / 2))

    def _angle(self, t: Tensor) -> Tensor:
        return self._frequency * t

    def _alpha(self, t: Tensor) -> Tensor:
        a = torch.cos(self._angle(t))
        # cos(pi/2) is 6e-17 in floating point; a zero terminal SNR has to be exact.
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

    Args:
        steps: the betas, (T,), in (0, 1); only the last may be 1. A tensor may be on any device.
    """

    steps: tuple[float, ...]
    _abar: Tensor = field(init=False, repr=False, compare=False)
    _sbar: Tensor = field(init=False, repr=False, compare=False)
    _nodes: Tensor = field(init=False, repr=False, compare=False)

    def __init__(self, steps: Sequence[float] | Tensor) -> None:
        betas = torch.as_tensor(steps, dtype=torch.float64, device="cpu").detach().flatten()
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

    def __repr__(self) -> str:
        return f"Discrete({len(self.steps)} steps, beta from {self.steps[0]:.3g} to {self.steps[-1]:.3g})"

    def _table(self, name: str, device: torch.device) -> Tensor:
        """One of the tables `_abar`, `_sbar`, `_nodes` on `device`; copied there once."""
        if device.type == "cpu":
            return getattr(self, name)
        tables: dict[tuple[str, torch.device], Tensor] = self.__dict__.setdefault("_tables", {})
        if (name, device) not in tables:
            tables[name, device] = getattr(self, name).to(device)
        return tables[name, device]

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor]:
        position = t.clamp(0, 1) * len(self.steps)
        n = position.floor().clamp(max=len(self.steps) - 1)
        return n.long(), position - n

    def _interpolate(self, name: str, t: Tensor) -> Tensor:
        values = self._table(name, t.device)
        n, u = self._segment(t)
        return torch.lerp(values[n], values[n + 1], u)

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.sqrt(self._interpolate("_abar", t))

    def _sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(self._interpolate("_sbar", t))

    def _log_snr(self, t: Tensor) -> Tensor:
        return torch.log(self._interpolate("_abar", t)) - torch.log(self._interpolate("_sbar", t))

    def _integral(self, t: Tensor) -> Tensor:
        return -torch.log(self._interpolate("_abar", t))

    def _fall(self, t: Tensor) -> Tensor:
        """-d abar/dt, constant within a step."""
        n, _ = self._segment(t)
        abar = self._table("_abar", t.device)
        return (abar[n] - abar[n + 1]) * len(self.steps)

    # The derivatives from abar itself: through beta they would be inf * 0 at a zero terminal SNR.
    def _alpha_dot(self, t: Tensor) -> Tensor:
        return -self._fall(t) / (2 * self._alpha(t))

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return self._fall(t) / (2 * self._sigma(t))

    def _beta(self, t: Tensor) -> Tensor:
        return self._fall(t) / self._interpolate("_abar", t)

    def _time(self, log_snr: Tensor) -> Tensor:
        # abar = sigmoid(log-SNR) is linear within a segment; solve on whichever of abar and 1 - abar is the smaller.
        nodes, abar, sbar = (self._table(name, log_snr.device) for name in ("_nodes", "_abar", "_sbar"))
        n = torch.searchsorted(-nodes, -log_snr.contiguous(), right=True).clamp(1, len(self.steps)) - 1
        from_noise = (torch.sigmoid(-log_snr) - sbar[n]) / (sbar[n + 1] - sbar[n])
        from_data = (torch.sigmoid(log_snr) - abar[n]) / (abar[n + 1] - abar[n])
        u = torch.where(log_snr > 0, from_noise, from_data)
        return ((n + u.clamp(0, 1)) / len(self.steps)).clamp(0, 1)

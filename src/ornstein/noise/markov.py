"""Noise with the Markov property along an axis: R, R^-1 and C each in one pass over the frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.noise.covariance import Operation, SingularCovarianceError
from ornstein.noise.frames import SHORT_AXIS, FrameCovariance

__all__ = ["Chain", "Markov", "scan", "scan_back"]

# Elements of a frame from which a recursion over the frames is faster than doubling, by benchmarks/noise.py.
_LARGE_FRAME = 1024


@dataclass(frozen=True)
class Chain:
    """x_k = h_k + w_k: a Markov chain h with correlation rho_k from frame k-1 to k, and a share `white` of white noise.

    Unit variance: C = (1 - white) H + white I with H_ij = prod_{i < k <= j} rho_k. R is the Cholesky factor, applied by
    the Kalman filter in its innovations form: x_k = m_k + scale_k z_k, m_{k+1} = rho_{k+1} (m_k + gain_k scale_k z_k).
    Without white noise the gain is 1 (None here) and m_k = rho_k x_{k-1}.

    rho, scale, gain: (L, *), which multiply frames (outer, *); rho[0] is not used. Frames are dim 1 of (outer, L, *).
    """

    rho: Tensor
    scale: Tensor
    gain: Tensor | None = None
    white: float = 0.0

    @staticmethod
    def filtered(rho: Tensor, white: float) -> Chain:
        """The chain of correlations rho (L, *) with white noise, by the Riccati recursion of the filter's variance."""
        variance = torch.full_like(rho[0], 1 - white)
        scales, gains = [], []
        for k in range(len(rho)):
            total = variance + white
            scales.append(total.sqrt())
            # A frame without innovation (rho = 1, no white noise) is determined by the one before.
            gains.append(torch.where(total > 0, variance / total, torch.ones_like(total)))
            if k + 1 < len(rho):
                left = variance * white / total if white > 0 else torch.zeros_like(total)
                variance = rho[k + 1] ** 2 * left + (1 - rho[k + 1]) * (1 + rho[k + 1]) * (1 - white)
        return Chain(rho, torch.stack(scales), torch.stack(gains) if white > 0 else None, white)

    def color(self, z: Tensor) -> Tensor:
        """R z."""
        new = self.scale * z
        return scan(self.rho, new) if self.gain is None else new + self._means(self.rho, self.gain * new)

    def _means(self, factor: Tensor, innovation: Tensor) -> Tensor:
        """m_1 = 0, m_{k+1} = factor_{k+1} m_k + rho_{k+1} innovation_k."""
        shifted = self.rho[1:] * innovation[:, :-1]
        return scan(factor, torch.cat([torch.zeros_like(innovation[:, :1]), shifted], dim=1))

    def whiten(self, x: Tensor) -> Tensor:
        """R^-1 x."""
        if self.gain is None:
            means = torch.cat([torch.zeros_like(x[:, :1]), self.rho[1:] * x[:, :-1]], dim=1)
        else:
            means = self._means(self._kept, self.gain * x)
        return (x - means) / self.scale

    @property
    def _kept(self) -> Tensor:
        """The factor of m_k in m_{k+1} once x_k is known: rho_{k+1} (1 - gain_k)."""
        assert self.gain is not None
        return torch.cat([self.rho[:1], self.rho[1:] * (1 - self.gain[:-1])])

    def whiten_adjoint(self, u: Tensor) -> Tensor:
        """R^-T u, from the last frame to the first."""
        scaled = u / self.scale
        if self.gain is None:
            return torch.cat([scaled[:, :-1] - self.rho[1:] * scaled[:, 1:], scaled[:, -1:]], dim=1)
        slope = scan_back(self._kept, -scaled)  # the derivative of all frames from k on by the mean m_k
        return torch.cat([scaled[:, :-1] + self.gain[:-1] * self.rho[1:] * slope[:, 1:], scaled[:, -1:]], dim=1)

    def matvec(self, x: Tensor) -> Tensor:
        """C x: the sum over earlier frames plus the sum over later frames."""
        both = scan(self.rho, x) + scan_back(self.rho, x) - x
        return both if self.white == 0 else (1 - self.white) * both + self.white * x

    def apply(self, operation: Operation, x: Tensor) -> Tensor:
        if operation == "solve":
            return self.whiten_adjoint(self.whiten(x))
        return {"color": self.color, "whiten": self.whiten, "matvec": self.matvec}[operation](x)


def scan(r: Tensor, u: Tensor) -> Tensor:
    """y_k = r_k y_{k-1} + u_k, y_0 = u_0: r (L, *), u (outer, L, *).

    Large frames go one after the other. Small frames, where starting an operation costs more than the operation, go by
    doubling: after j rounds y_k holds the last 2^j terms of its sum, O(L log L).
    """
    length = u.shape[1]
    if u[:, 0].numel() >= _LARGE_FRAME:
        frames = [u[:, 0]]
        for k in range(1, length):
            frames.append(u[:, k] + r[k] * frames[-1])
        return torch.stack(frames, dim=1)
    y, shift = u, 1
    while shift < length:
        y = torch.cat([y[:, :shift], y[:, shift:] + r[shift:] * y[:, :-shift]], dim=1)
        # The product of the last 2^j coefficients. Before frame 2^j nothing is left to multiply.
        r = torch.cat([r[:shift], r[shift:] * r[:-shift]])
        shift *= 2
    return y


def scan_back(r: Tensor, u: Tensor) -> Tensor:
    """y_k = r_{k+1} y_{k+1} + u_k, y_L = u_L: the adjoint of `scan`."""
    backwards = torch.cat([r[1:], r[:1]]).flip(0)  # the first of them is not used
    return scan(backwards, u.flip(1)).flip(1)


class Markov(FrameCovariance):
    """A Markov covariance over one axis, C_ij = prod_{i < k <= j} rho_k. Subclasses give `_chain`, coefficients (L, 1).

    R is the Cholesky factor; long axes take O(L) memory and O(L) or O(L log L) time in every operation.
    """

    @property
    def _chain(self) -> Chain:
        raise NotImplementedError

    @property
    def singular(self) -> bool:
        return bool((self._chain.scale == 0).any())

    def _matrix(self, operation: str) -> Tensor:
        if operation == "color":  # also exact where C is singular and a Cholesky factorisation fails
            return self.dense().tril() * self._chain.scale[:, 0]
        return super()._matrix(operation)

    def axis_logdet(self) -> float:
        return 2 * float(self._chain.scale.log().sum())

    def _apply(self, operation: Operation, x: Tensor) -> Tensor:
        if self.length <= SHORT_AXIS:
            return super()._apply(operation, x)
        if self.singular and operation in ("whiten", "solve"):
            raise SingularCovarianceError(self)
        return self._cast("chain", lambda: self._chain, x).apply(operation, x)

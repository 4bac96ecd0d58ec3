"""Noise with the Markov property along an axis: R, R^-1 and C each in one pass over the frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.noise.covariance import SingularCovarianceError
from ornstein.noise.frames import SHORT_AXIS, FrameCovariance, Operation


@dataclass(frozen=True)
class Chain:
    """x_k = h_k + w_k: a Markov chain h of correlation rho_k from frame k-1 to k, and a share `white` of white noise w.

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
            # A frame without innovation (rho = 1, no white noise) is told by the one before.
            gains.append(torch.where(total > 0, variance / total, torch.ones_like(total)))
            if k + 1 < len(rho):
                left = variance * white / total if white > 0 else torch.zeros_like(total)
                variance = rho[k + 1] ** 2 * left + (1 - rho[k + 1]) * (1 + rho[k + 1]) * (1 - white)
        return Chain(rho, torch.stack(scales), torch.stack(gains) if white > 0 else None, white)

    def to(self, real: torch.dtype, device: torch.device) -> Chain:
        gain = None if self.gain is None else self.gain.to(device, real)
        return Chain(self.rho.to(device, real), self.scale.to(device, real), gain, self.white)

    def color(self, z: Tensor) -> Tensor:
        """R z, one frame after the other."""
        mean, frames = torch.zeros_like(z[:, 0]), []
        for k in range(z.shape[1]):
            new = self.scale[k] * z[:, k]
            frames.append(mean + new)
            if k + 1 < z.shape[1]:
                mean = self.rho[k + 1] * (frames[-1] if self.gain is None else mean + self.gain[k] * new)
        return torch.stack(frames, dim=1)

    def whiten(self, x: Tensor) -> Tensor:
        """R^-1 x."""
        if self.gain is None:
            return torch.cat([x[:, :1], x[:, 1:] - self.rho[1:] * x[:, :-1]], dim=1) / self.scale
        mean, frames = torch.zeros_like(x[:, 0]), []
        for k in range(x.shape[1]):
            new = x[:, k] - mean
            frames.append(new / self.scale[k])
            if k + 1 < x.shape[1]:
                mean = self.rho[k + 1] * (mean + self.gain[k] * new)
        return torch.stack(frames, dim=1)

    def whiten_adjoint(self, u: Tensor) -> Tensor:
        """R^-T u, from the last frame to the first."""
        scaled = u / self.scale
        if self.gain is None:
            return torch.cat([scaled[:, :-1] - self.rho[1:] * scaled[:, 1:], scaled[:, -1:]], dim=1)
        frames = [scaled[:, -1]]
        slope = -scaled[:, -1]  # of the frames after k, by the mean m_{k+1}
        for k in range(u.shape[1] - 2, -1, -1):
            slope = self.rho[k + 1] * slope
            frames.append(scaled[:, k] + self.gain[k] * slope)
            slope = (1 - self.gain[k]) * slope - scaled[:, k]
        frames.reverse()
        return torch.stack(frames, dim=1)

    def matvec(self, x: Tensor) -> Tensor:
        """C x: what comes from the frames before and what comes from those after."""
        before, after = [x[:, 0]], [x[:, -1]]
        for k in range(1, x.shape[1]):
            before.append(x[:, k] + self.rho[k] * before[-1])
            after.append(x[:, -1 - k] + self.rho[-k] * after[-1])
        after.reverse()
        both = torch.stack(before, dim=1) + torch.stack(after, dim=1) - x
        return both if self.white == 0 else (1 - self.white) * both + self.white * x

    def apply(self, operation: Operation, x: Tensor) -> Tensor:
        if operation == "solve":
            return self.whiten_adjoint(self.whiten(x))
        return {"color": self.color, "whiten": self.whiten, "matvec": self.matvec}[operation](x)


class Markov(FrameCovariance):
    """A Markov covariance over one axis, C_ij = prod_{i < k <= j} rho_k. Subclasses give `_chain`, coefficients (L, 1).

    R is the Cholesky factor; long axes take O(L) time and memory in every operation.
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
        return self._chain.to(x.dtype, x.device).apply(operation, x)

"""Autoregressive noise of order one over frames."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.noise.covariance import SingularCovarianceError
from ornstein.noise.frames import SHORT_AXIS, FrameCovariance, Operation


@dataclass(frozen=True)
class AR1(FrameCovariance):
    """C_ij = rho^|i-j| over `length` frames: e_1 = z_1, e_k = rho e_{k-1} + sqrt(1-rho^2) z_k (E5; source S2).

    R is the Cholesky factor, R^-1 has two diagonals. |rho| = 1 is singular: it can be sampled but has no density.
    Raises ValueError for |rho| > 1 or a length below 1.
    """

    length: int
    rho: float

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"AR1 needs at least one frame, got length {self.length}")
        if not -1 <= self.rho <= 1:
            smallest = 1 - abs(self.rho)
            raise ValueError(
                f"AR1 needs a correlation in [-1, 1], got {self.rho}: neighbours would have eigenvalue {smallest:.3g}"
            )

    @property
    def singular(self) -> bool:
        return self.length > 1 and abs(self.rho) == 1

    @property
    def _innovation(self) -> float:
        return math.sqrt((1 - self.rho) * (1 + self.rho))

    def dense(self) -> Tensor:
        frames = torch.arange(self.length, dtype=torch.float64)
        return torch.as_tensor(self.rho, dtype=torch.float64) ** (frames[:, None] - frames[None]).abs()

    def _matrix(self, operation: str) -> Tensor:
        if operation == "color":  # also exact at |rho| = 1, where a Cholesky factorisation fails
            lags = torch.arange(self.length)[:, None] - torch.arange(self.length)[None]
            power = torch.as_tensor(self.rho, dtype=torch.float64) ** lags.clamp(min=0)
            power[:, 1:] *= self._innovation
            return power.tril()
        return super()._matrix(operation)

    def _axis_logdet(self) -> float:
        if self.length == 1:  # a single frame has no neighbour, whatever rho
            return 0.0
        return (self.length - 1) * (math.log1p(-self.rho) + math.log1p(self.rho))

    def _apply(self, operation: Operation, x: Tensor) -> Tensor:
        if self.length <= SHORT_AXIS:
            return super()._apply(operation, x)
        if self.singular and operation in ("whiten", "solve"):
            raise SingularCovarianceError(self)
        if operation == "color":
            return self._recurse(x)
        if operation == "whiten":
            return self._difference(x)
        if operation == "solve":
            return self._difference_adjoint(self._difference(x))
        return self._recurse(self._recurse_adjoint(x))

    def _difference(self, x: Tensor) -> Tensor:
        """R^-1 x."""
        return torch.cat([x[:, :1], (x[:, 1:] - self.rho * x[:, :-1]) / self._innovation], dim=1)

    def _difference_adjoint(self, u: Tensor) -> Tensor:
        """R^-T u."""
        scaled = torch.cat([u[:, :1], u[:, 1:] / self._innovation], dim=1)
        return torch.cat([scaled[:, :-1] - self.rho * scaled[:, 1:], scaled[:, -1:]], dim=1)

    def _recurse(self, z: Tensor) -> Tensor:
        """R z, one frame after the other."""
        frames = [z[:, 0]]
        for k in range(1, self.length):
            frames.append(self.rho * frames[-1] + self._innovation * z[:, k])
        return torch.stack(frames, dim=1)

    def _recurse_adjoint(self, u: Tensor) -> Tensor:
        """R^T u, from the last frame to the first."""
        frames = [u[:, -1]]
        for k in range(self.length - 2, -1, -1):
            frames.append(u[:, k] + self.rho * frames[-1])
        frames.reverse()
        out = torch.stack(frames, dim=1)
        return torch.cat([out[:, :1], self._innovation * out[:, 1:]], dim=1)

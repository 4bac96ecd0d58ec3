"""Noise of few shared factors plus noise of each element's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.noise.covariance import Covariance, Operation, SingularCovarianceError, check_floor
from ornstein.noise.frames import NULL, SHORT_AXIS, FrameCovariance


@dataclass(frozen=True, eq=False)
class LowRank(FrameCovariance):
    """C = D + U U^T over one axis of N elements: D = diag(diag) with diag (N,) >= 0, U = factor (N, k) (E5).

    With D^(-1/2) U = Q S P^T (thin SVD), R = D^(1/2) (I + Q (sqrt(1 + S^2) - 1) Q^T): Woodbury's formula for the root.
    Every operation is O(N k) in time and memory; beyond 64 elements no (N, N) matrix is made. Elements without noise of
    their own (D_ii = 0) are told by the factors alone: C is singular where they outnumber the factors that reach them.
    Raises ValueError for diag below zero, shapes that do not fit, and values that are not finite.
    Source: Woodbury 1950; det(D + U U^T) = det D det(I + S^2).
    """

    diag: Tensor | Sequence[float]
    factor: Tensor | Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        diag = torch.as_tensor(self.diag, dtype=torch.float64).detach().cpu()
        factor = torch.as_tensor(self.factor, dtype=torch.float64).detach().cpu()
        object.__setattr__(self, "diag", diag)
        object.__setattr__(self, "factor", factor)
        if diag.ndim != 1 or len(diag) == 0:
            raise ValueError(f"diag is a vector, got shape {tuple(diag.shape)}")
        if factor.ndim != 2 or len(factor) != len(diag):
            raise ValueError(f"factor must be ({len(diag)}, k) to go with diag, got shape {tuple(factor.shape)}")
        if not bool(diag.isfinite().all() and factor.isfinite().all()):
            raise ValueError("diag and factor must be finite")
        if bool((diag < 0).any()):
            raise ValueError(
                f"not a covariance: the smallest eigenvalue of diag is {float(diag.min()):.3g}, below zero"
            )

    @property
    def length(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.diag)

    def dense(self) -> Tensor:
        diag, factor = torch.as_tensor(self.diag), torch.as_tensor(self.factor)
        return torch.diag(diag) + factor @ factor.mT

    @property
    def _root(self) -> _Root:
        if "_factored" not in self.__dict__:
            self.__dict__["_factored"] = _Root.of(torch.as_tensor(self.diag), torch.as_tensor(self.factor))
        return self.__dict__["_factored"]

    @property
    def singular(self) -> bool:
        return self._root.singular

    def axis_logdet(self) -> float:
        return self._root.logdet()

    def _matrix(self, operation: str) -> Tensor:
        if operation in ("color", "matvec", "whiten", "solve"):
            return self._structured(operation, torch.eye(self.length, dtype=torch.float64)[None])[0]
        return super()._matrix(operation)

    def _apply(self, operation: Operation, x: Tensor) -> Tensor:
        return super()._apply(operation, x) if self.length <= SHORT_AXIS else self._structured(operation, x)

    def _structured(self, operation: Operation, x: Tensor) -> Tensor:
        if operation == "matvec":
            diag, factor = torch.as_tensor(self.diag).to(x), torch.as_tensor(self.factor).to(x)
            return diag[:, None] * x + factor @ (factor.mT @ x)
        if operation == "color":
            return self._root.color(x)
        if self.singular:
            raise SingularCovarianceError(self)
        white = self._root.whiten(x)
        return white if operation == "whiten" else self._root.whiten_adjoint(white)

    def floored(self, g: float) -> Covariance:
        """(1 - g) C + g I, again LowRank."""
        check_floor(g)
        diag, factor = torch.as_tensor(self.diag), torch.as_tensor(self.factor)
        return LowRank((1 - g) * diag + g, (1 - g) ** 0.5 * factor)

    def __str__(self) -> str:
        return f"LowRank({self.length}, rank {torch.as_tensor(self.factor).shape[1]})"


@dataclass(frozen=True)
class _Root:
    """R = [[D^(1/2) (I + Q h Q^T), A], [0, T]], with the elements of positive diag first, those of zero diag last.

    The factors are rotated so that the first ones alone reach the elements of zero diag, through T; A is their reach
    into the others, which hold noise of their own and the factors that are left, Q h Q^T.
    """

    own: Tensor  # indices of the elements with noise of their own
    bare: Tensor  # and of those without
    std: Tensor  # D^(1/2) of the former
    q: Tensor
    grow: Tensor  # sqrt(1 + S^2)
    reach: Tensor  # A (own, r)
    told: Tensor  # T (bare, r), r = min(bare, k)

    @staticmethod
    def of(diag: Tensor, factor: Tensor) -> _Root:
        own, bare = (diag > 0).nonzero()[:, 0], (diag == 0).nonzero()[:, 0]
        rank = min(len(bare), factor.shape[1])
        if len(bare) > 0 and factor.shape[1] > 0:
            # The complete rotation, but never a (bare, bare) matrix.
            rotation = torch.linalg.qr(factor[bare].mT, mode="complete")[0]
            factor = factor @ rotation
        std = diag[own].sqrt()
        q, s, _ = torch.linalg.svd(factor[own, rank:] / std[:, None], full_matrices=False)
        return _Root(own, bare, std, q, (1 + s**2).sqrt(), factor[own, :rank], factor[bare, :rank])

    @property
    def singular(self) -> bool:
        if len(self.bare) == 0:
            return False
        if self.told.shape[0] > self.told.shape[1]:
            return True
        values = torch.linalg.svdvals(self.told)
        return bool(values[-1] ** 2 <= NULL * values[0] ** 2)

    def logdet(self) -> float:
        return 2 * float(self.std.log().sum() + self.grow.log().sum() + torch.linalg.slogdet(self.told)[1])

    def _stretch(self, x: Tensor, by: Tensor) -> Tensor:
        """(I + Q (by - 1) Q^T) x."""
        q = self.q.to(x)
        return x + q @ ((by - 1).to(x)[:, None] * (q.mT @ x))

    def _join(self, own: Tensor, bare: Tensor) -> Tensor:
        order = torch.cat([self.own, self.bare]).argsort().to(own.device)
        return torch.cat([own, bare], dim=1)[:, order]

    def color(self, z: Tensor) -> Tensor:
        latent = z[:, self.bare][:, : self.told.shape[1]]
        own = self.std.to(z)[:, None] * self._stretch(z[:, self.own], self.grow) + self.reach.to(z) @ latent
        return self._join(own, self.told.to(z) @ latent)

    def whiten(self, x: Tensor) -> Tensor:
        latent = torch.linalg.inv(self.told).to(x) @ x[:, self.bare]
        own = (x[:, self.own] - self.reach.to(x) @ latent) / self.std.to(x)[:, None]
        return self._join(self._stretch(own, 1 / self.grow), latent)

    def whiten_adjoint(self, u: Tensor) -> Tensor:
        own = self._stretch(u[:, self.own], 1 / self.grow) / self.std.to(u)[:, None]
        bare = torch.linalg.inv(self.told).mT.to(u) @ (u[:, self.bare] - self.reach.mT.to(u) @ own)
        return self._join(own, bare)

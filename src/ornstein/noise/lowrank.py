"""Low-rank plus diagonal noise: a few factors shared by all elements, and independent noise of each element."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.noise.covariance import POWERS, Covariance, Operation, SingularCovarianceError, check_floor
from ornstein.noise.frames import NULL, SHORT_AXIS, FrameCovariance

__all__ = ["LowRank"]


@dataclass(frozen=True, eq=False)
class LowRank(FrameCovariance):
    """C = D + U U^T over one axis of N elements, D = diag(diag), U = factor (E5).

    With D^(-1/2) U = Q S P^T (thin SVD), R = D^(1/2) (I + Q (sqrt(1 + S^2) - 1) Q^T): Woodbury's formula for the root.
    Every operation is O(N k) in time and memory; beyond 64 elements no (N, N) matrix is made. C is singular if the rows
    of U for the elements with D_ii = 0 are linearly dependent.
    Source: Woodbury 1950; det(D + U U^T) = det D det(I + S^2).

    Args:
        diag: (N,), >= 0.
        factor: (N, k).

    Raises:
        ValueError: diag is below zero, the shapes do not fit, or values are not finite.
    """

    diag: Tensor | Sequence[float]
    factor: Tensor | Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        diag = torch.as_tensor(self.diag, dtype=torch.float64, device="cpu").detach()
        factor = torch.as_tensor(self.factor, dtype=torch.float64, device="cpu").detach()
        object.__setattr__(self, "diag", diag)
        object.__setattr__(self, "factor", factor)
        if diag.ndim != 1 or len(diag) == 0:
            raise ValueError(f"diag must be a vector (N,), got shape {tuple(diag.shape)}")
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
        if operation in POWERS:
            return self._structured(operation, torch.eye(self.length, dtype=torch.float64)[None])[0]
        return super()._matrix(operation)

    def _apply(self, operation: Operation, x: Tensor) -> Tensor:
        return super()._apply(operation, x) if self.length <= SHORT_AXIS else self._structured(operation, x)

    def _structured(self, operation: str, x: Tensor) -> Tensor:
        if operation == "matvec":
            diag = self._cast("diag", lambda: torch.as_tensor(self.diag), x)
            factor = self._cast("factor", lambda: torch.as_tensor(self.factor), x)
            return diag[:, None] * x + factor @ (factor.mT @ x)
        if operation != "color" and self.singular:
            raise SingularCovarianceError(self)
        root = self._cast("root", lambda: self._root, x)
        if operation == "color":
            return root.color(x)
        return root.whiten(x) if operation == "whiten" else root.whiten_adjoint(root.whiten(x))

    def floored(self, g: float) -> Covariance:
        """(1 - g) C + g I, again LowRank."""
        check_floor(g)
        diag, factor = torch.as_tensor(self.diag), torch.as_tensor(self.factor)
        return LowRank((1 - g) * diag + g, (1 - g) ** 0.5 * factor)

    def __repr__(self) -> str:
        return f"LowRank({self.length}, rank {torch.as_tensor(self.factor).shape[1]})"


@dataclass(frozen=True)
class _Root:
    """The root R = [[D^(1/2) (I + Q h Q^T), A], [0, T]], with the elements D_ii > 0 first and those D_ii = 0 last.

    The factors are rotated such that only the first r act on the elements D_ii = 0, by T (lower triangular up to
    rounding), and on the others by A. The remaining factors and D give the top left block, h = sqrt(1 + S^2) - 1.
    """

    noisy: Tensor  # indices of the elements D_ii > 0
    bare: Tensor  # indices of the elements D_ii = 0
    order: Tensor  # the permutation that undoes (noisy, bare)
    singular: bool
    std: Tensor  # D^(1/2) of the noisy elements
    q: Tensor
    grow: Tensor  # sqrt(1 + S^2)
    reach: Tensor  # A (noisy, r)
    bare_root: Tensor  # T (bare, r), r = min(bare, k)
    inverse: Tensor  # T^-1, (0, 0) if C is singular

    @staticmethod
    def of(diag: Tensor, factor: Tensor) -> _Root:
        noisy, bare = (diag > 0).nonzero()[:, 0], (diag == 0).nonzero()[:, 0]
        rank = min(len(bare), factor.shape[1])
        if len(bare) > 0 and factor.shape[1] > 0:
            # a complete (k, k) rotation; no (bare, bare) matrix is made
            rotation = torch.linalg.qr(factor[bare].mT, mode="complete")[0]
            factor = factor @ rotation
        std = diag[noisy].sqrt()
        q, s, _ = torch.linalg.svd(factor[noisy, rank:] / std[:, None], full_matrices=False)
        order = torch.cat([noisy, bare]).argsort()
        root = factor[bare, :rank]
        singular = _singular(root)
        inverse = root.new_zeros(0, 0) if singular else torch.linalg.inv(root)
        return _Root(noisy, bare, order, singular, std, q, (1 + s**2).sqrt(), factor[noisy, :rank], root, inverse)

    def logdet(self) -> float:
        return 2 * float(self.std.log().sum() + self.grow.log().sum() + torch.linalg.slogdet(self.bare_root)[1])

    def _stretch(self, x: Tensor, by: Tensor) -> Tensor:
        """(I + Q (by - 1) Q^T) x."""
        return x + self.q @ ((by - 1)[:, None] * (self.q.mT @ x))

    def _join(self, noisy: Tensor, bare: Tensor) -> Tensor:
        return torch.cat([noisy, bare], dim=1)[:, self.order]

    def color(self, z: Tensor) -> Tensor:
        latent = z[:, self.bare][:, : self.bare_root.shape[1]]
        noisy = self.std[:, None] * self._stretch(z[:, self.noisy], self.grow) + self.reach @ latent
        return self._join(noisy, self.bare_root @ latent)

    def whiten(self, x: Tensor) -> Tensor:
        latent = self.inverse @ x[:, self.bare]
        noisy = (x[:, self.noisy] - self.reach @ latent) / self.std[:, None]
        return self._join(self._stretch(noisy, 1 / self.grow), latent)

    def whiten_adjoint(self, u: Tensor) -> Tensor:
        noisy = self._stretch(u[:, self.noisy], 1 / self.grow) / self.std[:, None]
        bare = self.inverse.mT @ (u[:, self.bare] - self.reach.mT @ noisy)
        return self._join(noisy, bare)


def _singular(root: Tensor) -> bool:
    """Whether T (bare, r) has no inverse."""
    if root.shape[0] != root.shape[1]:
        return True
    if len(root) == 0:
        return False
    values = torch.linalg.svdvals(root)
    return bool(values[-1] ** 2 <= NULL * values[0] ** 2)

"""The covariance C = R R^T of the noise: the interface, and the identity.

A covariance acts on named axes of a sample. One of length L acts on the frame axis, dim 2 of a clip (B, C, F, H, W);
on vectors (B, N) it acts on dim 1. Everything below is linear in x and keeps its shape, dtype and device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Operation = Literal["color", "matvec", "whiten", "solve"]


class SingularCovarianceError(ValueError):
    """A singular covariance has no inverse and no density; a floor gives it one."""

    def __init__(self, noise: object) -> None:
        super().__init__(f"{noise} is singular: it has no inverse and no density; use .floored(g) with a small g > 0")


class Covariance:
    """A covariance C = R R^T over axes of a sample; see `Identity` and `AR1`."""

    def __eq__(self, other: object) -> bool:
        """Equal arguments: covariances that hold tensors compare them by value."""
        if type(self) is not type(other):
            return False
        mine, theirs = arguments(self), arguments(other)
        return all(
            torch.equal(v, theirs[k]) if isinstance(v, Tensor) else bool(v == theirs[k]) for k, v in mine.items()
        )

    def __hash__(self) -> int:
        return hash(type(self).__name__)

    def _operate(self, operation: Operation, x: Tensor) -> Tensor:
        """`operation` on x (B, *): the one place where a covariance says how it acts."""
        raise NotImplementedError

    def color(self, z: Tensor) -> Tensor:
        """R z: white noise (B, *) becomes noise with covariance C."""
        return self._operate("color", z)

    def matvec(self, x: Tensor) -> Tensor:
        """C x."""
        return self._operate("matvec", x)

    def whiten(self, x: Tensor) -> Tensor:
        """R^-1 x, the inverse of `color`. Raises SingularCovarianceError (a ValueError) where C has no inverse."""
        return self._operate("whiten", x)

    def solve(self, x: Tensor) -> Tensor:
        """C^-1 x. Raises SingularCovarianceError where C has no inverse."""
        return self._operate("solve", x)

    def logdet(self, shape: tuple[int, ...]) -> float:
        """log det of the covariance of one whole sample of `shape`.

        `shape` is that of a sample, (N,) or (C, F, H, W), or that of a batch, (B, N) or (B, C, F, H, W): the batch
        is not counted. Raises SingularCovarianceError where C has no inverse.
        """
        raise NotImplementedError

    def dense(self) -> Tensor:
        """The matrix over the covariance's own axis, float64, (L, L)."""
        raise NotImplementedError

    def floored(self, g: float) -> Covariance:
        """(1 - g) C + g I with 0 < g <= 1: invertible whatever C is."""
        raise NotImplementedError

    def sample(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """R z of `shape` (B, *) with z ~ N(0, I) drawn from `generator`."""
        return self.color(torch.randn(shape, generator=generator, dtype=dtype, device=device))

    def mahalanobis(self, x: Tensor) -> Tensor:
        """x^T C^-1 x over all of a sample: (B, *) -> (B,). Raises SingularCovarianceError where C has no inverse."""
        return self.whiten(x).flatten(1).square().sum(1)


@dataclass(frozen=True)
class Identity(Covariance):
    """White noise, C = I, on samples of any shape."""

    def _operate(self, operation: Operation, x: Tensor) -> Tensor:
        return x

    def logdet(self, shape: tuple[int, ...]) -> float:
        return 0.0

    def dense(self) -> Tensor:
        """(1, 1): the identity acts on every element by itself."""
        return torch.ones(1, 1, dtype=torch.float64)

    def floored(self, g: float) -> Covariance:
        check_floor(g)
        return self


def arguments(noise: object) -> dict[str, Any]:
    """What a covariance was made of, by name, without what it has cached."""
    return {k: v for k, v in vars(noise).items() if not k.startswith("_")}


def check_floor(g: float) -> None:
    """ValueError unless 0 < g <= 1."""
    if not 0 < g <= 1:
        raise ValueError(f"a floor is a share of white noise in (0, 1], got {g}")

"""The covariance C = R R^T of the noise: the interface, and the identity.

A covariance acts on named axes of a sample. A covariance over frames acts on dim 2 of a clip (B, C, F, H, W), and on
dim 1 of vectors (B, N). Every operation is linear in x and keeps its shape, dtype and device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

__all__ = ["Covariance", "Identity", "Operation", "SingularCovarianceError", "arguments", "check_floor"]

Operation = Literal["color", "matvec", "whiten", "solve"]

T = TypeVar("T")

POWERS: dict[Operation, float] = {"color": 0.5, "matvec": 1.0, "whiten": -0.5, "solve": -1.0}
"""The power of an eigenvalue of C in each operation, for a symmetric root R."""


class SingularCovarianceError(ValueError):
    """The covariance is singular: it has no inverse and no density. `Covariance.floored` regularises it."""

    def __init__(self, noise: object) -> None:
        super().__init__(f"{noise} is singular: it has no inverse and no density; use .floored(g) with a small g > 0")


class Covariance:
    """A covariance C = R R^T over axes of a sample. Subclasses: `Identity`, `AR1`, `Kronecker` and others."""

    def __eq__(self, other: object) -> bool:
        """Whether type and arguments are equal; tensors are compared by value."""
        if type(self) is not type(other):
            return False
        mine, theirs = arguments(self), arguments(other)
        return all(
            torch.equal(v, theirs[k]) if isinstance(v, Tensor) else bool(v == theirs[k]) for k, v in mine.items()
        )

    def __hash__(self) -> int:
        return hash(type(self).__name__)

    def _operate(self, operation: Operation, x: Tensor) -> Tensor:
        """Apply `operation` to x (B, *). The four public operations call this one."""
        raise NotImplementedError

    def _cast(self, name: str, make: Callable[[], T], x: Tensor) -> T:
        """`make()`, made in float64 on the CPU, cast to the dtype and device of x: once for each dtype and device."""
        cache: dict[tuple[str, torch.dtype, torch.device], Any] = self.__dict__.setdefault("_casts", {})
        key = (name, x.dtype, x.device)
        if key not in cache:
            with torch.inference_mode(False):  # a tensor made in inference mode could not be used in training later
                cache[key] = cast_like(make(), x)
        return cache[key]

    def color(self, z: Tensor) -> Tensor:
        """R z: white noise (B, *) becomes noise of covariance C."""
        return self._operate("color", z)

    def matvec(self, x: Tensor) -> Tensor:
        """C x, (B, *)."""
        return self._operate("matvec", x)

    def whiten(self, x: Tensor) -> Tensor:
        """R^-1 x, (B, *): the inverse of `color`.

        Raises:
            SingularCovarianceError: C has no inverse.
        """
        return self._operate("whiten", x)

    def solve(self, x: Tensor) -> Tensor:
        """C^-1 x, (B, *).

        Raises:
            SingularCovarianceError: C has no inverse.
        """
        return self._operate("solve", x)

    def logdet(self, sample_shape: Sequence[int]) -> float:
        """log det of the covariance of one sample.

        Args:
            sample_shape: the shape of one sample, without the batch: (N,) or (C, F, H, W); (C, H, W) for noise over
                images.

        Raises:
            SingularCovarianceError: C has no inverse.
            ValueError: C does not act on samples of this shape.
        """
        raise NotImplementedError

    def dense(self) -> Tensor:
        """The matrix over the covariance's own axes, float64, (L, L)."""
        raise NotImplementedError

    def floored(self, g: float) -> Covariance:
        """The regularised covariance (1 - g) C + g I, which is invertible for any C.

        Args:
            g: the share of white noise, 0 < g <= 1.
        """
        raise NotImplementedError

    def sample(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """R z with z ~ N(0, I).

        Args:
            shape: (B, *), with the batch.
            generator: draws z on its own device; the result moves to `device`.
            dtype, device: of the result. The default device is that of the generator, or torch's default.
        """
        return self.color(white(shape, generator, dtype, device))

    def mahalanobis(self, x: Tensor) -> Tensor:
        """x^T C^-1 x summed over each sample: (B, *) -> (B,).

        Raises:
            SingularCovarianceError: C has no inverse.
        """
        return self.whiten(x).flatten(1).square().sum(1)


@dataclass(frozen=True)
class Identity(Covariance):
    """White noise, C = I, on samples of any shape."""

    def _operate(self, operation: Operation, x: Tensor) -> Tensor:
        return x

    def logdet(self, sample_shape: Sequence[int]) -> float:
        return 0.0

    def dense(self) -> Tensor:
        """(1, 1): the identity acts on every element by itself."""
        return torch.ones(1, 1, dtype=torch.float64)

    def floored(self, g: float) -> Covariance:
        check_floor(g)
        return self


def white(
    shape: Sequence[int],
    generator: torch.Generator | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> Tensor:
    """z ~ N(0, I) of `shape`, drawn on the generator's device and moved to `device`."""
    source = device if generator is None else generator.device
    z = torch.randn(tuple(shape), generator=generator, dtype=dtype, device=source)
    return z if device is None else z.to(device)


def cast_like(value: T, like: Tensor) -> T:
    """A tensor, or the tensors of a dataclass, on the device of `like`; floating-point ones in its dtype."""
    if isinstance(value, Tensor):
        # The cast comes first: MPS has no float64.
        out: Any = (value.to(like.dtype) if value.is_floating_point() else value).to(like.device)
        return out
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: cast_like(getattr(value, f.name), like) for f in fields(value)})
    return value


def arguments(noise: object) -> dict[str, Any]:
    """The constructor arguments of a covariance by name, without its caches."""
    return {k: v for k, v in vars(noise).items() if not k.startswith("_")}


def check_floor(g: float) -> None:
    """Raise ValueError unless 0 < g <= 1."""
    if not 0 < g <= 1:
        raise ValueError(f"a floor is a share of white noise in (0, 1], got {g}")

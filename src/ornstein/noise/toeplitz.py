"""Stationary noise: any autocovariance by lag."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.noise.covariance import Covariance, Operation, SingularCovarianceError, check_floor, white
from ornstein.noise.frames import NULL, SHORT_AXIS, FrameCovariance, check_eigenvalues, frame_axis

__all__ = ["Toeplitz", "levinson"]

# How far a circulant embedding is extended, in lengths of the axis, before it is given up.
_EXTENSIONS = (0, 1, 3, 7)


@dataclass(frozen=True, eq=False)
class Toeplitz(FrameCovariance):
    """C_ij = r_|i-j|, the symmetric Toeplitz matrix of S2 (E5), of any variance r_0.

    Up to 64 frames every operation is a product with a cached matrix. Beyond, for L frames:

    - `matvec` is exact by FFT, O(L log L);
    - `sample` is a circulant embedding, O(L log L). An embedding with an eigenvalue below zero is extended by the
      autoregression that r determines (its maximum entropy extension); if no extension helps, `sample` uses `color`.
      The law is C exactly in each case;
    - `solve`, `logdet` and `mahalanobis` need Levinson's recursion once, O(L^2) time and O(L) memory; after it each
      use is O(L log L) by the Gohberg-Semencul formula;
    - `color` and `whiten` are products with the Cholesky factor and its inverse: O(L^2) time and memory, and O(L^3)
      time once. No root of a Toeplitz matrix is known that is square and faster.

    Source: Dietrich & Newsam 1997 (embedding); Gohberg & Semencul 1972; Golub & Van Loan, section 4.7 (Levinson).

    Args:
        first_row: r, (L,).

    Raises:
        ValueError: the row is not finite, or its matrix has an eigenvalue below zero; the message names the smallest.
    """

    first_row: Tensor | Sequence[float]

    def __post_init__(self) -> None:
        row = torch.as_tensor(self.first_row, dtype=torch.float64, device="cpu").detach()
        object.__setattr__(self, "first_row", row)
        if row.ndim != 1 or len(row) == 0:
            raise ValueError(f"the first row of a Toeplitz covariance is a vector, got shape {tuple(row.shape)}")
        if not bool(row.isfinite().all()):
            raise ValueError("the first row of the Toeplitz covariance has values that are not finite")
        # Two quick proofs that there is no eigenvalue below zero; without either, the eigenvalues decide.
        long = self.length > SHORT_AXIS
        if not (long and (_is_spectrum(_spectrum(_circulant(row))) or self._levinson is not None)):
            check_eigenvalues(self._cached("eigenvalues"))

    @property
    def length(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.first_row)

    @property
    def _row(self) -> Tensor:
        return torch.as_tensor(self.first_row)

    def dense(self) -> Tensor:
        frames = torch.arange(self.length)
        return self._row[(frames[:, None] - frames[None]).abs()]

    @property
    def singular(self) -> bool:
        if self.length <= SHORT_AXIS:
            return super().singular
        return self._levinson is None

    def axis_logdet(self) -> float:
        if self.length <= SHORT_AXIS or self._levinson is None:
            return super().axis_logdet()
        return float(self._levinson[1].log().sum())

    @property
    def _levinson(self) -> tuple[Tensor, Tensor] | None:
        """The last prediction filter [1, a_1, ..] and the error variances of all orders; None if C is singular."""
        if "_prediction" not in self.__dict__:
            self.__dict__["_prediction"] = levinson(self._row)
        return self.__dict__["_prediction"]

    @property
    def _embedding(self) -> Tensor | None:
        """The eigenvalues of a circulant matrix whose corner is C, none below zero; None if none was found."""
        if "_circulant" not in self.__dict__:
            self.__dict__["_circulant"] = self._embed()
        return self.__dict__["_circulant"]

    def _embed(self) -> Tensor | None:
        row = self._row
        for extension in _EXTENSIONS:
            if extension > 0:
                if self._levinson is None:
                    return None
                taps = -self._levinson[0][1:].flip(0)  # r_k = sum_j -a_j r_{k-j}
                longer = torch.cat([row, row.new_zeros((extension + 1) * self.length - len(row))])
                for k in range(len(row), len(longer)):
                    longer[k] = taps @ longer[k - len(taps) : k]
                row = longer
            values = _spectrum(_circulant(row))
            if _is_spectrum(values):
                return values.clamp(min=0)
        return None

    def _apply(self, operation: Operation, x: Tensor) -> Tensor:
        if self.length <= SHORT_AXIS or operation in ("color", "whiten"):
            return super()._apply(operation, x)
        if x.numel() == 0:  # the Fourier transform refuses it
            return x
        work = x if x.dtype in (torch.float32, torch.float64) else x.float()
        if operation == "matvec":
            spectrum = self._cast("spectrum", lambda: _spectrum(_circulant(self._row, 2 * self.length)), work)
            return _filter(work, spectrum).to(x.dtype)
        return self._gohberg_semencul(work).to(x.dtype)

    def _gohberg_semencul(self, x: Tensor) -> Tensor:
        """C^-1 x = (A A^T - B B^T) x / e_L: A, B lower triangular Toeplitz with columns [1, a_1, ..], [0, .., a_1]."""
        if self._levinson is None:
            raise SingularCovarianceError(self)
        size, error = 2 * self.length, float(self._levinson[1][-1])
        f = torch.fft.rfft(x, size, dim=1)
        out = torch.zeros_like(f)
        for column, sign in zip(self._cast("columns", self._columns, x), (1.0, -1.0), strict=True):
            transform = torch.fft.rfft(column, size)[:, None]
            adjoint = torch.fft.irfft(f * transform.conj(), size, dim=1)[:, : self.length]
            out = out + sign * torch.fft.rfft(adjoint, size, dim=1) * transform
        return torch.fft.irfft(out, size, dim=1)[:, : self.length] / error

    def _columns(self) -> Tensor:
        """The first columns of A and B, (2, L) float64."""
        assert self._levinson is not None
        filter_ = self._levinson[0]
        return torch.stack([filter_, torch.cat([filter_.new_zeros(1), filter_[1:].flip(0)])])

    def mahalanobis(self, x: Tensor) -> Tensor:
        if self.length <= SHORT_AXIS:
            return super().mahalanobis(x)
        return (x * self.solve(x)).flatten(1).sum(1)

    def sample(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        shape = tuple(shape)
        axis = frame_axis(shape[1:]) + 1
        if self.length <= SHORT_AXIS or shape[axis] != self.length or 0 in shape or self._embedding is None:
            return super().sample(shape, generator, dtype, device)
        size = 2 * (len(self._embedding) - 1)
        outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
        z = white((outer, size, inner), generator, dtype, device)
        work = z if z.dtype in (torch.float32, torch.float64) else z.float()
        root = self._cast("embedding", lambda: torch.as_tensor(self._embedding).sqrt(), work)
        return _filter(work, root)[:, : self.length].to(z.dtype).reshape(shape)

    def floored(self, g: float) -> Covariance:
        """(1 - g) C + g I, again Toeplitz."""
        check_floor(g)
        row = (1 - g) * self._row
        row[0] += g
        return Toeplitz(row)

    def __repr__(self) -> str:
        return f"Toeplitz({self.length})"


def levinson(row: Tensor) -> tuple[Tensor, Tensor] | None:
    """The prediction filter [1, a_1, .., a_{L-1}] and error variances e_0..e_{L-1} of an autocovariance (L,) float64.

    The Levinson-Durbin recursion, O(L^2) time and O(L) memory. None if the matrix is not positive definite, or so
    nearly singular that a prediction leaves less than 1e-12 of the variance.
    """
    n = len(row)
    a = torch.zeros_like(row)
    a[0] = 1
    error = float(row[0])
    errors = [error]
    for k in range(1, n):
        if error <= NULL * float(row[0]):
            return None
        reflection = -float(a[:k] @ row[1 : k + 1].flip(0)) / error
        a[1 : k + 1] = a[1 : k + 1] + reflection * a[:k].flip(0)
        error *= (1 - reflection) * (1 + reflection)
        errors.append(error)
    return (a, torch.tensor(errors, dtype=torch.float64)) if error > NULL * float(row[0]) else None


def _circulant(row: Tensor, size: int | None = None) -> Tensor:
    """The first row of a circulant matrix whose corner is the Toeplitz matrix of `row`; zeros fill up to `size`."""
    n = len(row)
    gap = 0 if size is None else size - (2 * n - 1)
    return torch.cat([row, row.new_zeros(gap), row[1 : n - (size is None)].flip(0)])


def _spectrum(circulant: Tensor) -> Tensor:
    """The eigenvalues of a symmetric circulant matrix, the first half: the rest mirror them."""
    return torch.fft.rfft(circulant).real


def _is_spectrum(values: Tensor) -> bool:
    """Whether no eigenvalue is below zero, up to rounding."""
    return bool(values.min() >= -1e-13 * values.max())


def _filter(x: Tensor, spectrum: Tensor) -> Tensor:
    """The circulant matrix of this spectrum times x (outer, L, inner), zero-padded to its size; the first L rows."""
    size = 2 * (len(spectrum) - 1)
    f = torch.fft.rfft(x, size, dim=1) * spectrum[:, None]
    return torch.fft.irfft(f, size, dim=1)[:, : x.shape[1]]

"""What was measured of a sample: masks, blur, smaller and grey pictures, projections, JPEG; y = A x + noise.

Each operator acts on batches of samples (B, *shape). `forward` makes a measurement, `linear` is the linear map A that
the methods invert, and `adjoint` is A^T. They are the same but for rounding, as in a JPEG, whose `error` is the
standard deviation of what `forward` and `linear` differ by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.noise.covariance import cast_like

__all__ = [
    "Blur", "Chain", "Cut", "Grey", "Mask", "Matrix", "Operator", "Resized", "Stacked", "downsampling", "known_frames",
    "radon", "reciprocal", "sensing",
]  # fmt: skip

Function = Callable[[Tensor], Tensor]

# An eigenvalue of A A^T below this share of the largest counts as none: that direction was not measured.
_NULL = 1e-6


class Operator:
    """A linear map A of samples of `shape`. Subclasses give `linear`, and `gram` where A A^T is diagonalisable.

    Attributes:
        shape: of one sample.
        error: the standard deviation of forward(x) - linear(x), in the units of y; 0 for an exact operator.
    """

    shape: tuple[int, ...]
    error: float = 0.0

    def linear(self, x: Tensor) -> Tensor:
        """A x: (B, *shape) -> (B, *)."""
        raise NotImplementedError

    def at(self, x: Tensor) -> tuple[Operator, Tensor]:
        """The linear part about samples x (B, *shape), and the measurement of x: of a linear A, itself and A x."""
        return self, self.linear(x)

    def forward(self, x: Tensor) -> Tensor:
        """What an instrument would give for x, without its noise."""
        return self.linear(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y: (B, *) -> (B, *shape). Here by differentiating `linear`."""
        with torch.enable_grad():
            x = torch.zeros(len(y), *self.shape, dtype=y.dtype, device=y.device, requires_grad=True)
            (out,) = torch.autograd.grad(self.linear(x), x, y)
        return out.detach()

    def gram(self, y: Tensor, f: Function) -> Tensor:
        """f(A A^T) y, with f of the eigenvalues of A A^T (a tensor of any shape).

        Raises:
            ValueError: the operator has no eigenvalues in closed form.
        """
        raise ValueError(f"{type(self).__name__} is not diagonalisable here: choose a method that needs no eigenvalues")

    @property
    def diagonalisable(self) -> bool:
        """Whether `gram` and `pinv` exist."""
        return type(self).gram is not Operator.gram

    @property
    def whole(self) -> bool:
        """Whether y is the sample itself, but for noise."""
        return False

    def pinv(self, y: Tensor) -> Tensor:
        """The pseudo-inverse A^+ y: of all x that explain y best, the one of least norm, (B, *shape)."""
        return self.adjoint(self.gram(y, reciprocal))

    def picture(self, y: Tensor) -> Tensor:
        """The measurement as a sample, to be looked at or to start from: A^+ y, or else A^T y."""
        return self.pinv(y) if self.diagonalisable else self.adjoint(y)

    def read(self, picture: Tensor) -> Tensor:
        """The measurement that a degraded picture is: itself, or what can be read off it (a JPEG's coefficients)."""
        return picture

    @cached_property
    def measured(self) -> tuple[int, ...]:
        """The shape of one measurement."""
        return tuple(self.linear(torch.zeros(1, *self.shape)).shape[1:])

    def check(self, y: Tensor) -> None:
        """Raise ValueError unless y (B, *) is a batch of finite measurements of this operator."""
        if tuple(y.shape[1:]) != self.measured:
            raise ValueError(
                f"the operator measures {self.measured} of a sample of {self.shape}, but y has {tuple(y.shape[1:])}"
            )
        if not bool(y.isfinite().all()):
            raise ValueError("the measurement has values that are not finite")

    def __matmul__(self, other: Operator) -> Chain:
        return Chain(self, other)


def reciprocal(values: Tensor) -> Tensor:
    """1 / values of eigenvalues of A A^T, and 0 for one that is none in the precision of its matrix."""
    none = values <= _NULL * values.max()
    return torch.where(none, 0.0, 1 / torch.where(none, 1.0, values))


class Chain(Operator):
    """`outer` after `inner`: A = A_outer A_inner."""

    def __init__(self, outer: Operator, inner: Operator) -> None:
        if outer.shape != inner.measured:
            raise ValueError(f"the outer operator takes {outer.shape}, but the inner one gives {inner.measured}")
        if inner.error:
            raise ValueError("an operator that rounds can only be the last one of a chain")
        self.outer, self.inner, self.shape, self.error = outer, inner, inner.shape, outer.error

    def linear(self, x: Tensor) -> Tensor:
        return self.outer.linear(self.inner.linear(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.outer.forward(self.inner.forward(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.inner.adjoint(self.outer.adjoint(y))

    def read(self, picture: Tensor) -> Tensor:
        return self.outer.read(picture)


class Mask(Operator):
    """The values where `known` is 1; the others are 0 in y.

    Args:
        known: 0 or 1, (*shape) or, for a mask of each sample, (B, *shape); sizes of 1 stand for all.
        shape: of a sample.

    Raises:
        ValueError: the sizes do not fit, or `known` holds other values.
    """

    def __init__(self, known: Tensor, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        known = torch.as_tensor(known)
        missing = len(self.shape) - known.ndim
        known = known.reshape(*[1] * max(missing, 0), *known.shape)
        if known.ndim == len(self.shape):
            known = known[None]
        fits = len(known.shape) == len(self.shape) + 1 and all(
            a in (1, b) for a, b in zip(known.shape[1:], self.shape, strict=True)
        )
        if not fits:
            raise ValueError(f"the mask has sizes {tuple(known.shape)}, but a sample has {self.shape}")
        if not bool(((known == 0) | (known == 1)).all()):
            raise ValueError("a mask holds 0 and 1")
        self.known = known.to(torch.bool)

    @property
    def whole(self) -> bool:
        return bool(self.known.all())

    def linear(self, x: Tensor) -> Tensor:
        return x * self.known.to(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return y * self.known.to(y)

    def gram(self, y: Tensor, f: Function) -> Tensor:
        eigenvalues = self.known.to(y)
        return y * torch.where(self.known.to(y.device), f(eigenvalues), 0.0)


def known_frames(frames: Sequence[int], shape: Sequence[int]) -> Mask:
    """The mask of a clip (C, F, H, W) whose `frames` are known; negative numbers count from the end.

    Raises:
        ValueError: the sample is no clip, or has no such frame.
    """
    if len(shape) != 4:
        raise ValueError(f"frames are those of a clip (C, F, H, W), not of samples of {tuple(shape)}")
    if any(not -shape[1] <= f < shape[1] for f in frames):
        raise ValueError(f"a clip of {shape[1]} frames has frames 0 to {shape[1] - 1}, got {list(frames)}")
    known = torch.zeros(1, shape[1], 1, 1)
    known[:, [int(f) for f in frames]] = 1
    return Mask(known, shape)


class Cut(Operator):
    """The rows and columns from (top, left) on, and of a clip some of the frames: a part of a sample.

    Args:
        top, left, height, width: of the part.
        shape: of a sample, (*, H, W).
        frames: the first of the part and their number, of clips (C, F, H, W); None for all.

    Raises:
        ValueError: the part is not inside.
    """

    def __init__(
        self,
        top: int,
        left: int,
        height: int,
        width: int,
        shape: Sequence[int],
        frames: tuple[int, int] | None = None,
    ) -> None:
        self.shape = tuple(shape)
        part = [(top, height, self.shape[-2]), (left, width, self.shape[-1])]
        if frames is not None:
            part.insert(0, (*frames, self.shape[-3]))
        if any(at < 0 or count < 1 or at + count > total for at, count, total in part):
            where = f"{height}x{width} pixels from ({top}, {left}) on"
            where += "" if frames is None else f" of {frames[1]} frames from {frames[0]} on"
            raise ValueError(f"{where} are no part of {self.shape}")
        self._index = (..., *(slice(at, at + count) for at, count, _ in part))
        self._around = [n for at, count, total in reversed(part) for n in (at, total - at - count)]

    def linear(self, x: Tensor) -> Tensor:
        return x[self._index]

    def adjoint(self, y: Tensor) -> Tensor:
        return F.pad(y, self._around)

    def gram(self, y: Tensor, f: Function) -> Tensor:
        return y * f(torch.ones_like(y))


class Stacked(Operator):
    """Two measurements of one sample; y is (B, M + N), their numbers one after the other.

    Args:
        first, second: linear operators on the same samples.
        gain: the second measurement counts so many times, as if its noise were so many times less.

    Raises:
        ValueError: they are of different samples, or one of them rounds.
    """

    def __init__(self, first: Operator, second: Operator, gain: float = 1.0) -> None:
        if first.shape != second.shape:
            raise ValueError(f"the operators are of samples {first.shape} and {second.shape}")
        if first.error or second.error:
            raise ValueError("an operator that rounds cannot be stacked")
        self.first, self.second, self.gain, self.shape = first, second, gain, first.shape

    def joined(self, first: Tensor, second: Tensor) -> Tensor:
        """y of the two measurements (B, *)."""
        return torch.cat([first.flatten(1), self.gain * second.flatten(1)], 1)

    def linear(self, x: Tensor) -> Tensor:
        return self.joined(self.first.linear(x), self.second.linear(x))

    def adjoint(self, y: Tensor) -> Tensor:
        count = math.prod(self.first.measured)
        a, b = y[:, :count], self.gain * y[:, count:]
        of_first = self.first.adjoint(a.reshape(-1, *self.first.measured))
        return of_first + self.second.adjoint(b.reshape(-1, *self.second.measured))


class Blur(Operator):
    """Convolution of each channel with a kernel, over the last two axes.

    Args:
        kernel: (h, w), of any values; its middle is at (h // 2, w // 2).
        shape: of a sample, (*, H, W).
        edge: how the picture goes on beyond its edges: "periodic", which is diagonalisable, or "replicate", the pixels
            at the edge again, as image programs have it.

    Raises:
        ValueError: the kernel is no finite matrix, or is larger than the picture; an unknown edge.
    """

    def __init__(self, kernel: Tensor, shape: Sequence[int], edge: str = "periodic") -> None:
        self.shape = tuple(shape)
        if edge not in ("periodic", "replicate"):
            raise ValueError(f"a picture goes on periodic or replicate, not {edge!r}")
        self.edge = edge
        kernel = torch.as_tensor(kernel).double()
        if kernel.ndim != 2 or not bool(kernel.isfinite().all()) or len(self.shape) < 2:
            raise ValueError(f"a kernel is a matrix of finite numbers over the last two axes, got {kernel.shape}")
        (h, w), (height, width) = kernel.shape, self.shape[-2:]
        if h > height or w > width:
            raise ValueError(f"the kernel, {h}x{w}, is larger than the picture, {height}x{width}")
        self.kernel = kernel
        padded = F.pad(kernel, (0, width - w, 0, height - h)).roll((-(h // 2), -(w // 2)), (0, 1))
        self.spectrum = torch.fft.rfft2(padded)

    @property
    def diagonalisable(self) -> bool:
        return self.edge == "periodic"

    def _filtered(self, x: Tensor, response: Tensor) -> Tensor:
        complex_ = torch.complex64 if x.dtype != torch.float64 else torch.complex128
        out = torch.fft.rfft2(x) * response.to(complex_).to(x.device)
        return torch.fft.irfft2(out, s=self.shape[-2:])

    def linear(self, x: Tensor) -> Tensor:
        if self.edge == "periodic":
            return self._filtered(x, self.spectrum)
        h, w = self.kernel.shape
        flat = x.reshape(-1, 1, *self.shape[-2:])
        beyond = (w - 1 - w // 2, w // 2, h - 1 - h // 2, h // 2)  # a convolution turns its kernel round
        out = F.conv2d(F.pad(flat, beyond, mode="replicate"), cast_like(self.kernel, x).flip(0, 1)[None, None])
        return out.reshape(x.shape)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._filtered(y, self.spectrum.conj()) if self.edge == "periodic" else super().adjoint(y)

    def gram(self, y: Tensor, f: Function) -> Tensor:
        if not self.diagonalisable:
            return super().gram(y, f)
        return self._filtered(y, f(self.spectrum.abs() ** 2))


class Resized(Operator):
    """D_h x D_w^T: a matrix on each of the last two axes, as of any smaller picture.

    Args:
        rows: D_h, (h, H).
        columns: D_w, (w, W).
        shape: of a sample, (*, H, W).
    """

    def __init__(self, rows: Tensor, columns: Tensor, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        if (rows.shape[1], columns.shape[1]) != self.shape[-2:]:
            raise ValueError(f"matrices of {tuple(rows.shape)}, {tuple(columns.shape)} do not act on {self.shape}")
        self.rows, self.columns = rows.double(), columns.double()
        (self._e, self._u), (self._g, self._v) = (torch.linalg.eigh(m @ m.mT) for m in (self.rows, self.columns))

    def linear(self, x: Tensor) -> Tensor:
        rows, columns = cast_like(self.rows, x), cast_like(self.columns, x)
        return rows @ x @ columns.mT

    def adjoint(self, y: Tensor) -> Tensor:
        rows, columns = cast_like(self.rows, y), cast_like(self.columns, y)
        return rows.mT @ y @ columns

    def gram(self, y: Tensor, f: Function) -> Tensor:
        u, v = cast_like(self._u, y), cast_like(self._v, y)
        eigenvalues = (self._e[:, None] * self._g).clamp(min=0).to(y.dtype).to(y.device)
        return u @ (f(eigenvalues) * (u.mT @ y @ v)) @ v.mT


def downsampling(factor: int, shape: Sequence[int], kind: str = "area") -> Resized:
    """A picture smaller by a whole factor: means over squares ("area"), or Pillow's antialiased "bicubic".

    Raises:
        ValueError: an unknown kind, or sides that the factor does not divide.
    """
    if kind not in ("area", "bicubic"):
        raise ValueError(f"pictures are made smaller by area or bicubic, not {kind!r}")
    height, width = shape[-2:]
    if factor < 1 or height % factor or width % factor:
        raise ValueError(f"{height}x{width} pixels cannot be divided by {factor}")
    return Resized(_smaller(height, factor, kind), _smaller(width, factor, kind), shape)


def _smaller(side: int, factor: int, kind: str) -> Tensor:
    """The matrix (side/factor, side) on one axis."""
    unit = torch.eye(side, dtype=torch.float64)[None, :, :, None]  # a row of the matrix a channel
    size = [side // factor, 1]
    if kind == "area":
        return F.interpolate(unit, size=size, mode="area")[0, :, :, 0].mT
    return F.interpolate(unit, size=size, mode="bicubic", antialias=True)[0, :, :, 0].mT


class Grey(Operator):
    """One channel for all: sum_c w_c x_c, by default the luma of Rec. 601, as Pillow's.

    Args:
        shape: of a sample, (C, *).
        weights: (C,).
    """

    def __init__(self, shape: Sequence[int], weights: Sequence[float] = (0.299, 0.587, 0.114)) -> None:
        self.shape = tuple(shape)
        if self.shape[0] != len(weights):
            raise ValueError(f"{len(weights)} weights do not fit samples of {self.shape[0]} channels")
        self.weights = torch.tensor(weights, dtype=torch.float64)

    def _weights(self, like: Tensor) -> Tensor:
        return cast_like(self.weights, like).reshape(-1, *[1] * (len(self.shape) - 1))

    def linear(self, x: Tensor) -> Tensor:
        return (self._weights(x) * x).sum(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._weights(y) * y

    def gram(self, y: Tensor, f: Function) -> Tensor:
        return y * f(self.weights.square().sum().to(y))


class Matrix(Operator):
    """A matrix (M, N), dense or sparse, on the flattened sample; y is (B, M).

    Args:
        matrix: (M, N), N the numbers of a sample.
        shape: of a sample.
    """

    def __init__(self, matrix: Tensor, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        if matrix.ndim != 2 or matrix.shape[1] != math.prod(self.shape):
            raise ValueError(f"a matrix on samples of {self.shape} has {math.prod(self.shape)} columns")
        self.matrix = matrix
        self._cast: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    def _on(self, x: Tensor) -> tuple[Tensor, Tensor]:
        key = x.dtype, x.device
        if key not in self._cast:
            matrix = self.matrix.to(x.dtype).to(x.device)
            self._cast[key] = matrix, matrix.t()
        return self._cast[key]

    def linear(self, x: Tensor) -> Tensor:
        return (self._on(x)[0] @ x.flatten(1).mT).mT

    def adjoint(self, y: Tensor) -> Tensor:
        return (self._on(y)[1] @ y.mT).mT.reshape(len(y), *self.shape)

    @property
    def diagonalisable(self) -> bool:
        return self.matrix.layout == torch.strided

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        matrix = self.matrix.double()
        return torch.linalg.eigh(matrix @ matrix.mT)

    def gram(self, y: Tensor, f: Function) -> Tensor:
        if not self.diagonalisable:
            return super().gram(y, f)
        values, vectors = (cast_like(each, y) for each in self._eigen)
        return (f(values.clamp(min=0)) * (y @ vectors)) @ vectors.mT


def sensing(measurements: int, shape: Sequence[int], seed: int = 0) -> Matrix:
    """Compressed sensing: a matrix of independent normal numbers of variance 1/N, (measurements, N)."""
    size = math.prod(shape)
    draw = torch.Generator().manual_seed(seed)
    return Matrix(torch.randn(measurements, size, generator=draw, dtype=torch.float64) / math.sqrt(size), shape)


def radon(angles: int, shape: Sequence[int]) -> Matrix:
    """Parallel projections of a picture (1, S, S) from `angles` directions over half a turn, as of a CT; sparse.

    Each pixel's value, divided by S, falls on the two nearest of the S detectors, in proportion to its distance.
    """
    side = shape[-1]
    if tuple(shape) != (1, side, side) or angles < 1:
        raise ValueError(f"projections are of one square channel, from 1 direction on: {tuple(shape)}, {angles}")
    at = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    turn = torch.arange(angles, dtype=torch.float64) * math.pi / angles
    place = (turn.cos()[:, None, None] * at + turn.sin()[:, None, None] * at[:, None]).flatten(1) + (side - 1) / 2
    low = place.floor()
    row, column, value = [], [], []
    for detector, weight in ((low, low + 1 - place), (low + 1, place - low)):
        inside = (detector >= 0) & (detector < side)
        view, pixel = inside.nonzero(as_tuple=True)
        row.append(view * side + detector[inside].long())
        column.append(pixel)
        value.append(weight[inside] / side)
    index = torch.stack([torch.cat(row), torch.cat(column)])
    return Matrix(torch.sparse_coo_tensor(index, torch.cat(value), (angles * side, side * side)).coalesce(), shape)

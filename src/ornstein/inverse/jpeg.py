"""JPEG as a measurement: rounded cosine coefficients, which are linear in the picture but for the rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ornstein.inverse.operators import Function, Operator
from ornstein.noise.covariance import cast_like

__all__ = ["JPEG"]

_SIDE = 8

# Table K.1 of ITU-T T.81 (1992), luminance, and K.2, chrominance, row by row.
_LUMA = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_CHROMA = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99, *[99] * 32,
)  # fmt: skip

# Rec. 601 as in JFIF: rows Y, Cb, Cr of R, G, B.
_COLOURS = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


class JPEG(Operator):
    """The coefficients of a JPEG of `quality`, without chroma subsampling: y = round(DCT(x) / table).

    `linear` leaves the rounding out; its error is uniform, of standard deviation 1/sqrt(12) in these units.

    Args:
        quality: 1 to 100, as of libjpeg.
        shape: of a sample, (1 or 3, H, W), with sides that 8 divides.

    Raises:
        ValueError: another quality or shape.
    """

    error = 1 / math.sqrt(12)

    def __init__(self, quality: int, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        if not 1 <= quality <= 100:
            raise ValueError(f"the quality of a JPEG is a number from 1 to 100, got {quality}")
        if len(self.shape) != 3 or self.shape[0] not in (1, 3) or self.shape[1] % _SIDE or self.shape[2] % _SIDE:
            raise ValueError(f"a JPEG is of 1 or 3 channels with sides that {_SIDE} divides, not {self.shape}")
        scale = 50 / quality if quality < 50 else 2 - quality / 50
        tables = torch.tensor([_LUMA, _CHROMA, _CHROMA][: self.shape[0]], dtype=torch.float64)
        tables = (tables * scale).add(0.5).floor().clamp(1, 255)
        self.table = tables.reshape(-1, _SIDE, _SIDE)[:, None, :, None, :] / 127.5  # samples span 2, pixels 255
        k = torch.arange(_SIDE, dtype=torch.float64)
        self.cosines = torch.cos((2 * k + 1) * k[:, None] * math.pi / (2 * _SIDE)) / 2
        self.cosines[0] /= math.sqrt(2)
        # one colour is its own luma
        self.colours = torch.tensor(_COLOURS if self.shape[0] == 3 else ((1.0,),), dtype=torch.float64)

    def _blocks(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/8, 8, W/8, 8)."""
        rows, columns = self.shape[1] // _SIDE, self.shape[2] // _SIDE
        return x.reshape(len(x), self.shape[0], rows, _SIDE, columns, _SIDE)

    def linear(self, x: Tensor) -> Tensor:
        cosines, table, colours = (cast_like(v, x) for v in (self.cosines, self.table, self.colours))
        planes = self._blocks(torch.einsum("dc,bchw->bdhw", colours, x))
        planes = torch.einsum("iu,jv,bcrusv->bcrisj", cosines, cosines, planes)
        return (planes / table).reshape(x.shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).round()

    def read(self, picture: Tensor) -> Tensor:
        return self.forward(picture)

    def _back(self, y: Tensor, colours: Tensor, power: int) -> Tensor:
        cosines, table, colours = (cast_like(v, y) for v in (self.cosines, self.table, colours))
        planes = self._blocks(y) * table**power
        planes = torch.einsum("iu,jv,bcrisj->bcrusv", cosines, cosines, planes)
        return torch.einsum("cd,bdhw->bchw", colours, planes.reshape(y.shape))

    def adjoint(self, y: Tensor) -> Tensor:
        return self._back(y, self.colours.mT, -1)

    @property
    def diagonalisable(self) -> bool:
        return self.shape[0] == 1

    def gram(self, y: Tensor, f: Function) -> Tensor:
        if not self.diagonalisable:
            return super().gram(y, f)
        return (self._blocks(y) * f(cast_like(self.table, y) ** -2)).reshape(y.shape)

    def pinv(self, y: Tensor) -> Tensor:
        """The inverse: the picture that a viewer shows, with values that may lie outside [-1, 1]."""
        return self._back(y, torch.linalg.inv(self.colours), 1)

    def picture(self, y: Tensor) -> Tensor:
        return self.pinv(y)

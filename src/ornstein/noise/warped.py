"""Noise that is carried by the motion of one clip: white in each frame, correlated along the optical flow."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.noise.covariance import POWERS, Covariance, Operation, SingularCovarianceError, check_floor, white

__all__ = ["Warped", "inflow", "moved"]

_FINEST = 4  # cells a side of a pixel
_EXACT = 1024  # numbers of a clip up to which the root of any C is computed by eigenvectors
_DENSE = 4096  # up to which the determinant is
_ROUNDING = 1e-9  # pixels: a centre on a border of pixels must not fall to either side by chance
_TOLERANCE = 1e-5  # of a function of C by a polynomial


@dataclass(frozen=True)
class _Pieces:
    """z = weights @ w: the noise of a clip (F H W) from white numbers w of the pieces, and the transpose."""

    weights: Tensor
    transposed: Tensor

    @property
    def count(self) -> int:
        return self.weights.shape[1]


@dataclass(frozen=True, eq=False)
class Warped(Covariance):
    """The covariance of one clip, (B, *, F, H, W), whose noise moves with its content (E40).

    White noise W lies on the plane of the first frame and is carried by the flow. The noise of pixel p in frame k is
    |B|^(-1/2) times the integral of W over B, the part of the plane that the flow carries into p. So every frame is
    exactly white in space, and C of pixel p in frame k and pixel q in frame l is |B_kp & B_lq| / sqrt(|B_kp| |B_lq|).
    A pixel that nothing is carried into (a disocclusion) gets fresh noise, which moves on from there. Where the flow
    folds, the parts are united: they count by their areas.

    The plane is divided into cells, up to 4 x 4 a pixel, which move as wholes; cells with one path are one piece. The
    cells are as fine as a clip has numbers for, so that R is square and sparse: longer clips resolve smaller motion.
    One product takes O(pixels) time. C is singular unless `degrade` > 0.

    Args:
        flow: (F - 1, 2, H, W) in pixels, (dx, dy): what is at (x, y) in frame k is at (x + dx, y + dy) in frame k + 1.
        degrade: the share gamma of independent white noise; C becomes ((1 - gamma)^2 C + gamma^2 I) / ((1 - gamma)^2 +
            gamma^2). Operations then take polynomials of C.

    Raises:
        ValueError: a flow of another shape or that is not finite; degrade outside [0, 1).

    Source: Chang et al. 2024, "How I Warped Your Noise" (ICLR); Burgert et al. 2025, "Go-with-the-Flow"
    (arXiv:2501.08331), for `degrade`.
    """

    flow: Tensor | Sequence[object]
    degrade: float = 0.0

    def __post_init__(self) -> None:
        flow = torch.as_tensor(self.flow, dtype=torch.float64, device="cpu").detach()
        if flow.ndim != 4 or flow.shape[1] != 2 or 0 in flow.shape[2:]:
            raise ValueError(f"a flow is (F - 1, 2, H, W), (dx, dy) in pixels; got shape {tuple(flow.shape)}")
        if not bool(flow.isfinite().all()):
            raise ValueError("the flow has values that are not finite")
        if not 0 <= self.degrade < 1:
            raise ValueError(f"degrade is a share of white noise in [0, 1), got {self.degrade}")
        object.__setattr__(self, "flow", flow)

    @property
    def frame(self) -> tuple[int, int, int]:
        """(F, H, W)."""
        between, _, height, width = torch.as_tensor(self.flow).shape
        return between + 1, height, width

    @property
    def share(self) -> float:
        """g of C = (1 - g) C_warped + g I."""
        kept, mixed = (1 - self.degrade) ** 2, self.degrade**2
        return mixed / (kept + mixed)

    def _pieces(self) -> _Pieces:
        if "_found" not in self.__dict__:
            with torch.inference_mode(False):
                weights = _weights(torch.as_tensor(self.flow), finest=_FINEST if self._small else None)
                object.__setattr__(self, "_found", _Pieces(weights, _csr(weights.mT)))
        return self.__dict__["_found"]

    @property
    def _small(self) -> bool:
        return math.prod(self.frame) <= _EXACT

    def _operate(self, operation: Operation, x: Tensor) -> Tensor:
        if x.ndim < 4 or tuple(x.shape[-3:]) != self.frame:
            raise ValueError(f"{self} acts on the last three axes, (B, *, F, H, W); got shape {tuple(x.shape)}")
        if not self.degrade and operation in ("whiten", "solve"):
            raise SingularCovarianceError(self)
        work = x if x.dtype in (torch.float32, torch.float64) else x.float()
        columns = work.reshape(-1, math.prod(self.frame)).mT
        return self._columns(operation, columns).mT.reshape(x.shape).to(x.dtype)

    def _columns(self, operation: Operation, x: Tensor) -> Tensor:
        """`operation` on the columns of x (F H W, n)."""
        pieces = self._cast("pieces", self._pieces, x)
        if operation == "color" and not self.degrade:
            if self._small:
                return self._cast("root", self._root, x) @ x
            return pieces.weights @ x[: pieces.count].contiguous()
        g = self.share

        def warped(x: Tensor) -> Tensor:
            return pieces.weights @ (pieces.transposed @ x.contiguous())

        if operation == "matvec":
            return (1 - g) * warped(x) + g * x
        # each frame is white: no eigenvalue of the warped covariance is above F
        return _power(lambda x: (1 - g) * warped(x) + g * x, POWERS[operation], g, g + (1 - g) * self.frame[0], x)

    def _root(self) -> Tensor:
        weights = self._pieces().weights.to_dense()
        vectors, values, _ = torch.linalg.svd(weights, full_matrices=False)
        return F.pad(vectors * values, (0, max(0, len(weights) - len(values))))

    def sample(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        shape = tuple(shape)
        if len(shape) < 4 or shape[-3:] != self.frame:
            raise ValueError(f"{self} acts on the last three axes, (B, *, F, H, W); got shape {shape}")
        # No numbers are drawn that no piece takes; and a sum needs no root of C.
        z = white((self._pieces().count, math.prod(shape[:-3])), generator, dtype, device)
        x = (self._cast("pieces", self._pieces, z).weights @ z).mT.reshape(shape)
        if not self.degrade:
            return x
        g = self.share
        return math.sqrt(1 - g) * x + math.sqrt(g) * white(shape, generator, dtype, device)

    def logdet(self, sample_shape: Sequence[int]) -> float:
        shape = tuple(sample_shape)
        if shape[-3:] != self.frame:
            raise ValueError(f"{self} acts on samples (*, F, H, W), got a sample of {shape}")
        if not self.degrade:
            raise SingularCovarianceError(self)
        n = math.prod(self.frame)
        if n > _DENSE:
            raise ValueError(f"{self} has no fast determinant: it is computed for clips of up to {_DENSE} numbers")
        return math.prod(shape[:-3]) * float(torch.linalg.slogdet(self.dense())[1])

    def dense(self) -> Tensor:
        """The matrix over (F, H, W) flattened, float64, (F H W, F H W)."""
        weights = self._pieces().weights.to_dense()
        g = self.share
        return (1 - g) * weights @ weights.mT + g * torch.eye(len(weights), dtype=torch.float64)

    def floored(self, g: float) -> Covariance:
        """(1 - g) C + g I, again Warped, with a larger `degrade`."""
        check_floor(g)
        share = self.share + g - self.share * g
        if share == 1:
            raise ValueError("a floor of 1 leaves white noise: use Identity")
        ratio = math.sqrt(share / (1 - share))
        return Warped(self.flow, ratio / (1 + ratio))

    def __repr__(self) -> str:
        frames, height, width = self.frame
        degrade = f", degrade={self.degrade:g}" if self.degrade else ""
        return f"Warped({frames}x{height}x{width}{degrade})"


def _weights(flow: Tensor, finest: int | None) -> Tensor:
    """The noise (F H W) from the white numbers of its pieces: sparse, rows of unit norm.

    Args:
        flow: (F - 1, 2, H, W) float64.
        finest: cells a side of a pixel; None: as many, up to 4, as keep the pieces from outnumbering the clip.
    """
    frames, (height, width) = len(flow) + 1, flow.shape[2:]
    if finest:
        path, areas = _merged(_paths(flow, finest, True), height * width)
    else:
        path, areas = _finest_that_fits(flow)
    piece, frame = (path >= 0).nonzero().unbind(1)
    row = frame * height * width + path[piece, frame]
    area = areas[piece]
    whole = torch.zeros(frames * height * width, dtype=torch.float64).index_add_(0, row, area)
    values = (area / whole[row]).sqrt()
    size = (frames * height * width, len(path))
    return _csr(torch.sparse_coo_tensor(torch.stack([row, piece]), values, size, check_invariants=False))


def _finest_that_fits(flow: Tensor) -> tuple[Tensor, Tensor]:
    """The pieces, as `_merged`, of the smallest cells that give no more pieces than a clip has numbers."""
    (height, width), frames = flow.shape[2:], len(flow) + 1
    # Cells of a whole pixel, with no noise outside, always fit: no frame has more new pieces than pixels.
    best = _merged(_paths(flow, 1, False), height * width)
    first = len(best[0])
    for cells in range(2, _FINEST + 1):
        grown = math.log(len(best[0]) / first) / math.log(cells - 1) if cells > 2 else 0.0
        if first * cells**grown > frames * height * width:
            break
        for margin in (True, False):
            finer = _merged(_paths(flow, cells, margin), height * width)
            if len(finer[0]) <= frames * height * width:
                best = finer
                break
        else:
            break
    return best


def _paths(flow: Tensor, cells: int, margin: bool) -> Tensor:
    """The pixel that each cell is in at each frame, (M, F) int64, -1 outside; cells that are never inside are left out.

    Args:
        flow: (F - 1, 2, H, W).
        cells: a pixel has cells x cells of them.
        margin: whether noise lies outside the first frame too, and moves in as the flow at the border says.
    """
    columns: list[Tensor] = []
    for _, pixel, fresh in moved(flow[None], cells, inflow(flow) if margin else (0, 0, 0, 0)):
        columns = [F.pad(column, (0, fresh), value=-1) for column in columns] if columns else []
        columns.append(pixel)
    paths = torch.stack(columns, 1)
    return paths[(paths >= 0).any(1)]


def moved(flow: Tensor, cells: int, margin: tuple[int, ...]) -> Iterator[tuple[Tensor, Tensor, int]]:
    """The cells of several clips, frame by frame: whose they are (M,), the pixel they are in (M,), how many are new.

    New ones come last; they fill the pixels that no cell is carried into.

    Args:
        flow: (B, F - 1, 2, H, W).
        cells: a pixel has cells x cells of them.
        margin: rows and columns of pixels around the first frame that have cells too: top, bottom, left, right.
    """
    (height, width), batch, device = flow.shape[3:], len(flow), flow.device
    top, bottom, left, right = margin
    down, along = _centres(-top, height + bottom, cells), _centres(-left, width + right, cells)
    at = torch.cartesian_prod(down, along).to(device, flow.dtype).repeat(batch, 1)
    offsets = torch.cartesian_prod(_centres(0, 1, cells), _centres(0, 1, cells)).to(at)
    sample = torch.arange(batch, device=device).repeat_interleave(len(at) // batch)
    before = 0
    for k in range(flow.shape[1] + 1):
        if k:
            at = at + _at(flow[:, k - 1], sample, at)
        pixel = _pixel(at, height, width)
        inside = pixel >= 0
        there = torch.zeros(batch * height * width, dtype=torch.bool, device=device)
        there[sample[inside] * (height * width) + pixel[inside]] = True
        empty = (~there).nonzero()[:, 0]  # nothing is carried here: fresh noise
        place = empty % (height * width)
        fresh = torch.stack([place // width, place % width], 1)[:, None] + offsets
        at = torch.cat([at, fresh.reshape(-1, 2)])
        sample = torch.cat([sample, (empty // (height * width)).repeat_interleave(len(offsets))])
        pixel = torch.cat([pixel, place.repeat_interleave(len(offsets))])
        yield sample, pixel, len(pixel) - before
        before = len(pixel)


def inflow(flow: Tensor) -> tuple[int, ...]:
    """How many rows and columns from outside may move in: (top, bottom, left, right); flow (*, 2, H, W)."""
    height, width = flow.shape[2:]
    border = torch.ones(height, width, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    dx, dy = flow[:, :, border].unbind(1)
    reach = [float(part.amax(1).clamp(min=0).sum()) for part in (dy, -dy, dx, -dx)]
    return tuple(min(math.ceil(r), side) for r, side in zip(reach, (height, height, width, width), strict=True))


def _centres(low: int, high: int, cells: int) -> Tensor:
    """The centres of the cells of pixels low..high-1, whose own centres are the whole numbers; float64."""
    return low - 0.5 + (torch.arange((high - low) * cells, dtype=torch.float64) + 0.5) / cells


def _at(flow: Tensor, sample: Tensor, at: Tensor) -> Tensor:
    """The flows (B, 2, H, W) of (dx, dy) of samples (M,) at places (M, 2) of (y, x), as (M, 2) of (dy, dx).

    It is bilinear between pixels, but for a jump of more than a pixel, where the plane tears: there it is the nearest.
    Outside it is constant.
    """
    height, width = flow.shape[2:]
    inner = at.clamp(min=0).minimum(at.new_tensor([height - 1, width - 1]))
    low = inner.floor()
    share = inner - low
    y, x = low.long().unbind(1)
    below, beside = (y + 1).clamp(max=height - 1), (x + 1).clamp(max=width - 1)
    rows = flow.permute(0, 2, 3, 1).reshape(-1, 2)  # a place a row
    first = sample * (height * width)
    corners = [rows[first + r * width + c] for r, c in ((y, x), (y, beside), (below, x), (below, beside))]
    v, u = share[:, :1], share[:, 1:]
    read = (1 - v) * ((1 - u) * corners[0] + u * corners[1]) + v * ((1 - u) * corners[2] + u * corners[3])
    together = torch.stack(corners)
    torn = (together.amax(0) - together.amin(0)).amax(1) > 1 + 1e-6
    near = (at[torn] + 0.5 + _ROUNDING).floor().long()
    nearest = near[:, 0].clamp(0, height - 1) * width + near[:, 1].clamp(0, width - 1)
    read[torn] = rows[first[torn] + nearest]
    return read.flip(1)


def _pixel(at: Tensor, height: int, width: int) -> Tensor:
    """The pixels at places (M, 2), -1 outside, int64 (M,)."""
    y, x = (at + 0.5 + _ROUNDING).floor().long().unbind(1)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return torch.where(inside, y * width + x, -1)


def _merged(paths: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
    """The different paths (N, F) of cells (M, F), and how many cells each has, float64 (N,)."""
    label = torch.zeros(len(paths), dtype=torch.int64)
    for column in paths.unbind(1):
        label = torch.unique(label * (pixels + 1) + column + 1, return_inverse=True)[1]
    count = torch.bincount(label)
    first = torch.empty(len(count), dtype=torch.int64)
    first[label] = torch.arange(len(paths))
    return paths[first], count.double()


def _power(product: Callable[[Tensor], Tensor], power: float, low: float, high: float, x: Tensor) -> Tensor:
    """C^power x for a symmetric C with eigenvalues in [low, high], by a Chebyshev series; `product` is x -> C x."""
    root = math.sqrt(high / low)
    # The error of the series falls by (root - 1) / (root + 1) a term (Trefethen 2013, theorem 8.2).
    terms = math.ceil(math.log(_TOLERANCE) / math.log((root - 1) / (root + 1))) if root > 1 else 0
    middle, half = (high + low) / 2, (high - low) / 2
    angles = math.pi * (torch.arange(terms + 1, dtype=torch.float64) + 0.5) / (terms + 1)
    series = (torch.outer(torch.arange(terms + 1), angles).cos() @ (middle + half * angles.cos()) ** power).tolist()
    series = [factor * 2 / (terms + 1) for factor in series]
    before, now = torch.zeros_like(x), x
    total = series[0] / 2 * x
    for i, factor in enumerate(series[1:]):
        after = (product(now) - middle * now) / half
        before, now = now, after if i == 0 else 2 * after - before
        total = total + factor * now
    return total


def _csr(matrix: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse", UserWarning)  # of its beta state
        return matrix.to_sparse_csr()

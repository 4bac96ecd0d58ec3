"""The shape of a face: the points of its mesh, another face turned like it, and a picture moved from one to the other.

Points are (x, y, z) in pixels of a crop: the 468 of `mesh.Mesh` and the middles of the irises, `POINTS` in all.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.faces.align import Similarity
from ornstein.faces.mesh import FIVE, PARTS, mesh
from ornstein.faces.nets.placement import spots, still, thin_plate

__all__ = [
    "CONTOURS",
    "MIRROR",
    "POINTS",
    "aligned",
    "angle_between",
    "contours",
    "moved_face",
    "onto",
    "pinned",
    "shape_in",
    "shape_of",
    "steadied",
    "turned",
    "unfolded",
]

POINTS = 470
CONTOURS = ("eyes", "brows", "lips", "mouth", "irises")
"""What `contours` draws, a channel each."""
_LIDS = (159, 386)  # whose depth the irises have
_IRISES = (468, 469)
# Between the parts: the bridge, tip and wings of the nose, the cheeks, the forehead.
_BETWEEN = (1, 2, 4, 5, 6, 9, 50, 98, 151, 168, 197, 205, 280, 327, 425)
_CONTROLS = tuple(
    sorted({*_BETWEEN, *_IRISES, *(point for polygons in PARTS.values() for each in polygons for point in each[::2])})
)
_TREMOR, _FOLLOWS = 0.006, 0.15  # of the side of a crop; of what is slower
_MOUTH = tuple({point for part in ("lips", "mouth") for point in PARTS[part][0]})
# A thin plate with this stiffness goes through its points within a hundredth of a pixel; 32 cells a side follow lids.
_STIFF, _CELLS = 1e-3, 32
_STIFFEST, _HALVES = 1e3, 10  # a plate that is nearly affine, and halvings of the interval between the two
# Which point each one is in a mirror: the assignment of least distance between the mean of a hundred meshes and its
# mirrored self. It is its own inverse.
MIRROR = (
    0, 1, 2, 248, 4, 5, 6, 249, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 250, 251, 252, 253, 254, 255, 256,
    257, 258, 259, 260, 261, 262, 263, 264, 265, 266, 267, 268, 269, 270, 271, 272, 273, 274, 275, 276, 277, 278,
    279, 280, 281, 282, 283, 284, 285, 286, 287, 288, 289, 290, 291, 292, 293, 294, 295, 296, 297, 298, 299, 300,
    301, 302, 303, 304, 305, 306, 307, 308, 309, 310, 311, 312, 313, 314, 315, 316, 317, 318, 319, 320, 321, 322,
    323, 94, 324, 325, 326, 327, 328, 329, 330, 331, 332, 333, 334, 335, 336, 337, 338, 339, 340, 341, 342, 343,
    344, 345, 346, 347, 348, 349, 350, 351, 352, 353, 354, 355, 356, 357, 358, 359, 360, 361, 362, 363, 364, 365,
    366, 367, 368, 369, 370, 371, 372, 373, 374, 375, 376, 377, 378, 379, 151, 152, 380, 381, 382, 383, 384, 385,
    386, 387, 388, 389, 390, 164, 391, 392, 393, 168, 394, 395, 396, 397, 398, 399, 175, 400, 401, 402, 403, 404,
    405, 406, 407, 408, 409, 410, 411, 412, 413, 414, 415, 416, 417, 418, 195, 419, 197, 420, 199, 200, 421, 422,
    423, 424, 425, 426, 427, 428, 429, 430, 431, 432, 433, 434, 435, 436, 437, 438, 439, 440, 441, 442, 443, 444,
    445, 446, 447, 448, 449, 450, 451, 452, 453, 454, 455, 456, 457, 458, 459, 460, 461, 462, 463, 464, 465, 466,
    467, 3, 7, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44,
    45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70, 71, 72,
    73, 74, 75, 76, 77, 78, 79, 80, 81, 82, 83, 84, 85, 86, 87, 88, 89, 90, 91, 92, 93, 95, 96, 97, 98, 99, 100,
    101, 102, 103, 104, 105, 106, 107, 108, 109, 110, 111, 112, 113, 114, 115, 116, 117, 118, 119, 120, 121, 122,
    123, 124, 125, 126, 127, 128, 129, 130, 131, 132, 133, 134, 135, 136, 137, 138, 139, 140, 141, 142, 143, 144,
    145, 146, 147, 148, 149, 150, 153, 154, 155, 156, 157, 158, 159, 160, 161, 162, 163, 165, 166, 167, 169, 170,
    171, 172, 173, 174, 176, 177, 178, 179, 180, 181, 182, 183, 184, 185, 186, 187, 188, 189, 190, 191, 192, 193,
    194, 196, 198, 201, 202, 203, 204, 205, 206, 207, 208, 209, 210, 211, 212, 213, 214, 215, 216, 217, 218, 219,
    220, 221, 222, 223, 224, 225, 226, 227, 228, 229, 230, 231, 232, 233, 234, 235, 236, 237, 238, 239, 240, 241,
    242, 243, 244, 245, 246, 247, 469, 468,
)  # fmt: skip


def shape_of(images: Tensor, landmarks: Tensor) -> Tensor:
    """The points (N, POINTS, 3) of faces.

    Args:
        images: (N, 3, H, W) in [0, 255].
        landmarks: (N, K, 2) in their pixels, the five of `align` first.
    """
    seen = mesh(images, landmarks)
    flat = torch.cat([seen.points, seen.irises], 1)
    return torch.cat([flat, torch.cat([seen.depth, seen.depth[:, _LIDS]], 1)[..., None]], 2)


def shape_in(image: Tensor, landmarks: Tensor, transform: Similarity) -> Tensor:
    """The points (POINTS, 3) of one face of a picture (3, H, W), in the pixels of the crop that `transform` makes.

    landmarks: (5, 2), in pixels of the picture.
    """
    points = shape_of(image[None], landmarks[None])[0].double()
    return torch.cat([transform(points[:, :2]), transform.scale * points[:, 2:]], 1).float()


def turned(source: Tensor, target: Tensor) -> Tensor:
    """The points of `source` (B, N, 3), moved, scaled and rotated by the least-squares similarity onto `target`.

    Source: Umeyama 1991 (IEEE PAMI 13(4)), the similarity of two sets of points in space.
    """
    p, q = source.double(), target.double()
    mean_p, mean_q = p.mean(1, keepdim=True), q.mean(1, keepdim=True)
    rotation, scale = _turn(p - mean_p, q - mean_q)
    return (scale[:, None, None] * ((p - mean_p) @ rotation) + mean_q).to(source)


def angle_between(source: Tensor, target: Tensor) -> Tensor:
    """By how many degrees, (B,), the points `source` (B, N, 3) are turned in space against `target`, about any axis.

    The angle of the rotation R of `turned`: acos((trace R - 1) / 2).
    """
    p, q = (each.double() - each.double().mean(1, keepdim=True) for each in (source, target))
    rotation, _ = _turn(p, q)
    trace = rotation.diagonal(dim1=1, dim2=2).sum(1)
    return torch.rad2deg(torch.acos(((trace - 1) / 2).clamp(-1, 1)))


def _turn(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """The rotation (B, 3, 3) of points as rows, and the scale (B,), that take p nearest to q: (B, N, 3), centred."""
    u, spread, v = torch.linalg.svd(p.mT @ q)
    sign = torch.ones_like(spread)
    sign[:, -1] = torch.det(u @ v).sign()  # a rotation, never a reflection
    scale = (spread * sign).sum(1) / p.square().sum((1, 2)).clamp(min=1e-9)
    return u @ torch.diag_embed(sign) @ v, scale


def aligned(source: Tensor, target: Tensor) -> Tensor:
    """The points of `source` (B, N, 3) moved, scaled and turned in the picture, by least squares onto `target`."""
    p, q = (torch.view_as_complex(each[..., :2].double().contiguous()) for each in (source, target))
    p, mean = p - p.mean(1, keepdim=True), q.mean(1, keepdim=True)
    turn = (p.conj() * (q - mean)).sum(1, keepdim=True) / p.abs().square().sum(1, keepdim=True).clamp(min=1e-9)
    return torch.cat(
        [torch.view_as_real(turn * p + mean).to(source), turn.abs()[..., None].to(source) * source[..., 2:]], 2
    )


def onto(source: Tensor, target: Tensor, own: float) -> Tensor:
    """Where the points of the source lie in the swap, (B, N, 3): in the target's pose and place.

    The source's own shape is half way between its points as they are and those turned in space like the target's head:
    the depth of a mesh is a guess. The mouth takes half the share: it tells more of the moment than other parts.

    Args:
        source, target: (B, N, 3).
        own: share of the source's own shape; 0 is the target's shape and expression.
    """
    shape = (turned(source, target) + aligned(source, target)) / 2
    share = own * source.new_ones(source.shape[1], 1)
    share[[point for point in _MOUTH if point < len(share)]] = own / 2
    return torch.lerp(target, shape, share)


def pinned(points: Tensor, landmarks: Tensor) -> Tensor:
    """The points (B, POINTS, 3) and, behind them, the five landmarks of `align` (B, 5, 2), which a detector found."""
    return torch.cat([points, F.pad(landmarks[:, : len(FIVE)], (0, 1))], 1)


def steadied(points: Tensor, before: Tensor | None, size: int) -> Tensor:
    """The points (F, N, 3) of a face in consecutive frames without the tremor of a mesh that is found anew in each.

    A point that moved by m follows by the share a + (1 - a) m^2 / (m^2 + s^2) of it, where s is `_TREMOR` of the crop
    and a is `_FOLLOWS`: what is faster than the tremor passes, and no point lags behind by much more than s.

    Args:
        points: in pixels of crops of `size`.
        before: (N, 3), the steadied points of the frame before; None at the beginning of a track.
        size: side of the crops.
    """
    out, last = [], before
    for each in points:
        if last is not None:
            moved = each - last
            square = moved[:, :2].square().sum(1, keepdim=True)
            each = last + (_FOLLOWS + (1 - _FOLLOWS) * square / (square + (_TREMOR * size) ** 2)) * moved
        out.append(each)
        last = each
    return torch.stack(out)


def moved_face(picture: Tensor, points: Tensor, there: Tensor, within: Tensor | None = None) -> Tensor:
    """A picture (B, C, H, W) moved so that its `points` (B, POINTS, 3) or more come to lie `there`, by a thin plate.

    within: (B, 1, H, W), where it must not fold: see `unfolded`.
    """
    size = picture.shape[-1]
    some = [*_CONTROLS, *range(POINTS, points.shape[1])]
    one, two = ((2 * each[:, some, :2].to(picture) + 1) / size - 1 for each in (points, there))
    grid = thin_plate(one, two, size, _STIFF, min(_CELLS, size))
    if within is not None:
        grid = unfolded(grid, one, two, within.to(picture.device))
    return F.grid_sample(picture, grid, align_corners=False)


def unfolded(grid: Tensor, points: Tensor, there: Tensor, within: Tensor) -> Tensor:
    """A thin plate without a fold: the least stiff one, from `grid` to the affine map by least squares.

    A map folds where the determinant of its finite differences is not positive, forwards or backwards along either
    axis. A stiffer plate leads the points nearer to where their affine map would, small bends first. The stiffness is
    found by bisection of its logarithm. A map that does not fold is returned to the bit.

    Args:
        grid: (B, H, W, 2), where each pixel is sampled: the plate of `moved_face`.
        points, there: (B, K, 2), the points of the plate, in the units of the grid.
        within: (B, 1, H, W), not 0 where there must be no fold.
    """
    cells = F.max_pool2d((within > 0).float(), 2, 1)[:, 0] > 0
    folds = _folds(grid, cells)
    if not bool(folds.any()):
        return grid
    p, q, cells, size = points[folds], there[folds], cells[folds], grid.shape[1]
    best = _affine(p, q, size)
    low, high = (best.new_full((len(best), 1, 1), math.log10(each)) for each in (_STIFF, _STIFFEST))
    for _ in range(_HALVES):
        middle = (low + high) / 2
        plate = thin_plate(p, q, size, 10**middle, min(_CELLS, size))
        bad = _folds(plate, cells)[:, None, None]
        best = torch.where(bad[..., None], best, plate)
        low, high = torch.where(bad, middle, low), torch.where(bad, high, middle)
    out = grid.clone()
    out[folds] = best
    return out


def _affine(points: Tensor, there: Tensor, size: int) -> Tensor:
    """The affine map from `there` to `points`, (B, K, 2), by least squares, as a grid (B, `size`, `size`, 2).

    Where it would mirror, or is none, the points are moved alone.
    """
    mean_p, mean_q = points.mean(1, keepdim=True), there.mean(1, keepdim=True)
    q, unit = there - mean_q, torch.eye(2).to(there)
    linear = torch.linalg.solve(q.mT @ q + 1e-6 * unit, q.mT @ (points - mean_p))
    linear = torch.where((torch.det(linear) > 0.01)[:, None, None], linear, unit)
    return (still(size, there.device) - mean_q[:, None]) @ linear[:, None] + mean_p[:, None]


def _folds(grid: Tensor, cells: Tensor) -> Tensor:
    """Which maps (B, H, W, 2) fold in one of their `cells` (B, H-1, W-1): (B,)."""
    along, down = grid.diff(dim=2), grid.diff(dim=1)
    least = torch.stack([
        x[..., 0] * y[..., 1] - x[..., 1] * y[..., 0]
        for x in (along[:, :-1], along[:, 1:])
        for y in (down[:, :, :-1], down[:, :, 1:])
    ]).amin(0)  # fmt: skip
    return ((least <= 0) & cells).any(2).any(1)


def contours(points: Tensor, size: int) -> Tensor:
    """Spots along the parts of a face, one channel for each of `CONTOURS`: (B, 5, `size`, `size`) in [0, 1].

    Args:
        points: (B, POINTS, 3).
        size: side of the picture in pixels.
    """
    drawn = [[point for polygon in PARTS[name] for point in polygon] for name in CONTOURS[:-1]]
    return torch.cat([spots(points[:, some, :2], size, 1 / 64) for some in (*drawn, list(_IRISES))], 1)

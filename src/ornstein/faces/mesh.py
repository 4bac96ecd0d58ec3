"""The mesh of a face: 468 landmarks and the irises, by MediaPipe's networks; its expression, and masks of its parts.

Points are (x, y) in pixels of the picture, as in `align`. "Left" and "right" are the picture's.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.faces.align import Similarity, alignment, warp
from ornstein.faces.tflite import TFLite

__all__ = ["EXPRESSION", "FIVE", "PARTS", "Mesh", "expression", "mesh", "part_masks"]

_FACE, _IRIS = (Path(__file__).parent / "weights" / f"{name}_landmark.tflite" for name in ("face", "iris"))
FIVE = (263, 362, 33, 133, 2)
"""The points of the mesh that are the five landmarks of `align`, in its order."""
_POINTS, _OUTLINE = 468, 71
_LEFT_EYE, _RIGHT_EYE = (33, 133), (263, 362)  # outer and inner corner
_ROOM, _EYE_ROOM = 1.5, 2.3  # of the box of the landmarks, and of an eye: the side of the square that a network reads
_OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150,
    136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
PARTS: dict[str, tuple[tuple[int, ...], ...]] = {
    "face": (_OVAL,),
    "lips": (
        (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185),
    ),
    "mouth": ((78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191),),
    "eyes": (
        (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246),
        (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466),
    ),
    "brows": (
        (46, 53, 52, 65, 55, 107, 66, 105, 63, 70),
        (276, 283, 282, 295, 285, 336, 296, 334, 293, 300),
    ),
}  # fmt: skip
"""The outlines of the parts of a face: polygons of points of the mesh. The mouth is what the lips enclose."""
EXPRESSION = (
    "mouth_open", "mouth_wide", "mouth_left", "mouth_right", "brow_left", "brow_right", "lid_left", "lid_right",
    "gaze_x", "gaze_y",
)  # fmt: skip
"""The numbers of an `expression`, in their order."""


@dataclass(frozen=True)
class Mesh:
    """points: float32 (N, 468, 2). irises: (N, 2, 2), their middles, left and right. score: (N,), that it is a face.

    depth: (N, 468), in the units of the points, larger further away.
    """

    points: Tensor
    irises: Tensor
    score: Tensor
    depth: Tensor

    @property
    def five(self) -> Tensor:
        """The five landmarks of `align`, (N, 5, 2)."""
        return self.points[:, FIVE]


def mesh(images: Tensor, landmarks: Tensor) -> Mesh:
    """The meshes of faces, one of each picture.

    The network reads an upright square around the face: first along the landmarks, then around its own first answer.

    Args:
        images: (N, 3, H, W) in [0, 255].
        landmarks: (N, K, 2) in their pixels, the five of `align` first.

    Source: Kartynnik et al. 2019 (arXiv:1907.06724), the mesh; Ablavatski et al. 2020 (arXiv:2006.11341), the irises.
    """
    rows = [_mesh(image, points) for image, points in zip(images.cpu().float(), landmarks.cpu(), strict=True)]
    if not rows:
        return Mesh(torch.empty(0, _POINTS, 2), torch.empty(0, 2, 2), torch.empty(0), torch.empty(0, _POINTS))
    return Mesh(*(torch.stack(part) for part in zip(*rows, strict=True)))


def _mesh(image: Tensor, five: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    net = _network(_FACE)
    side = net.size[0]
    look = alignment(five[:5], side)
    points, _, _ = _seen(net, image, look)
    look = _square(points, points[_LEFT_EYE[0]], points[_RIGHT_EYE[0]], _ROOM, side)
    points, depth, score = _seen(net, image, look)
    irises = [_iris(image, points[list(eye)], mirrored) for eye, mirrored in ((_LEFT_EYE, False), (_RIGHT_EYE, True))]
    return points.float(), torch.stack(irises).float(), score, depth.float()


def _seen(net: TFLite, image: Tensor, look: Similarity) -> tuple[Tensor, Tensor, Tensor]:
    """The points (468, 2) in the picture and their depth, float64, and the score, of the square that `look` cuts."""
    side = net.size[0]
    points, score = net(warp(image, look, (side, side)).clamp(0, 255)[None] / 255)
    if points.numel() < score.numel():
        points, score = score, points
    points = points.reshape(_POINTS, 3).double()
    return look.inverse()(points[:, :2] - 0.5), points[:, 2] / look.scale, score.flatten()[0].sigmoid()


def _iris(image: Tensor, corners: Tensor, mirrored: bool) -> Tensor:
    """The middle of an iris (2,) by the corners of its eye: outer and inner. The network knows eyes on the left."""
    net = _network(_IRIS)
    side = net.size[0]
    left, right = (corners[1], corners[0]) if mirrored else (corners[0], corners[1])
    look = _square(corners, left, right, _EYE_ROOM, side)
    patch = warp(image, look, (side, side)).clamp(0, 255)[None] / 255
    outputs = net(patch.flip(3) if mirrored else patch)
    iris = min(outputs, key=Tensor.numel).reshape(-1, 3)[0, :2].double() - 0.5
    if mirrored:
        iris = torch.stack([side - 1 - iris[0], iris[1]])
    return look.inverse()(iris[None])[0]


def _square(points: Tensor, left: Tensor, right: Tensor, room: float, side: int) -> Similarity:
    """To the square of `side` pixels about `points` (K, 2), upright on the line from `left` to `right`."""
    across = complex(*(right - left).tolist())
    turn = Similarity(across.conjugate() / max(abs(across), 1e-9), 0)
    there = turn(points)
    low, high = there.amin(0), there.amax(0)
    middle = complex(*((low + high) / 2).tolist())
    scale = side / (room * max(float((high - low).max()), 1e-6))
    return turn.then(Similarity(scale, complex(side - 1, side - 1) / 2 - scale * middle))


@lru_cache(maxsize=2)
def _network(path: Path) -> TFLite:
    return TFLite.load(path)


def expression(found: Mesh) -> Tensor:
    """What a face does, (N, 10), in units of the distance between the outer corners of the eyes: see `EXPRESSION`.

    In the frame of the eyes, x along their line and y down it: how far the mouth is open and how wide it is, how high
    its corners are above its middle, how far the brows are above the eyes, how far the lids are open, and where the
    irises are between the corners of their eyes. The head's turn and whose face it is enter only through shapes: an
    error of the expression of a swap includes that the source's mouth is wider.
    """
    points = found.points
    left, right = points[:, _LEFT_EYE[0]], points[:, _RIGHT_EYE[0]]
    across = right - left
    unit = across.norm(dim=1, keepdim=True).clamp_min(1e-6)
    axis = across / unit
    down = torch.stack([-axis[:, 1], axis[:, 0]], 1)

    def y(at: Tensor) -> Tensor:
        return ((at - left) * down).sum(1) / unit[:, 0]

    def p(index: int) -> Tensor:
        return points[:, index]

    def between(a: int, b: int) -> Tensor:
        return (p(a) - p(b)).norm(dim=1) / unit[:, 0]

    lips = (y(p(13)) + y(p(14))) / 2
    eyes = [points[:, list(eye)].mean(1) for eye in (_LEFT_EYE, _RIGHT_EYE)]
    gaze = torch.stack([found.irises[:, i] - eye for i, eye in enumerate(eyes)]).mean(0) / unit
    return torch.stack(
        [
            between(13, 14),
            between(61, 291),
            lips - y(p(61)),
            lips - y(p(291)),
            y(p(159)) - y(p(105)),
            y(p(386)) - y(p(334)),
            between(159, 145),
            between(386, 374),
            (gaze * axis).sum(1),
            (gaze * down).sum(1),
        ],
        1,
    )


def part_masks(points: Tensor, size: int, parts: Collection[str]) -> Tensor:
    """Which pixels belong to one of the parts, (N, 1, size, size) in [0, 1]; edges are antialiased.

    Args:
        points: (N, 468, 2) in pixels of pictures of `size`.
        size: side of the masks.
        parts: some of `PARTS`; "skin" is the face without eyes, brows, lips and mouth.

    Raises:
        ValueError: an unknown part.
    """
    if wrong := set(parts) - {*PARTS, "skin"}:
        raise ValueError(f"unknown parts of a face: {', '.join(sorted(wrong))}")
    out = points.new_zeros(len(points), 1, size, size)
    for name in sorted(parts):
        if name != "skin":
            out = torch.maximum(out, _filled(points, size, name))
            continue
        features = torch.stack([_filled(points, size, each) for each in ("eyes", "brows", "lips", "mouth")]).amax(0)
        out = torch.maximum(out, (_filled(points, size, "face") - features).clamp_min(0))
    return out


def _filled(points: Tensor, size: int, part: str, fine: int = 3) -> Tensor:
    """The inside of the polygons of a part by the even-odd rule, of `fine` x `fine` samples a pixel."""
    along = (torch.arange(size * fine, device=points.device) + 0.5) / fine - 0.5
    y, x = torch.meshgrid(along, along, indexing="ij")
    total = points.new_zeros(len(points), size * fine, size * fine)
    for polygon in PARTS[part]:
        inside = torch.zeros_like(total, dtype=torch.bool)
        corners = points[:, list(polygon), :, None, None]
        for a, b in zip(corners.unbind(1), corners.roll(-1, 1).unbind(1), strict=True):
            crosses = (a[:, 1] > y) != (b[:, 1] > y)
            rise = b[:, 1] - a[:, 1]
            at = a[:, 0] + (y - a[:, 1]) * (b[:, 0] - a[:, 0]) / torch.where(rise == 0, 1, rise)
            inside ^= crosses & (x < at)
        total = torch.maximum(total, inside.to(total))
    return F.avg_pool2d(total[:, None], fine)

"""A second face detector: MediaPipe's BlazeFace for faces up to five metres away, run by PyTorch. Apache 2.0.

It sees turned faces and faces from a twentieth of the picture up in one look of a fiftieth of a second; parts of a
large picture are looked at for smaller ones, and turned pictures for faces that lie.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.faces.align import TEMPLATE, Similarity, warp
from ornstein.faces.detect import Detector, Face, merged
from ornstein.faces.mesh import mesh
from ornstein.faces.tflite import TFLite

__all__ = ["BlazeDetector"]

_FILE = Path(__file__).parent / "weights" / "face_detection_full_range.tflite"
_STRIDE = 4  # pixels of the network's picture between two of its anchors
_SEEN = 0.06  # of a look's side: the smallest face that one look finds
_OVERLAP = 0.25  # of a part's side that it shares with the next one
_AT_ONCE = 8  # looks that go through the network together
_MOST = 36  # parts of a picture, at most
_TURNS, _DIAGONALS = (0.0, 90.0, 180.0, 270.0), (45.0, 135.0, 225.0, 315.0)
_OFF = 0.3  # of the eyes' distance: a landmark model that puts them further away saw no face
# The mesh has a score of 1.0 for each face of 24 photos of LFW, and at most 0.16 for what is none: coins, cups, stars.
_MESH, _TOO_SMALL = 0.2, 24  # pixels: of smaller faces it has not been measured
# Where the eyes, the tip of the nose and the mouth are in an aligned crop, in shares of the side: the means over LFW.
_PLACES = ((0.36, 0.42), (0.64, 0.42), (0.5, 0.58), (0.5, 0.745))


class BlazeDetector:
    """BlazeFace, with dlib's model of five landmarks on what it finds; its own points where that fails.

    Args:
        threshold: the least score, a probability.
        smallest: side in pixels of the smallest faces that are looked for.
        thorough: look at the parts of the picture and at the turned picture. Without: one look at the upright picture,
            for frames of a video.

    Bazarevsky et al., "BlazeFace: Sub-millisecond Neural Face Detection on Mobile GPUs", arXiv:1907.05047.
    """

    def __init__(self, threshold: float = 0.6, smallest: int = 16, thorough: bool = True) -> None:
        self.threshold, self.smallest, self.thorough = threshold, smallest, thorough
        self._net = _network()
        self._dlib = Detector(threshold=0.0, thorough=False)

    def __call__(self, image: Tensor) -> list[Face]:
        """The faces of a picture uint8 (3, H, W), best score first; an empty list if there is none."""
        found: dict[Face, Tensor] = {}
        looks = list(self._looks(*image.shape[1:]))
        side = self._net.size[0]
        levels = [image.float()]
        for low in range(0, len(looks), _AT_ONCE):
            part = looks[low : low + _AT_ONCE]
            patches = torch.stack([_patch(levels, look, side) for look in part]).clamp(0, 255)
            boxes, scores = self._net(patches / 127.5 - 1)
            for look, box, score in zip(part, boxes, scores[..., 0].sigmoid(), strict=True):
                found |= self._faces(look, box, score)
        # dlib's landmarks are a fifth of the time: once a face, not once a look that sees it
        faces = [self._landmarks(image, face, found[face]) for face in merged(list(found))]
        return merged([face for face in faces if face.side < _TOO_SMALL or self._has_mesh(image, face)])

    def _has_mesh(self, image: Tensor, face: Face) -> bool:
        """Whether the mesh's network, at what the landmarks cut out, sees a face there too."""
        return float(mesh(image[None], face.landmarks[None]).score[0]) > _MESH

    def _looks(self, height: int, width: int) -> Iterator[Similarity]:
        """From the picture to the square that the network reads: the whole, turned, and its parts."""
        side = self._net.size[0]
        longest, middle = max(height, width), complex(width - 1, height - 1) / 2
        centre = complex(side - 1, side - 1) / 2
        for degrees in _TURNS if self.thorough else (0.0,):
            yield Similarity.about(middle, centre, side / longest, degrees)
        if not self.thorough:
            return
        for degrees in _DIAGONALS:
            yield Similarity.about(middle, centre, side / math.hypot(height, width), degrees)
        # ever smaller squares, until the smallest face is large enough in one
        square, used = longest / 2, 0
        while square * _SEEN > self.smallest / 2 and square >= side / 2:
            rows, columns = (max(1, math.ceil((n / square - _OVERLAP) / (1 - _OVERLAP))) for n in (height, width))
            used += rows * columns
            if used > _MOST:
                return
            for row in range(rows):
                for column in range(columns):
                    y, x = (
                        square / 2 + (n - square) * (k / (count - 1) if count > 1 else 0.5) - 0.5
                        if n > square
                        else (n - 1) / 2
                        for n, k, count in ((height, row, rows), (width, column, columns))
                    )
                    yield Similarity.about(complex(x, y), centre, side / square, 0)
            square /= 2

    def _faces(self, look: Similarity, boxes: Tensor, scores: Tensor) -> dict[Face, Tensor]:
        """The faces of one look: boxes (N, 16) relative to the anchors, scores (N,). With its points (4, 2) each."""
        anchors = _anchors(self._net.size[0])
        faces: dict[Face, Tensor] = {}
        taken = torch.zeros_like(scores, dtype=torch.bool)
        for i in scores.argsort(descending=True).tolist():
            if float(scores[i]) < self.threshold:
                break
            if taken[i]:
                continue
            near = (boxes[:, :2] + anchors - boxes[i, :2] - anchors[i]).norm(dim=1) < 0.5 * float(boxes[i, 2])
            near &= scores >= self.threshold
            taken |= near
            # the mean over the anchors that saw it, by their scores: Bazarevsky et al., section 4
            weight = (scores * near)[:, None]
            points = boxes.unflatten(1, (8, 2))[:, 2:6] + anchors[:, None]
            mean = ((points * weight[..., None]).sum(0) / weight.sum()).double() - 0.5
            points = look.inverse()(mean)
            unit = Similarity.fit(points, torch.tensor(_PLACES, dtype=torch.float64))
            own = unit.inverse()(torch.tensor(TEMPLATE, dtype=torch.float64))
            faces[Face(own, float(scores[i]))] = points
        return faces

    def _landmarks(self, image: Tensor, face: Face, points: Tensor) -> Face:
        """The face with dlib's landmarks, where these lie by the eyes; `points` (4, 2): its eyes, nose and mouth."""
        five = self._dlib.five(image, face.landmarks)
        eyes = torch.stack([five[2:4].mean(0), five[0:2].mean(0)])
        apart = float((points[0] - points[1]).norm())
        near = float((eyes - points[:2]).norm(dim=1).max()) < _OFF * max(apart, 0.5 * _eyes(face.landmarks))
        return Face(five, face.score) if near else face


def _patch(levels: list[Tensor], look: Similarity, side: int) -> Tensor:
    """What a look sees, from the picture halved as often as leaves enough of it; `levels` are those made so far."""
    halved = max(int(-math.log2(look.scale)), 0)
    while len(levels) <= halved:
        levels.append(F.avg_pool2d(levels[-1][None], 2, ceil_mode=True, count_include_pad=False)[0])
    times = 2**halved
    return warp(levels[halved], Similarity(times, complex(times - 1, times - 1) / 2).then(look), (side, side), "zero")


def _eyes(five: Tensor) -> float:
    return float((five[0:2].mean(0) - five[2:4].mean(0)).norm())


@lru_cache(maxsize=1)
def _network() -> TFLite:
    return TFLite.load(_FILE)


@lru_cache(maxsize=1)
def _anchors(side: int) -> Tensor:
    """The middles (N, 2), x then y, of the cells that the network's answers belong to, in pixels."""
    along = (torch.arange(side // _STRIDE) + 0.5) * _STRIDE
    y, x = torch.meshgrid(along, along, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)

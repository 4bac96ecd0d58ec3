"""The faces of a video's frames, found at any roll and size at a bounded cost."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.faces.align import Similarity, alignment, warp
from ornstein.faces.detect import Face, FaceDetector

__all__ = ["Looker"]

_PATCH, _FACE = 300, 100  # pixels: the surroundings of a face, and the face in them, when it is looked for again
_BOX = 0.705  # of an aligned crop's side: the face's box
_MOST_NEAR = 8  # faces a frame that are looked for where they were
_NEAR = 0.5  # of a face's box: what is found further away is another face
# Frames between two full looks: after one that a lost face or a cut asks for, the next must wait.
_WAIT_LOST, _WAIT_CUT = 25, 5
_THUMB, _CUT = 32, 30.0  # a picture of so many pixels a side that differs by so many levels on average is another shot


class Looker:
    """Finds the faces of consecutive frames.

    A full look (all sizes, all rolls) is made when `fresh` is asked for, after a cut, and when a face is lost; never
    within 5 frames of the last one after a cut, or 25 after a loss. In the other frames there is a quick look, for
    upright faces of a usual size; and each face of the frame before that it does not see is looked for in its
    surroundings, turned upright and scaled. What is found depends on the frames since the last fresh one alone.

    `cut`: whether the last frame begins another shot.

    Args:
        quick: the detector of every frame.
        full: the detector of full looks; the same as `quick`: then there are no looks of any other kind.
    """

    def __init__(self, quick: FaceDetector, full: FaceDetector) -> None:
        self._quick, self._full = quick, full
        self._faces: list[Face] = []
        self._thumb: Tensor | None = None
        self._since = 0
        self.cut = False

    def __call__(self, image: Tensor, fresh: bool = False) -> list[Face]:
        """The faces of a frame uint8 (3, H, W). `fresh`: forget the frames before."""
        thumb = F.adaptive_avg_pool2d(image.float().mean(0, keepdim=True)[None], _THUMB)
        before, self._since = self._thumb, self._since + 1
        self.cut = before is not None and float((thumb - before).abs().mean()) > _CUT
        self._thumb = thumb
        if self._quick is self._full:
            return self._quick(image)
        if fresh or before is None or (self.cut and self._since >= _WAIT_CUT):
            return self._looked(image)
        faces = self._quick(image)
        missing = [face for face in self._faces if not _is_among(face, faces)]
        for face in missing[:_MOST_NEAR]:
            again = self._near(image, face)
            if again is not None and not _is_among(again, faces):
                faces.append(again)
        if self._since >= _WAIT_LOST and any(not _is_among(face, faces) for face in missing):
            return self._looked(image)
        self._faces = faces
        return faces

    def _looked(self, image: Tensor) -> list[Face]:
        self._since = 0
        self._faces = self._full(image)
        return self._faces

    def _near(self, image: Tensor, face: Face) -> Face | None:
        """The face that is now where this one was."""
        aligned = alignment(face.landmarks, round(_FACE / _BOX))
        centre = aligned.a * complex(*face.centre) + aligned.b
        move = Similarity(1, complex(_PATCH - 1, _PATCH - 1) / 2 - centre)
        to_patch = aligned.then(move)
        patch = warp(image, to_patch, (_PATCH, _PATCH)).round().clamp(0, 255).to(torch.uint8)
        back = to_patch.inverse()
        candidates = [Face(back(each.landmarks), each.score) for each in self._quick(patch)]
        near = [each for each in candidates if _is_among(face, [each])]
        return min(near, key=lambda each: math.dist(each.centre, face.centre), default=None)


def _is_among(face: Face, others: list[Face]) -> bool:
    """Whether one of the others is at the place of this face."""
    return any(math.dist(face.centre, other.centre) < _NEAR * max(face.side, other.side) for other in others)

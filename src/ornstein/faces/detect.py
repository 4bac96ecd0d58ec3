"""Face detection: places and five landmarks of faces at any roll, small, large or cut by the border."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from ornstein.errors import UserError
from ornstein.extras import require
from ornstein.faces.align import Similarity, alignment, warp
from ornstein.faces.models import LANDMARKS_5, LANDMARKS_68, model_path, to_dlib

__all__ = [
    "LONGEST",
    "DenseLandmarks",
    "Detector",
    "Face",
    "FaceDetector",
    "find_faces",
    "largest",
    "merged",
    "nearest",
    "subject",
]

# dlib's detector sees faces from 80 pixels up. Pictures with longer sides than these are reduced: for looks at
# multiples of 90 degrees, at those of 45, and for the last one, which enlarges four times. In all they read at most 28
# megapixels.
LONGEST, LONGEST_DIAGONAL, LONGEST_ENLARGED = 1600, 1200, 3200
_WINDOW = 80
_RIM = 0.1  # rows added around the picture when looking again, so that faces cut by its border fit into the window
_OVERLAP = 0.5  # two detections are of one face if their boxes share this part of the smaller one

# dlib's box in an aligned crop, in shares of the side: the landmark model was trained to start from it. (The mean over
# LFW's faces; the standard deviation is 0.07 of the side.)
_BOX_CENTRE, _BOX_SIDE = (0.5, 0.562), 0.705
_PATCH = 256
# The landmark model answers in whole pixels and jumps as its box moves: the mean over boxes shifted by this share of
# their side, on an upright patch, lowers its error under motion to 0.5% of the eye distance, from 1.8%.
_JITTER = 0.03


@dataclass(frozen=True, eq=False)
class Face:
    """One face. landmarks: float64 (5, 2), (x, y) in pixels of the picture, in the order of `align`. score: no unit."""

    landmarks: Tensor
    score: float

    def _crop(self) -> Similarity:
        return alignment(self.landmarks, 1)

    @property
    def side(self) -> float:
        """The side of the face's box, brows to chin, in pixels."""
        return _BOX_SIDE / self._crop().scale

    @property
    def centre(self) -> tuple[float, float]:
        """The middle of the face's box, (x, y) in pixels."""
        point = torch.tensor(_BOX_CENTRE, dtype=torch.float64) - 0.5
        x, y = self._crop().inverse()(point).tolist()
        return x, y

    @property
    def roll(self) -> float:
        """Degrees by which the face is turned clockwise in the picture, in (-180, 180]."""
        a = self._crop().inverse().a
        return math.degrees(math.atan2(a.imag, a.real))


class FaceDetector(Protocol):
    """A face detector: dlib's `Detector`, or another one in `adapters`."""

    def __call__(self, image: Tensor) -> list[Face]:
        """The faces of a picture uint8 (3, H, W), best score first."""
        ...


class Detector:
    """dlib's frontal detector (histograms of oriented gradients) and its model of five landmarks, both CC0.

    The first look is at the upright picture. Later ones enlarge it twice and add a rim, turn it by multiples of 45
    degrees, and enlarge it four times, within fixed limits of size. The detector must confirm what a later look finds
    in its aligned crop. Detections that overlap are one face: the best score wins.

    Args:
        threshold: the least score. 0.5 keeps nearly all real faces and few others.
        smallest: the side in pixels of the smallest faces that the first look finds.
        thorough: make the later looks. Without them only upright faces are found; that is for frames of a video.
        all_looks: make all looks, so that a large upright face does not hide small, turned or lying ones. Without it
            the detector stops after the first look that finds a face: for photographs of one person each.

    Raises:
        ValueError: `smallest` is below 1.

    King, "Max-Margin Object Detection", arXiv:1502.00046; Kazemi and Sullivan, "One Millisecond Face Alignment with an
    Ensemble of Regression Trees", CVPR 2014.
    """

    def __init__(
        self, threshold: float = 0.5, smallest: int = _WINDOW, thorough: bool = True, all_looks: bool = True
    ) -> None:
        if smallest < 1:
            raise ValueError(f"smallest is the side of a face in pixels, not {smallest}")
        self.threshold = threshold
        self.smallest = smallest
        self.thorough = thorough
        self.all_looks = all_looks
        dlib = require("dlib", "faces", "a face")
        self._dlib = dlib
        self._landmarks = _landmark_model(dlib, model_path(LANDMARKS_5))

    def __call__(self, image: Tensor) -> list[Face]:
        """The faces of a picture uint8 (3, H, W), best score first; an empty list if there is none."""
        faces: list[Face] = []
        for number, looks in enumerate(self._looks(max(image.shape[1:]))):
            for zoom, degrees, rim in looks:
                for score, placed in self._look(image, zoom, degrees, rim):
                    face = Face(self._five(image, placed), score)
                    if number == 0 or self._confirmed(image, face):
                        faces.append(face)
            if faces and not self.all_looks:
                break
        return merged(faces)

    def _looks(self, longest: int) -> Iterator[list[tuple[float, float, float]]]:
        """Groups of looks (zoom, degrees, rim) at a picture whose longer side is `longest` pixels, in their order."""
        first = _WINDOW / self.smallest

        def zoom(times: int, limit: int) -> float:
            return min(times * first, limit / longest)

        yield [(zoom(1, LONGEST), 0, 0)]
        if not self.thorough:
            return
        yield [(zoom(2, LONGEST), 0, _RIM)]
        yield [(zoom(2, LONGEST), degrees, _RIM) for degrees in (90, 180, 270)]
        # a picture on its corner has room around its sides
        yield [(zoom(2, LONGEST_DIAGONAL), degrees, 0) for degrees in (45, 135, 225, 315)]
        yield [(zoom(4, LONGEST_ENLARGED), 0, 0)]

    def _confirmed(self, image: Tensor, face: Face) -> bool:
        """Whether the detector finds the face again in the crop that its landmarks align: false ones vanish there."""
        side = _BOX_SIDE * _PATCH
        middle = [part * _PATCH for part in _BOX_CENTRE]
        patch = to_dlib(warp(image, alignment(face.landmarks, _PATCH), (_PATCH, _PATCH)))
        boxes, _, _ = _frontal(self._dlib).run(patch, 0, self.threshold)
        expected = (middle[0] - side / 2, middle[1] - side / 2, side)
        return any(_overlap((box.left(), box.top(), box.width()), expected) > _OVERLAP for box in boxes)

    def _look(self, image: Tensor, zoom: float, degrees: float, rim: float) -> list[tuple[float, Similarity]]:
        """Detections: (score, the transform from the picture to a patch in which the face is upright)."""
        height, width = image.shape[1:]
        look = Similarity(1, 0)
        canvas = image
        if (zoom, degrees, rim) != (1, 0, 0):
            cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
            wide = math.ceil(zoom * (width * cos + height * sin) * (1 + 2 * rim))
            high = math.ceil(zoom * (width * sin + height * cos) * (1 + 2 * rim))
            middle = complex(width - 1, height - 1) / 2
            look = Similarity.about(middle, complex(wide - 1, high - 1) / 2, zoom, degrees)
            canvas = warp(image, look, (high, wide))
        boxes, scores, _ = _frontal(self._dlib).run(to_dlib(canvas), 0, self.threshold)
        found = []
        for box, score in zip(boxes, scores, strict=True):
            centre = complex(box.left() + box.right(), box.top() + box.bottom()) / 2
            place = complex(*_BOX_CENTRE) * _PATCH - (0.5 + 0.5j)
            placed = Similarity.about(centre, place, _BOX_SIDE * _PATCH / box.width(), 0)
            found.append((float(score), look.then(placed)))
        return found

    def five(self, image: Tensor, about: Tensor) -> Tensor:
        """The landmarks (5, 2) of the face near the points `about` (5, 2) of the picture."""
        return self._five(image, alignment(about, _PATCH))

    def _five(self, image: Tensor, placed: Similarity) -> Tensor:
        first = self._predict(image, placed, (0.0,))
        return self._predict(image, alignment(first, _PATCH), (0.0, _JITTER))

    def _predict(self, image: Tensor, placed: Similarity, shifts: Sequence[float]) -> Tensor:
        patch = to_dlib(warp(image, placed, (_PATCH, _PATCH)))
        return placed.inverse()(_mean_points(self._dlib, self._landmarks, patch, shifts))


class DenseLandmarks:
    """The 68 landmarks of a face (jaw, brows, nose, eyes, mouth), for outlines finer than five points give.

    NOT FOR COMMERCIAL USE: the model was trained on iBUG 300-W, whose licence excludes it; nothing here loads the model
    unless this class is asked for. Sagonas et al., "300 Faces In-The-Wild Challenge", 2016.
    """

    licence = "iBUG 300-W: research only, no commercial use"

    def __init__(self) -> None:
        self._dlib = require("dlib", "faces", "a face")
        self._landmarks = self._dlib.shape_predictor(model_path(LANDMARKS_68))

    def __call__(self, image: Tensor, face: Face) -> Tensor:
        """The landmarks of one face of the picture uint8 (3, H, W): float64 (68, 2), (x, y) in pixels."""
        placed = alignment(face.landmarks, _PATCH)
        patch = to_dlib(warp(image, placed, (_PATCH, _PATCH)))
        return placed.inverse()(_mean_points(self._dlib, self._landmarks, patch, (0.0, _JITTER)))


def merged(faces: Sequence[Face]) -> list[Face]:
    """The faces without those that overlap one of a better score, best score first."""
    kept: list[tuple[Face, tuple[float, float, float]]] = []
    for face in sorted(faces, key=lambda face: -face.score):
        (x, y), side = face.centre, face.side
        box = (x - side / 2, y - side / 2, side)
        if all(_overlap(box, other) <= _OVERLAP for _, other in kept):
            kept.append((face, box))
    return [face for face, _ in kept]


def _overlap(a: tuple[float, float, float], b: tuple[float, float, float]) -> float:
    """The area that two squares (left, top, side) share, as a part of the smaller one."""
    across, along = (max(min(a[i] + a[2], b[i] + b[2]) - max(a[i], b[i]), 0.0) for i in (0, 1))
    return across * along / min(a[2], b[2]) ** 2


@lru_cache(maxsize=1)
def _frontal(dlib: Any) -> Any:
    """dlib's detector: it takes 0.7 s to make, has no state, and is not needed for the landmarks."""
    return dlib.get_frontal_face_detector()


@lru_cache(maxsize=1)
def _landmark_model(dlib: Any, path: str) -> Any:
    return dlib.shape_predictor(path)


def _mean_points(dlib: Any, model: Any, patch: Any, shifts: Sequence[float]) -> Tensor:
    """The model's landmarks on an aligned patch, (K, 2): the mean over boxes moved by the shifts, each way."""
    side = _BOX_SIDE * _PATCH
    moves = {(sign * shift, 0.0) for shift in shifts for sign in (-1, 1)}
    moves |= {(0.0, sign * shift) for shift in shifts for sign in (-1, 1)}
    answers = []
    for dx, dy in sorted(moves):
        left = round((_BOX_CENTRE[0] + dx * _BOX_SIDE) * _PATCH - side / 2)
        top = round((_BOX_CENTRE[1] + dy * _BOX_SIDE) * _PATCH - side / 2)
        box = dlib.rectangle(left, top, left + round(side) - 1, top + round(side) - 1)
        answers.append([(point.x, point.y) for point in model(patch, box).parts()])
    return torch.tensor(answers, dtype=torch.float64).mean(0)


def find_faces(detector: FaceDetector, image: Tensor, name: str) -> list[Face]:
    """The faces of a picture uint8 (3, H, W), best score first; UserError, naming the file, if there is none."""
    faces = detector(image)
    if not faces:
        height, width = image.shape[1:]
        raise UserError(
            f"no face found in {name} ({width}x{height} pixels): give a photo in which one is seen from the front"
        )
    return faces


def largest(faces: Sequence[Face]) -> Face:
    """The face with the largest box."""
    return max(faces, key=lambda face: face.side)


def subject(faces: Sequence[Face], image: Tensor) -> Face:
    """The main subject: the face with the largest side minus its distance from the picture's middle."""
    height, width = image.shape[1:]
    middle = ((width - 1) / 2, (height - 1) / 2)
    return max(faces, key=lambda face: face.side - math.dist(face.centre, middle))


def nearest(embeddings: Tensor, reference: Tensor) -> tuple[int, float]:
    """The index of the embedding (N, D) that is nearest to the reference (D,), and its Euclidean distance."""
    distances = torch.linalg.vector_norm(embeddings - reference, dim=1)
    index = int(distances.argmin())
    return index, float(distances[index])

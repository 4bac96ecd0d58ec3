"""Face recognition: dlib's embeddings of 128 numbers, near for one person and far for two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ornstein.extras import require
from ornstein.faces.detect import Face
from ornstein.faces.dlib_net import CHIP, dlib_net
from ornstein.faces.models import to_dlib

__all__ = ["SAME_PERSON", "FaceRecogniser", "Recogniser"]

SAME_PERSON = 0.6
"""Faces nearer than this are of one person by dlib's own calibration (99.4% on LFW's pairs)."""

_PADDING = 0.25


class FaceRecogniser(Protocol):
    """A face recogniser: dlib's `Recogniser`, or another one in `adapters`."""

    dimension: int

    def __call__(self, image: Tensor, faces: Sequence[Face]) -> Tensor:
        """The embeddings float32 (N, dimension) of faces of one picture uint8 (3, H, W)."""
        ...


class Recogniser:
    """dlib's residual network of 29 layers (CC0): 128 numbers of norm about 1.4, one person within 0.6.

    dlib cuts the crops, and PyTorch runs the network: the same numbers in a tenth of the time.

    King, "High Quality Face Recognition with Deep Metric Learning", 2017.
    """

    dimension = 128

    def __init__(self) -> None:
        self._dlib = require("dlib", "faces", "a face")
        self._net = dlib_net()

    def chips(self, image: Tensor, faces: Sequence[Face]) -> list[np.ndarray]:
        """The aligned crops that the network reads, cut by dlib itself: uint8 (150, 150, 3) for each face."""
        pixels = to_dlib(image)
        chips = []
        for face in faces:
            points = [self._dlib.point(round(x), round(y)) for x, y in face.landmarks.tolist()]
            (x, y), half = face.centre, face.side / 2
            box = self._dlib.rectangle(round(x - half), round(y - half), round(x + half), round(y + half))
            placed = self._dlib.full_object_detection(box, points)
            chips.append(self._dlib.get_face_chip(pixels, placed, CHIP, _PADDING))
        return chips

    def embed(self, chips: Sequence[np.ndarray]) -> Tensor:
        """The embeddings float32 (N, 128) of `chips`, which may be of several pictures."""
        if not chips:
            return torch.empty(0, self.dimension)
        # one by one, so that an embedding has the same bits in any batch and on any number of processes
        each = (torch.from_numpy(chip)[None].permute(0, 3, 1, 2).float() for chip in chips)
        with torch.no_grad():
            return torch.cat([self._net(chip) for chip in each])

    def __call__(self, image: Tensor, faces: Sequence[Face]) -> Tensor:
        """The embeddings float32 (N, 128) of faces of one picture uint8 (3, H, W)."""
        return self.embed(self.chips(image, faces))

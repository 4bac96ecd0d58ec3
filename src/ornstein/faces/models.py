"""dlib and the model files of the extra `faces`, looked up when they are used."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from torch import Tensor

from ornstein.errors import UserError
from ornstein.extras import install, require

__all__ = ["LANDMARKS_5", "LANDMARKS_68", "RECOGNITION", "model_path", "require_models", "to_dlib"]

LANDMARKS_5 = "shape_predictor_5_face_landmarks.dat"
LANDMARKS_68 = "shape_predictor_68_face_landmarks.dat"
RECOGNITION = "dlib_face_recognition_resnet_model_v1.dat"


def model_path(file: str) -> str:
    """The path of a model file of face-recognition-models.

    It is found without importing that package, which needs pkg_resources. Raises UserError if it is missing.
    """
    spec = importlib.util.find_spec("face_recognition_models")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / "models" / file
        if path.is_file():
            return str(path)
    raise UserError(f"{file} of face-recognition-models is not installed: {install('faces')}")


def require_models(*files: str) -> None:
    """Raises UserError, naming the extra to install, unless dlib and the model files are there."""
    require("dlib", "faces", "a face")
    for file in files:
        model_path(file)


def to_dlib(image: Tensor) -> np.ndarray:
    """A picture (3, H, W) of values 0..255 as dlib reads it: uint8 (H, W, 3), contiguous."""
    pixels = image if not image.is_floating_point() else image.round().clamp(0, 255)
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy().astype(np.uint8, copy=False))

"""Other detectors and recognisers instead of dlib's, for users who install them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ornstein.errors import UserError
from ornstein.faces.align import TEMPLATE, Similarity, alignment, warp
from ornstein.faces.detect import Face

__all__ = ["InsightFaceDetector", "OnnxRecogniser"]

# The five points of ArcFace's crops of 112 pixels: eye on the left, eye on the right, tip of the nose, corners of the
# mouth. Deng et al., arXiv:1801.07698.
_ARCFACE = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
_ARCFACE_SIZE = 112


def _arcface_to_template() -> Similarity:
    """From pixels of ArcFace's crop to shares of the side of ours, by the eyes."""
    (right_outer, right_inner, left_outer, left_inner) = torch.tensor(TEMPLATE, dtype=torch.float64)[:4]
    ours = torch.stack([(left_outer + left_inner) / 2, (right_outer + right_inner) / 2])
    return Similarity.fit(torch.tensor(_ARCFACE, dtype=torch.float64)[:2], ours)


class InsightFaceDetector:
    """A detector of the package insightface (SCRFD, RetinaFace), which must be installed with its models.

    Insightface's own models are for research only, not for commercial use.

    Args:
        app: a prepared `insightface.app.FaceAnalysis`; None for its default.
        threshold: the least score.

    Raises:
        UserError: insightface is not installed.
    """

    def __init__(self, app: Any = None, threshold: float = 0.5) -> None:
        if app is None:
            try:
                import insightface.app  # pyright: ignore[reportMissingImports]
            except ImportError:
                raise UserError("insightface is not installed: pip install insightface onnxruntime") from None
            app = insightface.app.FaceAnalysis(allowed_modules=["detection"])
            app.prepare(ctx_id=-1)
        self._app = app
        self.threshold = threshold

    def __call__(self, image: Tensor) -> list[Face]:
        """The faces of a picture uint8 (3, H, W), best score first.

        Their five points (eyes, nose, mouth) are fitted to ArcFace's template, and the landmarks are those of the
        template: rotation in the plane is kept, the turn of the head is not.
        """
        bgr = image.flip(0).permute(1, 2, 0).contiguous().numpy()
        template = torch.tensor(_ARCFACE, dtype=torch.float64)
        faces = []
        for found in self._app.get(bgr):
            score = float(found.det_score)
            if score < self.threshold:
                continue
            to_picture = Similarity.fit(template, torch.as_tensor(found.kps))
            placed = _arcface_to_template().inverse().then(to_picture)
            faces.append(Face(placed(torch.tensor(TEMPLATE, dtype=torch.float64)), score))
        return sorted(faces, key=lambda face: -face.score)


class OnnxRecogniser:
    """Your own recognition network in an ONNX file: from ArcFace's crops (N, 3, 112, 112) to vectors (N, D).

    The vectors are normalised to length 1, so that distances are those of the cosine.

    Args:
        path: the file.
        mean, scale: the network reads (pixel - mean) / scale.
        bgr: the channels are in the order BGR instead of RGB.

    Raises:
        UserError: onnxruntime is not installed, or the file is missing or no such network.
    """

    def __init__(self, path: str | Path, mean: float = 127.5, scale: float = 127.5, bgr: bool = False) -> None:
        try:
            import onnxruntime as runtime  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UserError("onnxruntime is not installed: pip install onnxruntime") from None
        if not Path(path).is_file():
            raise UserError(f"there is no ONNX file {path}")
        try:
            self._session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has its own exceptions, which are no public names
            raise UserError(f"{path} is no ONNX network: {' '.join(str(error).split())}") from None
        self._input = self._session.get_inputs()[0].name
        dimension = self._session.get_outputs()[0].shape[-1]
        if not isinstance(dimension, int):
            raise UserError(f"{path} gives no vectors of a fixed length: its output has shape {dimension!r}")
        self.dimension = dimension
        self._mean, self._scale, self._bgr = mean, scale, bgr

    def __call__(self, image: Tensor, faces: Sequence[Face]) -> Tensor:
        """The embeddings float32 (N, D) of faces of one picture uint8 (3, H, W), each of length 1."""
        if not faces:
            return torch.empty(0, self.dimension)
        size = (_ARCFACE_SIZE, _ARCFACE_SIZE)
        from_template = _arcface_to_template().inverse()
        half = Similarity(1, 0.5 + 0.5j)  # from pixels of a crop of 1 pixel, whose centre is 0, to shares of the side
        places = [alignment(face.landmarks, 1).then(half).then(from_template) for face in faces]
        crops = torch.stack([warp(image, place, size).clamp(0, 255) for place in places])
        if self._bgr:
            crops = crops.flip(1)
        answer = self._session.run(None, {self._input: ((crops - self._mean) / self._scale).numpy()})[0]
        return torch.nn.functional.normalize(torch.from_numpy(answer).float(), dim=1)

"""Stand-ins for dlib: an insightface app and an ONNX session, both played by fakes with known answers."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ornstein.errors import UserError
from ornstein.faces.adapters import InsightFaceDetector, OnnxRecogniser
from ornstein.faces.align import Similarity, template
from ornstein.faces.detect import Face

ARCFACE = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])


class App:
    """Two faces in the shape of ArcFace's template, one of them twice as large and turned, and a doubtful third."""

    def __init__(self) -> None:
        self.given: Any = None

    def get(self, bgr: np.ndarray) -> list[Any]:
        self.given = bgr
        move = Similarity.about(0j, 200 + 40j, 2, 30)
        large = move(torch.from_numpy(ARCFACE)).numpy()
        kps = [(ARCFACE, 0.7), (large, 0.9), (ARCFACE + 300, 0.2)]
        return [SimpleNamespace(kps=points, det_score=np.float32(score)) for points, score in kps]


def test_insightface_points_become_our_landmarks() -> None:
    app = App()
    image = torch.stack([torch.full((8, 9), value, dtype=torch.uint8) for value in (1, 2, 3)])
    large, small = InsightFaceDetector(app)(image)
    assert app.given.shape == (8, 9, 3) and app.given[0, 0].tolist() == [3, 2, 1]
    assert large.score == pytest.approx(0.9) and small.score == pytest.approx(0.7)
    eyes = torch.stack([small.landmarks[2:4].mean(0), small.landmarks[0:2].mean(0)])
    torch.testing.assert_close(eyes, torch.from_numpy(ARCFACE[:2]), atol=0.15, rtol=0)
    assert small.landmarks[4, 1] == pytest.approx(77.7, abs=1)  # the nose's base lies below its tip
    assert large.side / small.side == pytest.approx(2) and large.roll - small.roll == pytest.approx(30)


def test_insightface_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "insightface", None)
    with pytest.raises(UserError, match="insightface is not installed: pip install insightface"):
        InsightFaceDetector()


class Session:
    """A network whose answer is the mean colour of the crop's upper and lower half, in the normalised units."""

    dimension: Any = 6

    def __init__(self, path: str, providers: list[str]) -> None:
        if Path(path).read_bytes() != b"onnx":
            raise RuntimeError("Protobuf parsing\nfailed")

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="data")]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(shape=["batch", self.dimension])]

    def run(self, _: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        x = inputs["data"]
        assert x.dtype == np.float32 and x.shape[1:] == (3, 112, 112)
        return [np.concatenate([x[:, :, :40].mean((2, 3)), x[:, :, 70:].mean((2, 3))], 1)]


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=Session))
    path = tmp_path / "net.onnx"
    path.write_bytes(b"onnx")
    return path


def test_an_onnx_network_sees_arcface_crops(network: Path) -> None:
    # A face lying on its right side: its upper half is towards the right of the picture.
    image = torch.zeros(3, 300, 300, dtype=torch.uint8)
    image[0, :, 150:] = 255
    image[2, :, :150] = 255
    upright = Similarity.about(complex(64, 66), complex(150, 150), 1, 90)
    face = Face(upright(template(128)), 1.0)
    recogniser = OnnxRecogniser(network)
    assert recogniser.dimension == 6
    (vector,) = recogniser(image, [face])
    expected = torch.tensor([1.0, -1, -1, -1, -1, 1])
    torch.testing.assert_close(vector, expected / 6**0.5, atol=0.02, rtol=0)
    (swapped,) = OnnxRecogniser(network, bgr=True)(image, [face])
    torch.testing.assert_close(swapped, expected[[2, 1, 0, 5, 4, 3]] / 6**0.5, atol=0.02, rtol=0)
    assert recogniser(image, []).shape == (0, 6)


def test_what_is_no_network(network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"there is no ONNX file .*none\.onnx"):
        OnnxRecogniser(tmp_path / "none.onnx")
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"text")
    with pytest.raises(UserError, match=r"bad\.onnx is no ONNX network: Protobuf parsing failed"):
        OnnxRecogniser(bad)
    monkeypatch.setattr(Session, "dimension", "D")
    with pytest.raises(UserError, match="no vectors of a fixed length"):
        OnnxRecogniser(network)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="onnxruntime is not installed: pip install onnxruntime"):
        OnnxRecogniser(network)

"""A face for the tests: the portrait of the astronaut Eileen Collins that scikit-image ships, in the public domain."""

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def portrait() -> Tensor:
    """Head and shoulders, uint8 (3, 260, 260), the face 90 pixels wide."""
    pytest.importorskip("dlib", reason="the extra `faces` is not installed")
    data = pytest.importorskip("skimage.data", reason="scikit-image, whose portrait this test needs, is not installed")
    return torch.from_numpy(data.astronaut()[0:260, 90:350].copy()).permute(2, 0, 1).contiguous()

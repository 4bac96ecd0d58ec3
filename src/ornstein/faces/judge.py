"""The second judge of swaps: a recogniser that no training has seen, by other people, of another architecture.

dlib's recogniser is a term of the training loss, and a swap that pleases it need not please anybody else. `FaceRes`
is never differentiated here.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ornstein.errors import UserError
from ornstein.faces.align import alignment, warp
from ornstein.store import load_tensors

__all__ = ["SIDE", "FaceRes", "judge"]

SIDE = 224
"""Pixels a side of the crops that it reads."""
_FILE = Path(__file__).parent / "weights" / "faceres.safetensors"
# Channels after each pair of a depthwise and a pointwise convolution, and the stride of the first.
_LAYERS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
_MEAN = (103.939, 116.779, 123.68)  # of blue, green and red: its order of channels


class FaceRes(nn.Module):
    """A MobileNet (v1) that was trained to tell people apart: crops (B, 3, 224, 224) to embeddings (B, 1024).

    The embedding is the mean of the last features, and two faces are compared by the cosine.

    Howard et al. 2017 (MobileNets, arXiv:1704.04861); Savchenko 2019 (HSE-FaceRec, arXiv:1807.07718). MIT licence.
    """

    dimension = 1024

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, 2)
        deep, point, before = [], [], 32
        for width, stride in _LAYERS:
            deep.append(nn.Conv2d(before, before, 3, stride, groups=before))
            point.append(nn.Conv2d(before, width, 1))
            before = width
        self.deep, self.point = nn.ModuleList(deep), nn.ModuleList(point)

    @classmethod
    def load(cls, path: Path = _FILE) -> FaceRes:
        """The network in a file of `evidence/faceres.py`, frozen. Raises UserError: it cannot be read, or is none."""
        tensors, _ = load_tensors(path)
        tensors = {name: value.float() for name, value in tensors.items()}
        for i in range(len(_LAYERS)):
            scale = tensors.pop(f"deep.{i}.scale", None)
            if scale is not None and f"deep.{i}.weight" in tensors:
                tensors[f"deep.{i}.weight"] = tensors[f"deep.{i}.weight"] * scale[:, None, None, None]
        with torch.device("meta"):
            net = cls()
        try:
            net.load_state_dict(tensors, assign=True)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"{path} is not the recogniser FaceRes: {reason}") from error
        return net.to(memory_format=torch.channels_last).eval().requires_grad_(False)  # pyright: ignore

    def forward(self, crops: Tensor) -> Tensor:
        """The embeddings (B, 1024) of crops (B, 3, 224, 224), RGB in [0, 255]."""
        centred = crops.flip(1) - torch.tensor(_MEAN, device=crops.device)[:, None, None]
        h = _six(_same(self.first, centred.contiguous(memory_format=torch.channels_last)))
        for deep, point in zip(self.deep, self.point, strict=True):
            h = _six(point(_six(_same(deep, h))))
        return h.mean((2, 3))


def _six(x: Tensor) -> Tensor:
    return x.clamp(0, 6)


def _same(conv: nn.Module, x: Tensor) -> Tensor:
    """A 3x3 convolution with TensorFlow's SAME padding: of an even side, at its end alone where it is halved."""
    assert isinstance(conv, nn.Conv2d)
    return conv(F.pad(x, (0, 1, 0, 1) if conv.stride[0] == 2 else (1, 1, 1, 1)))


@lru_cache(maxsize=1)
def _network() -> FaceRes:
    return FaceRes.load()


@torch.no_grad()
def judge(images: Tensor, landmarks: Tensor, batch: int = 32) -> Tensor:
    """The embeddings (N, 1024) of faces, of norm 1.

    Args:
        images: (N, 3, H, W) in [0, 255], a face each.
        landmarks: (N, K, 2) in their pixels, the five of `align` first.
        batch: faces at once.
    """
    rows = []
    for some, points in zip(images.cpu().split(batch), landmarks.cpu().split(batch), strict=True):
        crops = torch.stack([_crop(*each) for each in zip(some, points, strict=True)])
        rows.append(F.normalize(_network()(crops), dim=1))
    return torch.cat(rows)


def _crop(image: Tensor, points: Tensor) -> Tensor:
    return warp(image, alignment(points[:5], SIDE), (SIDE, SIDE)).clamp(0, 255)

"""dlib's recogniser as a PyTorch network: the same 128 numbers from the same file, faster and with a gradient."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ornstein.errors import UserError
from ornstein.faces.models import RECOGNITION, model_path

__all__ = ["CHIP", "DlibNet", "chips", "dlib_net"]

CHIP = 150
"""Pixels a side of the aligned crops that it reads."""
_SHA256 = "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30"
_MEAN, _SCALE = (122.782, 117.001, 104.298), 256.0
# The blocks of two convolutions: channels, and whether it halves the picture.
_STAGES = ((32, 3, False), (64, 4, True), (128, 3, True), (256, 3, True), (256, 1, True))
# Where the filters of each convolution begin in the file, with its bias behind them; and after how many more bytes the
# scales and then the shifts of its channels follow. What lies between are dlib's notes of its layers.
_FILTERS = (
    352, 19826, 57289, 94796, 132259, 169766, 207229, 244736, 319447, 467987, 616426, 764909, 913348, 1061831, 1210270,
    1358754, 1655419, 2247097, 2838674, 3430295, 4021872, 4613493, 5796435, 8159127, 10521718, 12884353, 15246944,
    17609579, 19972170,
)  # fmt: skip
_GAPS = (104, *(102,) * 14, *(103,) * 6, 106, *(107,) * 7)
_LAST = 22334922
# Where the five landmarks lie in a chip, in shares of the face's square, which a rim of a quarter surrounds: the mean
# face of dlib's model of five landmarks.
_MEAN_FACE = (
    (0.8595674595992, 0.2134981538014), (0.6460604764104, 0.2289674387677), (0.1205750620789, 0.2137274526848),
    (0.3340850613712, 0.2290642403242), (0.4901123135679, 0.6277975316475),
)  # fmt: skip
_RIM = 0.25


class _Block(nn.Module):
    """conv, scale, ReLU, conv, scale, on top of the input: pooled and padded with zeros where it halves the picture."""

    def __init__(self, before: int, width: int, down: bool) -> None:
        super().__init__()
        self.down = down
        self.conv1 = nn.Conv2d(before, width, 3, 2 if down else 1, 0 if down else 1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.conv1(x)))
        if not self.down:
            return F.relu(h + x)
        x = F.avg_pool2d(x, 2)
        high, wide = (max(a, b) for a, b in zip(h.shape[2:], x.shape[2:], strict=True))
        h = F.pad(h, (0, wide - h.shape[3], 0, high - h.shape[2]))
        return F.relu(h + F.pad(x, (0, wide - x.shape[3], 0, high - x.shape[2], 0, h.shape[1] - x.shape[1])))


class DlibNet(nn.Module):
    """dlib's residual network of 29 layers (CC0): chips (B, 3, 150, 150) in [0, 255] to embeddings (B, 128).

    The scales and shifts that stand for batch normalisation are multiplied into the filters: another rounding than
    dlib's, of less than 2e-6. Its tensors are constants: nothing is trained.

    King, "High Quality Face Recognition with Deep Metric Learning", 2017.
    """

    dimension = 128

    def __init__(self) -> None:
        super().__init__()
        self.mean: Tensor
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.stem = nn.Conv2d(3, 32, 7, 2)
        blocks, before = [], 32
        for width, count, down in _STAGES:
            for i in range(count):
                blocks.append(_Block(before, width, down and i == 0))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.out = nn.Linear(256, self.dimension, bias=False)

    @classmethod
    def load(cls, path: Path) -> DlibNet:
        """The network in dlib's file, frozen.

        Raises:
            UserError: it cannot be read, or is another file than the one whose layout is known.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from None
        if hashlib.sha256(data).hexdigest() != _SHA256:
            raise UserError(
                f"{path} is not the recogniser that dlib published (SHA-256 {_SHA256[:12]}...): "
                "install face-recognition-models again"
            )
        with torch.device("meta"):
            net = cls()
        net.mean = torch.tensor(_MEAN)[:, None, None]

        def numbers(at: int, *shape: int) -> Tensor:
            return torch.from_numpy(np.frombuffer(data, "<f4", int(np.prod(shape)), at).astype(np.float64)).view(shape)

        for at, gap, conv in zip(_FILTERS, _GAPS, net._convolutions(), strict=True):
            shape = tuple(conv.weight.shape)
            filters, bias = numbers(at, *shape), numbers(at + 4 * conv.weight.numel(), shape[0])
            after = at + 4 * (conv.weight.numel() + shape[0]) + gap
            scale, shift = numbers(after, shape[0]), numbers(after + 4 * shape[0], shape[0])
            conv.weight = nn.Parameter((filters * scale[:, None, None, None]).float())
            conv.bias = nn.Parameter((bias * scale + shift).float())
        net.out.weight = nn.Parameter(numbers(_LAST, 256, cls.dimension).T.float().contiguous())
        return net.to(memory_format=torch.channels_last).eval().requires_grad_(False)  # pyright: ignore

    def _convolutions(self) -> Iterator[nn.Conv2d]:
        yield self.stem
        for block in self.blocks:
            assert isinstance(block, _Block)
            yield from (block.conv1, block.conv2)

    def forward(self, chips: Tensor) -> Tensor:
        """The embeddings (B, 128) of chips (B, 3, 150, 150), RGB in [0, 255]."""
        x = ((chips - self.mean) / _SCALE).contiguous(memory_format=torch.channels_last)
        x = self.blocks(F.max_pool2d(F.relu(self.stem(x)), 3, 2))
        return self.out(x.mean((2, 3)))


@lru_cache(maxsize=1)
def dlib_net() -> DlibNet:
    """The network in the file that face-recognition-models installs. Raises UserError if it is missing or another."""
    return DlibNet.load(Path(model_path(RECOGNITION)))


def chips(images: Tensor, landmarks: Tensor) -> Tensor:
    """The crops (B, 3, 150, 150) that the network reads, in the units of the images, with a gradient.

    The similarity transform that best takes the landmarks to those of dlib's mean face, by least squares. Crops of
    fewer pixels are enlarged by bicubic interpolation; larger ones are averaged first.

    Args:
        images: (B, 3, H, W).
        landmarks: (B, K, 2), the five of `align` first, in pixels.
    """
    height, width = images.shape[2:]
    # in float32: not every device has float64
    there = ((torch.tensor(_MEAN_FACE) + _RIM) / (1 + 2 * _RIM) * CHIP).to(images)
    q = landmarks[:, :5].to(images)
    p = there - there.mean(0)
    middle = q.mean(1, keepdim=True)
    power = p.square().sum()
    c = ((q - middle) * p).sum((1, 2)) / power
    s = ((q - middle)[..., 1] * p[:, 0] - (q - middle)[..., 0] * p[:, 1]).sum(1) / power
    turn = torch.stack([torch.stack([c, s], 1), torch.stack([-s, c], 1)], 1)  # for points as rows
    along = torch.arange(CHIP).to(images) + 0.5  # dlib counts from the corner of the first pixel
    y, x = torch.meshgrid(along, along, indexing="ij")
    at = (torch.stack([x, y], -1).flatten(0, 1) - there.mean(0)) @ turn + middle
    scale = float((c.square() + s.square()).sqrt().mean())
    if scale > 2:  # pixels of the image in one of the chip
        images = F.avg_pool2d(images, int(scale))
        at = (at + 0.5) / int(scale) - 0.5
        height, width = images.shape[2:]
    grid = torch.stack([(2 * at[..., 0] + 1) / width - 1, (2 * at[..., 1] + 1) / height - 1], -1)
    grid = grid.unflatten(1, (CHIP, CHIP))
    mode = "bicubic" if scale < 1 else "bilinear"
    return F.grid_sample(images, grid, mode=mode, padding_mode="border", align_corners=False)

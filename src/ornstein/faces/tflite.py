"""TensorFlow Lite files run by PyTorch: the few operations that MediaPipe's face models are made of.

A file is a FlatBuffer: tables whose first number points back to a list of where their fields are. Only what these
models use is read; everything else is refused by name.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.errors import UserError

__all__ = ["TFLite"]

_TYPES: dict[int, Any] = {0: np.float32, 1: np.float16, 2: np.int32, 3: np.uint8, 4: np.int64, 9: np.int8}
_LIMIT = 2**26  # bytes
# The numbers of the operations in the schema of TensorFlow Lite, version 3.
_ADD, _CONCATENATION, _CONV, _DEPTHWISE, _DEQUANTIZE, _LOGISTIC, _MAX_POOL = 0, 2, 3, 4, 6, 14, 17
_AVERAGE_POOL, _MUL, _RELU, _RESHAPE, _RESIZE, _PAD, _PRELU = 1, 18, 19, 22, 23, 34, 54
_ACTIVATIONS: dict[int, Callable[[Tensor], Tensor]] = {0: lambda x: x, 1: torch.relu_, 3: lambda x: x.clamp_(0, 6)}


class _Table:
    """A table of a FlatBuffer: the fields by number."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at
        self._fields = at - self._number("<i", at)
        self._size = self._number("<H", self._fields)

    def _number(self, kind: str, at: int) -> int:
        return struct.unpack_from(kind, self.data, at)[0]

    def _place(self, field: int) -> int:
        entry = 4 + 2 * field
        offset = self._number("<H", self._fields + entry) if entry < self._size else 0
        return self.at + offset if offset else 0

    def number(self, field: int, kind: str = "<i", default: int = 0) -> int:
        place = self._place(field)
        return self._number(kind, place) if place else default

    def table(self, field: int) -> _Table | None:
        place = self._place(field)
        return _Table(self.data, place + self._number("<I", place)) if place else None

    def _vector(self, field: int) -> tuple[int, int]:
        """Where the elements begin, and how many they are."""
        place = self._place(field)
        if not place:
            return 0, 0
        start = place + self._number("<I", place)
        return start + 4, self._number("<I", start)

    def tables(self, field: int) -> list[_Table]:
        start, count = self._vector(field)
        return [_Table(self.data, at + self._number("<I", at)) for at in range(start, start + 4 * count, 4)]

    def numbers(self, field: int) -> list[int]:
        start, count = self._vector(field)
        return list(struct.unpack_from(f"<{count}i", self.data, start))

    def bytes(self, field: int) -> bytes:
        start, count = self._vector(field)
        return self.data[start : start + count]


@dataclass(frozen=True)
class _Step:
    code: int
    inputs: list[int]
    output: int
    options: _Table | None


class TFLite:
    """A network in a .tflite file of float weights (or float16 ones).

    Args:
        data: the bytes of the file.
        name: of the file, for messages.

    Raises:
        UserError: it is no such file, or has an operation that is not known here.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self.name = name
        try:
            if data[4:8] != b"TFL3":
                raise UserError(f"{name} is no TensorFlow Lite file")
            self._read(_Table(data, struct.unpack_from("<I", data)[0]))
        except (struct.error, ValueError, IndexError, KeyError) as error:
            raise UserError(f"{name} is damaged: {error}") from None

    @classmethod
    def load(cls, path: Path) -> TFLite:
        """The network in a file. Raises UserError as the class, or if the file cannot be read."""
        try:
            if path.stat().st_size > _LIMIT:
                raise UserError(f"{path} is too large: {path.stat().st_size:,} bytes")
            return cls(path.read_bytes(), str(path))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from None

    def _read(self, model: _Table) -> None:
        codes = [max(each.number(0, "<b"), each.number(3)) for each in model.tables(1)]
        buffers = model.tables(4)
        graph = model.tables(2)[0]
        self.constants: dict[int, Tensor] = {}
        self.shapes: list[list[int]] = []
        for i, tensor in enumerate(graph.tables(0)):
            shape = tensor.numbers(0)
            self.shapes.append(shape)
            raw = buffers[tensor.number(2, "<I")].bytes(0)
            if raw:
                array = np.frombuffer(raw, _TYPES[tensor.number(1, "<b")]).reshape(shape)
                self.constants[i] = torch.from_numpy(
                    array.astype(np.float32) if array.dtype.kind == "f" else array.copy()
                )
        self.inputs, self.outputs = graph.numbers(1), graph.numbers(2)
        self.steps: list[_Step] = []
        for each in graph.tables(3):
            code = codes[each.number(0, "<I")]
            if code not in _OPERATIONS:
                raise UserError(f"{self.name} has operation {code} of TensorFlow Lite, which is not known here")
            step = _Step(code, each.numbers(1), each.numbers(2)[0], each.table(4))
            if code == _DEQUANTIZE and step.inputs[0] in self.constants:  # float16 weights, already float32
                self.constants[step.output] = self.constants[step.inputs[0]]
            else:
                self.steps.append(step)
        # channels first, as PyTorch wants the weights
        for step in self.steps:
            weight = self.constants.get(step.inputs[1]) if len(step.inputs) > 1 else None
            if step.code == _CONV and weight is not None:
                self.constants[step.inputs[1]] = weight.permute(0, 3, 1, 2)
            elif step.code == _DEPTHWISE and weight is not None:
                self.constants[step.inputs[1]] = weight.permute(3, 0, 1, 2).contiguous()

        self._last_use = {each: number for number, step in enumerate(self.steps) for each in step.inputs}
        for each in self.outputs:
            self._last_use.pop(each, None)
        uses = Counter(each for step in self.steps for each in step.inputs)
        self.used_once = {each for each, count in uses.items() if count == 1 and each not in self.outputs}

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture that it reads."""
        _, height, width, _ = self.shapes[self.inputs[0]]
        return height, width

    @torch.inference_mode()
    def __call__(self, picture: Tensor) -> list[Tensor]:
        """The outputs for pictures (B, 3, H, W): (B, ...) in the file's own order of axes, channels last."""
        values: dict[int, Tensor] = {self.inputs[0]: picture.contiguous(memory_format=torch.channels_last)}
        for number, step in enumerate(self.steps):
            values[step.output] = _OPERATIONS[step.code](self, step, values)
            for each in step.inputs:
                if self._last_use.get(each) == number:  # its memory is used again
                    values.pop(each, None)
        return [_last(values[i]).clone() for i in self.outputs]

    def given(self, step: _Step, number: int, values: dict[int, Tensor]) -> Tensor:
        """The tensor that is input `number` of a step."""
        index = step.inputs[number]
        return values[index] if index in values else self.constants[index]


def _last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1) if x.ndim == 4 else x


def _padded(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: int, value: float = 0.0) -> Tensor:
    """TensorFlow's SAME padding: what lacks is added at both ends, the odd one at the end."""
    if padding != 0:
        return x
    sides = []
    for length, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max((-(-length // s) - 1) * s + k - length, 0)
        sides += [total // 2, total - total // 2]
    return F.pad(x, sides, value=value) if any(sides) else x


def _conv(net: TFLite, step: _Step, values: dict[int, Tensor]) -> Tensor:
    x, weight = net.given(step, 0, values), net.given(step, 1, values)
    bias = net.given(step, 2, values) if len(step.inputs) > 2 else None
    depthwise, options = step.code == _DEPTHWISE, step.options
    assert options is not None
    stride = (options.number(2, default=1), options.number(1, default=1))
    rows, columns = weight.shape[2:]
    if rows == columns == 1 and not depthwise and stride == (1, 1):  # a matrix product, which is faster
        out = F.linear(x.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)
        return _ACTIVATIONS[options.number(3, "<b")](out)
    # at both ends alike: the convolution pads by itself, without a copy
    even = options.number(0, "<b") == 0 and stride == (1, 1) and rows % 2 == columns % 2 == 1
    if not even:
        x = _padded(x, (rows, columns), stride, options.number(0, "<b"))
    padding = (rows // 2, columns // 2) if even else 0
    out = F.conv2d(x, weight, bias, stride, padding, groups=x.shape[1] if depthwise else 1)
    return _ACTIVATIONS[options.number(4 if depthwise else 3, "<b")](out)


def _pool(net: TFLite, step: _Step, values: dict[int, Tensor]) -> Tensor:
    assert step.options is not None
    o = step.options
    stride, kernel = (o.number(2), o.number(1)), (o.number(4), o.number(3))
    if step.code == _AVERAGE_POOL:
        return F.avg_pool2d(net.given(step, 0, values), kernel, stride)
    return F.max_pool2d(_padded(net.given(step, 0, values), kernel, stride, o.number(0, "<b"), -3e38), kernel, stride)


def _add(net: TFLite, step: _Step, values: dict[int, Tensor]) -> Tensor:
    total = net.given(step, 0, values) + net.given(step, 1, values)
    return _ACTIVATIONS[step.options.number(0, "<b") if step.options else 0](total)


def _concatenate(net: TFLite, step: _Step, values: dict[int, Tensor]) -> Tensor:
    parts = [net.given(step, i, values) for i in range(len(step.inputs))]
    axis = step.options.number(0) if step.options else 0
    return torch.cat(parts, {1: 2, 2: 3, 3: 1}[axis % 4] if parts[0].ndim == 4 else axis)


def _reshape(net: TFLite, step: _Step, values: dict[int, Tensor]) -> Tensor:
    shape = net.shapes[step.output]
    return _last(net.given(step, 0, values)).reshape(-1, *shape[1:])


def _resize(net: TFLite, step: _Step, values: dict[int, Tensor]) -> Tensor:
    height, width = net.given(step, 1, values).tolist()
    assert step.options is not None
    x = net.given(step, 0, values)
    if step.options.number(2, "<b"):  # aligned corners
        return F.interpolate(x, (height, width), mode="bilinear", align_corners=True)
    if step.options.number(3, "<b"):  # half-pixel centres
        return F.interpolate(x, (height, width), mode="bilinear")
    # the old way: pixel i reads position i * old / new
    rows, columns = (torch.arange(n) * (old / n) for n, old in zip((height, width), x.shape[2:], strict=True))
    gy, gx = torch.meshgrid((2 * rows + 1) / x.shape[2] - 1, (2 * columns + 1) / x.shape[3] - 1, indexing="ij")
    grid = torch.stack([gx, gy], -1)[None].expand(len(x), -1, -1, -1).to(x)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _pad(net: TFLite, step: _Step, values: dict[int, Tensor]) -> Tensor:
    sides = net.given(step, 1, values).tolist()
    if len(sides) == 4:  # to channels first
        sides = [sides[0], sides[3], sides[1], sides[2]]
    return F.pad(net.given(step, 0, values), [n for pair in reversed(sides) for n in pair])


def _prelu(net: TFLite, step: _Step, values: dict[int, Tensor]) -> Tensor:
    x = net.given(step, 0, values)
    return torch.where(x >= 0, x, x * net.given(step, 1, values).flatten()[:, None, None])


def _relu(net: TFLite, step: _Step, values: dict[int, Tensor]) -> Tensor:
    x = net.given(step, 0, values)
    return x.relu_() if step.inputs[0] in net.used_once else x.relu()


_OPERATIONS: dict[int, Callable[[TFLite, _Step, dict[int, Tensor]], Tensor]] = {
    _ADD: _add,
    _AVERAGE_POOL: _pool,
    _CONCATENATION: _concatenate,
    _CONV: _conv,
    _DEPTHWISE: _conv,
    _DEQUANTIZE: lambda net, step, values: net.given(step, 0, values),
    _LOGISTIC: lambda net, step, values: net.given(step, 0, values).sigmoid(),
    _MAX_POOL: _pool,
    _MUL: lambda net, step, values: net.given(step, 0, values) * net.given(step, 1, values),
    _RELU: _relu,
    _RESHAPE: _reshape,
    _RESIZE: _resize,
    _PAD: _pad,
    _PRELU: _prelu,
}

"""What tests of several parts use."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from running import few_choices

MILLISECOND = Fraction(1, 1000)
_QUIET = {"libx264": {"crf": "1", "bf": "0"}, "libx265": {"x265-params": "log-level=none:lossless=1:bframes=0"}}


def plain(values: Sequence[int], width: int = 96, height: int = 64, form: str = "yuv420p") -> av.VideoFrame:
    """A frame of one colour: `values` are its samples, one for each plane."""
    frame = av.VideoFrame(width, height, form)
    deep = max(part.bits for part in frame.format.components) > 8
    for plane, value in zip(frame.planes, values, strict=True):
        sample = value.to_bytes(2, "little") if deep else bytes([value])
        plane.update(sample * (plane.buffer_size // len(sample)))
    return frame


def write(
    path: Path,
    frames: Sequence[av.VideoFrame | np.ndarray],
    codec: str = "libx264",
    form: str = "yuv420p",
    rate: Fraction | int = 25,
    times: Sequence[int] | None = None,
    colour: tuple[int, int, int, int] | None = None,
    options: dict[str, str] | None = None,
    container: str | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Encode a film of frames or arrays uint8 (H, W, 3).

    times: the start of each frame in milliseconds and, last, the end of the last one. colour: matrix, range, primaries
    and transfer function, numbers of H.273.
    """
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, Fraction(rate))
        first = frames[0]
        stream.width, stream.height = (
            (first.width, first.height) if isinstance(first, av.VideoFrame) else (first.shape[1], first.shape[0])
        )
        stream.pix_fmt = form
        stream.options = _QUIET.get(codec, {}) | (options or {})
        stream.metadata.update(metadata or {})
        if colour is not None:
            coder = stream.codec_context
            coder.colorspace, coder.color_range, coder.color_primaries, coder.color_trc = colour
        if times is not None:
            stream.codec_context.time_base = MILLISECOND
        packets = []
        for number, each in enumerate(frames):
            frame = each if isinstance(each, av.VideoFrame) else av.VideoFrame.from_ndarray(each, format="rgb24")
            if frame.format.name != form:
                frame = frame.reformat(format=form)
            frame.pts, frame.time_base = (number, 1 / Fraction(rate)) if times is None else (times[number], MILLISECOND)
            packets += stream.encode(frame)
        packets += stream.encode()
        for number, packet in enumerate(packets):
            if times is not None:
                packet.duration = times[number + 1] - times[number]
            out.mux(packet)
    return path


_SEED = torch.initial_seed()  # of a new process


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test draws from PyTorch's own generator is the same alone and after any other test."""
    torch.manual_seed(_SEED)


@pytest.fixture(scope="session", autouse=True)
def short_trainings() -> Iterator[None]:
    """Trainings in this process end with a short choice of a solver."""
    with few_choices():
        yield


@pytest.fixture(scope="session")
def films() -> SimpleNamespace:
    """Films of every kind: `write` and `plain`."""
    return SimpleNamespace(write=write, plain=plain)

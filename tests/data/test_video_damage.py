"""Damaged videos of every kind: skipped or refused in one line, and nothing is printed."""

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ornstein.data import open_clips
from ornstein.errors import UserError
from ornstein.faces.swap.film import Film, is_video

KINDS = {
    "a.mp4": ("libx264", "yuv420p", None),
    "a.mkv": ("libx264", "yuv420p", None),
    "a.webm": ("libvpx-vp9", "yuv420p", None),
    "a.avi": ("mpeg4", "yuv420p", None),
    "a.ts": ("mpeg2video", "yuv420p", None),
    "a.flv": ("libx264", "yuv420p", None),
    "a.mov": ("qtrle", "rgb24", None),
    "a.wmv": ("wmv2", "yuv420p", "asf"),
}
NUMBERS = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\1")


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, lost or added, or the end cut off."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at, kind = rng.randrange(min(len(out), rng.choice((64, 400, len(out))))), rng.random()
        if kind < 0.4:
            out[at] = rng.randrange(256)
        elif kind < 0.6:
            out[at : at + 4] = rng.choice(NUMBERS)
        elif kind < 0.75:
            del out[at : at + rng.randrange(1, 50)]
        elif kind < 0.9:
            out[at:at] = rng.randbytes(rng.randrange(1, 30))
        else:
            del out[max(1, rng.randrange(len(out))) :]
        out = out or bytearray(b"x")
    return bytes(out)


@pytest.mark.parametrize("name", [*KINDS, "a.gif", "a.webp", "a.png"])
def test_damage_is_one_line(
    films: SimpleNamespace, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    frames = [np.random.default_rng(i).integers(0, 256, (32, 48, 3), np.uint8) for i in range(6)]
    path = tmp_path / name
    if name in KINDS:
        codec, form, container = KINDS[name]
        films.write(path, frames, codec, form, container=container)
    else:
        pictures = [Image.fromarray(frame) for frame in frames]
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=50)
    data, rng = path.read_bytes(), random.Random(name)
    capfd.readouterr()
    refused = 0
    for _ in range(40):
        path.write_bytes(damaged(data, rng))
        for use in (
            lambda: open_clips(path, frames=2, size=16),
            lambda: is_video(path) and [*Film.open(path).frames()],
        ):
            try:
                use()
            except UserError as error:
                assert "\n" not in str(error)
                refused += 1
    assert refused > 10
    assert capfd.readouterr() == ("", "")

"""Faces in the frames of a video: at any roll and size, and how often the full looks are made."""

import math

import pytest
import torch
from torch import Tensor

from ornstein.faces.align import TEMPLATE, Similarity, warp
from ornstein.faces.detect import Detector, Face
from ornstein.faces.swap.look import Looker


def moving(portrait: Tensor, degrees: float, scale: float, count: int, size: int = 300) -> list[Tensor]:
    """The portrait turned and scaled, on grey, two pixels further to the right in each frame."""
    frames = []
    middle = complex(portrait.shape[2] - 1, portrait.shape[1] - 1) / 2
    for i in range(count):
        move = Similarity.about(middle, complex(size / 2 + 2 * i, size / 2), scale, degrees)
        shown = warp(torch.ones_like(portrait[:1]).float(), move, (size, size), border="zero").clamp(0, 1)
        picture = warp(portrait.float(), move, (size, size)).clamp(0, 255)
        frames.append((shown * picture + (1 - shown) * 128).round().to(torch.uint8))
    return frames


@pytest.mark.parametrize(("degrees", "scale"), [(90, 1.0), (-135, 0.9), (0, 0.35)])
def test_turned_and_small_faces_are_found_in_every_frame(portrait: Tensor, degrees: float, scale: float) -> None:
    """The quick look sees none of them; a full look is made once, and after that each is looked for where it was."""
    full, quick = Detector(), Detector(smallest=60, thorough=False)
    calls = []

    def counted(image: Tensor) -> list[Face]:
        calls.append(1)
        return full(image)

    frames = moving(portrait, degrees, scale, 5)
    assert not any(quick(frame) for frame in frames)
    looker = Looker(quick, counted)
    found = [looker(frame, fresh=i == 0) for i, frame in enumerate(frames)]
    assert len(calls) == 1
    ((start,), *later) = found
    assert abs((start.roll - degrees + 180) % 360 - 180) < 12
    for i, faces in enumerate(later, start=1):
        (one,) = faces
        x, y = start.centre
        assert math.dist(one.centre, (x + 2 * i, y)) < 0.06 * start.side


def face(x: float, y: float, side: float = 40.0) -> Face:
    points = (torch.tensor(TEMPLATE, dtype=torch.float64) - 0.5) * side / 0.705 + torch.tensor([x, y])
    return Face(points, 1.0)


class Script:
    """A detector that answers what it is given, frame by frame, and nothing in patches."""

    def __init__(self, answers: list[list[Face]]) -> None:
        self.answers, self.calls = answers, []

    def __call__(self, image: Tensor) -> list[Face]:
        if image.shape[1:] == (300, 300):  # the surroundings of a face
            return []
        number = int(image[0, 0, 0])
        self.calls.append(number)
        return list(self.answers[number])


def numbered(count: int) -> list[Tensor]:
    """Frames that differ in one pixel: their number."""
    frames = []
    for i in range(count):
        frame = torch.full((3, 64, 96), 100, dtype=torch.uint8)
        frame[:, 0, 0] = i
        frames.append(frame)
    return frames


def test_full_looks_are_made_at_starts_cuts_and_losses_at_a_bounded_rate() -> None:
    here, none = [face(50, 30)], []
    quick = Script([none if i in (10, 30, 31, 40) or i >= 60 else here for i in range(120)])
    full = Script([here if i < 60 else none for i in range(120)])
    frames = numbered(120)
    frames[90] = 255 - frames[90]
    frames[90][:, 0, 0] = 90
    looker = Looker(quick, full)
    for i, frame in enumerate(frames):
        looker(frame, fresh=i == 0)
    # 10: too early after the start. 30: lost, looked for. 31, 40: too early again. 60: lost. 90, 91: a cut and back,
    # the second too early.
    assert full.calls == [0, 30, 60, 90]


def test_what_is_found_depends_on_the_frames_since_the_last_fresh_one_alone() -> None:
    here = [[face(50 + i, 30)] for i in range(40)]
    quick, frames = Script([here[i] if i % 3 else [] for i in range(40)]), numbered(40)
    whole, later = Looker(quick, Script(here)), Looker(quick, Script(here))
    first = [[f.centre for f in whole(frame, fresh=i in (0, 20))] for i, frame in enumerate(frames)]
    second = [[f.centre for f in later(frame, fresh=i == 0)] for i, frame in enumerate(frames[20:])]
    assert first[20:] == second


def test_one_detector_for_both_looks_is_asked_once_a_frame() -> None:
    only = Script([[face(50, 30)]] * 5)
    looker = Looker(only, only)
    assert [len(looker(frame, fresh=i == 0)) for i, frame in enumerate(numbered(5))] == [1] * 5
    assert only.calls == list(range(5))

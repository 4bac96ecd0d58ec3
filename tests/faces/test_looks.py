"""Photos of several faces: a large one hides neither small nor turned ones."""

import math

import pytest
import torch
from torch import Tensor

from ornstein.faces.align import Similarity, warp
from ornstein.faces.detect import Detector, Face, find_faces
from ornstein.faces.recognise import SAME_PERSON, Recogniser

PLACES = ((0.28, 0.45), (0.72, 0.3), (0.72, 0.78))  # of the width and the height


@pytest.fixture(scope="module")
def found(portrait: Tensor) -> Face:
    return Detector(thorough=False)(portrait)[0]


def group(portrait: Tensor, face: Face, width: int, height: int, *people: tuple[float, float]) -> Tensor:
    """A photo uint8 (3, H, W) of the portrait several times, each with a face of (side in pixels, degrees of roll)."""
    draw = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 3, height // 40 + 1, width // 40 + 1, generator=draw)
    photo = 40 + 160 * torch.nn.functional.interpolate(noise, (height, width), mode="bicubic")[0].clamp(0, 1)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    for (across, along), (side, roll) in zip(PLACES, people, strict=False):
        centre = complex(across * width, along * height)
        move = Similarity.about(complex(*face.centre), centre, side / face.side, roll)
        away = ((x - centre.real) ** 2 + (y - centre.imag) ** 2).sqrt()
        weight = ((1.2 * side - away) / (0.1 * side)).clamp(0, 1)
        photo = torch.lerp(photo, warp(portrait, move, (height, width)).clamp(0, 255), weight)
    return photo.round().to(torch.uint8)


def near(faces: list[Face], photo: Tensor, place: int, side: float) -> list[Face]:
    height, width = photo.shape[1:]
    middle = (PLACES[place][0] * width, PLACES[place][1] * height)
    return [each for each in faces if math.dist(each.centre, middle) < 0.35 * side]


@pytest.mark.parametrize(
    ("width", "height", "people"),
    [
        (520, 400, ((150, 0), (44, 90), (50, 180))),
        (480, 480, ((150, 10), (30, 0), (60, -135))),
        (400, 300, ((110, 90), (36, 0), (40, 45))),
    ],
)
def test_small_and_turned_faces_beside_a_large_one(
    portrait: Tensor, found: Face, width: int, height: int, people: tuple[tuple[float, float], ...]
) -> None:
    photo = group(portrait, found, width, height, *people)
    faces = Detector()(photo)
    assert len(faces) == len(people)
    recogniser, expected = Recogniser(), Recogniser()(portrait, [found])
    for place, (side, roll) in enumerate(people):
        (face,) = near(faces, photo, place, side)
        assert face.side == pytest.approx(side, rel=0.2)
        assert abs((face.roll - found.roll - roll + 180) % 360 - 180) < 8
        if side >= 40:
            assert float((recogniser(photo, [face]) - expected).norm()) < SAME_PERSON


def test_one_face_is_one_face_however_often_it_is_seen(portrait: Tensor, found: Face) -> None:
    """Several looks find it, at several rolls and sizes."""
    for roll in (22.5, -67.5):
        (face,) = Detector()(group(portrait, found, 360, 360, (120, roll)))
        assert abs((face.roll - found.roll - roll + 180) % 360 - 180) < 8


def test_a_picture_of_one_person_is_looked_at_once(portrait: Tensor, found: Face) -> None:
    """Without `all_looks` the first look that finds a face is the last one."""
    photo = group(portrait, found, 520, 400, (150, 0), (44, 90))
    assert len(Detector(all_looks=False)(photo)) == 1
    turned = group(portrait, found, 400, 400, (120, 180))
    assert len(find_faces(Detector(all_looks=False), turned, "t.png")) == 1

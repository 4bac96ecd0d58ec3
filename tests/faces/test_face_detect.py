"""Detection, landmarks, selection and embedding on the public-domain portrait."""

import sys
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ornstein.errors import UserError
from ornstein.faces.align import Similarity, alignment, crop, template, warp
from ornstein.faces.detect import DenseLandmarks, Detector, Face, find_faces, largest, nearest, subject
from ornstein.faces.dlib_net import dlib_net
from ornstein.faces.read import decode_photo
from ornstein.faces.recognise import Recogniser


@pytest.fixture(scope="module")
def detector(portrait: Tensor) -> Detector:
    return Detector()


@pytest.fixture(scope="module")
def found(detector: Detector, portrait: Tensor) -> Face:
    (face,) = detector(portrait)
    return face


def moved(image: Tensor, move: Similarity, size: tuple[int, int]) -> Tensor:
    return warp(image, move, size).round().clamp(0, 255).to(torch.uint8)


def eye_distance(face: Face) -> float:
    points = face.landmarks
    return float((points[:2].mean(0) - points[2:4].mean(0)).norm())


def deviation(face: Face, expected: Tensor) -> float:
    """Root mean square over the landmarks, in eye distances."""
    return float((face.landmarks - expected).square().sum(-1).mean().sqrt()) / eye_distance(face)


def at(x: float, y: float, side: float, score: float = 1.0) -> Face:
    """A face whose aligned crop has this side and its top left corner at (x, y)."""
    return Face(Similarity(side, complex(x, y)).then(Similarity(1, 0))(template(1) + 0.5), score)


def test_the_portraits_one_face(found: Face) -> None:
    assert found.score > 1 and abs(found.roll) < 5
    assert 75 < found.side < 110
    outer_right, inner_right, outer_left, inner_left, nose = found.landmarks.tolist()
    assert outer_left[0] < inner_left[0] < nose[0] < inner_right[0] < outer_right[0]
    # Read off the picture: the pupils and the base of the nose.
    assert eye_distance(found) == pytest.approx(43, abs=3)
    torch.testing.assert_close(
        found.landmarks[:2].mean(0), torch.tensor([157.0, 104], dtype=torch.float64), atol=3, rtol=0
    )
    torch.testing.assert_close(found.landmarks[4], torch.tensor([134.0, 135], dtype=torch.float64), atol=4, rtol=0)


def test_an_aligned_crop_is_upright(detector: Detector, portrait: Tensor, found: Face) -> None:
    cut = crop(portrait, alignment(found.landmarks, 256), 256)
    (face,) = detector(cut)
    assert abs(face.roll) < 2
    assert deviation(face, template(256)) < 0.12


@pytest.mark.parametrize("degrees", [45, 90, 180, 270])
def test_a_turned_face_is_found_where_it_is(detector: Detector, portrait: Tensor, found: Face, degrees: float) -> None:
    middle = complex(129.5, 129.5)
    move = Similarity.about(middle, middle, 1, degrees)
    (face,) = detector(moved(portrait, move, (260, 260)))
    assert deviation(face, move(found.landmarks)) < 0.03
    assert (face.roll - found.roll - degrees + 180) % 360 == pytest.approx(180, abs=4)


def test_landmarks_follow_a_motion_below_a_pixel(detector: Detector, portrait: Tensor, found: Face) -> None:
    move = Similarity.about(0j, 0.4 - 0.3j, 1.03, 1.5)
    face = detector(moved(portrait, move, (260, 260)))[0]
    assert deviation(face, move(found.landmarks)) < 0.012


def test_small_cut_and_two_faces(detector: Detector, portrait: Tensor, found: Face) -> None:
    shrunk = Similarity(0.35, 0)
    (small,) = detector(moved(portrait, shrunk, (91, 91)))
    assert deviation(small, shrunk(found.landmarks)) < 0.06

    (cut,) = detector(portrait[:, 58:, 100:])  # no forehead, and the cheek on the left is gone
    assert deviation(cut, found.landmarks - torch.tensor([100, 58])) < 0.06

    two = torch.cat([portrait, moved(portrait, Similarity.about(0j, 20 + 20j, 0.9, 0), (260, 260))], 2)
    faces = detector(two)
    assert len(faces) == 2 and faces[0].score >= faces[1].score
    assert largest(faces).centre[0] < 260 and abs(largest(faces).side / found.side - 1) < 0.05


def test_a_gigantic_picture_is_reduced_first(detector: Detector, portrait: Tensor, found: Face) -> None:
    big = Similarity(7, 0)
    (face,) = detector(moved(portrait, big, (1820, 1820)))
    assert deviation(face, big(found.landmarks)) < 0.03


def test_smallest_finds_a_small_face_beside_a_large_one(portrait: Tensor) -> None:
    both = torch.cat([portrait, moved(portrait, Similarity(0.5, 30 + 30j), (260, 200))], 2)
    assert len(Detector(thorough=False)(both)) == 1
    assert len(Detector(thorough=False, smallest=30)(both)) == 2
    with pytest.raises(ValueError, match="smallest"):
        Detector(smallest=0)


def test_a_quick_look_does_not_turn_the_picture(portrait: Tensor) -> None:
    assert Detector(thorough=False)(portrait.flip(1)) == []


def test_no_face_is_an_error_with_the_file_and_what_to_do(detector: Detector) -> None:
    ramp = torch.arange(64, dtype=torch.uint8).repeat(3, 48, 1)
    with pytest.raises(UserError, match=r"no face found in wall\.png \(64x48 pixels\): give a photo"):
        find_faces(detector, ramp, "wall.png")


@pytest.mark.parametrize("kind", ["grey", "rgba", "sixteen", "turned"])
def test_every_kind_of_file(detector: Detector, portrait: Tensor, found: Face, kind: str) -> None:
    img = Image.fromarray(portrait.permute(1, 2, 0).numpy())
    exif = Image.Exif()
    if kind == "grey":
        img = img.convert("L")
    elif kind == "rgba":
        img.putalpha(255)
    elif kind == "sixteen":
        img = Image.fromarray(np.asarray(img.convert("L")).astype(np.uint16) * 257)
    else:
        img, exif[0x0112] = img.transpose(Image.Transpose.ROTATE_90), 6  # stored turned, to be shown upright
    data = BytesIO()
    img.save(data, "PNG", exif=exif)
    image = decode_photo(data.getvalue())
    assert image.shape == (3, 260, 260) and image.dtype == torch.uint8
    assert deviation(find_faces(detector, image, kind)[0], found.landmarks) < 0.03


def test_sixty_eight_landmarks_name_their_licence(portrait: Tensor, found: Face) -> None:
    assert "no commercial use" in DenseLandmarks.licence
    points = DenseLandmarks()(portrait, found)
    assert points.shape == (68, 2)
    # The corners of the eyes are numbers 36, 39, 42 and 45 in that order from the left, the base of the nose 33.
    five = points[[45, 42, 36, 39, 33]]
    assert deviation(found, five) < 0.1


def test_the_embedding_tells_pictures_of_one_face_and_is_the_same_in_a_batch(
    detector: Detector, portrait: Tensor, found: Face
) -> None:
    recogniser = Recogniser()
    turned = Similarity.about(129.5 + 129.5j, 129.5 + 129.5j, 0.9, 170)
    other = moved(portrait, turned, (260, 260))
    squeezed = torch.nn.functional.interpolate(portrait[None].float(), (260, 215)).to(torch.uint8)[0]  # a narrower face
    pictures = [(portrait, [found]), (other, detector(other)), (squeezed, detector(squeezed))]
    chips = [recogniser.chips(image, faces)[0] for image, faces in pictures]
    one, same, different = recogniser.embed(chips)
    assert one.shape == (128,) and one.dtype == torch.float32
    assert (one - same).norm() < 0.2 < (one - different).norm()
    assert torch.equal(recogniser(portrait, [found])[0], one)
    assert recogniser(portrait, []).shape == (0, 128)


def test_selection() -> None:
    image = torch.zeros(3, 200, 300, dtype=torch.uint8)
    aside, middle = at(0, 0, 110), at(100, 50, 100)
    assert largest([middle, aside]) is aside
    assert subject([aside, middle], image) is middle
    assert middle.centre == pytest.approx((149.5, 105.7), abs=0.6)
    index, distance = nearest(torch.tensor([[0.0, 0], [3, 4], [6, 8]]), torch.tensor([3.0, 3.0]))
    assert (index, distance) == (1, 1.0)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(UserError, match=r"dlib, which is not installed: pip install -e '\.\[faces\]'"):
        Detector()
    monkeypatch.undo()
    pytest.importorskip("dlib", reason="the extra `faces` is not installed")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    dlib_net.cache_clear()
    with pytest.raises(UserError, match=r"face-recognition-models is not installed: pip install -e '\.\[faces\]'"):
        Recogniser()

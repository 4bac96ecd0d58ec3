import math

import pytest
import torch

from ornstein.faces.align import alignment, crop, mask
from ornstein.faces.detect import Detector
from ornstein.faces.recognise import Recogniser
from ornstein.faces.train.evaluate import Held, embed_crops, found_landmarks, photos_of, score_swaps
from ornstein.faces.train.face_set import FaceSet

SIZE = 64


@pytest.fixture(scope="module")
def two(portrait) -> FaceSet:
    """The portrait, and the same narrowed: somebody else, of sorts."""
    detector, recogniser = Detector(), Recogniser()
    narrow = torch.nn.functional.interpolate(portrait[None].float(), (260, 200))[0].round().to(torch.uint8)
    images, embeddings, landmarks = [], [], []
    for image in (portrait, narrow):
        face = detector(image)[0]
        place = alignment(face.landmarks, SIZE)
        images.append(crop(image, place, SIZE))
        landmarks.append(place(face.landmarks).float())
        embeddings.append(recogniser(image, [face])[0])
    return FaceSet(
        source="two",
        images=torch.stack(images),
        embeddings=torch.stack(embeddings),
        landmarks=torch.stack(landmarks),
        transforms=torch.zeros(2, 2, 3),
        scores=torch.ones(2),
        people=["one", "narrow"],
        person=torch.tensor([0, 1]),
        names=["one/1.jpg", "narrow/1.jpg"],
    )


def test_a_crop_is_recognised_as_its_photograph_is(two):
    again = embed_crops(Recogniser(), two.images, two.landmarks)
    distances = torch.cdist(again, two.embeddings)
    assert float(distances.diagonal().max()) < 0.3
    assert distances.argmin(1).tolist() == [0, 1]


def test_landmarks_are_found_again_where_they_were(two):
    points, found = found_landmarks(Detector(), two.images, two.landmarks)
    assert found.all()
    assert float((points - two.landmarks).norm(dim=2).mean()) < 2


def test_a_perfect_swap_and_none_at_all(two):
    held = Held.of(two, 2)
    targets, sources = held.crops.roll(-1, 0), held.crops
    none = score_swaps(held, targets, 0.0, Recogniser(), None, steps=3)
    assert none.top1 == 0 and none.target_top1 == 1 and none.background == math.inf and none.to_target < 0.3
    assert none.as_row()["steps"] == 3 and "settings" not in none.as_row()
    # the sources' own crops in the place of the swaps: right faces, and the background of another picture
    whole = score_swaps(held, sources, 0.0, Recogniser(), None)
    assert whole.top1 == 1 and whole.background < 40 and whole.to_source < whole.to_target
    # the second judge and the mesh agree; an unswapped target keeps its expression to the bit
    assert none.judge_top1 == 0 and none.judge_target == 1 and whole.judge_top1 == 1 and whole.judge_target == 0
    assert none.expression == 0 < none.jitter < 0.05 and whole.expression > 0 and math.isnan(none.judge_real)


def test_masks_of_photos_are_those_of_their_landmarks(two):
    photos = photos_of(two)
    assert photos.masks.dtype == torch.uint8
    masks = mask(two.landmarks, SIZE)
    torch.testing.assert_close(photos.masks / 255, masks, atol=1 / 255, rtol=0)
    for area, points in zip(masks, two.landmarks, strict=True):
        x, y = points[4].round().long().tolist()  # the base of the nose
        assert float(area[0, y, x]) == 1 and not area[0, 0].any() and not area[0, -1].any()

import pytest
import torch

from ornstein.faces.photos import Photos, SourceFaces, mirror

# outer and inner corner of the eye on the right, of that on the left, the nose; and one more
POINTS = [[6.0, 2.0], [5.0, 2.0], [1.0, 3.0], [2.0, 3.0], [3.0, 5.0], [0.0, 7.0]]
MIRRORED = [[6.0, 3.0], [5.0, 3.0], [1.0, 2.0], [2.0, 2.0], [4.0, 5.0], [7.0, 7.0]]


def photos(states: bool = False) -> Photos:
    """Twelve photos; each pixel's value is the photo's number, each embedding too. Person 3 has a single photo."""
    number = torch.arange(12)
    person = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3])
    state = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]) if states else None
    images = number.to(torch.uint8)[:, None, None, None].expand(12, 3, 8, 8).clone()
    images[:, :, :, 0] += 100  # the left column is brighter
    landmarks = torch.tensor(POINTS).expand(12, 6, 2)
    masks = torch.zeros(12, 1, 8, 8, dtype=torch.uint8)
    masks[..., 0] = 255
    return Photos(images, masks, landmarks, person, number[:, None].float(), state)


def number_of(pictures: torch.Tensor) -> torch.Tensor:
    """Which photo a picture is of, mirrored or not: the value of its middle."""
    return ((pictures[:, 0, 4, 4] + 1) * 127.5).round().long()


def draws(rows: torch.Tensor, n: int = 60, **settings):
    p = photos(**settings)
    for seed in range(n):
        yield p, p.pairs(rows, torch.Generator().manual_seed(seed))


def test_the_source_is_another_photo_of_the_same_person_where_there_is_one():
    rows, seen = torch.tensor([0, 5, 11]), [set(), set(), set()]
    for p, pairs in draws(rows):
        source = pairs.source.identity[:, 0].long()
        assert torch.equal(p.person[source], p.person[rows])
        assert torch.equal(number_of(pairs.source.image), source)
        assert torch.equal(number_of(pairs.truth), rows) and torch.equal(number_of(pairs.target), rows)
        for i, s in enumerate(source.tolist()):
            seen[i].add(s)
    assert seen == [{1, 2, 3}, {4, 6, 7}, {11}]  # all others, never itself unless it is alone


def test_a_face_alone_is_its_own_source_in_a_mirror():
    sides = set()
    for _, pairs in draws(torch.tensor([11, 2])):
        mirrored, source = (part[:, 0, 0, 7] > part[:, 0, 0, 0] for part in (pairs.truth, pairs.source.image))
        assert bool(source[0]) != bool(mirrored[0]) and bool(source[1]) == bool(mirrored[1])
        assert bool(pairs.source.mask[0, 0, 0, 7]) == bool(source[0])
        sides.add(bool(source[0]))
    assert sides == {True, False}


def test_with_states_the_target_is_somebody_else_in_the_same_state():
    rows = torch.tensor([0, 6])
    seen = [set(), set()]
    for p, pairs in draws(rows, states=True):
        target = number_of(pairs.target)
        assert torch.equal(p.state[target], p.state[rows]) and bool((p.person[target] != p.person[rows]).all())
        for i, t in enumerate(target.tolist()):
            seen[i].add(t)
    assert seen == [{4, 8}, {2, 10}]


def test_pictures_masks_and_landmarks_are_mirrored_together():
    both = set()
    for _, pairs in draws(torch.tensor([2])):
        mirrored = bool(pairs.truth[0, 0, 0, 7] > pairs.truth[0, 0, 0, 0])
        assert bool(pairs.target[0, 0, 0, 7] > pairs.target[0, 0, 0, 0]) == mirrored
        assert float(pairs.mask[0, 0, 0, 7]) == float(mirrored)
        assert pairs.landmarks[0].tolist() == (MIRRORED if mirrored else POINTS)
        both.add(mirrored)
    assert both == {True, False}
    assert photos().landmarks[2].tolist() == POINTS  # and the set itself is as it was


def test_in_a_mirror_the_right_eye_is_still_on_the_right():
    assert mirror(torch.tensor([POINTS]), 8)[0].tolist() == MIRRORED
    torch.testing.assert_close(mirror(mirror(torch.tensor([POINTS]), 8), 8), torch.tensor([POINTS]))


def test_sources_are_picked_repeated_and_joined():
    faces = photos().faces(torch.tensor([3, 7, 9]))
    assert len(faces) == 3 and faces.select(torch.tensor([2])).identity.tolist() == [[9.0]]
    assert faces.roll(1).identity[:, 0].tolist() == [9, 3, 7]
    one = faces.select(slice(1)).repeat(4)
    assert one.identity[:, 0].tolist() == [3] * 4 and one.image.shape == (4, 3, 8, 8)
    both = SourceFaces.cat([faces, one])
    assert len(both) == 7 and torch.equal(number_of(both.image), torch.tensor([3, 7, 9, 3, 3, 3, 3]))
    known = faces.known(faces.landmarks)
    assert set(known) == {"identity", "appearance"} and known["appearance"].shape == (3, 4, 8, 8)


def test_other_embeddings_and_some_of_the_photos():
    p = photos(states=True)
    assert torch.equal(p.known_as(p.embeddings + 1).embeddings, p.embeddings + 1)
    some = p.select(torch.tensor([4, 8]))
    assert len(some) == 2 and torch.equal(number_of(some.batch([0, 1])[0]), torch.tensor([4, 8]))
    assert torch.equal(some.state, torch.tensor([0, 0]))


def test_unequal_numbers_are_named():
    p = photos()
    with pytest.raises(ValueError, match="equally many"):
        p.known_as(torch.zeros(11, 1))

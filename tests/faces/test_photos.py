import pytest
import torch

from ornstein.faces.photos import Photos


def photos(own: float = 0.0, states: bool = False) -> Photos:
    """Twelve photos; each pixel's value is the photo's number, each embedding too. Person 3 has a single photo."""
    number = torch.arange(12)
    person = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3])
    state = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]) if states else None
    images = number.to(torch.uint8)[:, None, None, None].expand(12, 3, 8, 8).clone()
    images[:, :, :, 0] += 100  # the left column is brighter
    landmarks = torch.tensor([[1.0, 2.0], [6.0, 2.0]]).expand(12, 2, 2)
    masks = torch.zeros(12, 1, 8, 8, dtype=torch.uint8)
    masks[..., 0] = 255
    return Photos(images, masks, landmarks, person, number[:, None].float(), state, own)


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
        source = pairs.identity[:, 0].long()
        assert torch.equal(p.person[source], p.person[rows])
        assert torch.equal(number_of(pairs.truth), rows) and torch.equal(number_of(pairs.target), rows)
        for i, s in enumerate(source.tolist()):
            seen[i].add(s)
    assert seen == [{1, 2, 3}, {4, 6, 7}, {11}]  # all others, never itself unless it is alone


def test_own_photos_are_sources_as_often_as_asked():
    rows = torch.zeros(500, dtype=torch.int64)
    pairs = photos(own=0.3).pairs(rows, torch.Generator().manual_seed(0))
    assert float((pairs.identity[:, 0] == 0).float().mean()) == pytest.approx(0.3, abs=0.06)


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
        assert pairs.landmarks[0].tolist() == ([[6.0, 2.0], [1.0, 2.0]] if mirrored else [[1.0, 2.0], [6.0, 2.0]])
        both.add(mirrored)
    assert both == {True, False}
    assert photos().landmarks[2].tolist() == [[1.0, 2.0], [6.0, 2.0]]  # and the set itself is as it was


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

import numpy as np
import pytest
import torch

from ornstein.errors import UserError
from ornstein.faces.swap.noise import FaceNoise
from ornstein.faces.swap.tracks import Seen, by_frame, fading, link, smooth


def seen(x: float, y: float = 0.0, side: float = 20.0, source: int = 0) -> Seen:
    return Seen(source, side, tuple(float(v) for k in range(5) for v in (x + k - 2, y)))


def test_even_motion_is_not_changed_and_gaps_are_on_its_line() -> None:
    frames = np.array([3, 4, 5, 9, 10, 30])
    slope, level = np.array([2.0, -0.5]), np.array([10.0, 70.0])
    out = smooth(frames, (slope * frames[:, None] + level).astype(np.float32))
    every = np.arange(3, 31)
    np.testing.assert_allclose(out, slope * every[:, None] + level, atol=1e-3)


def test_jitter_gets_less_by_what_the_weights_say() -> None:
    """Around the middle of a long track the line is the weighted mean: its variance is the sum of squared weights."""
    rows = np.random.default_rng(0).normal(size=(4000, 3)).astype(np.float32)
    w = np.exp(-0.5 * (np.arange(-4, 5) / 1.5) ** 2)
    expected = np.sqrt((w**2).sum()) / w.sum()
    assert smooth(np.arange(4000), rows).std() == pytest.approx(expected, rel=0.03)
    np.testing.assert_allclose(smooth(np.array([7]), rows[:1]), rows[:1])


def test_tracks_follow_their_faces() -> None:
    frames = [[seen(10 + i), seen(100 - i, 50)] for i in range(8)]
    frames[3] = frames[3][:1]  # the second one is missed once
    one, two = link(frames, gap=2)
    assert (one.first, one.last, two.first, two.last) == (0, 7, 0, 7)
    np.testing.assert_allclose(one.points[:, 2, 0], 10 + np.arange(8), atol=1e-3)
    np.testing.assert_allclose(two.points[:, 2], np.stack([100 - np.arange(8), np.full(8, 50)], 1), atol=1e-3)


@pytest.mark.parametrize(("missed", "tracks"), [(3, 1), (4, 2)])
def test_a_gap_is_filled_up_to_its_length(missed: int, tracks: int) -> None:
    frames = [[seen(5)], [seen(5)], *[[] for _ in range(missed)], [seen(5)]]
    found = link(frames, gap=3)
    assert len(found) == tracks
    assert sum(len(there) for _, there in by_frame(found, 0, len(frames))) == (len(frames) if tracks == 1 else 3)


def test_a_jump_or_another_person_is_another_track() -> None:
    assert len(link([[seen(5)], [seen(60)]], gap=3)) == 2
    assert len(link([[seen(5)], [seen(6, source=1)]], gap=3)) == 2
    assert link([[], []], gap=3) == []


def test_the_largest_face_stays_until_another_is_a_good_deal_larger() -> None:
    frames = [[seen(0, side=20), seen(100, side=19 + i)] for i in range(10)]
    tracks = link(frames, gap=3, largest=True)
    assert [(round(float(t.points[0, 2, 0])), t.first, t.last) for t in tracks] == [(0, 0, 6), (100, 7, 9)]


def test_the_tracks_of_each_frame() -> None:
    tracks = link([[seen(0)], [seen(0), seen(80)], [seen(80)], [], [], [seen(40)]], gap=0)
    found = [(frame, [t.number for t in there]) for frame, there in by_frame(tracks, 1, 6)]
    assert found == [(1, [0, 1]), (2, [1]), (3, []), (4, []), (5, [2])]


def test_noise_over_the_frames_of_a_face() -> None:
    frames = list(range(200))
    for kind, correlation in (("independent", 0.0), ("ar1:0.8", 0.8), ("shared", 1.0)):
        z = FaceNoise(kind, 5)(2, frames, 8, None)
        assert z.shape == (200, 3, 8, 8)
        assert float((z[1:] * z[:-1]).mean() / z.square().mean()) == pytest.approx(correlation, abs=0.02)
        assert float(z.var()) == pytest.approx(1, abs=0.3)
        assert not torch.equal(FaceNoise(kind, 5)(3, frames[:2], 8, None), z[:2])
        assert not torch.equal(FaceNoise(kind, 6)(2, frames[:2], 8, None), z[:2])


@pytest.mark.parametrize("kind", ["independent", "ar1:0.8", "shared"])
def test_noise_goes_on_where_it_was(kind: str) -> None:
    noise = FaceNoise(kind, 1)
    whole = noise(0, list(range(10, 30)), 4, None)
    first = noise(0, list(range(10, 17)), 4, None)
    rest = noise(0, list(range(17, 30)), 4, first[-1])
    torch.testing.assert_close(torch.cat([first, rest]), whole)


@pytest.mark.parametrize("kind", ["", "pink", "ar1", "ar1:x", "ar1:1", "ar1:-0.5", "shared:1"])
def test_no_such_noise(kind: str) -> None:
    with pytest.raises(UserError, match="noise"):
        FaceNoise(kind, 0)


def test_a_face_fades_while_it_is_turned_too_far_and_comes_back() -> None:
    turned = [False] * 2 + [True] * 5 + [False] * 4
    levels = fading(turned, 2)
    assert levels == [3, 3, 2, 1, 0, 0, 0, 1, 2, 3, 3]
    assert levels == fading(turned[:4], 2) + fading(turned[4:], 2, levels[3])  # of two batches
    assert fading([True, True, False, False], 1) == [0, 0, 1, 2]  # a track does not begin with a fade
    assert fading(turned, 0) == [int(not each) for each in turned]

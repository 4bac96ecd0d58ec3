"""Procedural faces: turned as bodies are, lit, the same in any batch; landmarks, masks, flow and identity are true."""

import math
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.faces.world import (
    ATTRIBUTES,
    IDENTITY,
    LANDMARKS,
    FaceWorld,
    attributes,
    flow,
    identities,
    motion,
    nearest_identity,
    render,
    rendered,
)

RANGES = {"yaw": 0.65, "pitch": 0.35, "roll": 0.35, "shift_x": 0.1, "gaze_x": 1.0, "light_x": 1.2}


def state(n: int = 1, **named: float) -> Tensor:
    """`n` neutral states: straight, mouth shut, eyes open, light from the front; but for what is named."""
    rest = dict.fromkeys(ATTRIBUTES, 0.0) | {
        "scale": 1.0,
        "light_power": 1.0,
        "light_y": 0.4,
        "ambient": 0.3,
        **{f"{what}_{colour}": 0.5 for what in ("back", "cloth") for colour in ("red", "green", "blue")},
    }
    assert set(named) <= set(rest)
    return torch.tensor([list((rest | named).values())]).repeat(n, 1)


def person(n: int = 1, seed: int = 0, **named: float) -> Tensor:
    people = identities(n, seed)
    for name, value in named.items():
        people[:, IDENTITY.index(name)] = value
    return people


def points(rendered, *names: str) -> Tensor:
    return rendered.landmarks[:, [LANDMARKS.index(name) for name in names]]


def test_people_and_states_are_addressed_by_their_number():
    people, states = identities(8, 3), attributes(8, 3)
    assert people.shape == (8, len(IDENTITY)) and states.shape == (8, len(ATTRIBUTES))
    assert torch.equal(people[5:], identities(3, 3, first=5)) and torch.equal(states[5:], attributes(3, 3, first=5))
    assert not torch.equal(people, identities(8, 4)) and not torch.equal(states, attributes(8, 4))
    assert len(set(IDENTITY)) == len(IDENTITY) and len(set(ATTRIBUTES)) == len(ATTRIBUTES)
    many = identities(600, 0)
    assert many.min() >= 0 and many.max() <= 1
    torch.testing.assert_close(many.mean(0), torch.full((len(IDENTITY),), 0.5), atol=0.06, rtol=0)
    torch.testing.assert_close(many.var(0), torch.full((len(IDENTITY),), 1 / 12), atol=0.02, rtol=0)
    several = attributes(600, 0)
    for name, limit in RANGES.items():
        column = several[:, ATTRIBUTES.index(name)]
        assert column.abs().max() <= limit + 1e-6 and abs(float(column.mean())) < 0.2 * limit and column.std() > 0.01
    both = torch.cat([many, several], 1)
    cross = torch.corrcoef(both.T)[: len(IDENTITY), len(IDENTITY) :]
    assert cross.abs().max() < 0.2  # who it is says nothing about what it does


def test_a_picture_depends_on_its_own_row_alone():
    people, states = identities(5, 0), attributes(5, 0)
    together = render(people, states, 48)
    assert together.image.shape == (5, 3, 48, 48) and together.image.dtype == torch.float32
    assert together.mask.shape == (5, 1, 48, 48) and together.landmarks.shape == (5, len(LANDMARKS), 2)
    assert together.visible.shape == (5, len(LANDMARKS)) and together.visible.dtype == torch.bool
    assert together.image.min() >= -1 and together.image.max() <= 1 and torch.isfinite(together.image).all()
    assert together.mask.min() >= 0 and together.mask.max() <= 1
    again = render(people, states, 48)
    for i in range(5):
        alone = render(people[i : i + 1], states[i : i + 1], 48)
        for name in ("image", "mask", "landmarks", "visible"):
            assert torch.equal(getattr(again, name), getattr(together, name))
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[i])


def test_many_pictures_on_several_threads_are_the_same_bit_for_bit():
    people, states = identities(5, 0).repeat(8, 1), attributes(40, 1)
    whole, before = render(people, states, 64), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        images, landmarks = rendered(people, states, 64, lambda out: (out.image, out.landmarks))
        (masks,) = rendered(people, states, 64, lambda out: (out.mask,))
        with ThreadPoolExecutor(1) as pool:  # as later threads do
            assert torch.get_num_threads() == pool.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)
    assert torch.equal(images, whole.image) and torch.equal(landmarks, whole.landmarks)
    assert torch.equal(masks, whole.mask)
    with pytest.raises(ValueError, match="pixels a side"):
        rendered(people, states, 8, lambda out: (out.image,))
    with pytest.raises(ValueError, match="40 rows, but attributes has 39"):
        rendered(people, states[:39], 64, lambda out: (out.image,))


def test_any_corner_of_the_ranges_is_drawn():
    corners = torch.stack([torch.zeros(len(IDENTITY)), torch.ones(len(IDENTITY)), torch.full((len(IDENTITY),), 0.5)])
    wild = attributes(400, 1)
    for states in (wild.amin(0), wild.amax(0)):
        drawn = render(corners, states.expand(3, -1), 32)
        assert torch.isfinite(drawn.image).all() and (drawn.mask.sum((1, 2, 3)) > 60).all()


@pytest.mark.parametrize(
    ("turn", "matrix"),
    [
        ("yaw", lambda c, s: [[c, 0, s], [0, 1, 0], [-s, 0, c]]),
        ("pitch", lambda c, s: [[1, 0, 0], [0, c, s], [0, -s, c]]),
        ("roll", lambda c, s: [[c, -s, 0], [s, c, 0], [0, 0, 1]]),
    ],
)
def test_a_turn_moves_the_landmarks_as_one_body(turn, matrix):
    # Depth is not in the picture: it follows from a quarter turn's worth of two known views, then predicts a third.
    face = person(2, seed=1)
    size, angle = 200, 0.3
    unit = size / 2 / 1.32  # pixels in a head unit at scale 1

    def seen(**turned: float) -> Tensor:
        at = render(face, state(2, **turned), size).landmarks
        return (at - centre) / unit * torch.tensor([1.0, -1.0])

    # The centre of the head is where turning by +-yaw and by +-pitch leaves a body: it cancels from differences.
    centre = torch.tensor([(size - 1) / 2, (size - 1) / 2 - 0.02 * unit])
    front, left, right = seen(), seen(yaw=angle), seen(yaw=-angle)
    z = (left[..., 0] - right[..., 0]) / (2 * math.sin(angle))
    body = torch.cat([front, z[..., None]], -1)
    assert (z.amax(1) - z.amin(1) > 0.3).all()
    for other in (-0.4, 0.2, 0.35):
        rotated = body @ torch.tensor(matrix(math.cos(other), math.sin(other))).T
        torch.testing.assert_close(seen(**{turn: other}), rotated[..., :2], atol=1e-4, rtol=0)


def test_landmarks_move_and_grow_with_the_picture_and_so_does_the_mask():
    face = person(3, seed=2)
    rest = render(face, state(3), 100)
    moved = render(face, state(3, shift_x=0.05, shift_y=-0.03), 100)
    shift = torch.tensor([5.0, -3.0])
    torch.testing.assert_close(moved.landmarks - rest.landmarks, shift.expand_as(rest.landmarks), atol=1e-3, rtol=0)
    rolled = rest.mask.roll((-3, 5), (2, 3))
    torch.testing.assert_close(moved.mask, rolled, atol=2e-3, rtol=0)
    large = render(face, state(3), 200)
    torch.testing.assert_close((large.landmarks + 0.5) / 2 - 0.5, rest.landmarks, atol=1e-3, rtol=0)
    near = render(face, state(3, scale=1.1), 100)
    eyes = [
        (x[:, 0] - x[:, 1]).norm(dim=-1) for x in (points(r, "right_eye_outer", "left_eye_outer") for r in (near, rest))
    ]
    torch.testing.assert_close(eyes[0] / eyes[1], torch.full((3,), 1.1), atol=1e-4, rtol=0)


def test_visible_landmarks_lie_on_the_mask_and_turning_away_hides_some():
    face, states = person(24, fringe=0.0, hair_length=0.2), attributes(24, 5)
    drawn = render(face, states, 64)
    at = drawn.landmarks.round().long().clamp(0, 63)
    on = drawn.mask[:, 0][torch.arange(24)[:, None], at[..., 1], at[..., 0]]
    assert on[drawn.visible].min() > 0.4 and drawn.visible[:, LANDMARKS.index("nose_tip")].all()
    turned = render(face, state(24, yaw=0.9), 64).visible
    assert not turned[:, LANDMARKS.index("right_nostril")].any()  # behind the nose
    assert turned[:, LANDMARKS.index("left_eye_outer")].all()
    assert render(face, state(24), 64).visible.all()
    assert not render(face, state(24, shift_x=0.6), 64).visible[:, LANDMARKS.index("right_cheek")].any()  # outside


def test_hair_covers_brows_under_a_fringe_and_not_without():
    hidden, bare = (
        render(person(6, hair_length=0.6, fringe=f, hairline=0.0, brow_height=1.0), state(6, brows_raised=1.0), 64)
        for f in (1.0, 0.0)
    )
    assert (hidden.mask.sum((1, 2, 3)) < 0.93 * bare.mask.sum((1, 2, 3))).all()


def test_a_mirrored_state_gives_the_mirrored_picture_of_a_symmetric_face():
    face = person(6, seed=3, hair_part=0.5)
    states, mirrored = attributes(6, 6), attributes(6, 6)
    for name in ("yaw", "roll", "shift_x", "gaze_x", "light_x", "back_x"):
        mirrored[:, ATTRIBUTES.index(name)] *= -1
    for each in (states, mirrored):
        each[:, ATTRIBUTES.index("back_pattern")] = 0
    plain, other = render(face, states, 64), render(face, mirrored, 64)
    torch.testing.assert_close(plain.image, other.image.flip(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(plain.mask, other.mask.flip(3), atol=1e-4, rtol=0)
    assert (plain.image - plain.image.flip(3)).abs().mean() > 0.05
    swap = [LANDMARKS.index(n.replace("left", "*").replace("right", "left").replace("*", "right")) for n in LANDMARKS]
    flipped = other.landmarks[:, swap] * torch.tensor([-1.0, 1.0]) + torch.tensor([63.0, 0.0])
    torch.testing.assert_close(plain.landmarks, flipped, atol=1e-3, rtol=0)


def test_light_shades_the_side_it_comes_from():
    face = person(8, hair_length=0.0)
    halves = []
    for x in (-1.0, 1.0):
        drawn = render(face, state(8, light_x=x), 64)
        light = (drawn.image.mean(1, keepdim=True) + 1) * drawn.mask
        halves.append(light[..., 32:].sum((1, 2, 3)) / light[..., :32].sum((1, 2, 3)))
    assert (halves[1] > 1.15 * halves[0]).all()


def test_expressions_move_what_they_should():
    face = person(8, seed=4)
    rest, opened = render(face, state(8), 128), render(face, state(8, mouth_open=1.0), 128)
    gap = [(b - t)[:, 0, 1] for t, b in ((points(r, "mouth_top"), points(r, "mouth_bottom")) for r in (rest, opened))]
    assert gap[0].abs().max() < 1e-4 and (gap[1] > 5).all()
    smile = render(face, state(8, smile=1.0), 128)
    corners = points(rest, "mouth_left", "mouth_right") - points(smile, "mouth_left", "mouth_right")
    assert (corners[..., 1] > 2).all()  # upwards
    raised = render(face, state(8, brows_raised=1.0), 128)
    assert (points(rest, "left_brow_middle") - points(raised, "left_brow_middle"))[..., 1].min() > 1
    fixed = points(rest, "nose_tip", "left_eye_outer", "right_eye_inner")
    for other in (opened, smile, raised):
        torch.testing.assert_close(points(other, "nose_tip", "left_eye_outer", "right_eye_inner"), fixed)
    # shut eyes show skin: the whites and irises are gone, and only there does the picture change
    shut = render(face, state(8, eyes_closed=1.0), 128)
    change = (shut.image - rest.image).abs().sum(1)
    eye = points(rest, "left_eye_outer", "left_eye_inner", "right_eye_outer", "right_eye_inner").flatten(0, 1)
    rows = torch.arange(128.0)
    far = (rows[:, None] - eye[:, 1].min() < -16) | (rows[:, None] - eye[:, 1].max() > 16)
    assert change.amax((1, 2)).min() > 0.3 and (change * far).max() < 1e-5


def warped(image: Tensor, moved: Tensor) -> Tensor:
    """image(p + moved(p))."""
    size = image.shape[-1]
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    at = (torch.stack([x, y]) + moved + 0.5) * (2 / size) - 1
    return F.grid_sample(image, at.permute(0, 2, 3, 1), align_corners=False)


def test_flow_takes_one_picture_to_the_other():
    face = person(6, seed=5, hair_length=0.2)
    even = {"ambient": 1.0, "light_power": 0.0}
    a, b = state(6, yaw=-0.1, **even), state(6, yaw=0.15, pitch=0.1, roll=0.1, scale=1.04, shift_x=0.03, **even)
    moved, valid = flow(face, a, b, 96)
    assert moved.shape == (6, 2, 96, 96) and valid.shape == (6, 1, 96, 96) and valid.dtype == torch.bool
    first, second = render(face, a, 96), render(face, b, 96)
    assert (valid.sum((1, 2, 3)) > 0.6 * first.mask.sum((1, 2, 3))).all()
    apart = [
        ((x - first.image).abs().mean(1, keepdim=True) * valid).sum() / valid.sum()
        for x in (warped(second.image, moved), second.image)
    ]
    assert apart[0] < 0.02 and apart[0] < 0.25 * apart[1]
    # landmarks flow with the pixels they lie on
    at = first.landmarks.round().long()
    rows = torch.arange(6)[:, None]
    gone = second.landmarks - first.landmarks
    here = moved.permute(0, 2, 3, 1)[rows, at[..., 1], at[..., 0]]
    sure = valid[:, 0][rows, at[..., 1], at[..., 0]] & first.visible & second.visible
    assert sure.sum() > 50 and ((here - gone).norm(dim=-1)[sure] < 0.6).all()


def test_flow_is_nought_at_rest_and_unsure_where_an_expression_moves():
    face = person(3, seed=6, hair_length=0.2, glasses=0.0)
    moved, valid = flow(face, state(3), state(3), 64)
    mask = render(face, state(3), 64).mask
    assert moved[valid.expand_as(moved)].abs().max() < 1e-3
    assert torch.equal(valid, mask > 0.5)
    talking, some = flow(face, state(3), state(3, mouth_open=1.0, smile=0.5, eyes_closed=1.0), 64)
    drawn = render(face, state(3), 64)
    at = points(drawn, "mouth_left", "mouth_right", "left_pupil", "right_pupil", "chin").round().long()
    assert not some[:, 0][torch.arange(3)[:, None], at[..., 1], at[..., 0]].any()
    assert talking[some.expand_as(talking)].abs().max() < 1e-3 and some.any()


def test_each_person_is_told_from_all_others():
    people, states = identities(24, 7), attributes(24, 8)
    assert torch.equal(nearest_identity(render(people, states, 32).image, states, people), torch.arange(24))
    noisy = render(people[:6], states[:6], 32).image
    noisy = noisy + 0.1 * torch.randn(noisy.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(nearest_identity(noisy, states[:6], people), torch.arange(6))
    same = render(people, state(24), 64)
    pairs = (same.image[:, None] - same.image[None]).square().mean((2, 3, 4))
    pairs.fill_diagonal_(1)
    assert pairs.min() > 0.003  # mean squared; that of rounding to 8 bits is 0.000005


def test_a_swap_keeps_the_state_and_changes_the_person():
    people, states = identities(2, 9), attributes(2, 9)
    swapped = render(people[[0]], states[[1]], 48).image
    both = people
    assert nearest_identity(swapped, states[[1]], both).tolist() == [0]


def test_clips_move_smoothly_talk_and_blink():
    clip = motion(6, 120, 0)
    assert clip.shape == (6, 120, len(ATTRIBUTES)) and torch.isfinite(clip).all()
    assert torch.equal(clip[:, :30], motion(6, 30, 0)) and torch.equal(clip[:3], motion(3, 120, 0))
    assert not torch.equal(clip, motion(6, 120, 1))
    column = {name: clip[..., k] for k, name in enumerate(ATTRIBUTES)}
    assert (column["yaw"].diff(dim=1).abs() < 0.1).all() and (column["yaw"].amax(1) - column["yaw"].amin(1) > 0.2).all()
    assert (column["eyes_closed"].amax(1) > 0.6).all() and (column["eyes_closed"] == 0).float().mean() > 0.8
    assert (column["mouth_open"].amax(1) > 0.15).all() and column["mouth_open"].min() == 0
    for name in ("light_x", "back_red", "cloth_blue", "ambient"):
        assert (column[name] == column[name][:, :1]).all()


def test_a_world_of_people_is_rendered_as_it_is_read():
    world = FaceWorld(people=5, photos=4, size=32, seed=3)
    images, labels = world.batch([0, 7, 19])
    assert len(world) == 20 and world.shape == (3, 32, 32) == images.shape[1:]
    assert labels.tolist() == [0, 1, 4] and labels.dtype == torch.int64
    assert torch.equal(world.identity([7]), identities(1, 3, first=1))
    assert torch.equal(world.attributes([7]), attributes(1, 3, first=7))
    assert torch.equal(images, render(world.identity([0, 7, 19]), world.attributes(torch.tensor([0, 7, 19])), 32).image)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: identities(0, 0), "at least 1 row"),
        (lambda: attributes(2, 0, first=-1), "from row -1"),
        (lambda: motion(1, 0, 0), "at least 1 frame"),
        (lambda: render(identities(2, 0), attributes(1, 0)), "identity has 2 rows, but attributes has 1"),
        (lambda: render(identities(1, 0)[:, 1:], attributes(1, 0)), r"identity must be \(B, "),
        (lambda: render(identities(1, 0), attributes(1, 0)[:, 1:]), r"attributes must be \(B, "),
        (lambda: render(identities(1, 0)[:0], attributes(1, 0)[:0]), "B >= 1"),
        (lambda: render(identities(1, 0) * math.nan, attributes(1, 0)), "finite"),
        (lambda: render(identities(1, 0), attributes(1, 0), 8), "16 to 1024 pixels a side, not 8"),
        (lambda: flow(identities(1, 0), attributes(1, 0), attributes(2, 0)), "1 rows, but attributes has 2"),
        (lambda: FaceWorld(0, 1), "people and photos must be at least 1"),
        (lambda: FaceWorld(1, 1, size=2000), "not 2000"),
        (lambda: FaceWorld(2, 2).batch([4]), "pictures 0 to 3"),
        (lambda: FaceWorld(2, 2).batch([]), "at least one"),
        (lambda: nearest_identity(torch.zeros(1, 1, 32, 32), attributes(1, 0), identities(1, 0)), "images must be"),
        (lambda: nearest_identity(torch.zeros(2, 3, 32, 32), attributes(1, 0), identities(1, 0)), "2 images"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_speed_is_shown():
    people, states = identities(64, 0), attributes(64, 0)
    render(people, states, 64)
    start = time.process_time()
    render(people, states, 64)
    print(f"{64 / (time.process_time() - start):.0f} faces of 64x64 a second of processor time")

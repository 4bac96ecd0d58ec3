import math

import pytest
import torch

from ornstein.data import to_unit
from ornstein.evaluation.distortion import psnr, ssim
from ornstein.faces.world import ATTRIBUTES, Looks, cases, region, render, world_photos
from ornstein.faces.world.scores import Attributes, evaluate, nearest_people, noisy, pasted

SIZE = 32


@pytest.fixture(scope="module")
def few():
    return cases(4, SIZE, seed=3)


def test_photos_come_in_blocks_of_people_in_the_same_states():
    p = world_photos(64, SIZE, seed=0)
    assert len(p) == 64 and p.person.unique().numel() == 8 and p.state is not None and p.state.unique().numel() == 8
    pairs = p.pairs(torch.arange(64), torch.Generator().manual_seed(1))
    # the same surroundings, another face: only the person differs
    corner = (pairs.truth - pairs.target)[:, :, :4, :4].abs().amax((1, 2, 3))
    face = ((pairs.truth - pairs.target).abs() * pairs.mask).amax((1, 2, 3))
    assert float(corner.median()) < 0.02 and bool((face > 0.1).all())
    assert torch.equal(p.embeddings[8], p.embeddings[9]) and not torch.equal(p.embeddings[0], p.embeddings[8])


def test_a_block_is_the_same_wherever_it_is_made():
    both, second = world_photos(128, SIZE, seed=2), world_photos(64, SIZE, seed=2, first=1)
    assert torch.equal(both.images[64:], second.images) and torch.equal(both.landmarks[64:], second.landmarks)
    with pytest.raises(ValueError, match="blocks of 64"):
        world_photos(100, SIZE, seed=2)


def test_left_and_right_change_places_mirror_order():
    """A head that looks straight ahead and whose hair is not looked at is its own mirror image, but for its roll."""
    from ornstein.faces.photos import mirror
    from ornstein.faces.world.dataset import mirror_order

    states = torch.zeros(1, len(ATTRIBUTES))
    states[:, ATTRIBUTES.index("scale")] = 1.0
    points = render(torch.full((1, 46), 0.5), states, SIZE).landmarks
    torch.testing.assert_close(mirror(points, SIZE, mirror_order()), points, atol=1e-3, rtol=0)
    assert not torch.allclose(mirror(points, SIZE), points, atol=1.0)


def test_the_margin_holds_the_mask_and_ends_at_a_line():
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[:, :, 12:20, 12:20] = 1
    mask[:, :, 12, 12:20] = 0.2  # the rim of a face is seen through
    r, reach = region(mask), round(0.1 * SIZE)
    expected = torch.zeros(1, 1, SIZE, SIZE)
    expected[:, :, 12 - reach : 20 + reach, 12 - reach : 20 + reach] = 1
    assert torch.equal(r, expected)


def test_looks_tell_people_apart_and_ignore_nothing_that_is_seen():
    from ornstein.faces.world import identities

    people = identities(24, 5)
    looks = Looks(people)
    e = looks(people)
    # 24 people span 23 directions: the portraits are rebuilt exactly
    rebuilt = e @ torch.linalg.pinv(looks.basis).T + looks.mean
    torch.testing.assert_close(rebuilt, looks._portraits(people), atol=1e-3, rtol=0)
    torch.testing.assert_close(looks(people[:3]), e[:3], atol=1e-4, rtol=1e-4)


def test_psnr_and_ssim_by_hand():
    truth = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    weight = torch.zeros(2, 1, 16, 16)
    weight[:, :, :8] = 1
    wrong = truth.clone()
    wrong[:, :, :8] += 0.2
    wrong[:, :, 8:] += 5  # where nobody looks
    torch.testing.assert_close(psnr(wrong, truth, weight), torch.full((2,), 10 * math.log10(4 / 0.04)))
    torch.testing.assert_close(ssim(truth, truth, weight), torch.ones(2))
    inverted = ssim(-truth, truth, torch.ones_like(weight))
    assert bool((inverted < 0).all())
    assert bool((ssim(noisy(truth), truth, torch.ones_like(weight)) > 0.99).all())


def test_true_renders_are_nearest_to_their_people_and_targets_are_not(few):
    found = nearest_people({"truth": noisy(few.truth.image), "target": few.target.image}, few)
    assert found["truth"].tolist() == [0, 1, 2, 3]
    assert len(found["target"]) == 4


def test_a_known_change_of_pose_and_expression_is_found(few):
    states = few.states.clone()
    states[:, ATTRIBUTES.index("yaw")] += 0.04
    states[:, ATTRIBUTES.index("mouth_open")] = (states[:, ATTRIBUTES.index("mouth_open")] + 0.1).clamp(max=1)
    moved = render(few.people, states, SIZE).image
    found = Attributes(few.people, few)
    wrong = found.errors(moved)
    assert float((wrong[:, 0] - 0.04).abs().max()) < 0.02
    change = states[:, ATTRIBUTES.index("mouth_open")] - few.states[:, ATTRIBUTES.index("mouth_open")]
    assert float((wrong[:, 3] - change).abs().mean()) < 0.05
    still = found.errors(few.truth.image)
    torch.testing.assert_close(still, torch.zeros_like(still), atol=1e-4, rtol=0)


def test_the_truth_is_the_ceiling_and_pasting_leaves_the_rest_alone(few):
    scores = evaluate(few, few.truth.image)
    assert scores["swap"].psnr == math.inf and scores["swap"].top1 == 1
    assert 45 < scores["truth, 8-bit noise"].psnr < 55
    assert scores["target as it is"].psnr < 25 and scores["source pasted"].psnr < 30
    outside = (few.target.mask == 0).expand_as(few.target.image)
    assert torch.equal(pasted(few)[outside], few.target.image.clamp(-1, 1)[outside])


def test_training_people_and_cases_share_nobody():
    p, c = world_photos(64, SIZE, seed=0), cases(4, SIZE, seed=1)
    pictures = to_unit(p.images)
    for image in c.truth.image:
        assert float((pictures - image).square().mean((1, 2, 3)).min()) > 1e-3


def test_a_swap_may_paint_wherever_a_bald_source_has_a_face():
    from ornstein.faces.world import IDENTITY, attributes, identities
    from ornstein.faces.world.dataset import paintable

    targets, states = identities(12, 7), attributes(12, 8)
    for name, value in (("hair_length", 1.0), ("hair_volume", 1.0), ("fringe", 1.0), ("hairline", 0.0)):
        targets[:, IDENTITY.index(name)] = value
    bald = targets.clone()
    bald[:, IDENTITY.index("hair_length")] = 0.0
    target, truth = render(targets, states, SIZE), render(bald, states, SIZE)
    assert torch.equal(target.head, truth.head)  # hair does not hide it
    beyond = [
        float((truth.mask * (1 - each)).sum() / truth.mask.sum()) for each in (region(target.mask), paintable(target))
    ]
    assert beyond[0] > 0.01 and beyond[1] == 0


def test_points_of_the_surface_lie_at_their_share_of_the_heads_width():
    from ornstein.faces.world.landmarks import SURFACE

    states = torch.zeros(1, len(ATTRIBUTES))
    states[:, ATTRIBUTES.index("scale")] = 1.0
    drawn = render(torch.full((1, 46), 0.5), states, 128)
    head, at = drawn.head[0, 0], dict(zip(SURFACE, drawn.surface[0], strict=True))
    for level in ("temple", "orbit", "mandible"):
        right, left = (at[f"{side}_{level}_outer"] for side in ("right", "left"))
        width = float(head[int(right[1].round())].sum())
        assert abs(float((right - left).norm()) - 0.85 * width) < 1.5

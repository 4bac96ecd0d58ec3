"""The similarity, the warp, the mask and the landmark map of aligned crops, each against a closed form."""

import math

import pytest
import torch
from torch import Tensor

from ornstein.faces.align import Similarity, alignment, crop, landmark_map, mask, template, warp

MOVES = [(1.0, 0.0, 0j), (0.37, 33.0, 12 - 7j), (2.5, -140.0, -30 + 4j), (0.08, 90.0, 100 + 100j), (7.0, 180.0, 1j)]


def similarity(scale: float, degrees: float, shift: complex) -> Similarity:
    return Similarity.about(0j, shift, scale, degrees)


def plane(height: int, width: int, x: float, y: float, constant: float) -> Tensor:
    """(1, height, width): constant + x * column + y * row."""
    return constant + x * torch.arange(width)[None, None] + y * torch.arange(height)[None, :, None]


def waves(height: int, width: int) -> Tensor:
    """A smooth picture, uint8 (3, height, width)."""
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    channels = [(math.tau * (u * x + v * y + p)).sin() for u, v, p in ((1, 2, 0.1), (2, -1, 0.3), (-1.5, 1, 0.7))]
    return (128 + 100 * torch.stack(channels)).round().to(torch.uint8)


@pytest.mark.parametrize(("scale", "degrees", "shift"), MOVES)
@pytest.mark.parametrize("size", [64, 256])
def test_landmarks_in_the_templates_shape_land_on_the_template(
    size: int, scale: float, degrees: float, shift: complex
) -> None:
    there = similarity(scale, degrees, shift)
    landmarks = there(template(size))
    found = alignment(landmarks, size)
    torch.testing.assert_close(found(landmarks), template(size), atol=1e-9, rtol=0)
    assert abs(found.a * there.a - 1) < 1e-12
    assert abs(found.scale * scale - 1) < 1e-12


def test_the_template_is_symmetric_and_grows_with_the_crop() -> None:
    points = template(64)
    mirrored = torch.stack([63 - points[:, 0], points[:, 1]], 1)
    torch.testing.assert_close(mirrored[[2, 3, 0, 1, 4]], points, atol=1e-12, rtol=0)
    torch.testing.assert_close(template(128), 2 * points + 0.5)  # the pixels' outer edges lie on one another


def test_fit_is_the_least_squares_solution() -> None:
    draw = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 5, 2, generator=draw, dtype=torch.float64) * 30
    # q = [c -s; s c] p + b is linear in (c, s, bx, by).
    rows_x = torch.stack([p[:, 0], -p[:, 1], torch.ones(5), torch.zeros(5)], 1)
    rows_y = torch.stack([p[:, 1], p[:, 0], torch.zeros(5), torch.ones(5)], 1)
    c, s, x, y = torch.linalg.lstsq(torch.cat([rows_x, rows_y]), torch.cat([q[:, 0], q[:, 1]])).solution.tolist()
    expected = torch.tensor([[c, -s, x], [s, c, y]], dtype=torch.float64)
    found = Similarity.fit(p, q)
    torch.testing.assert_close(found.matrix, expected)
    assert Similarity.from_matrix(found.matrix) == found


def test_points_that_coincide_are_refused() -> None:
    with pytest.raises(ValueError, match="coincide"):
        Similarity.fit(torch.ones(5, 2), template(64))


def test_composition_and_inverse() -> None:
    one, two = similarity(*MOVES[1]), similarity(*MOVES[2])
    points = torch.tensor([[0.0, 0.0], [3.0, -8.0], [100.0, 41.0]])
    torch.testing.assert_close(one.then(two)(points), two(one(points)))
    torch.testing.assert_close(one.inverse()(one(points)), points.double())
    # y points down, so that a positive angle turns clockwise: what was to the right comes to lie below.
    turned = Similarity.about(0j, 0j, 1, 90)(torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(turned, torch.tensor([[0.0, 1.0]], dtype=torch.float64))


@pytest.mark.parametrize(("scale", "degrees"), [(1, 0), (1, 17), (2.3, -60), (0.4, 100), (0.11, 0)])
def test_warp_reproduces_a_plane(scale: float, degrees: float) -> None:
    image = plane(300, 260, 0.5, -0.25, 90)
    move = Similarity.about(130 + 150j, 11.3 + 9.8j, scale, degrees)
    out = warp(image, move, (20, 24))[0]
    y, x = torch.meshgrid(torch.arange(20), torch.arange(24), indexing="ij")
    at = move.inverse()(torch.stack([x, y], -1))
    expected = 90 + 0.5 * at[..., 0] - 0.25 * at[..., 1]
    inside = (at > 30).all(-1) & (at[..., 0] < 230) & (at[..., 1] < 270)
    assert inside.any()
    # The cubic kernel with a = -3/4 misplaces a point by up to 0.047 of the (reduced) pixels.
    torch.testing.assert_close(out.double()[inside], expected[inside], atol=0.047 * 0.75 / min(scale, 1) + 0.01, rtol=0)


def test_the_identity_changes_nothing() -> None:
    image = waves(40, 30)
    torch.testing.assert_close(warp(image, Similarity(1, 0), (40, 30)), image.float(), atol=1e-2, rtol=0)


def test_a_fine_pattern_turns_grey_when_it_is_reduced() -> None:
    y, x = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    image = (255 * ((x + y) % 2)).to(torch.uint8).expand(3, -1, -1)
    small = warp(image, Similarity.about(128 + 128j, 20 + 20j, 0.23, 10), (40, 40))
    assert (small - 127.5).abs().max() < 3


def test_beyond_the_border_the_picture_goes_on_or_is_zero() -> None:
    image = torch.full((3, 20, 20), 200, dtype=torch.uint8)
    away = Similarity(1, 15)
    whole = torch.full((3, 20, 20), 200.0)
    torch.testing.assert_close(warp(image, away, (20, 20)), whole)
    torch.testing.assert_close(warp(image, Similarity(1, 1000), (20, 20)), whole)
    whole[:, :, :15] = 0
    torch.testing.assert_close(warp(image, away, (20, 20), border="zero"), whole, atol=1e-2, rtol=0)


@pytest.mark.parametrize("scale", [0.6, 1.7])
def test_a_crop_comes_back(scale: float) -> None:
    image = waves(150, 170)
    there = Similarity.about(80 + 70j, 64 + 64j, scale, 25)
    back = warp(crop(image, there, 128), there.inverse(), (150, 170))
    y, x = torch.meshgrid(torch.arange(150), torch.arange(170), indexing="ij")
    at = there(torch.stack([x, y], -1))
    inside = ((at > 4) & (at < 123)).all(-1)
    assert inside.sum() > 2000
    assert (back - image)[:, inside].abs().max() < 4


def test_the_mask_is_one_on_the_face_and_zero_at_the_rim() -> None:
    points = template(64)[None].float()
    whole = mask(points, 64)
    assert whole.shape == (1, 1, 64, 64)
    for x, y in points[0].round().long().tolist():
        assert whole[0, 0, y, x] > 0.9
    assert whole.min() == 0 and whole.max() == 1
    rim = torch.ones(64, 64, dtype=torch.bool)
    rim[3:-3, 3:-3] = False
    assert (whole[0, 0][rim] == 0).all()
    torch.testing.assert_close(whole, whole.flip(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        torch.nn.functional.avg_pool2d(mask(template(128)[None], 128), 2), whole, atol=0.02, rtol=0
    )


def test_the_mask_is_an_ellipse_of_exponent_2_3() -> None:
    whole = mask(template(256)[None], 256, soft=0.5)[0, 0].double()
    y, x = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    u, v = ((x + 0.5) / 256 - 0.5).double() / 0.30, ((y + 0.5) / 256 - 0.555).double() / 0.365
    radius = (u.abs() ** 2.3 + v.abs() ** 2.3) ** (1 / 2.3)
    assert torch.equal(whole > 0, radius < 1 - 1e-9) or ((whole > 0) != (radius < 1)).sum() < 8
    assert (whole[radius < 0.5 - 1e-6] == 1).all()
    middle = (radius > 0.74) & (radius < 0.76)
    assert ((whole[middle] - 0.5).abs() < 0.04).all()


def test_the_mask_leans_with_the_nose_and_narrows_with_the_eyes() -> None:
    straight, turned, narrow = template(64), template(64), template(64)
    turned[4, 0] += 4
    narrow[:, 0] = 31.5 + 0.8 * (narrow[:, 0] - 31.5)
    plain, lean, slim = mask(torch.stack([straight, turned, narrow]), 64)[:, 0]
    columns = torch.arange(64.0)

    def middle(rows: Tensor) -> float:
        return float((rows * columns).sum() / rows.sum())

    assert middle(plain[45:]) == pytest.approx(31.5, abs=1e-3)
    assert middle(lean[45:]) > 32.5
    assert middle(lean[12:20]) < 31.5
    assert slim.sum() < 0.85 * plain.sum()


@pytest.mark.parametrize("soft", [0.0, 1.5])
def test_a_softness_that_is_no_share_is_refused(soft: float) -> None:
    with pytest.raises(ValueError, match="soft"):
        mask(template(64)[None], 64, soft)


def test_the_landmark_map_is_a_gaussian_at_each_landmark() -> None:
    points = torch.tensor([[[10.0, 20.0], [33.5, 40.0]]])
    heat = landmark_map(points, 64)
    assert heat.shape == (1, 2, 64, 64)
    assert heat[0, 0, 20, 10] == 1 and heat[0, 0].argmax() == 20 * 64 + 10
    assert heat[0, 0, 20, 12].item() == pytest.approx(math.exp(-0.5))  # one standard deviation: 64 / 32 pixels
    assert heat[0, 1, 40, 33].item() == heat[0, 1, 40, 34].item() == pytest.approx(math.exp(-0.25 / 8))

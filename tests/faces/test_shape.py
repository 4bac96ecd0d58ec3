"""The shape of a face: turned, mirrored, drawn, and a picture moved along with it."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ornstein.faces.align import Similarity
from ornstein.faces.conditions import SHAPED, appearance, laid_on, scene
from ornstein.faces.identity import IdentityNet
from ornstein.faces.mesh import PARTS
from ornstein.faces.photos import Photos, SourceFaces
from ornstein.faces.shape import (
    MIRROR,
    POINTS,
    aligned,
    angle_between,
    contours,
    moved_face,
    onto,
    pinned,
    shape_in,
    shape_of,
    steadied,
    turned,
)
from ornstein.faces.swap.sampling import FaceModel, swap_crops
from ornstein.faces.train.objective import face_denoiser, relit


@pytest.fixture(scope="module")
def face(portrait: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The portrait, its five landmarks, and the points of its shape."""
    from ornstein.faces.detect import Detector

    five = Detector(thorough=False)(portrait)[0].landmarks.float()
    return portrait, five, shape_of(portrait[None], five[None])


def test_a_mirror_is_its_own_inverse_and_keeps_the_parts():
    order = torch.tensor(MIRROR)
    assert torch.equal(order[order], torch.arange(POINTS))
    for polygons in PARTS.values():
        points = {point for polygon in polygons for point in polygon}
        assert {MIRROR[point] for point in points} == points
    assert MIRROR[33] == 263 and MIRROR[1] == 1 and MIRROR[468] == 469


def test_the_shape_of_a_mirrored_picture(face):
    picture, five, points = face
    width = picture.shape[2]
    flipped = torch.stack([width - 1 - five[:, 0], five[:, 1]], 1)[[2, 3, 0, 1, 4]]
    again = shape_of(picture.flip(2)[None], flipped[None])
    expected = torch.cat([width - 1 - points[..., :1], points[..., 1:]], 2)[:, list(MIRROR)]
    apart = float((five[0] - five[2]).norm())
    assert float((again - expected)[..., :2].norm(dim=2).mean()) < 0.03 * apart


def test_a_turned_copy_comes_back_exactly_and_is_never_reflected():
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(2, 30, 3, generator=draw).double()
    turn = torch.linalg.qr(torch.randn(2, 3, 3, generator=draw).double())[0]
    turn = turn * torch.det(turn)[:, None, None]
    moved = 2.5 * points @ turn + torch.tensor([3.0, -1.0, 7.0])
    assert torch.allclose(turned(points, moved), moved, atol=1e-9)
    reflected = moved * torch.tensor([-1.0, 1.0, 1.0])
    assert float((turned(points, reflected) - reflected).norm(dim=2).mean()) > 0.5
    assert torch.equal(onto(points, moved, 0.0), moved)
    place = Similarity.about(complex(3, 4), complex(-1, 2), 1.7, 25.0)
    flat = torch.cat([place(points[..., :2].reshape(-1, 2)).view(2, 30, 2), points[..., 2:]], 2)
    assert torch.allclose(aligned(points, flat)[..., :2], flat[..., :2])
    assert torch.allclose(aligned(points, flat)[..., 2], 1.7 * points[..., 2])
    other = torch.randn(2, 30, 3, generator=draw).double()
    shape = (turned(points, other) + aligned(points, other)) / 2
    expected = (other + shape) / 2
    mouth = [point for part in ("lips", "mouth") for point in PARTS[part][0] if point < 30]
    expected[:, mouth] = (other + expected)[:, mouth] / 2
    assert mouth and torch.allclose(onto(points, other, 0.5), expected)


def test_steadied_points_tremble_less_and_follow_what_moves():
    draw, size = torch.Generator().manual_seed(0), 64
    still = torch.randn(200, 30, 3, generator=draw).cumsum(1).mean(0, keepdim=True).expand(200, -1, -1)
    tremor = 0.1 * torch.randn(still.shape, generator=draw)
    made = steadied(still + tremor, None, size)
    # a filter that always follows by a has a / (2 - a) of the variance, 0.08; larger tremors follow a little faster
    assert 0.05 < float((made - still)[50:].var() / tremor.var()) < 0.3
    jump = torch.zeros(2, 1, 3)
    jump[1] = 10
    assert float((steadied(jump, None, size) - jump).abs().max()) < 0.02
    slope = 0.5 * torch.arange(60.0)[:, None, None].expand(60, 1, 3)  # pixels a frame
    lag = (slope - steadied(slope, None, size))[-1, 0, 0]
    assert 0 < float(lag) < 0.6
    halves = steadied((still + tremor)[100:], made[99], size)
    assert torch.equal(halves, made[100:])


def test_a_picture_goes_where_its_points_go(face):
    _, _, points = face
    size = 64
    points = points * (size / 260)
    draw = torch.Generator().manual_seed(1)
    shift = 1.5 * torch.randn(1, POINTS, 3, generator=draw).mean(1, keepdim=True)
    there = points * torch.tensor([1.1, 0.95, 1.0]) + shift
    along = torch.arange(size, dtype=torch.float32)
    ramp = torch.stack([along.expand(size, size), along[:, None].expand(size, size)])[None]
    moved = moved_face(ramp, points, there)
    # a picture that says its own coordinates: the pixel at a new place shows the old one
    for k in (1, 33, 263, 61, 291, 152):
        x, y = there[0, k, :2].round().long().tolist()
        expected = points[0, k, :2] + (torch.tensor([x, y]) - there[0, k, :2]) / torch.tensor([1.1, 0.95])
        assert float((moved[0, :, y, x] - expected).abs().max()) < 0.2
    middle = slice(20, 44)
    still = moved_face(ramp, points, points)
    assert float((still - ramp)[..., middle, middle].abs().max()) < 0.02


def rotation(axis: list[float], degrees: float) -> Tensor:
    """Rodrigues' formula, for points as rows."""
    x, y, z = torch.nn.functional.normalize(torch.tensor(axis).double(), dim=0).tolist()
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]]).double()
    angle = math.radians(degrees)
    return (torch.eye(3).double() + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross).T


@pytest.mark.parametrize("degrees", [0.0, 7.5, 35.0, 90.0, 179.0])
def test_the_angle_of_a_known_rotation(degrees: float):
    points = torch.randn(2, 30, 3, generator=torch.Generator().manual_seed(0)).double()
    turns = torch.stack([rotation([0, 1, 0], degrees), rotation([1, -2, 0.5], degrees)])
    moved = 2.5 * points @ turns + torch.tensor([3.0, -1.0, 7.0])
    assert torch.allclose(angle_between(points, moved), torch.tensor(degrees).double(), atol=1e-5)
    reflected = moved * torch.tensor([-1.0, 1.0, 1.0])  # the nearest rotation, whatever it is, and no reflection
    assert bool(angle_between(points, reflected).isfinite().all())


def head(size: int) -> Tensor:
    """Points (1, POINTS, 3) all over half an ellipsoid with a nose, the number of each its place on a spiral."""
    k = torch.arange(POINTS) + 0.5
    radius, angle = 0.33 * (k / POINTS).sqrt(), k * math.pi * (3 - 5**0.5)
    x, y = radius * angle.cos(), radius * angle.sin()
    depth = -(0.15 - radius.square()).clamp(min=0).sqrt() - 0.12 * torch.exp(-radius.square() / 0.005)
    return (size * torch.stack([x + 0.5, y + 0.5, depth], 1))[None]


@pytest.mark.parametrize("degrees", [45.0, 60.0, 180.0])
def test_a_turned_face_does_not_fold(degrees: float):
    """A picture that says its own coordinates shows the map; its determinant by central differences."""
    size = 96
    points = (size / 4 + head(size // 2)).expand(2, -1, -1)  # small in the picture: nothing beyond it is shown
    middle = points.mean(1, keepdim=True)
    turns = torch.stack([rotation([0, 1, 0], 5), rotation([0, 1, 0], degrees)]).float()
    there = (points - middle) @ turns + middle
    along = torch.arange(size, dtype=torch.float32)
    ramp = torch.stack([along.expand(size, size), along[:, None].expand(size, size)]).expand(2, -1, -1, -1)
    centred = (along - size / 2 + 0.5).square()
    mask = (centred + centred[:, None] < (0.15 * size) ** 2).float().expand(2, 1, -1, -1)
    plain, guarded = moved_face(ramp, points, there), moved_face(ramp, points, there, mask)

    def least(moved: Tensor) -> float:
        (x_down, x_along), (y_down, y_along) = (torch.gradient(moved[1, each]) for each in (0, 1))
        return float((x_along * y_down - x_down * y_along)[mask[1, 0] > 0].min())

    assert least(plain) < -0.05 and least(guarded) > -1e-3
    assert torch.equal(guarded[0], plain[0])  # what does not fold is the same to the bit


def test_contours_are_where_the_parts_are(face):
    _, _, points = face
    points = points * (64 / 260)
    drawn = contours(points, 64)
    assert drawn.shape == (1, 5, 64, 64) and float(drawn.max()) <= 1
    x, y = points[0, 468, :2].round().long().tolist()
    assert float(drawn[0, 4, y, x]) > 0.5 and float(drawn[0, 2, y, x]) < 0.01  # the irises' channel, and not the lips'


def test_points_of_a_crop_are_those_of_its_picture(face):
    picture, five, points = face
    place = Similarity.about(complex(130, 130), complex(32, 32), 0.3, 10.0)
    inside = shape_in(picture, five, place)
    assert torch.allclose(inside[:, :2].double(), place(points[0, :, :2]), atol=1e-3)
    assert torch.allclose(inside[:, 2], 0.3 * points[0, :, 2], atol=1e-3)


def test_pairs_carry_the_points_of_the_truth_and_of_a_mirrored_source(face):
    _, _, points = face
    size = 32
    points = (points * (size / 260)).expand(2, -1, -1)
    images = torch.randint(0, 255, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    masks = torch.full((2, 1, size, size), 255, dtype=torch.uint8)
    photos = Photos(images, masks, points[:, :5, :2], torch.arange(2), torch.zeros(2, 4), points=points)
    pairs = photos.pairs(torch.arange(2), torch.Generator().manual_seed(0))
    assert pairs.points is not None and pairs.source.points is not None
    # a person with one photo is its own source, in a mirror: mirrored back it is the truth
    flipped = torch.cat([size - 1 - pairs.source.points[..., :1], pairs.source.points[..., 1:]], 2)[:, list(MIRROR)]
    assert torch.allclose(flipped, pairs.points, atol=1e-4)
    assert torch.equal(pairs.source.image.flip(3), pairs.truth)
    shown = scene(pairs.target, pairs.mask, pairs.landmarks, points=pairs.points)
    assert shown.shape == (2, SHAPED, size, size)
    known = pairs.source.known(pairs.landmarks, points=pairs.points)
    here, there = pinned(pairs.source.points, pairs.source.landmarks), pinned(pairs.points, pairs.landmarks)
    face = appearance(pairs.source.image, pairs.source.mask, here, there)
    assert torch.equal(there[:, POINTS:, :2], pairs.landmarks)
    assert torch.equal(known["appearance"], face)


def test_a_face_in_other_colours_is_laid_on_as_the_target_itself():
    """A linear map of the target has its moments mapped: matched, it is the target."""
    draw = torch.Generator().manual_seed(0)
    target = 0.5 * torch.rand(2, 3, 16, 16, generator=draw) - 0.2
    mask = torch.zeros(2, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1
    gain, shift = torch.tensor([0.5, 0.8, 1.5])[:, None, None], torch.tensor([0.1, -0.2, 0.0])[:, None, None]
    shown = torch.cat([gain * target + shift, torch.ones(2, 1, 16, 16)], 1)
    assert torch.allclose(laid_on(target, mask, shown), target, atol=1e-5)
    other = torch.cat([torch.rand(2, 3, 16, 16, generator=draw), torch.ones(2, 1, 16, 16)], 1)
    laid = laid_on(target, mask, other)
    outside = (mask == 0).expand_as(laid)
    assert torch.equal(laid[outside], target[outside])
    inside = laid[~outside].reshape(2, 3, -1)
    assert torch.allclose(inside.mean(2), target[~outside].reshape(2, 3, -1).mean(2), atol=1e-5)


def test_light_from_the_right_and_a_gain_in_closed_form():
    shown = torch.full((1, 4, 8, 8), 0.5)
    shown[:, 3] = 1
    by = torch.zeros(1, 9)
    assert torch.equal(relit(shown, by), shown)
    by[0, 3], by[0, 7] = 0.1, 0.2
    made = relit(shown, by)
    expected = 0.5 * torch.exp(torch.tensor(0.1)) + 0.2 * torch.linspace(-1, 1, 8)
    assert torch.allclose(made[0, 0], expected.expand(8, 8)) and torch.equal(made[:, 3], shown[:, 3])


def test_a_model_of_shapes_needs_them_and_leaves_the_rest_of_the_picture(face):
    _, five, points = face
    torch.manual_seed(0)
    denoiser = face_denoiser(16, 4, "xs")
    model = FaceModel(denoiser, IdentityNet(4, width=8, multipliers=(1, 2, 2)).eval())
    assert model.shaped
    points, five = (points * (16 / 260)).expand(2, -1, -1), (five * (16 / 260)).expand(2, -1, -1)
    draw = torch.Generator().manual_seed(0)
    target, other = torch.rand(2, 2, 3, 16, 16, generator=draw)
    mask = torch.zeros(2, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1
    source = SourceFaces(torch.zeros(2, 4), other, mask, five, points)
    with pytest.raises(ValueError, match="points"):
        swap_crops(model, target, mask, five, source, steps=1)
    outside = (mask == 0).expand_as(target)
    cases: list[dict[str, Any]] = [{}, {"onset": 1.0}, {"onset": 0.0}, {"shape": 0.0}, {"strength": 0.5}]
    for settings in cases:
        made = swap_crops(model, target, mask, five, source, steps=2, points=points, **settings)
        assert bool(made.isfinite().all()) and torch.equal(made[outside], target[outside])
        alone = swap_crops(
            model, target[1:], mask[1:], five[1:], source.select(slice(1, 2)), steps=2, points=points[1:], first=1,
            **settings,
        )  # fmt: skip
        assert torch.allclose(alone[0], made[1], atol=1e-5)

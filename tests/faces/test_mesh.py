"""The mesh and the second judge, on a portrait and on rendered faces whose true landmarks and states are known."""

import pytest
import torch
from torch import Tensor

from ornstein.errors import UserError
from ornstein.faces.judge import FaceRes, judge
from ornstein.faces.mesh import EXPRESSION, PARTS, Mesh, expression, mesh, part_masks
from ornstein.faces.world.framed import FIVE
from ornstein.faces.world.parameters import ATTRIBUTES, attributes, identities
from ornstein.faces.world.views import render


@pytest.fixture(scope="module")
def found(portrait: Tensor) -> tuple[Tensor, Tensor, Mesh]:
    """The portrait, its five landmarks by dlib, and its mesh."""
    from ornstein.faces.detect import Detector

    (face,) = Detector(thorough=False)(portrait)
    five = face.landmarks.float()
    return portrait, five, mesh(portrait[None], five[None])


def test_landmarks_agree_with_those_of_dlib(found):
    _, five, seen = found
    apart = float((five[:2].mean(0) - five[2:4].mean(0)).norm())
    error = (seen.five[0] - five).norm(dim=1) / apart
    assert float(error[:4].max()) < 0.05 and float(error[4]) < 0.12 and float(seen.score) > 0.9
    # an iris lies between the corners of its eye
    for iris, (outer, inner) in zip(seen.irises[0], ((2, 3), (0, 1)), strict=True):
        middle = (five[outer] + five[inner]) / 2
        assert float((iris - middle).norm()) < 0.12 * apart


def test_an_open_mouth_of_a_rendered_face_is_seen():
    n = 4
    states = attributes(1, 3).expand(2 * n, -1).clone()
    for name in ("yaw", "pitch", "roll", "mouth_open", "smile"):
        states[:, ATTRIBUTES.index(name)] = 0
    states[n:, ATTRIBUTES.index("mouth_open")] = 1
    out = render(identities(n, 11).repeat(2, 1), states, 160)
    does = expression(mesh(127.5 * (out.image + 1), out.landmarks[:, FIVE]))
    gap = EXPRESSION.index("mouth_open")
    assert float((does[n:] - does[:n])[:, gap].min()) > 0.03


def test_masks_of_parts(found):
    _, five, seen = found
    size = 260
    lips, eyes, skin, face = (part_masks(seen.points, size, [name])[0, 0] for name in ("lips", "eyes", "skin", "face"))
    assert not bool(((lips > 0.9) & (skin > 0.1)).any()) and bool((skin <= face).all())
    for iris in seen.irises[0].round().long():
        assert float(eyes[iris[1], iris[0]]) == 1 and float(skin[iris[1], iris[0]]) == 0
    assert float(face[five[4, 1].round().long(), five[4, 0].round().long()]) == 1 and float(face[0, 0]) == 0
    # the area of the mask is that of the polygon, by the shoelace formula
    square = torch.zeros(1, 468, 2)
    corner = torch.tensor([[10.0, 10], [40, 10], [40, 30], [10, 30]])
    outline = PARTS["mouth"][0]
    along = torch.arange(len(outline)) * 4 / len(outline)
    low, share = along.long(), (along % 1)[:, None]
    square[0, list(outline)] = corner[low % 4] * (1 - share) + corner[(low + 1) % 4] * share
    assert float(part_masks(square, 64, ["mouth"]).sum()) == pytest.approx(600, rel=0.02)
    with pytest.raises(ValueError, match="unknown parts"):
        part_masks(seen.points, 64, ["ear"])


def test_the_second_judge_knows_a_face_again(found, tmp_path):
    portrait, five, _ = found
    out = render(identities(3, 5), attributes(3, 5), 160)
    dim = 0.7 * portrait.float() + 30
    same = judge(torch.stack([portrait.float(), dim, dim.flip(2)]), torch.stack([five, five, _mirrored(five, 260)]))
    others = judge(127.5 * (out.image + 1), out.landmarks[:, FIVE])
    assert same.shape == (3, 1024) and torch.allclose(same.norm(dim=1), torch.ones(3))
    assert float((same[:1] @ same[1:].T).min()) > float((same @ others.T).max()) + 0.1
    (tmp_path / "none.safetensors").write_bytes(b"0" * 64)
    with pytest.raises(UserError):
        FaceRes.load(tmp_path / "none.safetensors")


def _mirrored(five: Tensor, size: int) -> Tensor:
    return torch.stack([size - 1 - five[:, 0], five[:, 1]], 1)[[2, 3, 0, 1, 4]]

"""dlib's recogniser in PyTorch, against dlib itself and against finite differences."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ornstein.errors import UserError
from ornstein.faces.align import alignment, crop
from ornstein.faces.dlib_net import DlibNet, chips, dlib_net
from ornstein.faces.identity import ExactIdentity, IdentityNet, likeness, load_identity
from ornstein.faces.models import RECOGNITION, model_path
from ornstein.faces.world.framed import FIVE
from ornstein.faces.world.parameters import attributes, identities
from ornstein.faces.world.views import render

dlib = pytest.importorskip("dlib", reason="the extra `faces` is not installed")


@pytest.fixture(scope="module")
def faces(portrait: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Pictures in [0, 255] with five landmarks: a portrait, and four rendered people."""
    from ornstein.faces.detect import Detector

    (face,) = Detector(thorough=False)(portrait)
    out = render(identities(4, 5), attributes(4, 5), 200)
    rendered = zip(127.5 * (out.image + 1), out.landmarks[:, FIVE], strict=True)
    return [(portrait.float(), face.landmarks.float()), *rendered]


def theirs(picture: Tensor, points: Tensor) -> np.ndarray:
    """The crop that dlib cuts along the landmarks, uint8 (150, 150, 3)."""
    marks = [dlib.point(round(x), round(y)) for x, y in points.tolist()]
    placed = dlib.full_object_detection(dlib.rectangle(0, 0, 9, 9), marks)
    pixels = np.ascontiguousarray(picture.round().clamp(0, 255).byte().permute(1, 2, 0).numpy())
    return dlib.get_face_chip(pixels, placed, 150, 0.25)


def test_embeddings_are_those_of_dlib(faces):
    cut = [theirs(*face) for face in faces]
    reference = torch.tensor(
        np.array(dlib.face_recognition_model_v1(model_path(RECOGNITION)).compute_face_descriptor(cut))
    )
    with torch.no_grad():
        found = dlib_net()(torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2).float())
    assert float((found - reference).abs().max()) < 2e-6
    # and they tell people apart: it is no constant
    assert float((reference[0] - reference[1:]).norm(dim=1).min()) > 0.3


def test_chips_are_where_dlib_cuts_them(faces):
    for picture, points in faces:
        own = chips(picture[None], points.round()[None])[0]
        there = torch.from_numpy(theirs(picture, points)).permute(2, 0, 1).float()
        shifted = chips(picture[None], points.round()[None] + 1)[0]
        assert float((own - there).abs().mean()) < 0.5 * float((shifted - there).abs().mean())
        with torch.no_grad():
            a, b = dlib_net()(torch.stack([own, there]))
        assert float((a - b).norm()) < 0.08


def test_the_gradient_is_that_of_finite_differences(faces):
    picture, points = faces[1]
    net = DlibNet.load(Path(model_path(RECOGNITION))).double()
    net.mean = net.mean.double()
    x = picture[None].double().requires_grad_()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.linspace(-1, 1, 128, dtype=torch.float64)

    def value(x: Tensor) -> Tensor:
        return (net(chips(x, points[None])) * weights).sum()

    (slope,) = torch.autograd.grad(value(x), x)
    with torch.no_grad():
        step = 1e-5 * direction
        along = (value(x + step) - value(x - step)) / 2e-5
    assert float((slope * direction).sum()) == pytest.approx(float(along), rel=1e-4)


def test_another_file_is_refused_with_a_line(tmp_path):
    data = bytearray(Path(model_path(RECOGNITION)).read_bytes())
    data[1_000_000] ^= 1
    (tmp_path / "other.dat").write_bytes(data)
    with pytest.raises(UserError, match="not the recogniser that dlib published") as caught:
        DlibNet.load(tmp_path / "other.dat")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot read"):
        DlibNet.load(tmp_path / "nothing.dat")


def test_the_recogniser_of_crops_agrees_with_that_of_photographs(faces, tmp_path):
    net = ExactIdentity()
    crops, moved, known = [], [], []
    for picture, points in faces:
        transform = alignment(points, 128)
        crops.append(crop(picture, transform, 128).float() / 127.5 - 1)
        moved.append(transform(points).float())
        known.append(torch.from_numpy(theirs(picture, points)))
    with torch.no_grad():
        truth = net.net(torch.stack(known).permute(0, 3, 1, 2).float())
    net.fit_scale(truth)
    found = net.embed(torch.stack(crops), torch.stack(moved), batch=2)
    like = likeness(found[:, None], net.normalised(truth)[None])
    assert torch.equal(like.argmax(1), torch.arange(len(faces))) and float(like.diagonal().min()) > 0.7
    net.save(tmp_path)
    again = load_identity(tmp_path)
    torch.testing.assert_close(again.embed(torch.stack(crops), torch.stack(moved)), found, atol=1e-4, rtol=1e-4)
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_a_distilled_recogniser_still_loads(tmp_path):
    torch.manual_seed(0)
    IdentityNet(3, width=8, multipliers=(1, 2)).save(tmp_path)
    assert isinstance(load_identity(tmp_path), IdentityNet)
    ExactIdentity().save(tmp_path / "exact")
    (tmp_path / "exact" / "identity.safetensors").write_bytes((tmp_path / "identity.safetensors").read_bytes())
    with pytest.raises(UserError, match="is not a recogniser of faces"):
        load_identity(tmp_path / "exact")

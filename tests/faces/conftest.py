"""A face for the tests: the portrait of the astronaut Eileen Collins that scikit-image ships, in the public domain."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein.denoiser import Data
from ornstein.faces.align import TEMPLATE
from ornstein.faces.detect import Face
from ornstein.faces.identity import IdentityNet
from ornstein.faces.photos import SourceFaces
from ornstein.faces.swap import Source
from ornstein.faces.swap.sampling import FaceModel
from ornstein.nets import FaceUNet


@pytest.fixture(scope="session")
def portrait() -> Tensor:
    """Head and shoulders, uint8 (3, 260, 260), the face 90 pixels wide."""
    pytest.importorskip("dlib", reason="the extra `faces` is not installed")
    data = pytest.importorskip("skimage.data", reason="scikit-image, whose portrait this test needs, is not installed")
    return torch.from_numpy(data.astronaut()[0:260, 90:350].copy()).permute(2, 0, 1).contiguous()


# Stand-ins for dlib and for a trained model: people are squares of one colour on grey, and a colour is an identity.
PEOPLE = {"green": (40, 180, 60), "red": (190, 40, 60), "blue": (50, 70, 200)}
GREY = 128


def scenery(height: int, width: int, **people: tuple[int, int, int]) -> Tensor:
    """A picture uint8 (3, H, W) with a face of `side` pixels at (left, top) for each name=(left, top, side)."""
    picture = torch.full((3, height, width), GREY, dtype=torch.uint8)
    for name, (left, top, side) in people.items():
        rows, columns = (slice(max(low, 0), max(low + side, 0)) for low in (top, left))
        picture[:, rows, columns] = torch.tensor(PEOPLE[name], dtype=torch.uint8)[:, None, None]
    return picture


class Squares:
    """Finds the squares: a face detector. The crop of a face is twice as wide as its square."""

    def __call__(self, image: Tensor) -> list[Face]:
        faces = []
        for colour in PEOPLE.values():
            near = (image.int() - torch.tensor(colour)[:, None, None]).abs().amax(0) < 45
            if int(near.sum()) < 9:
                continue
            y, x = near.nonzero().double().unbind(1)
            low, high = torch.stack([x.min(), y.min()]), torch.stack([x.max(), y.max()]) + 1
            side = float((high - low).max())
            points = (low + high) / 2 + 2 * side * (torch.tensor(TEMPLATE, dtype=torch.float64) - 0.5) - 0.5
            faces.append(Face(points, side))
        return sorted(faces, key=lambda face: -face.score)


class Colours:
    """A face's colour as its embedding: a recogniser of three numbers, two people further apart than one person's."""

    dimension = 3

    def __call__(self, image: Tensor, faces: Sequence[Face]) -> Tensor:
        rows = []
        for face in faces:
            x, y = face.landmarks.mean(0).round().long().tolist()
            x, y = min(max(x, 0), image.shape[2] - 1), min(max(y, 0), image.shape[1] - 1)
            rows.append(image[:, y, x].float() / 50)
        return torch.stack(rows) if rows else torch.empty(0, 3)


def untrained(size: int = 16) -> FaceModel:
    """A small network that paints something, the same for the same noise."""
    torch.manual_seed(0)
    recogniser = IdentityNet(3, width=8, multipliers=(1, 2, 2)).eval().requires_grad_(False)
    net = FaceUNet(3, size, 5, 3, width=16, multipliers=(1, 2), depths=(1, 1))
    torch.nn.init.normal_(net.head[2].weight, std=0.3)
    data = Data((3, size, size))
    return FaceModel(orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), "v", data=data), recogniser)


def someone(identity: Sequence[float], name: str = "s", size: int = 16) -> Source:
    """A source of that identity, in a grey picture."""
    who = torch.tensor([list(identity)])
    points = torch.tensor([TEMPLATE]) * size - 0.5
    faces = SourceFaces(who, torch.zeros(1, 3, size, size), torch.ones(1, 1, size, size), points)
    return Source((name,), torch.zeros(who.shape[1]), faces)


@pytest.fixture(scope="session")
def stubs() -> SimpleNamespace:
    """The stand-ins of this file, for tests of everything around the model."""
    return SimpleNamespace(
        scenery=scenery, Squares=Squares, Colours=Colours, untrained=untrained, someone=someone, PEOPLE=PEOPLE
    )


@pytest.fixture
def own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs are signed with a key of the test's own."""
    pytest.importorskip("c2pa", reason="the extra `faces` is not installed")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))

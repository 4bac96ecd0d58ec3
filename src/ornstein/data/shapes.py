"""Captioned pictures of one to three coloured shapes, and an exact parser from a picture back to what is in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "COLOURS", "HELD_OUT", "RELATIONS", "SHAPES", "Object", "Scene", "Verdict", "judge", "parse", "render", "scenes",
]  # fmt: skip

SHAPES = ("circle", "square", "triangle", "diamond", "cross")
COLOURS = {
    "red": (0.86, 0.16, 0.16),
    "green": (0.16, 0.66, 0.24),
    "blue": (0.20, 0.35, 0.95),
    "yellow": (0.95, 0.85, 0.15),
    "purple": (0.62, 0.22, 0.78),
    "white": (0.95, 0.95, 0.95),
}
RELATIONS = {
    "left of": "right of", "right of": "left of", "above": "below", "below": "above", "inside": "around",
}  # fmt: skip
"""What a caption says of two shapes, and what it says of them the other way round."""

HELD_OUT = frozenset((shape, colour) for shape, colour in zip(SHAPES, COLOURS, strict=False))
"""Pairs of shape and colour that no picture for training has: one colour of each shape."""

_TOWARDS = {"left of": (-1.0, 0.0), "right of": (1.0, 0.0), "above": (0.0, -1.0), "below": (0.0, 1.0)}  # y: down
_UNSEEN_RELATIONS = 10  # one in so many relations of two seen objects is held out
_HOLLOW = ("circle", "square", "triangle", "diamond")  # another shape fits inside these
_ROOMY = {"triangle": 1.25}  # by how much larger it must be for that
_RADIUS, _OUTER, _INNER = (0.11, 0.15), (0.29, 0.33), (0.11, 0.13)  # of the side
_GROWTH, _FILLED = 1.5, (0.6, 1.0)  # scenes with room are drawn larger, so that 32 pixels show what each shape is
_GAP, _BORDER = 0.05, 0.02
_BACKGROUND = (0.05, 0.25)
_LEAST = 0.008  # of the picture: a smaller spot is no shape
_BATCH = 1024


@dataclass(frozen=True)
class Object:
    """A shape in a picture: centre (x, y) and radius in units of the side, y down."""

    shape: str
    colour: str
    x: float = 0.5
    y: float = 0.5
    radius: float = 0.15

    def __str__(self) -> str:
        return f"a {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """One to three objects. relations: (name, i), what object 0 is to object i. background: its grey, 0 to 1."""

    objects: tuple[Object, ...]
    relations: tuple[tuple[str, int], ...] = ()
    background: float = 0.1

    @property
    def captions(self) -> tuple[str, ...]:
        """What the picture shows, told from one end and from the other."""
        first = str(self.objects[0])
        if not self.relations:
            return (first,)
        told = [f"{name} {self.objects[i]}" for name, i in self.relations]
        (name, i), *others = reversed(self.relations)
        back = f"{self.objects[i]} {RELATIONS[name]} {first}"
        return f"{first} {' and '.join(told)}", " ".join([back, *(f"that is {n} {self.objects[j]}" for n, j in others)])

    @property
    def unseen(self) -> bool:
        """Whether it has a combination that is held out: a pair of shape and colour, or two objects in a relation."""
        objects = [(each.shape, each.colour) for each in self.objects]
        return not HELD_OUT.isdisjoint(objects) or any(
            _number(name, *objects[0], *objects[i]) % _UNSEEN_RELATIONS == 0 for name, i in self.relations
        )


def _number(*words: str) -> int:
    """A number that follows from words alone, on any machine."""
    return int.from_bytes(" ".join(words).encode(), "big") % 1_000_003


def scenes(n: int, seed: int = 0, first: int = 0, unseen: bool = False) -> list[Scene]:
    """`n` scenes at random; scene i is a function of (seed, first + i, unseen).

    Args:
        unseen: scenes with combinations that are held out, in place of those for training, which have none.
    """
    made = []
    for i in range(first, first + n):
        rng = np.random.Generator(np.random.Philox(key=[seed, 2 * i + unseen]))
        scene = None
        while scene is None or scene.unseen != unseen:
            scene = _drawn(rng)
        made.append(scene)
    return made


def _drawn(rng: np.random.Generator) -> Scene | None:
    """A scene; None where its objects found no room."""
    count = int(rng.choice(3, p=(0.2, 0.4, 0.4))) + 1
    colours = [list(COLOURS)[i] for i in rng.permutation(len(COLOURS))[:count]]
    shapes = [SHAPES[i] for i in rng.integers(len(SHAPES), size=count)]
    names = list(RELATIONS)
    first = names[rng.integers(len(names))]
    second = [name for name in _TOWARDS if name != first][rng.integers(3)]
    told = ((first, 1), (second, 2))[: count - 1]
    radii = rng.uniform(*_RADIUS, size=count)
    places = np.zeros((count, 2))
    for name, i in told:
        if name == "inside":
            shapes[i] = _HOLLOW[rng.integers(len(_HOLLOW))]
            radii[0], radii[i] = rng.uniform(*_INNER), rng.uniform(*_OUTER)
            radii[i] *= _ROOMY.get(shapes[i], 1.0)
            continue
        towards = -np.array(_TOWARDS[name])  # from object 0 to object i
        largest = radii[1] if first == "inside" else radii[0]
        far = 1.15 * (largest + radii[i]) + _GAP + rng.exponential(0.08)
        places[i] = far * towards + rng.uniform(-0.4, 0.4) * far * towards[::-1]
    reach = 1.15 * radii
    for i in range(1, count):
        for j in range(i):
            apart = np.hypot(*(places[i] - places[j])) - reach[i] - reach[j]
            if apart < _GAP and not (told[0][0] == "inside" and (i, j) == (1, 0)):
                return None
    low, high = (places - reach[:, None]).min(0), (places + reach[:, None]).max(0)
    most = (1 - 2 * _BORDER) / (high - low).max()
    if most < 1:
        return None
    scale = 1 + (min(most, _GROWTH) - 1) * rng.uniform(*_FILLED)
    places, radii, low, high = (scale * each for each in (places, radii, low, high))
    room = 1 - 2 * _BORDER - (high - low)
    places = places - low + _BORDER + rng.uniform(size=2) * room
    objects = [
        Object(shape, colour, float(x), float(y), float(radius))
        for shape, colour, (x, y), radius in zip(shapes, colours, places, radii, strict=True)
    ]
    return Scene(tuple(objects), told, float(rng.uniform(*_BACKGROUND)))


def _inside(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """How far within a shape of radius 1 around the origin a point lies; negative outside. y down."""
    if shape == "circle":
        return 1 - torch.hypot(x, y)
    if shape == "square":
        return 0.88 - torch.maximum(x.abs(), y.abs())
    if shape == "diamond":
        return (1.15 - x.abs() - y.abs()) / math.sqrt(2)
    if shape == "triangle":  # equal sides, a corner up; 0.575 is the radius of its inner circle
        return 0.575 - torch.maximum(y, (math.sqrt(3) * x.abs() - y) / 2)
    along, across = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
    return torch.minimum(1.1 - along, 0.36 - across)


_AREA = {  # of radius 1
    "circle": math.pi,
    "square": (2 * 0.88) ** 2,
    "diamond": 2 * 1.15**2,
    "triangle": 3 * math.sqrt(3) * 0.575**2,
    "cross": 8 * 1.1 * 0.36 - 4 * 0.36**2,
}


def _coverage(shape: str, x: Tensor, y: Tensor, radius: Tensor, size: int) -> Tensor:
    """(B, size, size): the share of each pixel that a shape covers; x, y, radius (B,) in units of the side."""
    at = (torch.arange(size, dtype=torch.float32) + 0.5) / size
    across, down = (at[None, None] - x[:, None, None]), (at[None, :, None] - y[:, None, None])
    across, down = torch.broadcast_tensors(across / radius[:, None, None], down / radius[:, None, None])
    return (_inside(shape, across, down) * radius[:, None, None] * size + 0.5).clamp(0, 1)


def render(given: Sequence[Scene], size: int) -> Tensor:
    """The pictures of scenes, uint8 (B, 3, size, size), with smooth edges."""
    return torch.cat([_rendered(given[i : i + _BATCH], size) for i in range(0, len(given), _BATCH)])


def _rendered(given: Sequence[Scene], size: int) -> Tensor:
    grey = torch.tensor([scene.background for scene in given])
    pictures = grey[:, None, None, None].repeat(1, 3, size, size)
    for depth in (2, 1, 0):  # object 0 may lie inside object 1
        for shape in SHAPES:
            rows = [i for i, s in enumerate(given) if len(s.objects) > depth and s.objects[depth].shape == shape]
            if not rows:
                continue
            objects = [given[i].objects[depth] for i in rows]
            x, y, radius = (torch.tensor([getattr(o, name) for o in objects]) for name in ("x", "y", "radius"))
            colour = torch.tensor([COLOURS[o.colour] for o in objects])[:, :, None, None]
            cover = _coverage(shape, x, y, radius, size)[:, None]
            pictures[rows] = cover * colour + (1 - cover) * pictures[rows]
    return (255 * pictures).round().to(torch.uint8)


def parse(pictures: Tensor) -> list[list[Object]]:
    """The objects in each picture, uint8 (B, 3, H, W).

    A pixel belongs to the nearest of the colours and the background, which is the median of the picture's border. The
    connected parts of a colour, with their holes filled, are objects. How far a pixel is from the colour behind an
    object to its own is the share of the pixel that it covers; its shape is the one that fits these shares best.
    """
    return [_parsed(picture.float() / 255) for picture in pictures.cpu()]


def _parsed(picture: Tensor) -> list[Object]:
    from scipy import ndimage  # scikit-learn brings it

    size = picture.shape[-1]
    border = torch.cat([picture[:, 0], picture[:, -1], picture[:, :, 0], picture[:, :, -1]], 1)
    background = border.median(1).values
    palette = torch.stack([background, *(torch.tensor(colour) for colour in COLOURS.values())])
    nearest = (picture[None] - palette[:, :, None, None]).square().sum(1).argmin(0).numpy()
    found = []
    for number, colour in enumerate(COLOURS, 1):
        parts, count = ndimage.label(nearest == number)  # pyright: ignore[reportGeneralTypeIssues]
        for part in range(1, count + 1):
            spot = parts == part
            # the smooth edge of one colour may look like another, but is too thin to have an inner pixel
            if spot.sum() < _LEAST * size**2 or not ndimage.binary_erosion(spot).any():
                continue
            whole = ndimage.binary_fill_holes(spot)
            around = ndimage.binary_dilation(whole, np.ones((3, 3)))
            ring = torch.from_numpy(ndimage.binary_dilation(around, np.ones((3, 3)))) & ~torch.from_numpy(around)
            behind = picture[:, ring].median(1).values if ring.any() else background
            axis = (palette[number] - behind)[:, None, None]
            share = ((picture - behind[:, None, None]) * axis).sum(0) / axis.square().sum().clamp(min=1e-6)
            cover = torch.where(torch.from_numpy(around), share.clamp(0, 1), 0.0)
            found.append(_fitted(cover.where(~torch.from_numpy(ndimage.binary_erosion(whole)), 1.0), colour))
    return found


def _fitted(cover: Tensor, colour: str) -> Object:
    """The object whose shape, of the same centre and area, differs least from the covered share of pixels (H, W)."""
    size, area = cover.shape[-1], cover.sum()
    at = (torch.arange(size) + 0.5) / size
    x, y = (cover.sum(0) * at).sum() / area, (cover.sum(1) * at).sum() / area
    made = []
    for shape in SHAPES:
        radius = (area / _AREA[shape]).sqrt() / size
        error = (_coverage(shape, x[None], y[None], radius[None], size)[0] - cover).square().sum()
        made.append((float(error), Object(shape, colour, float(x), float(y), float(radius))))
    return min(made, key=lambda pair: pair[0])[1]


@dataclass(frozen=True)
class Verdict:
    """How a picture agrees with a scene.

    attributes: (right, all), the shape and the colour of each object. objects: (right, all), both at once. relations:
    (right, all). picture: everything is right, and nothing else is there.
    """

    attributes: tuple[int, int]
    objects: tuple[int, int]
    relations: tuple[int, int]
    picture: bool


def judge(scene: Scene, found: Iterable[Object]) -> Verdict:
    """Compare what `parse` found with what was asked for.

    A relation is right if both of its objects are there, with shape and colour, and their centres say so: the first one
    further left than up or down for "left of", and inside the radius of the other for "inside".
    """
    found = list(found)
    there: dict[int, Object] = {}
    attributes = 0
    for i, wanted in enumerate(scene.objects):
        same = [each for each in found if each.colour == wanted.colour]
        right = next((each for each in same if each.shape == wanted.shape), None)
        attributes += bool(same) + (right is not None)
        if right is not None:
            there[i] = right
    relations = sum(0 in there and i in there and _holds(name, there[0], there[i]) for name, i in scene.relations)
    count = len(scene.objects)
    whole = len(there) == len(found) == count and relations == len(scene.relations)
    return Verdict((attributes, 2 * count), (len(there), count), (relations, len(scene.relations)), whole)


def _holds(name: str, one: Object, other: Object) -> bool:
    dx, dy = one.x - other.x, one.y - other.y
    if name == "inside":
        return math.hypot(dx, dy) + 0.5 * one.radius < other.radius
    across, down = _TOWARDS[name]
    along, aside = (dx * across, dy) if across else (dy * down, dx)
    return along > abs(aside)

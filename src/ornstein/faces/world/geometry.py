"""The shape of a rendered head, and its intersection with rays.

Head coordinates: x to the right of the image, y up, z out of the face, the half height of the head about 1. The skin is

    F(x, y, z) = 1 - w(y) x^2 - z^2 / c^2 - E(y) + (2 / c) h(|x|, y) = 0,

an ellipsoid whose width narrows towards the jaw (w), whose profile is flattened (E, of degree 4), with a nose of height
h. The camera is orthographic: p = p_v + s e, with e the direction to the viewer in head coordinates.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ornstein.faces.world.parameters import ATTRIBUTES, IDENTITY, columns

__all__ = [
    "VIEW",
    "Bump",
    "Hit",
    "Shape",
    "along",
    "between",
    "cast",
    "gradient",
    "half_width",
    "meet",
    "nose_height",
    "on_skin",
    "pixel_rays",
    "project",
    "ramp",
    "rotation",
    "shape",
    "soft",
    "to_camera",
    "to_image",
]

VIEW = 1.32  # half the image's side in head units, at scale 1
_NOSE = 0.45  # head units: no nose is higher
_MARCH = 6  # depths above the skin at which the nose is searched
_LIFT = 0.02  # height of the head's centre above the middle of the image


@dataclass
class Bump:
    """height (1 - ((|x| - x0) / rx)^2 - ((y - y0) / ry)^2)_+^2, in both halves of the face; all (B, 1, 1)."""

    height: Tensor
    x: Tensor | float
    y: Tensor
    rx: Tensor
    ry: Tensor

    def __post_init__(self) -> None:
        self._per_x, self._per_y = 1 / self.rx, 1 / self.ry

    @cached_property
    def _folded(self) -> tuple[Tensor, Tensor, Tensor]:
        """The root of the height, and the factors of the squares under it: `value` then takes few operations."""
        root = self.height.sqrt()
        return root, root * self._per_x.square(), root * self._per_y.square()

    def value(self, square_x: Tensor, y: Tensor) -> Tensor:
        """The height at ((|x| - x0)^2, y), for a bump of positive height."""
        root, per_x, per_y = self._folded
        outside = (y - self.y).square_().mul_(per_y).add_(square_x * per_x)
        return outside.neg_().add_(root).clamp_(min=0).square_()

    def add(self, x: Tensor, y: Tensor, to: tuple[Tensor, Tensor]) -> Tensor:
        """Adds the derivatives by |x| and y at (|x|, y) to two tensors; returns the height."""
        dx, dy = (x - self.x) * self._per_x, (y - self.y) * self._per_y
        inside = (1 - dx * dx - dy * dy).clamp_(min=0)
        steep = inside * (-4 * self.height)
        to[0].addcmul_(steep, dx.mul_(self._per_x))
        to[1].addcmul_(steep, dy.mul_(self._per_y))
        return inside.square_().mul_(self.height)


@dataclass
class Shape:
    """Identity and attributes as numbers of the renderer, each (B, 1, 1); `rotation` (B, 3, 3) takes head to camera."""

    who: dict[str, Tensor]
    does: dict[str, Tensor]
    rotation: Tensor
    toward: tuple[Tensor, Tensor, Tensor]  # the direction to the viewer in head coordinates
    zoom: Tensor  # head units over half the image
    shift: tuple[Tensor, Tensor]  # of the head's centre, in head units, x and y (up)
    width: tuple[Tensor, Tensor, Tensor]  # w = w0 + w1 y^2 + w2 y^4 below the middle, w0 above it
    depth: Tensor  # c
    down: Tensor  # from the middle to the chin
    height: tuple[Tensor, Tensor]  # 1 / (half height)^2 above and below the middle
    eye: tuple[Tensor, Tensor, Tensor, Tensor]  # x, y, half width, tilt
    lids: tuple[Tensor, Tensor]  # upper and lower, of the half width, above the corners' line
    brow: tuple[Tensor, Tensor, Tensor]  # height above the eye at its inner and outer end, arch
    nose: tuple[Bump, ...]
    nose_base: Tensor
    mouth: tuple[Tensor, Tensor, Tensor]  # y, half width, how much the corners rise
    lips: tuple[Tensor, Tensor]  # thickness above and below
    gap: Tensor  # between the lips


@dataclass
class Hit:
    """Intersections of rays with the skin, in head coordinates: (B, *) each; for rays that miss, the nearest point."""

    x: Tensor
    y: Tensor
    z: Tensor
    s: Tensor  # height towards the viewer
    middle: tuple[Tensor, Tensor, Tensor, Tensor]  # x, y, z, s where the ray is deepest inside the ellipsoid
    inside: Tensor  # F there: negative on rays that miss
    bend: Tensor  # -F'' along the ray


def rotation(yaw: Tensor, pitch: Tensor, roll: Tensor) -> Tensor:
    """(B,) angles in radians to (B, 3, 3): R = R_z(roll) R_x(-pitch) R_y(yaw), which takes head to camera axes."""
    zero, one = torch.zeros_like(yaw), torch.ones_like(yaw)

    def matrix(*rows: Tensor) -> Tensor:
        return torch.stack(rows, -1).view(-1, 3, 3)

    about_y = matrix(yaw.cos(), zero, yaw.sin(), zero, one, zero, -yaw.sin(), zero, yaw.cos())
    about_x = matrix(one, zero, zero, zero, pitch.cos(), pitch.sin(), zero, -pitch.sin(), pitch.cos())
    about_z = matrix(roll.cos(), -roll.sin(), zero, roll.sin(), roll.cos(), zero, zero, zero, one)
    return about_z @ about_x @ about_y


def between(u: Tensor, low: float, high: float) -> Tensor:
    """low + (high - low) u."""
    return low + (high - low) * u


def soft(distance: Tensor, width: Tensor | float) -> Tensor:
    """A step from 0 to 1 at distance 0, `width` wide."""
    return (distance * (1 / width)).add_(0.5).clamp_(0, 1)


def ramp(u: Tensor, low: float, high: float) -> Tensor:
    """0 below `low`, 1 above `high`, linear between."""
    return ((u - low) / (high - low)).clamp(0, 1)


def shape(identity: Tensor, attributes: Tensor) -> Shape:
    """The shape of faces with an identity (B, len(IDENTITY)) and attributes (B, len(ATTRIBUTES)).

    Raises:
        ValueError: other shapes, different numbers of rows, or numbers that are not finite.
    """
    who, does = columns(identity, IDENTITY, "identity"), columns(attributes, ATTRIBUTES, "attributes")
    if len(identity) != len(attributes):
        raise ValueError(f"identity has {len(identity)} rows, but attributes has {len(attributes)}")
    smile, gap = does["smile"], does["mouth_open"]
    zoom = VIEW / does["scale"]
    width = between(who["head_width"], 0.69, 0.80)
    eye_y = between(who["eye_height"], -0.06, 0.05)
    eye_half = between(who["eye_size"], 0.135, 0.18)
    base = eye_y - between(who["nose_length"], 0.34, 0.50)
    down = between(who["face_length"], 0.96, 1.10) + 0.07 * gap
    mouth_y = base - (between(who["mouth_height"], 0.36, 0.44)) * (1.0 + base).clamp(min=0.3)
    half_mouth = between(who["mouth_width"], 0.20, 0.29) * (1 + 0.22 * smile - 0.12 * gap)
    opened = between(who["eye_openness"], 0.38, 0.58)
    closed = does["eyes_closed"] + 0.12 * smile.clamp(min=0) * (1 - does["eyes_closed"])
    surprised = 1 + 0.15 * does["brows_raised"]
    upper = opened * surprised * (1 - closed) - 0.14 * closed
    tip_y = base + between(who["nose_tip"], 0.07, 0.12)
    nose_wide = between(who["nose_width"], 0.8, 1.25)
    tall = between(who["nose_height"], 0.17, 0.27)
    bridge = between(who["nose_bridge"], 0.05, 0.13)
    ones = torch.ones_like(width)
    length = eye_y - base
    turn = rotation(*(does[name].flatten() for name in ("yaw", "pitch", "roll")))
    wide = 1 / width.square()
    jaw, chin = between(who["jaw_width"], 0.70, 0.05), between(who["chin_width"], 1.3, 0.25)
    up = between(who["head_width"], 1.02, 0.96)
    return Shape(
        who=who,
        does=does,
        rotation=turn,
        toward=(turn[:, 2, 0, None, None], turn[:, 2, 1, None, None], turn[:, 2, 2, None, None]),
        zoom=zoom,
        shift=(2 * does["shift_x"] * zoom, _LIFT - 2 * does["shift_y"] * zoom),
        width=(wide, wide * jaw, wide * chin),
        depth=0.92 * ones,
        down=down,
        height=(1 / up.square(), 1 / down.square()),
        eye=(
            between(who["eye_spacing"], 0.285, 0.345),
            eye_y,
            eye_half,
            between(who["eye_tilt"], -0.10, 0.16),
        ),
        lids=(upper, -between(who["eye_openness"], 0.14, 0.24)),
        brow=(
            between(who["brow_height"], 0.13, 0.20) + 0.045 * does["brows_raised"],
            between(who["brow_height"], 0.12, 0.19) + 0.035 * does["brows_raised"],
            between(who["brow_arch"], 0.01, 0.09) + 0.015 * does["brows_raised"],
        ),
        nose=(
            Bump(bridge, 0.0, eye_y - 0.30 * length, 0.15 * nose_wide, 0.85 * length),
            Bump(tall, 0.0, tip_y, 0.145 * nose_wide, 0.75 * length * ones),
            Bump(0.55 * tall, 0.0, tip_y - 0.01, 0.105 * nose_wide, 0.125 * ones),
            Bump(0.40 * tall, 0.095 * nose_wide, base + 0.06, 0.075 * nose_wide, 0.085 * ones),
        ),
        nose_base=base,
        mouth=(mouth_y, half_mouth, 0.085 * smile),
        lips=(
            between(who["upper_lip"], 0.04, 0.09) * (1 - 0.25 * smile.clamp(min=0)),
            between(who["lower_lip"], 0.055, 0.115) * (1 - 0.2 * smile.clamp(min=0)),
        ),
        gap=0.20 * gap + 0.045 * (smile - 0.45).clamp(min=0),
    )


def pixel_rays(size: int) -> tuple[Tensor, Tensor]:
    """Image coordinates of the pixels' centres in [-1, 1], x to the right and y down: (1, 1, S) and (1, S, 1)."""
    at = (torch.arange(size) + 0.5) * (2 / size) - 1
    return at[None, None, :], at[None, :, None]


def to_camera(face: Shape, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Image coordinates in [-1, 1] to camera axes through the head's centre, y up, in head units."""
    return u * face.zoom - face.shift[0], -v * face.zoom - face.shift[1]


def to_image(face: Shape, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `to_camera`."""
    return (x + face.shift[0]) / face.zoom, -(y + face.shift[1]) / face.zoom


def project(face: Shape, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Points in head coordinates to image coordinates in [-1, 1] and the height s towards the viewer."""
    r = face.rotation[..., None, None]
    camera = [r[:, i, 0] * x + r[:, i, 1] * y + r[:, i, 2] * z for i in range(3)]
    return *to_image(face, camera[0], camera[1]), camera[2]


_ROUND = ((0.55, 0.45), (0.25, 0.75))  # E = q (first + second q), q = (y / half height)^2: above and below the middle


def _profile(face: Shape, y: Tensor) -> tuple[Tensor, Tensor]:
    """w(y) and E(y)."""
    above, below = y.clamp(min=0).square_(), y.clamp(max=0).square_()
    first, second, third = face.width
    w = (below * third).add_(second).mul_(below).add_(first)
    above, below = above.mul_(face.height[0]), below.mul_(face.height[1])
    above.mul_((above * _ROUND[0][1]).add_(_ROUND[0][0]))
    below.mul_((below * _ROUND[1][1]).add_(_ROUND[1][0]))
    return w, above.add_(below)


def _steepness(face: Shape, y: Tensor) -> tuple[Tensor, Tensor]:
    """The derivatives of w(y) and E(y)."""
    above, below = y.clamp(min=0), y.clamp(max=0)
    above2, below2 = above * above, below * below
    dw = (below2 * (4 * face.width[2])).add_(2 * face.width[1]).mul_(below)
    above.mul_(above2.mul_(4 * _ROUND[0][1] * face.height[0]).add_(2 * _ROUND[0][0]).mul_(face.height[0]))
    below.mul_(below2.mul_(4 * _ROUND[1][1] * face.height[1]).add_(2 * _ROUND[1][0]).mul_(face.height[1]))
    return dw, above.add_(below)


def nose_height(face: Shape, x: Tensor, y: Tensor) -> Tensor:
    """h(|x|, y)."""
    *middle, wings = face.nose
    square = x * x
    height = wings.value((x - wings.x).square_(), y)
    for bump in middle:
        height += bump.value(square, y)
    return height


def meet(face: Shape, u: Tensor, v: Tensor) -> Hit:
    """Intersections of the rays through image coordinates (u, v), broadcast to (B, *, *), with the head without nose.

    In closed form for F to second order about the deepest point of the ray, then one step of Newton's method.
    """
    cx, cy = to_camera(face, u, v)
    r = face.rotation[..., None, None]
    ex, ey, ez = face.toward
    x, y, z = (r[:, 0, i] * cx + r[:, 1, i] * cy for i in range(3))  # s = 0
    curve_z = (ez / face.depth).square()
    around = face.height[1]
    # the deepest point of the ellipsoid w = wide, E = (y / down)^2, then a step of Newton's method on dF/ds
    a = -1 / (face.width[0] * ex * ex + curve_z + ey * ey * around)
    s = x * (face.width[0] * ex * a) + z * (ez / face.depth.square() * a) + y * (ey * around * a)
    px, py, pz = along((x, y, z), s, face.toward)
    w, _ = _profile(face, py)
    dw, de = _steepness(face, py)
    slope = w * px * (2 * ex) + pz * (2 * ez / face.depth.square()) + (dw * px * px + de) * ey
    bend = w * (2 * ex.square()) + 2 * curve_z + py * py * (4 * ey.square() * around) + 2 * ey.square() * around
    step = -slope / bend
    s += step
    px, py, pz = along((px, py, pz), step, face.toward)
    inside = _base(face, px, py, pz)
    half = 0.5 * bend
    above = (inside.clamp(min=0) / half).sqrt_()
    x, y, z = along((px, py, pz), above, face.toward)
    step = _newton(_base(face, x, y, z), bend, above)
    return Hit(*along((x, y, z), step, face.toward), s + above + step, (px, py, pz, s), inside, bend)


def cast(face: Shape, u: Tensor, v: Tensor) -> Hit:
    """First intersections of the rays through image coordinates (u, v), broadcast to (B, *, *), with the skin.

    Above the head without nose, F is evaluated at a few depths; the highest crossing is found by the secant, and
    refined by one step of Newton's method.
    """
    base = meet(face, u, v)
    px, py, pz, s = base.middle
    skin = base.s - s
    room = _NOSE / face.toward[2]
    double = 2 / face.depth
    half = 0.5 * base.bend
    best, before = skin, None
    for k in range(_MARCH + 1):
        at = skin + room * (k / _MARCH)
        x, y = px + at * face.toward[0], py + at * face.toward[1]
        f = base.inside - half * at * at + double * nose_height(face, x.abs_(), y)
        if before is not None:
            t = before / (before - f).clamp_(min=1e-6)
            best = torch.where((before >= 0) & (f < 0), skin + room * ((k - 1 + t) / _MARCH), best)
        before = f
    x, y, z = along((px, py, pz), best, face.toward)
    f = _base(face, x, y, z) + double * nose_height(face, x.abs(), y)
    step = _newton(f, base.bend, best)
    return Hit(*along((x, y, z), step, face.toward), s + best + step, base.middle, base.inside, base.bend)


def along(
    start: tuple[Tensor, Tensor, Tensor], s: Tensor, way: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """start + s way, coordinate by coordinate."""
    return start[0] + s * way[0], start[1] + s * way[1], start[2] + s * way[2]


def _newton(f: Tensor, bend: Tensor, above: Tensor) -> Tensor:
    """The step to F = 0 from a height above the deepest point where F = f; damped where the ray only grazes."""
    return (f / (bend * above + 0.25)).clamp_(-0.05, 0.05)


def _base(face: Shape, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """F without the nose."""
    w, e = _profile(face, y)
    return 1 - w * x * x - (z * (1 / face.depth)).square_() - e


def gradient(face: Shape, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-dF/d(x, y, z) of the head without its nose: the outward normal, not normalised."""
    w, _ = _profile(face, y)
    dw, de = _steepness(face, y)
    return 2 * w * x, dw * x * x + de, z * (2 / face.depth.square())


def half_width(face: Shape, y: Tensor) -> Tensor:
    """|x| of the head's outline from the front at height y; 0 beyond its ends."""
    w, e = _profile(face, y)
    return ((1 - e).clamp(min=0) / w).sqrt()


def on_skin(face: Shape, x: Tensor, y: Tensor) -> Tensor:
    """z > 0 of the skin at (x, y), in closed form; 0 beside the head."""
    w, e = _profile(face, y)
    square = 1 - w * x * x - e + (2 / face.depth) * nose_height(face, x.abs(), y)
    return face.depth * square.clamp(min=0).sqrt()

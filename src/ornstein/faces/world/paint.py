"""The features of a rendered face, painted in surface coordinates as layers with an alpha at each pixel.

Lengths are in half heights of the head; a layer is its alpha (B, H, W) and its linear colour (B, 3).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.faces.world.colours import Colours
from ornstein.faces.world.geometry import Bump, Hit, Shape, between, ramp, soft
from ornstein.faces.world.landmarks import brow_line

__all__ = ["Layer", "Paint", "paint"]

Layer = tuple[Tensor, Tensor]


@dataclass
class Paint:
    """Layers on the skin from the top down, and the effects of the features on light."""

    layers: list[Layer]
    slope: tuple[Tensor, Tensor]  # of nose and bumps, by |x| and y
    shade: Tensor  # how much light reaches the place, 1 in the open
    gloss: Tensor  # beyond that of skin


@dataclass
class _Place:
    """The positions of the pixels on the face, (B, H, W) each, and their width."""

    x: Tensor  # |x|
    y: Tensor
    side: Tensor  # the sign of x
    front: Tensor  # 1 where the skin faces forward
    pixel: Tensor


def paint(face: Shape, hit: Hit, pixel: Tensor, look: Colours) -> Paint:
    """The features at the points of `hit`; `pixel` (B, 1, 1) is a pixel's width in head units."""
    at = _Place(hit.x.abs(), hit.y, hit.x.sign(), soft(hit.z - 0.12, 0.2), pixel)
    slope = torch.zeros_like(at.x), torch.zeros_like(at.x)
    tip, socket = _relief(face, at, slope)
    fold = _fold(face, at, slope)
    eyes, white = _eyes(face, at, look)
    mouth, lip, under_lip = _mouth(face, at, look, slope)
    layers = [
        *eyes,
        _brow(face, at, look),
        *mouth,
        _nostril(face, at, look),
        (_beard(face, at) * soft(hit.z + 0.05, 0.3), look.hair),
        (fold * 0.35, look.brown),
        *_complexion(face, at, look, tip),
    ]
    shade = 1 + 3.2 * socket
    shade -= 0.25 * soft(0.10 - torch.hypot(at.x * 0.7, at.y - face.nose_base + 0.02), 0.16)
    shade -= 0.25 * under_lip
    return Paint(layers, slope, shade, gloss=0.4 * lip - 0.28 * white)  # the eye has its spark


def _relief(face: Shape, at: _Place, slope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Adds the slopes of nose and bumps; returns the heights of the nose's tip and of the eye sockets."""
    who, smile = face.who, face.does["smile"].clamp(min=0)
    eye_x, eye_y, half, _ = face.eye
    chin_y, lip_y = -0.86 * face.down, face.mouth[0] - 0.75 * face.gap - face.lips[1] - 0.035
    one = torch.ones_like(half)
    nose = [bump.add(at.x, at.y, slope) for bump in face.nose]
    deep = between(who["eye_depth"], 0.045, 0.10)
    socket = Bump(-deep, eye_x - 0.05, eye_y + 0.03, 0.27 * one, 0.19 * one).add(at.x, at.y, slope)
    cheek = between(who["cheekbones"], 0.02, 0.06) + 0.03 * smile
    for bump in (
        Bump(0.055 * one, eye_x, eye_y, half * 1.05, half * 0.75),  # eyeball
        Bump(between(who["brow_ridge"], 0.0, 0.05), eye_x - 0.03, eye_y + 0.20, 0.26 * one, 0.11 * one),
        Bump(cheek, 0.40, eye_y - 0.27 + 0.04 * smile, 0.25 * one, 0.20 * one),
        Bump(between(who["chin_height"], 0.03, 0.09), 0.0, chin_y, 0.24 * one, 0.17 * one),
        Bump(-0.035 * one, 0.0, lip_y, 0.2 * one, 0.07 * one),  # the hollow under the lip
        Bump(0.05 * one, 0.0, face.mouth[0] + 0.02, 0.36 * one, 0.26 * one),  # the teeth behind the lips
    ):
        bump.add(at.x, at.y, slope)
    return nose[2], socket


def _fold(face: Shape, at: _Place, slope: tuple[Tensor, Tensor]) -> Tensor:
    """The crease from the wing of the nose to the corner of the mouth, deeper with age and in a smile."""
    strength = between(ramp(face.who["age"], 0.3, 1.0), 0.05, 0.5) * (1 + 1.2 * face.does["smile"].clamp(min=0))
    below = face.nose_base + 0.06 - at.y
    across = (at.x - face.nose[3].x - 0.10 - 0.42 * below) * (1 / 0.035)
    fold = soft(below + 0.03, 0.08) * soft(at.y - face.mouth[0] - 0.02, 0.12) * strength
    fold = fold * (1 - across * across).clamp_(min=0)
    slope[0].addcmul_(fold, across, value=0.9)
    return fold


def _mouth(face: Shape, at: _Place, look: Colours, slope: tuple[Tensor, Tensor]) -> tuple[list[Layer], Tensor, Tensor]:
    """A curve through the corners of the mouth, lips above and below it, and the open mouth between them.

    Returns the layers, the alpha of the lips and that of the shadow under them.
    """
    mouth_y, mouth_half, rise = face.mouth
    (upper, lower), gap, pixel = face.lips, face.gap, at.pixel
    t = at.x * (1 / mouth_half)
    t2 = t * t
    curve = at.y - mouth_y - t2 * rise
    arch = 1 - t2
    inside = arch.clamp(min=0)
    bow = arch * (1 - 0.22 * (1 - 9.8 * t2).clamp_(min=0))
    top = torch.addcmul(0.25 * gap * inside, bow, upper * (1 + 0.5 * t2))
    bottom = 0.75 * gap * inside + arch * lower
    lip = torch.minimum(soft(top - curve, 1.1 * pixel + 0.012), soft(curve + bottom, 1.1 * pixel + 0.018)).mul_(
        at.front
    )
    open_ = torch.minimum(0.25 * gap * inside - curve, curve + 0.75 * gap * inside)
    hole = soft(open_ - 0.006, pixel) * (gap > 0.012) * at.front
    line = soft(0.016 - curve.abs() + 0.008 * arch, pixel + 0.012) * soft(arch + 0.08, 0.2) * at.front
    teeth = soft(curve + 0.30 * gap, pixel + 0.01) * soft(0.85 - t, 0.2) * ramp(gap, 0.015, 0.05)
    tongue = 0.8 * soft(-0.55 * gap - curve, 0.05)
    bulge = torch.where(
        curve > 0, (curve * (1 / upper) - 0.25) * -1.1, (curve + 0.75 * gap + 0.55 * lower) * (-0.9 / lower)
    )
    slope[1].addcmul_(lip, bulge.clamp_(-0.7, 0.7))
    layers = [
        (hole * teeth, look.fixed("tooth")),
        (hole * tongue, look.fixed("tongue")),
        (hole, look.fixed("throat")),
        (line * 0.8, look.fixed("throat")),
        (lip * 0.85, look.lips),
    ]
    return layers, lip, soft(0.05 - (curve + bottom + 0.025).abs(), 0.06) * inside


def _eyes(face: Shape, at: _Place, look: Colours) -> tuple[list[Layer], Tensor]:
    """An almond shape between two lids about the line of the eye's corners, in half widths: layers, and its alpha."""
    who, does = face.who, face.does
    eye_x, eye_y, half, tilt = face.eye
    upper, lower = face.lids
    make_up = who["make_up"]
    a = (at.x - eye_x) * (1 / half)
    b = (at.y - eye_y) * (1 / half) - tilt * a
    almond = 1 - a * a
    over = almond * upper * (1 - 0.18 * a) - b  # under the upper lid
    under = b - almond * lower  # over the lower one
    edge = at.pixel / half
    white = torch.minimum(soft(over, edge), soft(under, edge)) * soft(almond, 0.2) * at.front
    ga, gb = a - 0.30 * does["gaze_x"] * at.side, b - 0.10 - 0.18 * does["gaze_y"]
    r = (ga * ga + gb * gb).sqrt_()
    iris = soft(0.46 - r, edge)
    ring = soft(r - 0.36, edge + 0.1) * iris
    spark = torch.hypot(ga * at.side - 0.15 * does["light_x"].clamp(-1, 1), gb - 0.17)
    near = soft(almond + 0.12, 0.25) * at.front
    lash = soft(between(make_up, 0.07, 0.12) - over.abs(), 0.9 * edge) * near * between(make_up, 0.75, 1.0)
    low_lash = soft(0.05 - under.abs(), edge) * near * between(make_up, 0.2, 0.45)
    crease = soft(0.05 - (over + 0.28 - 0.1 * upper).abs(), edge + 0.1) * near
    painted = soft(over + 0.5, 0.5) * soft(0.1 - over, 0.3) * near * ramp(make_up, 0.55, 1.0)
    bags = soft(0.16 - (under + 0.28).abs(), 0.3) * near * between(ramp(who["age"], 0.3, 1.0), 0.08, 0.3)
    black = look.fixed("black")
    layers = [
        (0.9 * white * soft(0.10 - spark, edge) * (0.2 + iris), look.fixed("white")),
        (lash, black),
        (0.55 * white * soft(0.22 - over, 0.45), black),  # the lid's shadow
        (white * soft(0.20 - r, edge), black),  # the pupil
        (0.7 * white * ring, 0.25 * look.iris),
        (white * iris, look.iris),
        (0.6 * white * soft(0.12 - torch.hypot(a + 0.93, b), 0.15), look.red),
        (white, look.fixed("eyeball")),
        (low_lash, look.dark),
        (0.5 * crease, look.dark),
        (0.5 * painted, look.dark),
        (bags, look.brown),
    ]
    return layers, white


def _brow(face: Shape, at: _Place, look: Colours) -> Layer:
    eye_x, _, half, _ = face.eye
    along = (at.x - eye_x) * (1 / half)
    off = (at.y - brow_line(face, at.x)).abs()
    thick = between(face.who["brow_thickness"], 0.018, 0.042) * (0.945 - 0.35 * along).clamp(0.3, 1.3)
    hairs = (110 * at.x * (1 - 0.35 * along) + 40 * at.y).sin_().mul_(0.18).add_(0.82)
    brow = soft(thick - off, 1.1 * at.pixel + 0.02) * soft(1.25 - (along - 0.06).abs(), 0.25) * hairs * at.front
    return brow * between(face.who["brow_darkness"], 0.55, 0.95), look.brows


def _nostril(face: Shape, at: _Place, look: Colours) -> Layer:
    away = torch.hypot((at.x - 0.72 * face.nose[3].x) * (1 / 0.042), (at.y - face.nose_base - 0.012) * (1 / 0.022))
    return 0.75 * soft(1 - away, at.pixel / 0.03 + 0.35) * at.front, 0.5 * look.dark


def _beard(face: Shape, at: _Place) -> Tensor:
    """Stubble or a beard along the jaw, with or without a moustache."""
    x, y = at.x, at.y
    beard, moustache = ramp(face.who["beard"], 0.62, 0.97), ramp(face.who["moustache"], 0.45, 0.9)
    grain = ((83 * x + 31 * y).sin_() + (47 * y - 29 * x).sin_() + (67 * y + 19 * x).sin_()).mul_(0.035).add_(0.85)
    jaw = soft(face.mouth[0] + 0.02 + 0.75 * (x - 0.22).clamp(min=0) - y, 0.10)
    lip_y = face.mouth[0] + face.lips[0] + 0.25 * face.gap + 0.055
    over_lip = soft(0.075 - (y - lip_y + 0.35 * x * x).abs(), 0.07) * soft(1.25 * face.mouth[1] - x, 0.08)
    grown = torch.maximum(jaw * ramp(beard, 0.3, 0.7), over_lip * (ramp(beard, 0.2, 0.3) * moustache))
    stubble = torch.maximum(jaw, over_lip) * (0.35 * ramp(beard, 0.0, 0.25))
    return torch.maximum(0.95 * grown, stubble) * grain


def _complexion(face: Shape, at: _Place, look: Colours, tip: Tensor) -> list[Layer]:
    """Red cheeks and a red tip of the nose, freckles on light skin, and blotches."""
    who, x, y = face.who, at.x, at.y
    eye_y = face.eye[1]
    cheek_y = eye_y - 0.31 + 0.04 * face.does["smile"].clamp(min=0)
    rosy = (1 - ((x - 0.40) * (1 / 0.27)).square_() - ((y - cheek_y) * (1 / 0.22)).square_()).clamp_(min=0)
    rosy = (rosy + 4 * tip) * between(who["rosiness"], 0.15, 0.6)
    spots = ((61 * x + 9 * y).sin_() + (57 * y - 23 * x).sin_() + (37 * x + 41 * y + 1).sin_()).sub_(1.1).clamp_(0, 0.8)
    freckled = 0.6 * ramp(who["freckles"], 0.72, 1.0) * (1 - ramp(who["skin_tone"], 0.4, 0.7))
    middle = soft(0.6 - x, 0.2) * at.front
    blotch = (9 * x + 2).sin_().mul_((8 * y + 1 + 3 * x).sin_()).add_(1).mul_(0.10)
    return [
        (rosy * at.front, look.red),
        (spots * soft(0.30 - (y - eye_y + 0.24).abs(), 0.3) * middle * freckled, look.brown),
        (blotch * middle * soft(0.55 - (y + 0.25).abs(), 0.3), look.red),
    ]

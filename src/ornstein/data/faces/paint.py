"""The features of a procedural face, painted in surface coordinates: colours, and how much of each at each pixel."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.data.faces.geometry import Bump, Hit, Shape, between, brow_line

# sRGB of skin from light to dark, and of hair from black to blond.
_SKIN = (
    (0.97, 0.84, 0.76),
    (0.93, 0.76, 0.64),
    (0.85, 0.65, 0.50),
    (0.72, 0.51, 0.36),
    (0.54, 0.36, 0.25),
    (0.38, 0.24, 0.17),
)
_HAIR = (
    (0.07, 0.055, 0.055),
    (0.15, 0.10, 0.08),
    (0.27, 0.17, 0.11),
    (0.48, 0.22, 0.11),
    (0.47, 0.33, 0.19),
    (0.80, 0.66, 0.42),
)
_IRIS = ((0.16, 0.09, 0.05), (0.30, 0.18, 0.08), (0.38, 0.33, 0.16), (0.32, 0.42, 0.32), (0.30, 0.47, 0.62))


def soft(distance: Tensor, width: Tensor | float) -> Tensor:
    """0 to 1 across an edge `width` wide at distance 0."""
    return (distance * (1 / width)).add_(0.5).clamp_(0, 1)


def ramp(u: Tensor, low: float, high: float) -> Tensor:
    """0 below `low`, 1 above `high`, straight between."""
    return ((u - low) / (high - low)).clamp(0, 1)


def _palette(colours: tuple[tuple[float, float, float], ...], u: Tensor) -> Tensor:
    """Linear colour (B, 3) at u (B,) in [0, 1] along a palette of sRGB colours."""
    table = torch.tensor(colours).square()  # a gamma of 2 is near enough to that of sRGB, and its root is cheap
    at = u.clamp(0, 1) * (len(colours) - 1)
    low = at.floor().clamp(max=len(colours) - 2)
    return torch.lerp(table[low.long()], table[low.long() + 1], (at - low)[:, None])


def muted(colour: Tensor) -> Tensor:
    """Linear colour (B, 3) of an sRGB one, half as colourful: of rooms and clothes, few are pure red, green or blue."""
    return torch.lerp(colour, colour.mean(-1, keepdim=True), 0.5).square()


@dataclass
class Colours:
    """Linear colours (B, 3) of a face."""

    skin: Tensor
    lips: Tensor
    iris: Tensor
    hair: Tensor
    brows: Tensor
    cloth: Tensor
    frame: Tensor


def colours(face: Shape) -> Colours:
    """The colours of a face: hair and eyes are dark where the skin is, hair greys with age."""
    who = {name: column.flatten() for name, column in face.who.items()}
    tone = who["skin_tone"]
    warm = (who["skin_warmth"] - 0.5)[:, None] * torch.tensor([0.05, -0.01, -0.16])
    skin = _palette(_SKIN, tone) * (1 + warm)
    dark = 1 - 0.85 * ramp(tone, 0.35, 0.6)
    hair = _palette(_HAIR, who["hair_colour"] * dark)
    grey = (ramp(who["age"], 0.8, 1.0) * 0.85)[:, None]
    white = torch.tensor([0.62, 0.61, 0.60]).square()
    hair = torch.lerp(hair, white.expand_as(hair), grey)
    black = torch.tensor([0.03, 0.022, 0.02])
    brows = torch.lerp(hair, black.expand_as(hair), 0.45 + 0.4 * who["brow_darkness"][:, None]) * 0.8
    rouge = ramp(who["lip_colour"], 0.5, 1.0) * (1 - who["beard"])
    natural = skin * torch.tensor([0.92, 0.56, 0.56])
    painted = torch.tensor([0.45, 0.05, 0.07]).expand_as(skin) * (0.5 + skin[:, :1])
    lips = torch.lerp(natural, painted, 0.75 * rouge[:, None])
    frame = torch.lerp(
        torch.tensor([0.02, 0.02, 0.025]), torch.tensor([0.25, 0.11, 0.04]), who["glasses_shape"][:, None]
    )
    cloth = muted(torch.stack([face.does[f"cloth_{c}"].flatten() for c in ("red", "green", "blue")], -1))
    return Colours(skin, lips, _palette(_IRIS, who["eye_colour"] * dark), hair, brows, cloth, frame)


@dataclass
class Paint:
    """Layers on the skin from the top down, (alpha (B, H, W), linear colour (B, 3)), and the bumps of its normal."""

    layers: list[tuple[Tensor, Tensor]]
    slope: tuple[Tensor, Tensor]  # of all bumps with the nose, by |x| and y
    shade: Tensor  # how much light reaches the place, 1 in the open
    gloss: Tensor | float  # extra gloss: lips and eyes


def paint(face: Shape, hit: Hit, pixel: Tensor, look: Colours) -> Paint:
    """The features at the points of `hit`; `pixel` (B, 1, 1) is a pixel's width in head units."""
    who, does = face.who, face.does
    x, y = hit.x.abs(), hit.y
    eye_x, eye_y, half, tilt = face.eye
    mouth_y, mouth_half, rise = face.mouth
    upper, lower = face.lips
    ones = torch.ones_like(look.skin)
    front = soft(hit.z - 0.12, 0.2)
    one = torch.ones_like(eye_x)

    to = (torch.zeros_like(x), torch.zeros_like(x))
    nose = [bump.add(x, y, to) for bump in face.nose]
    age, deep = ramp(who["age"], 0.3, 1.0), between(who["eye_depth"], 0.6, 1.3)
    smile = does["smile"].clamp(min=0)
    cheek_y = eye_y - 0.27 + 0.04 * smile
    socket = Bump(-0.075 * deep, eye_x - 0.05, eye_y + 0.03, 0.27 * one, 0.19 * one).add(x, y, to)
    Bump(0.055 * one, eye_x, eye_y, half * 1.05, half * 0.75).add(x, y, to)
    Bump(between(who["brow_ridge"], 0.0, 0.05), eye_x - 0.03, eye_y + 0.20, 0.26 * one, 0.11 * one).add(x, y, to)
    cheek = between(who["cheekbones"], 0.02, 0.06) + 0.03 * smile
    Bump(cheek, 0.40, cheek_y, 0.25 * one, 0.20 * one).add(x, y, to)
    chin_y = -0.86 * face.down
    Bump(between(who["chin_height"], 0.03, 0.09), 0.0, chin_y, 0.24 * one, 0.17 * one).add(x, y, to)
    Bump(-0.035 * one, 0.0, mouth_y - 0.75 * face.gap - lower - 0.035, 0.2 * one, 0.07 * one).add(x, y, to)
    Bump(0.05 * one, 0.0, mouth_y + 0.02, 0.36 * one, 0.26 * one).add(x, y, to)

    # mouth: a curve through the corners, lips above and below it that end there
    t = x * (1 / mouth_half)
    t2 = t * t
    curve = y - mouth_y - t2 * rise
    arch = 1 - t2
    round_ = arch.clamp(min=0)
    bow = arch * (1 - 0.22 * (1 - 9.8 * t2).clamp_(min=0))
    top = torch.addcmul(face.gap * 0.25 * round_, bow, upper * (1 + 0.5 * t2))
    bottom = round_ * (0.75 * face.gap) + arch * lower
    lip = torch.minimum(soft(top - curve, 1.1 * pixel + 0.012), soft(curve + bottom, 1.1 * pixel + 0.018)).mul_(front)
    open_ = torch.minimum(0.25 * face.gap * round_ - curve, curve + 0.75 * face.gap * round_)
    hole = soft(open_ - 0.006, pixel) * (face.gap > 0.012) * front
    line = soft(0.016 - curve.abs() + 0.008 * arch, 1.0 * pixel + 0.012) * soft(arch + 0.08, 0.2) * front
    teeth = soft(curve + 0.30 * face.gap, pixel + 0.01) * soft(0.85 - t, 0.2) * ramp(face.gap, 0.015, 0.05)
    tongue = soft(-0.55 * face.gap - curve, 0.05) * 0.8
    # lips bulge: the upper faces down, the lower up and then down
    bulge = torch.where(
        curve > 0, (curve * (1 / upper) - 0.25) * -1.1, (curve + 0.75 * face.gap + 0.55 * lower) * (-0.9 / lower)
    )
    to[1].addcmul_(lip, bulge.clamp_(-0.7, 0.7))

    # eyes: an almond between two lids about the line of its corners, in half widths
    a = (x - eye_x) * (1 / half)
    b = (y - eye_y) * (1 / half) - tilt * a
    almond = 1 - a * a
    lid, floor = face.lids
    over = almond * lid * (1 - 0.18 * a) - b
    under = b - almond * floor
    edge = pixel / half
    white = torch.minimum(soft(over, edge), soft(under, edge)) * soft(almond, 0.2) * front
    side = torch.where(hit.x > 0, 1.0, -1.0)
    ga, gb = a - 0.30 * does["gaze_x"] * side, b - 0.10 - 0.18 * does["gaze_y"]
    r = (ga * ga + gb * gb).sqrt_()
    iris = soft(0.46 - r, edge)
    ring = iris * soft(r - 0.36, edge + 0.1) * 0.7
    pupil = soft(0.20 - r, edge)
    spark = soft(0.10 - torch.hypot(ga * side - 0.15 * does["light_x"].clamp(-1, 1), gb - 0.17), edge) * white
    eye_shadow = soft(0.22 - over, 0.45) * 0.55
    lash_width = between(who["make_up"], 0.07, 0.12)
    near = soft(almond + 0.12, 0.25) * front
    lash = soft(lash_width - over.abs(), edge * 0.9) * near * between(who["make_up"], 0.75, 1.0)
    low_lash = soft(0.05 - under.abs(), edge) * near * between(who["make_up"], 0.2, 0.45)
    crease = soft(0.05 - (over + 0.24 + 0.1 * (0.4 - lid)).abs(), edge + 0.1) * near * 0.5
    shadow_lid = soft(over + 0.5, 0.5) * soft(0.1 - over, 0.3) * near * ramp(who["make_up"], 0.55, 1.0) * 0.5
    bags = soft(0.16 - (under + 0.28).abs(), 0.3) * near * between(age, 0.08, 0.3)
    corner = soft(0.12 - torch.hypot(a + 0.93, b), 0.15) * white

    # brows
    along = (x - eye_x) * (1 / half)
    off = y - brow_line(face, x)
    thick = between(who["brow_thickness"], 0.018, 0.042) * (1.05 - 0.35 * (along + 0.3)).clamp(0.3, 1.3)
    hairs = (110 * x * (1 - 0.35 * along) + 40 * y).sin_().mul_(0.18).add_(0.82)
    brow = soft(thick - off.abs(), 1.1 * pixel + 0.02) * soft(1.25 - (along - 0.06).abs(), 0.25) * hairs * front
    brow = brow * between(who["brow_darkness"], 0.55, 0.95)

    # nose: nostrils, and the crease at the wings
    alae = face.nose[3]
    nostril_x, nostril_y = 0.72 * torch.as_tensor(alae.x), face.nose_base + 0.012
    hole_r = torch.hypot((x - nostril_x) / 0.042, (y - nostril_y) / 0.022)
    nostril = soft(1 - hole_r, pixel / 0.03 + 0.35) * 0.75
    fold_x = alae.x + 0.10 + (face.nose_base + 0.06 - y) * 0.42
    fold_y = soft(face.nose_base + 0.09 - y, 0.08) * soft(y - mouth_y - 0.02, 0.12)
    fold_at = (x - fold_x) / 0.035
    fold = fold_y * (1 - fold_at * fold_at).clamp_(min=0) * between(age, 0.05, 0.5)
    fold = fold * (1 + 1.2 * smile)
    to[0].addcmul_(fold, fold_at, value=0.9)

    # colour of the skin: red at cheeks and nose, freckles, a shadow of beard
    rosy = (1 - ((x - 0.40) / 0.27).square() - ((y - cheek_y + 0.04) / 0.22).square()).clamp_(min=0)
    rosy = (rosy + 4 * nose[2]) * between(who["rosiness"], 0.15, 0.6)
    blotch = (9 * x + 2).sin_() * (8 * y + 1 + 3 * x).sin_()
    spots = ((61 * x + 9 * y).sin_() + (57 * y - 23 * x).sin_() + (37 * x + 41 * y + 1).sin_()).sub_(1.1).clamp_(0, 0.8)
    spots = (
        spots * soft(0.30 - (y - eye_y + 0.24).abs(), 0.3) * soft(0.6 - x, 0.2) * ramp(who["freckles"], 0.72, 1.0) * 0.6
    )
    spots = spots * (1 - ramp(who["skin_tone"], 0.4, 0.7))
    beard, moustache = ramp(who["beard"], 0.62, 0.97), ramp(who["moustache"], 0.45, 0.9)
    beard_line = mouth_y + 0.02 + 0.75 * (x - 0.22).clamp(min=0)
    stubble_noise = (
        ((83 * x + 31 * y).sin_() + (47 * y - 29 * x).sin_() + (67 * y + 19 * x).sin_()).mul_(0.05).add_(0.84)
    )
    jaw = soft(beard_line - y, 0.10)
    whisker = soft(0.075 - (y - mouth_y - upper - 0.25 * face.gap - 0.055 + 0.35 * x * x).abs(), 0.07)
    whisker = whisker * soft(1.25 * mouth_half - x, 0.08)
    grown = torch.maximum(jaw * ramp(beard, 0.3, 0.7), whisker * (ramp(beard, 0.2, 0.3) * moustache))
    stubble = torch.maximum(jaw, whisker) * (ramp(beard, 0.0, 0.25) * 0.35)
    hairy = torch.maximum(grown * 0.95, stubble) * stubble_noise * soft(hit.z + 0.05, 0.3)

    deep_red = torch.tensor([0.09, 0.015, 0.015]) * ones
    white_eye = torch.tensor([0.62, 0.58, 0.55]) * ones
    black = torch.tensor([0.012, 0.009, 0.008]) * ones
    tooth = torch.tensor([0.80, 0.76, 0.66]) * ones
    meat = torch.tensor([0.40, 0.12, 0.11]) * ones
    dark_skin = look.skin * torch.tensor([0.42, 0.28, 0.25])
    red_skin = look.skin * torch.tensor([1.02, 0.62, 0.58])
    brown_skin = look.skin * torch.tensor([0.55, 0.40, 0.30])
    layers = [
        (spark * 0.9 * iris.add(0.2).clamp_(max=1), ones),
        (lash, black),
        (white * eye_shadow, black),
        (white * pupil, black),
        (white * ring, look.iris * 0.25),
        (white * iris, look.iris),
        (corner * 0.6, red_skin),
        (white, white_eye),
        (low_lash, dark_skin),
        (brow, look.brows),
        (crease, dark_skin),
        (shadow_lid, dark_skin),
        (hole * teeth, tooth),
        (hole * tongue, meat),
        (hole, deep_red),
        (line * 0.8, deep_red * 1.3),
        (lip * 0.85, look.lips),
        (nostril * front, dark_skin * 0.5),
        (hairy, look.hair),
        (bags, brown_skin),
        (fold * 0.35, brown_skin),
        (rosy * front, red_skin),
        (spots * front, brown_skin),
        ((blotch * 0.10 + 0.10) * soft(0.6 - x, 0.2) * soft(0.55 - (y + 0.25).abs(), 0.3), red_skin),
    ]
    shade = 1 + socket * 3.2
    shade -= 0.25 * soft(0.10 - torch.hypot(x * 0.7, y - face.nose_base + 0.02), 0.16)
    shade -= 0.25 * soft(0.05 - (curve + bottom + 0.025).abs(), 0.06) * round_
    gloss = lip * 0.4 - white * 0.28  # the eye has its spark
    return Paint(layers, to, shade, gloss)

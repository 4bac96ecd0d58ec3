"""Pictures of rendered faces: the visible parts in order, with light, and the exact mask of the face."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.faces.world.colours import Colours, colours, muted
from ornstein.faces.world.geometry import (
    Hit,
    Shape,
    cast,
    gradient,
    meet,
    nose_height,
    pixel_rays,
    project,
    soft,
    to_camera,
)
from ornstein.faces.world.paint import paint
from ornstein.faces.world.parts import Part, dot, glasses, hair, neck, over_face, unit

__all__ = ["background", "picture", "silhouette"]

_WRAP = (0.30, 0.14, 0.08)  # light that scatters past the edge of a shadow: red reaches furthest in skin
_SHINE = 0.35  # of gloss
# The painted front of the head ends within these points (x, y, z): cheeks, chin, forehead, nose, jaw.
_FRONT = (
    (0.80, 0.05, -0.15), (0.80, -0.60, -0.15), (0.62, 0.45, 0.45), (0.55, -0.95, -0.10), (0.55, -0.95, 0.40),
    (0.0, 0.50, 0.95), (0.0, -1.18, 0.0), (0.0, -1.12, 0.55), (0.10, -0.40, 1.35),
)  # fmt: skip


def picture(face: Shape, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images (B, 3, size, size) in [-1, 1], and masks (B, 1, size, size) in [0, 1].

    The masks are of the face's skin and features, and of the head without nose, seen through hair and glasses.
    """
    u, v = pixel_rays(size)
    pixel = face.zoom * (2 / size)
    look = colours(face)
    light = F.normalize(torch.cat([face.does["light_x"], face.does["light_y"], torch.ones_like(face.zoom)], 1), dim=1)
    straight = x, y, z = light[..., None].unbind(1)  # in camera axes
    r = face.rotation[..., None, None]
    turned = tuple(r[:, 0, i] * x + r[:, 1, i] * y + r[:, 2, i] * z for i in range(3))  # in head axes
    halfway = unit(*(a + b for a, b in zip(turned, face.toward, strict=True)))

    hit = meet(face, u, v)
    skin = torch.empty(len(pixel), 7, size, size)  # colour, light, shade, gloss, height
    skin[:, :3] = look.skin[:, :, None, None]
    normal = unit(*gradient(face, hit.x, hit.y, hit.z))
    skin[:, 3], skin[:, 4] = dot(normal, turned), 1.0
    skin[:, 5], skin[:, 6] = 0.30 * _sparkle(normal, halfway), hit.s
    _paste_front(skin, face, pixel, look, turned, halfway)
    hit.s = skin[:, 6]

    head = Part(silhouette(face, hit, pixel), normal, hit.s)
    style = hair(face, hit, pixel)
    throat, cloth = neck(face, *to_camera(face, u, v), pixel)
    locks, ear, cap = over_face(face, hit, head.alpha, style, pixel)
    mask = head.alpha * (1 - ear.alpha) * (1 - cap.alpha)
    order = [
        (glasses(face, hit, pixel), look.frame, turned),
        (ear, look.ears, turned),
        (cap, look.hair, turned),
        (head, None, turned),
        (cloth, look.cloth, straight),
        (throat, look.skin, straight),
    ]
    if locks is not None:
        mask = mask * (1 - locks.alpha)
        order.insert(1, (locks, look.hair, turned))
    if style.back is not None:
        order.append((style.back, look.hair, turned))

    left = torch.ones_like(hit.s)
    weights, tints = [], []
    lit, gloss, skin_weight = torch.zeros_like(left), torch.zeros_like(left), left
    shade = torch.zeros_like(left)
    for part, tint, to_light in order:
        w = left * part.alpha
        left = left - w
        if tint is None:
            skin_weight = w
            lit.addcmul_(w, skin[:, 3])
            shade.addcmul_(w, skin[:, 4] * style.edge_shade)
            gloss.addcmul_(w, skin[:, 5])
            continue
        lit.addcmul_(w, dot(part.normal, to_light))
        shade += w * part.shade
        if part.gloss is not None:
            gloss += w * part.gloss * _sparkle(part.normal, halfway)
        weights.append(w)
        tints.append(tint)
    albedo = _mixed(weights, tints).addcmul_(skin[:, :3], skin_weight[:, None])
    shade *= 1 / (1 - left).clamp_(min=1e-3)
    warmth = 1 + face.does["light_warmth"].flatten(1) * torch.tensor([0.10, 0.0, -0.12])
    power = (face.does["light_power"].flatten(1) * warmth)[..., None, None]
    ambient = (face.does["ambient"].flatten(1) * torch.tensor([0.95, 1.0, 1.05]))[..., None, None]
    behind = background(face, u, v)
    image = torch.empty_like(albedo)
    for c, wrap in enumerate(_WRAP):
        light_here = (lit + wrap * (1 - left)).clamp_(min=0) * (power[:, c] / (1 + wrap)) + ambient[:, c]
        image[:, c] = albedo[:, c] * light_here.mul_(shade) + gloss * (_SHINE * power[:, c]) + left * behind[c]
    return image.clamp_(0, 1).sqrt_().mul_(2).sub_(1), mask[:, None], head.alpha[:, None]


def silhouette(face: Shape, hit: Hit, pixel: Tensor) -> Tensor:
    """The part of each pixel that the head without nose covers, (B, H, W)."""
    steep = dot(*[gradient(face, *hit.middle[:3])] * 2).add_(1e-4).sqrt_()
    return soft(hit.inside / steep, pixel)


def _sparkle(normal: tuple[Tensor, ...], halfway: tuple[Tensor, ...]) -> Tensor:
    """Blinn's specular reflection, (n . h)^24."""
    cosine = dot(normal, halfway).clamp_(min=0)
    eighth = cosine.square_().square_().square_()
    return eighth * eighth * eighth


def _mixed(weights: list[Tensor], tints: list[Tensor]) -> Tensor:
    """sum_k w_k(pixel) colour_k: (B, 3, H, W)."""
    mixed = torch.stack(tints, 2) @ torch.stack(weights, 1).flatten(2)
    return mixed.view(*mixed.shape[:2], *weights[0].shape[1:])


def _paste_front(
    skin: Tensor, face: Shape, pixel: Tensor, look: Colours, light: tuple[Tensor, ...], halfway: tuple[Tensor, ...]
) -> None:
    """Put nose and painted features into `skin`, in a window around the front of each head."""
    size = skin.shape[-1]
    x, y, z = (torch.tensor(c)[None, None].repeat(1, 1, 2) for c in zip(*_FRONT, strict=True))
    x = x * torch.cat([torch.ones(len(_FRONT)), -torch.ones(len(_FRONT))])
    corners = (torch.stack(project(face, x, y, z)[:2], -1)[:, 0] + 1) * (size / 2)
    low = (corners.amin(1).floor() - 1).long().clamp(min=0)
    high = (corners.amax(1).ceil() + 1).long().clamp(max=size)
    width, height = (high - low).amax(0).clamp(min=1).tolist()
    at = [(low[:, i, None] + torch.arange(n) + 0.5) * (2 / size) - 1 for i, n in enumerate((width, height))]
    hit = cast(face, at[0][:, None, :], at[1][:, :, None])
    painted = paint(face, hit, pixel, look)

    nx, ny, nz = gradient(face, hit.x, hit.y, hit.z)
    double = 2 / face.depth
    bumps = double * soft(hit.z, 0.3)
    side = bumps * hit.x.sign()
    normal = unit(nx - side * painted.slope[0], ny - bumps * painted.slope[1], nz)
    # the nose's shadow: F on the way to the light
    own = nose_height(face, hit.x.abs(), hit.y)
    flat = dot((nx, ny, nz), light)
    lit = torch.ones_like(own)
    for reach in (0.10, 0.22):
        over = nose_height(face, (hit.x + reach * light[0]).abs_(), hit.y + reach * light[1]) - own
        clear = reach * flat + 1.2 * reach * reach - double * over
        lit = torch.minimum(lit, 1 - soft(-clear, 0.18) * (20 * over).clamp_(0, 1))
    left = torch.ones_like(own)
    weights, tints = [], []
    for alpha, tint in painted.layers:
        take = left * alpha.clamp_(0, 1)
        left = left - take
        weights.append(take)
        tints.append(tint)
    colour = _mixed([*weights, left], [*tints, look.skin])
    gloss = (0.30 + painted.gloss) * _sparkle(normal, halfway)
    scalars = [dot(normal, light), painted.shade * (0.55 + 0.45 * lit), gloss, hit.s]
    front = torch.cat([colour, torch.stack(scalars, 1)], 1)
    # each in a window of its own, so that a picture does not depend on its neighbours in the batch
    for i, ((column, row), (right, below)) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        skin[i, :, row:below, column:right] = front[i, :, : max(below - row, 0), : max(right - column, 0)]


def background(face: Shape, u: Tensor, v: Tensor) -> list[Tensor]:
    """Three channels of a wall in linear colour: a gradient and soft stripes."""
    does = face.does
    base = muted(torch.cat([does[f"back_{c}"].flatten(1) for c in ("red", "green", "blue")], 1)).sqrt()
    light = 1 + does["back_x"] * u - does["back_y"] * v
    phase = 8 * does["back_red"]
    wave = (4 * v + phase).sin() * (3 * u).cos() + (5 * v - phase).sin() * (7 * u + 40 * does["back_x"] * u * u).cos()
    wave = does["back_pattern"] * wave
    return [(base[:, c, None, None] * light + wave).clamp(0.01, 1).square() for c in range(3)]

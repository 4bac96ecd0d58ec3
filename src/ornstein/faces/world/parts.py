"""The surroundings of a rendered face: hair, ears, neck and shoulders, intersected with rays in closed form."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.faces.world.geometry import Hit, Shape, along, between, gradient, on_skin, ramp, soft

__all__ = ["Hair", "Part", "dot", "ears", "ellipsoid", "glasses", "hair", "neck", "over_face", "unit"]


@dataclass
class Part:
    """A part of the picture: its alpha (B, H, W), its outward normal in head axes and its height s."""

    alpha: Tensor
    normal: tuple[Tensor, Tensor, Tensor]
    s: Tensor
    shade: Tensor | float = 1.0
    gloss: Tensor | None = None


def dot(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Tensor:
    """The inner product of two vectors given by their coordinates."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def unit(x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The vector divided by its length."""
    scale = torch.addcmul(torch.addcmul(x * x, y, y), z, z).add_(1e-8).rsqrt_()
    return x * scale, y * scale, z * scale


def ellipsoid(
    face: Shape,
    hit: Hit,
    centre: tuple[Tensor, Tensor, Tensor],
    radii: tuple[Tensor, Tensor, Tensor],
    pixel: Tensor,
    grain: Tensor | float = 0.0,
) -> tuple[Part, Tensor, Tensor]:
    """Of two ellipsoids at (+-x, y, z) the one on the ray's side of the head, and the intersection (y, z) on it."""
    px, py, pz, s0 = hit.middle
    side = px.sign()
    ex, ey, ez = face.toward
    rx, ry, rz = radii
    ox, oy, oz = (px.abs() - centre[0]) * (1 / rx), (py - centre[1]) * (1 / ry), (pz - centre[2]) * (1 / rz)
    dx, dy, dz = ex * side / rx, ey / ry, ez / rz
    a = dx * dx + (dy * dy + dz * dz)
    s = (ox * dx + oy * dy + oz * dz) / -a
    inside = 1 - (ox + s * dx).square_() - (oy + s * dy).square_() - (oz + s * dz).square_()
    s = s + (inside.clamp(min=0) / a).sqrt_()
    nx, ny, nz = ox + s * dx, oy + s * dy, oz + s * dz
    small = torch.minimum(torch.minimum(rx, ry), rz)
    alpha = soft(inside + grain, 2.2 * pixel / small.clamp(min=0.1))
    return Part(alpha, unit(nx * side * (1 / rx), ny * (1 / ry), nz * (1 / rz)), s0 + s), ny, nz


@dataclass
class Hair:
    """The parts of hair: `cap` on the head, `locks` beside the face, `back` behind the neck."""

    cap: Part
    locks: Part | None
    back: Part | None
    edge_shade: Tensor  # of the skin under the hairline


def hair(face: Shape, hit: Hit, pixel: Tensor) -> Hair:
    """The hair of a face: a shell over the head that ends at the hairline, thicker if longer, and hanging locks."""
    who = face.who
    length, curl = who["hair_length"], ramp(who["hair_curl"], 0.5, 0.95)
    grown = ramp(length, 0.06, 0.12)  # bald below
    cropped = ramp(length, 0.12, 0.35)
    long = ramp(length, 0.659, 0.661)
    thick = (0.02 + cropped * between(who["hair_volume"], 0.05, 0.16) + 0.14 * curl * cropped) * grown
    px, py, pz, s0 = hit.middle
    fuzz_x, fuzz_y = px.abs() * 17 + 3 * py, py * 16 - 4 * pz
    fuzz = (fuzz_x.sin() * fuzz_y.sin()).mul_(curl * 0.05)
    fringe = ramp(who["fringe"], 0.55, 0.75) * ramp(length, 0.3, 0.45)
    part = between(who["hair_part"], -0.34, 0.34)
    brow = between(who["hairline"], 0.52, 0.68) - fringe * 0.26
    temple = ramp(who["hairline"], 0.6, 1.0) * ramp(who["age"], 0.3, 0.8) * 0.25
    swept = (1 - fringe) * cropped * 0.12
    ear_line = between(cropped, 0.14, 0.22) + 0.17 * long
    nape = -0.75

    def above_line(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Height above the hairline: across the forehead, down before the ear, to the nape behind it."""
        beside = (x - part).abs()
        line = brow + temple * soft(x.abs() - 0.2, 0.3) - swept * (beside - 0.1).clamp(0, 0.6)
        line = line + (1 - fringe) * cropped * 0.05 * (1 - (beside * 10).square_()).clamp_(min=0)
        down = soft(z - 0.6 * (y + 0.05).clamp(max=0) - ear_line, 0.30)
        return y - nape - down * (line - nape)

    # it rises from the skin at the hairline, steeply under a fringe, and is thick above and behind
    rises = (
        soft(above_line(hit.x, hit.y, hit.z) - 0.08, 0.3)
        .maximum(0.3 + 0.7 * fringe)
        .maximum(soft(-hit.inside - 0.05, 0.3))
    )
    room = (2.1 * thick) * rises * soft(py + 0.15, 1.3) + fuzz
    inside = hit.inside + room
    s = (inside.clamp(min=0) * 2 / hit.bend).sqrt_()
    x, y, z = along((px, py, pz), s, face.toward)
    parted = x - part * (1 - 0.5 * curl)
    strand_at = parted.abs() / (1.75 - y)
    waves = (34 * strand_at + 2.0 * (5 * y).sin()).sin_()
    fine = (71 * strand_at + 6 * y + 1).sin_()
    curls = (15 * parted.abs() + 4 * y + 2 * (6 * y).sin()).sin_() * (14 * y - 3 * z + 2 * (7 * parted).cos()).sin_()
    strands = torch.lerp(0.6 * waves + 0.4 * fine, 1.3 * curls, curl)
    # beside the head the far side of the shell is visible, where the hair reaches further down
    field_ = above_line(x, y, torch.lerp(pz, z, soft(hit.inside - 0.08, 0.16))) + 0.03 * strands
    region = soft(field_, 1.5 * pixel + between(cropped, 0.14, 0.04))
    cover = soft(inside + 0.3 * fuzz, 3.0 * pixel + 0.05 * curl)
    nx, ny, nz = gradient(face, x, y, z)
    tilt = 0.2 * cropped + 0.4 * curl
    normal = unit(nx + parted.sign() * strands * tilt, ny, nz)
    cap = Part(
        cover * region * grown,
        normal,
        s0 + s,
        shade=(1 + 0.28 * strands - 0.25 * soft(0.1 - y, 0.8)),
        gloss=0.22 * (1 - curl) * cropped * (1 + strands),
    )
    edge = 1 - 0.35 * cropped * grown * soft(field_ + 0.12, 0.22)
    locks, back = _hanging(face, hit, thick, fuzz, pixel) if bool((long > 0).any()) else (None, None)
    return Hair(cap, locks, back, edge)


def _hanging(face: Shape, hit: Hit, thick: Tensor, fuzz: Tensor, pixel: Tensor) -> tuple[Part, Part]:
    """Long hair: locks beside the face and hair behind the neck; both empty if the hair is short."""
    length, curl = face.who["hair_length"], ramp(face.who["hair_curl"], 0.5, 0.95)
    one, half = torch.ones_like(length), face.width[0].rsqrt()
    reach = between(length, 0.6, 1.2)
    worn = ramp(length, 0.659, 0.661)
    centre = (half - 0.06 + 0.2 * thick, 0.18 - 0.5 * reach, -0.20 * one)
    locks, y, z = ellipsoid(face, hit, centre, (0.17 + 0.5 * thick, 0.40 + 0.65 * reach, 0.32 * one), pixel, 0.2 * fuzz)
    strands = (10 * z + 1.4 * (5 * y).sin()).sin_()
    locks.alpha = locks.alpha * worn
    locks.shade = 0.95 + 0.25 * strands
    locks.gloss = 0.1 * (1 - curl) * (1 + strands)
    centre = (0 * one, -0.10 - 0.45 * reach, -0.40 * one)
    back, y, z = ellipsoid(face, hit, centre, (half + 0.10 + thick, 0.75 + 0.75 * reach, 0.45 * one), pixel, fuzz)
    back.alpha = back.alpha * worn
    back.shade = 0.62 + 0.15 * (24 * z + 1.4 * (5 * y).sin()).sin_()
    return locks, back


def ears(face: Shape, hit: Hit, pixel: Tensor) -> Part:
    """The ear on the ray's side: a flat ellipsoid with a hollow."""
    size = between(face.who["ear_size"], 0.85, 1.2)
    half = face.width[0].rsqrt()
    one = torch.ones_like(size)
    ear, ly, lz = ellipsoid(
        face, hit, (half * 0.985, face.eye[1] - 0.13, -0.08 * one), (0.075 * size, 0.21 * size, 0.13 * size), pixel
    )
    ear.alpha = ear.alpha * (1 - ramp(face.who["hair_length"], 0.659, 0.661))
    ear.shade = 1 - 0.45 * soft(0.35 - ((ly - 0.1).square() + (lz - 0.1).square()), 0.5)
    return ear


def over_face(face: Shape, hit: Hit, head: Tensor, style: Hair, pixel: Tensor) -> tuple[Part | None, Part, Part]:
    """The parts that can hide the face, from the front: locks and an ear, where they are nearer, and hair.

    `head` (B, H, W) is the part of each pixel that the head covers.
    """
    ear = ears(face, hit, pixel)
    locks = style.locks
    for part in (ear, locks):
        if part is not None:
            part.alpha = part.alpha * torch.maximum(soft(part.s - hit.s, 0.06), 1 - head)
    return locks, ear, style.cap


def neck(face: Shape, u: Tensor, v: Tensor, pixel: Tensor) -> tuple[Part, Part]:
    """Neck and clothed shoulders, which turn half as much as the head; normals are in camera axes."""
    r = face.rotation[..., None, None]
    # the neck's upper end goes with the head, its lower end stays
    top_x, top_y = r[:, 0, 1] * -0.45 + r[:, 0, 2] * -0.25, r[:, 1, 1] * -0.45 + r[:, 1, 2] * -0.25
    below = (top_y - v).clamp(min=0)
    x = u - top_x * (1 - 0.8 * below).clamp(min=0)
    half = between(face.who["jaw_width"], 0.34, 0.44) + 0.30 * (below - 0.55).clamp(min=0).square()
    t = x / half
    z = (1 - t * t).clamp(min=0.02).sqrt_()
    alpha = soft(1 - t.abs(), 1.2 * pixel / half) * soft(top_y - v, 0.2)
    chin = -face.down * r[:, 1, 1] - 0.02
    shade = 0.42 + 0.5 * ((chin - 0.02 - v) / 0.45).clamp(0, 1)
    zero = torch.zeros_like(z)
    throat = Part(alpha, (t + 0 * z, zero - 0.15, z), zero - 0.9, shade)
    base = -1.30
    shoulder = base - 0.10 - 0.20 * u.square() + 0.16 * soft(0.75 - u.abs(), 0.5)
    collar = base + 0.03 - (0.30 - 1.0 * u.square()).clamp(min=-0.1)
    cloth = torch.minimum(
        soft(shoulder + 0.12 - v, 1.2 * pixel),
        soft(u.abs() - (0.40 + 0.6 * (v - base)), 1.2 * pixel + 0.03).maximum(soft(collar - v, 1.5 * pixel)),
    )
    n = unit(0.45 * u + zero, 0.35 + zero, 0.9 + zero)
    folds = 0.92 + 0.08 * (7 * u.abs() + 3 * v).sin()
    return throat, Part(cloth, n, zero - 0.8, folds)


def glasses(face: Shape, hit: Hit, pixel: Tensor) -> Part:
    """The frame of a pair of glasses in a plane before the eyes, with its arms along the temples."""
    eye_x, eye_y, half, _ = face.eye
    px, py, pz, s0 = hit.middle
    ex, ey, ez = face.toward
    plane = on_skin(face, torch.zeros_like(eye_x), eye_y + 0.02) + 0.015
    s = (plane - pz) / ez
    x, y = (px + s * ex).abs_(), py + s * ey
    centre, across = eye_x + 0.015, half * 1.42
    a = ((x - centre) / across).square_()
    b = ((y - eye_y + 0.01) / (across * between(face.who["glasses_shape"], 0.95, 0.72))).square_()
    round_ = (a + b).sqrt_()
    square = (a * a + b * b).sqrt_().sqrt_()
    off = (torch.lerp(round_, square, face.who["glasses_shape"]) - 1) * across
    thick = between(face.who["glasses_shape"], 0.014, 0.028)
    rim = soft(thick - off.abs(), pixel + 0.004)
    rim = rim.maximum(
        soft(thick - (y - eye_y - 0.045 - 0.3 * (0.1 - x).clamp(min=0)).abs(), pixel) * (x < centre - across)
    )
    rim = rim * soft(s0 + s - hit.s + 0.03, 0.04)
    arm = soft(0.016 - (hit.y - eye_y - 0.03).abs(), pixel) * soft(hit.x.abs() - centre - across, pixel)
    arm = arm * soft(hit.z + 0.1, 0.05) * soft(hit.inside, 0.1)
    zero = torch.zeros_like(rim)
    worn = ramp(face.who["glasses"], 0.72, 0.74)
    return Part(rim.maximum(arm) * worn, (zero, zero, zero + 1), s0 + s, gloss=0.3 * rim)

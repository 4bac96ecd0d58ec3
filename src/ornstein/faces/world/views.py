"""Rendering, with what is known exactly about the pictures: masks, landmarks, and optical flow."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.faces.world.geometry import (
    Shape,
    cast,
    on_skin,
    pixel_rays,
    project,
    shape,
)
from ornstein.faces.world.landmarks import LANDMARKS, landmark_points
from ornstein.faces.world.parts import glasses, hair, over_face
from ornstein.faces.world.picture import picture, silhouette

__all__ = ["LARGEST", "SMALLEST", "Rendered", "flow", "render", "rendered"]

SMALLEST, LARGEST = 16, 1024  # pixels a side
_CHUNK = 32 * 64**2  # pixels rendered at once: few enough to stay near the processor
_NEAR = 0.06  # head units: a point this far below the surface that a ray meets still counts as met
_STILL = 0.02  # an expression that changes by less moves its paint by less than 0.005 head units


@dataclass
class Rendered:
    """Pictures of faces with exact annotations.

    image: float32 (B, 3, H, W) in [-1, 1]. mask: (B, 1, H, W) in [0, 1], the part of a pixel that shows the head's skin
    or features, glasses included, without hair, ears and neck. landmarks: (B, P, 2) pixels, x then y, the upper left
    pixel's centre at (0, 0), P in the order of `LANDMARKS`. visible: bool (B, P), false if the head or its hair hides a
    landmark, or it lies outside of the image. head: (B, 1, H, W) in [0, 1], the head's outline without its nose, also
    where hair hides it. surface: (B, Q, 2) pixels, in the order of `landmarks.SURFACE`.
    """

    image: Tensor
    mask: Tensor
    landmarks: Tensor
    visible: Tensor
    head: Tensor
    surface: Tensor


def render(identity: Tensor, attributes: Tensor, size: int = 64) -> Rendered:
    """Render people in states. It computes on the CPU; the arguments may be on any device.

    Row b depends on row b of the arguments alone: render(identity of A, attributes of B) is the true result of a swap
    that puts A's face in B's place.

    Args:
        identity: (B, len(IDENTITY)).
        attributes: (B, len(ATTRIBUTES)).
        size: side of the pictures in pixels, 16 to 1024.

    Raises:
        ValueError: another shape or size, or numbers that are not finite.
    """
    parts = [_render(face, size) for face in _faces(identity, attributes, size)]
    return Rendered(*(torch.cat(part) for part in zip(*parts, strict=True)))


def rendered(
    identity: Tensor, attributes: Tensor, size: int, keep: Callable[[Rendered], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Render many people and keep only some of the results, so that memory stays small.

    The rows are rendered in parts, on as many threads as PyTorch has, each part on one of them. PyTorch itself would
    split every operation and wait for the slower thread at the end of each: operations are so short here that two
    threads do less than one on a busy machine.

    Args:
        identity, attributes, size: as for `render`.
        keep: tensors with one row a picture, from each part's `Rendered`.

    Returns:
        The rows of each of the tensors that `keep` returned.

    Raises:
        ValueError: as `render`.
    """
    if len(identity) != len(attributes):
        raise ValueError(f"identity has {len(identity)} rows, but attributes has {len(attributes)}")
    count = max(_CHUNK // size**2, 1) if size > 0 else 1
    parts = list(zip(identity.split(count), attributes.split(count), strict=True))
    threads = min(torch.get_num_threads(), len(parts))
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        out = list(pool.map(lambda part: keep(render(part[0], part[1], size)), parts))
    torch.set_num_threads(torch.get_num_threads())  # other threads to come would take the 1 of these
    return tuple(torch.cat(each) for each in zip(*out, strict=True))


def flow(identity: Tensor, attributes_a: Tensor, attributes_b: Tensor, size: int = 64) -> tuple[Tensor, Tensor]:
    """Optical flow of the face from state a to b: float32 (B, 2, H, W) in pixels, x then y, and bool (B, 1, H, W).

    The point of the face at pixel p of picture a lies at p + flow(p) in picture b wherever the second tensor is true:
    the pixel shows the face, the point is visible in b, and no expression that differs between a and b moves what is
    painted there. The head turns as a rigid body, so the flow is as exact as the intersection of ray and skin.

    Raises:
        ValueError: as `render`.
    """
    pairs = zip(_faces(identity, attributes_a, size), _faces(identity, attributes_b, size), strict=True)
    flows, valid = zip(*(_flow(a, b, size) for a, b in pairs), strict=True)
    return torch.cat(flows), torch.cat(valid)


def _faces(identity: Tensor, attributes: Tensor, size: int) -> list[Shape]:
    if not SMALLEST <= size <= LARGEST:
        raise ValueError(f"faces are rendered at {SMALLEST} to {LARGEST} pixels a side, not {size}")
    if len(identity) != len(attributes):
        raise ValueError(f"identity has {len(identity)} rows, but attributes has {len(attributes)}")
    count = max(_CHUNK // size**2, 1)
    identity, attributes = identity.cpu(), attributes.cpu()
    return [shape(i, a) for i, a in zip(identity.split(count), attributes.split(count), strict=True)]


def _render(face: Shape, size: int) -> tuple[Tensor, ...]:
    image, mask, head = picture(face, size)
    u, v, s = project(face, *landmark_points(face))
    named = len(LANDMARKS)
    points = (torch.cat([u, v], 1).mT + 1) * (size / 2) - 0.5
    visible = _in_sight(face, u[..., :named], v[..., :named], s[..., :named], size) > 0.5
    return image, mask, points[:, :named], visible[:, 0], head, points[:, named:]


def _in_sight(face: Shape, u: Tensor, v: Tensor, s: Tensor, size: int) -> Tensor:
    """Visibility in [0, 1] of points on the skin at image coordinates (u, v) and height s, (B, *, *) each."""
    pixel = face.zoom * (2 / size)
    hit = cast(face, u, v)
    style = hair(face, hit, pixel)
    left = (u.abs() < 1) & (v.abs() < 1) & (hit.s - s < _NEAR)
    for part in over_face(face, hit, silhouette(face, hit, pixel), style, pixel):
        if part is not None:
            left = left * (1 - part.alpha)
    return left


def _flow(a: Shape, b: Shape, size: int) -> tuple[Tensor, Tensor]:
    u, v = pixel_rays(size)
    hit = cast(a, u, v)
    _, mask, _ = picture(a, size)
    # the skin at (x, y) stands where it stands in b: only an open mouth, which lengthens the face, moves it
    x, y = hit.x, hit.y
    z = hit.z + (on_skin(b, x, y) - on_skin(a, x, y)).clamp(-0.2, 0.2)
    to_u, to_v, to_s = project(b, x, y, z)
    moved = torch.stack([to_u - u, to_v - v], 1) * (size / 2)
    seen = (mask[:, 0] > 0.5) & (_in_sight(b, to_u, to_v, to_s, size) > 0.5) & ~_expressive(a, b, x, y)
    for face, where in ((a, hit), (b, cast(b, to_u, to_v))):
        seen &= glasses(face, where, face.zoom * (2 / size)).alpha < 0.05  # they stand before the face
    return moved, seen[:, None]


def _expressive(a: Shape, b: Shape, x: Tensor, y: Tensor) -> Tensor:
    """Whether an expression that differs between the states moves what is painted at (x, y)."""

    def differ(*names: str) -> Tensor:
        return torch.stack([(a.does[name] - b.does[name]).abs() > _STILL for name in names]).any(0)

    eye_x, eye_y, half, _ = a.eye
    x = x.abs()
    across = (x - eye_x).abs() < 1.4 * half
    eyes = (
        across & ((y - eye_y).abs() < 0.9 * half) & differ("eyes_closed", "gaze_x", "gaze_y", "smile", "brows_raised")
    )
    brows = across & (y > eye_y) & (y < eye_y + 0.42) & differ("brows_raised")
    mouth = (y < a.nose_base + 0.04) & differ("mouth_open", "smile")
    return eyes | brows | mouth

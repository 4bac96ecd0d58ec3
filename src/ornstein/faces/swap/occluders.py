"""Things in front of faces, painted over pictures of them: hands, glasses, microphones, cups, masks, strands of hair.

What they look like is random in all that does not matter: a network that is to keep what stands before a face learns
from them that it is no face, and not what it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["KINDS", "covered", "disguised", "textures"]

_SOFT = 0.006  # half the width of an edge, in shares of the side
_SHARE_NONE = 0.2  # of faces with nothing in front of them
_SHARE_TWO = 0.25  # of the others with two things


class _Canvas:
    """Signed distances in one aligned crop, in shares of its side; negative is inside. `at`: (2, S, S), x then y."""

    def __init__(self, size: int, points: Tensor, draw: torch.Generator) -> None:
        along = (torch.arange(size) + 0.5) / size
        self.at = torch.stack(torch.meshgrid(along, along, indexing="xy"))
        self.nose = points[4] / size
        self.eyes = torch.stack([points[0:2].mean(0), points[2:4].mean(0)]) / size
        self.draw = draw

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.draw))

    def point(self, x: tuple[float, float], y: tuple[float, float]) -> Tensor:
        return torch.tensor([self.between(*x), self.between(*y)])

    def stick(self, a: Tensor, b: Tensor, radius: float) -> Tensor:
        """Distance from the segment a-b, less the radius."""
        way = b - a
        t = ((self.at - a[:, None, None]) * way[:, None, None]).sum(0) / way.square().sum().clamp_min(1e-9)
        near = a[:, None, None] + way[:, None, None] * t.clamp(0, 1)
        return (self.at - near).norm(dim=0) - radius

    def oval(self, middle: Tensor, half: tuple[float, float], turn: float, power: float = 2.0) -> Tensor:
        """Roughly the distance from a superellipse: power 2 is an ellipse, a large one a rectangle."""
        dx, dy = self.at - middle[:, None, None]
        x, y = dx * math.cos(turn) + dy * math.sin(turn), dy * math.cos(turn) - dx * math.sin(turn)
        radius = ((x / half[0]).abs() ** power + (y / half[1]).abs() ** power).clamp_min(1e-9) ** (1 / power)
        return (radius - 1) * min(half)


def _hand(c: _Canvas) -> tuple[Tensor, Tensor | None]:
    """Fingers side by side on a palm that comes in from a side or from below."""
    palm = c.point((0.1, 0.9), (0.75, 1.05)) if c.between(0, 1) < 0.6 else c.point((-0.05, 0.15), (0.3, 0.9))
    if c.between(0, 1) < 0.5:
        palm[0] = 1 - palm[0]
    aim = c.point((0.3, 0.7), (0.25, 0.8)) - palm
    angle, width, reach = math.atan2(float(aim[1]), float(aim[0])), c.between(0.03, 0.055), c.between(0.2, 0.4)
    shape = c.oval(palm, (2.4 * width, 2.6 * width), angle)
    side = torch.tensor([-math.sin(angle), math.cos(angle)])
    count = 2 + int(c.between(0, 2.99))
    for finger in range(count):
        spread = angle + (finger - (count - 1) / 2) * c.between(0.0, 0.25)
        root = palm + side * (finger - (count - 1) / 2) * 1.9 * width
        tip = root + torch.tensor([math.cos(spread), math.sin(spread)]) * reach * c.between(0.8, 1.15)
        shape = torch.minimum(shape, c.stick(root, tip, width))
    return shape, None


def _glasses(c: _Canvas) -> tuple[Tensor, Tensor | None]:
    """Frames around the eyes and how dark the glass is, in [0, 1]."""
    apart = float((c.eyes[0] - c.eyes[1]).norm())
    turn = math.atan2(float(c.eyes[0, 1] - c.eyes[1, 1]), float(c.eyes[0, 0] - c.eyes[1, 0]))
    half, power = (apart * c.between(0.33, 0.46), apart * c.between(0.22, 0.42)), c.between(2, 6)
    thick, down = c.between(0.006, 0.02), torch.tensor([0.0, c.between(-0.02, 0.03)])
    lenses = [c.oval(eye + down, half, turn, power) for eye in c.eyes]
    frame = torch.minimum(lenses[0].abs(), lenses[1].abs()) - thick
    across = (c.eyes[0] - c.eyes[1]) / apart
    for k, sign in ((0, 1.0), (1, -1.0)):
        outer = c.eyes[k] + down + sign * across * half[0]
        frame = torch.minimum(frame, c.stick(outer, outer + sign * across * 0.4, thick))
    bridge = [c.eyes[1] + down + across * half[0], c.eyes[0] + down - across * half[0]]
    frame = torch.minimum(frame, c.stick(bridge[0], bridge[1], thick))
    dark = c.between(0.6, 0.97) if c.between(0, 1) < 0.5 else 0.0
    return frame, dark * torch.sigmoid(-torch.minimum(*lenses) / _SOFT)


def _microphone(c: _Canvas) -> tuple[Tensor, Tensor | None]:
    head = c.point((0.3, 0.7), (0.68, 0.95))
    angle, radius = c.between(0.2, 2.9), c.between(0.05, 0.11)
    foot = head + torch.tensor([math.cos(angle), math.sin(angle)])
    ball = c.oval(head, (radius, radius * c.between(1, 1.4)), angle + math.pi / 2)
    return torch.minimum(ball, c.stick(head, foot, radius * c.between(0.3, 0.6))), None


def _thing(c: _Canvas) -> tuple[Tensor, Tensor | None]:
    """A cup, a phone, a book, a mask: anything with a smooth outline."""
    return c.oval(
        c.point((0.15, 0.85), (0.25, 0.95)),
        (c.between(0.07, 0.35), c.between(0.06, 0.3)),
        c.between(0, math.pi),
        c.between(1.6, 8),
    ), None


def _strands(c: _Canvas) -> tuple[Tensor, Tensor | None]:
    shape = torch.full(c.at.shape[1:], 1.0)
    x, lean = c.between(0.2, 0.8), c.between(-0.4, 0.4)
    for _ in range(1 + int(c.between(0, 5))):
        top = torch.tensor([x + c.between(-0.08, 0.08), c.between(-0.1, 0.2)])
        middle = top + torch.tensor([lean + c.between(-0.1, 0.1), 1.0]) * c.between(0.15, 0.35)
        end = middle + torch.tensor([lean + c.between(-0.3, 0.3), 1.0]) * c.between(0.1, 0.35)
        width = c.between(0.006, 0.025)
        for a, b in ((top, middle), (middle, end)):
            shape = torch.minimum(shape, c.stick(a, b, width))
    return shape, None


KINDS: dict[str, Callable[[_Canvas], tuple[Tensor, Tensor | None]]] = {
    "hand": _hand,
    "glasses": _glasses,
    "microphone": _microphone,
    "thing": _thing,
    "strands": _strands,
}


@lru_cache(maxsize=1)
def textures() -> tuple[Tensor, ...]:
    """The two photographs that scikit-learn ships (a temple, a flower), float (3, H, W) in [0, 1]."""
    from sklearn.datasets import load_sample_images  # a second to import, and only a training needs it

    return tuple(torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255 for image in load_sample_images().images)


def covered(faces: Tensor, points: Tensor, draw: torch.Generator, kind: str | None = None) -> tuple[Tensor, Tensor]:
    """Faces with random things in front of some of them, and what is still seen of each pixel.

    Args:
        faces: aligned crops (B, 3, S, S) in [0, 1].
        points: (B, K, 2), landmarks in pixels; the first four are the corners of the eyes.
        draw: of all that is random.
        kind: of every face's thing, one of `KINDS`; None: any, two, or none.

    Returns:
        The pictures (B, 3, S, S) in [0, 1], and (B, 1, S, S) in [0, 1], 1 where nothing was painted.
    """
    pictures, seen = [], []
    for face, where in zip(faces, points, strict=True):
        canvas = _Canvas(face.shape[-1], where.float(), draw)
        left = torch.ones(face.shape[-2:])
        chosen = [kind] * (kind is not None)
        if kind is None and canvas.between(0, 1) >= _SHARE_NONE:
            names = list(KINDS)
            for _ in range(1 + (canvas.between(0, 1) < _SHARE_TWO)):
                chosen.append(names[int(canvas.between(0, len(names) - 0.001))])
        for name in chosen:
            distance, glass = KINDS[str(name)](canvas)
            alpha = torch.sigmoid(-distance / (_SOFT * canvas.between(0.4, 1.5)))
            if glass is not None:
                alpha = torch.maximum(alpha, glass)
            if canvas.between(0, 1) < 0.5:  # its shadow is on the face, and no part of it
                dim = F.avg_pool2d(alpha[None, None], 9, 1, 4, count_include_pad=False)[0, 0].roll(
                    (int(canvas.between(0, 6)), int(canvas.between(-5, 5))), (0, 1)
                )
                face = face * (1 - canvas.between(0.1, 0.5) * dim)
            face = torch.lerp(face, _surface(canvas, face, distance, name), alpha)
            left = left * (1 - alpha)
        pictures.append(face.clamp(0, 1))
        seen.append(left[None])
    return torch.stack(pictures), torch.stack(seen)


def disguised(faces: Tensor, points: Tensor, draw: torch.Generator) -> Tensor:
    """Faces with what belongs to a face and rendered ones lack: beards, lips, teeth, thick brows, folds, hard shadows.

    A network that has not seen them takes those of photographs for things. Args: see `covered`.
    """
    out = []
    for face, where in zip(faces, points, strict=True):
        c = _Canvas(face.shape[-1], where.float(), draw)
        size = face.shape[-1]
        apart = float((c.eyes[0] - c.eyes[1]).norm())
        mouth = c.nose + torch.tensor([c.between(-0.02, 0.02), apart * c.between(0.35, 0.5)])
        turn = math.atan2(float(c.eyes[0, 1] - c.eyes[1, 1]), float(c.eyes[0, 0] - c.eyes[1, 0]))
        grain = torch.randn(1, size, size, generator=draw)
        grain = F.avg_pool2d(F.pad(grain, (1, 1, 1, 1), mode="reflect"), 3, 1)

        def laid(face: Tensor, distance: Tensor, soft: float, colour: Tensor, share: float) -> Tensor:
            return torch.lerp(face, colour, share * torch.sigmoid(-distance / soft))

        hair = torch.rand(3, generator=draw)[:, None, None] * c.between(0.05, 0.6) + c.between(0, 0.25) * grain
        if c.between(0, 1) < 0.4:  # a shadow with one straight edge, or a fold
            angle, shift = c.between(0, 2 * math.pi), c.between(-0.25, 0.25)
            side = (c.at[0] - 0.5) * math.cos(angle) + (c.at[1] - 0.55) * math.sin(angle) - shift
            face = face * (1 - c.between(0.2, 0.7) * torch.sigmoid(side / c.between(0.005, 0.1)))
        if c.between(0, 1) < 0.5:  # a beard around the mouth, or a moustache above it
            outer = c.oval(mouth + torch.tensor([0.0, 0.06]), (c.between(0.12, 0.33), c.between(0.1, 0.25)), turn)
            inner = c.oval(mouth, (c.between(0.06, 0.13), c.between(0.02, 0.06)), turn)
            high = c.nose[1] + c.between(-0.01, 0.12) - c.at[1]
            beard = torch.maximum(torch.maximum(outer, -inner), high)
            face = laid(face, beard, c.between(0.008, 0.04), hair, c.between(0.2, 0.95))
        if c.between(0, 1) < 0.3:
            upper = (mouth + c.nose) / 2
            lip = c.oval(upper, (c.between(0.06, 0.15), c.between(0.015, 0.035)), turn, c.between(2, 4))
            face = laid(face, lip, c.between(0.005, 0.02), hair, c.between(0.4, 0.95))
        if c.between(0, 1) < 0.6:  # lips, with teeth or the dark between them
            half = (c.between(0.09, 0.18), c.between(0.02, 0.08))
            lips = c.oval(mouth, half, turn, c.between(1.6, 2.5))
            red = face[:, size // 2, size // 2][:, None, None] * torch.tensor([1.0, 0.65, 0.65])[:, None, None]
            face = laid(face, lips, c.between(0.005, 0.015), red * c.between(0.6, 1.1), c.between(0.4, 1))
            share = c.between(0.4, 0.85)
            inside = c.oval(mouth, (half[0] * share, half[1] * share), turn, c.between(1.6, 3))
            teeth = torch.full((3, 1, 1), c.between(0.6, 0.95)) + 0.15 * (120 * c.at[0]).sin()
            fill = teeth if c.between(0, 1) < 0.7 else torch.tensor([0.25, 0.08, 0.08])[:, None, None]
            face = laid(face, inside, 0.006, fill, c.between(0.5, 1))
        if c.between(0, 1) < 0.5:
            for eye in c.eyes:
                brow = c.oval(
                    eye - torch.tensor([0.0, apart * c.between(0.2, 0.36)]), (0.1, c.between(0.008, 0.03)), turn
                )
                face = laid(face, brow, c.between(0.005, 0.015), hair, c.between(0.4, 0.95))
                socket = c.oval(eye, (c.between(0.05, 0.12), c.between(0.02, 0.07)), turn)
                face = face * (1 - c.between(0, 0.6) * torch.sigmoid(-socket / c.between(0.01, 0.03)))
        for _ in range(int(c.between(0, 5))):  # wrinkles
            a = c.point((0.2, 0.8), (0.25, 0.9))
            fold = c.stick(a, a + c.point((-0.12, 0.12), (-0.06, 0.12)), c.between(0.001, 0.006))
            face = face * (1 - c.between(0.05, 0.5) * torch.sigmoid(-fold / c.between(0.003, 0.012)))
        rough = F.interpolate(torch.randn(1, 1, 9, 9, generator=draw), (size, size), mode="bicubic")[0]
        out.append((face * (1 + c.between(0, 0.12) * rough) + c.between(0, 0.04) * grain).clamp(0, 1))
    return torch.stack(out)


def _surface(c: _Canvas, face: Tensor, distance: Tensor, name: str | None) -> Tensor:
    """The colours of a thing (3, S, S): skin for hands, cloth, metal, or a piece of a photograph."""
    size = face.shape[-1]
    round_ = 1 - c.between(0, 0.6) * torch.exp(distance / 0.02).clamp(max=1)  # darker towards its rim
    if name == "hand" and c.between(0, 1) < 0.85:
        own = face[:, size // 2 :, size // 3 : 2 * size // 3].mean((1, 2))
        tone = own if c.between(0, 1) < 0.6 else torch.tensor([0.85, 0.62, 0.5]) * c.between(0.35, 1.1)
        base = (tone * c.between(0.75, 1.25) * (1 + 0.06 * torch.randn(3, generator=c.draw)))[:, None, None]
    else:
        base = torch.rand(3, generator=c.draw)[:, None, None] ** 1.5
        if name in ("glasses", "microphone", "strands") and c.between(0, 1) < 0.6:
            base = base * 0.3
    grain = F.interpolate(
        torch.randn(1, 1, *[2 + int(c.between(0, 14))] * 2, generator=c.draw), (size, size), mode="bicubic"
    )[0]
    surface = base + c.between(0, 0.12) * grain + c.between(0, 0.03) * torch.randn(1, size, size, generator=c.draw)
    if (name == "thing" and c.between(0, 1) < 0.6) or c.between(0, 1) < 0.1:
        picture = textures()[c.between(0, 1) < 0.5]
        side = int(c.between(size, picture.shape[1] - 1))
        top, left = (int(c.between(0, n - side)) for n in picture.shape[1:])
        piece = F.interpolate(picture[None, :, top : top + side, left : left + side], (size, size), mode="area")[0]
        order = torch.randperm(3, generator=c.draw)
        surface = torch.lerp(surface, piece[order], c.between(0.5, 1))
    return surface * round_

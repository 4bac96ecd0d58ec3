"""From a photograph to a face crop and back: one similarity transform, one template, one antialiased warp.

Points are (x, y) in pixels, and the centre of the top-left pixel is (0, 0). The five landmarks are, in this order: the
outer and the inner corner of the eye on the picture's right, the outer and the inner corner of the eye on its left, the
base of the nose.
"""

from __future__ import annotations

import cmath
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["TEMPLATE", "Similarity", "alignment", "crop", "landmark_map", "mask", "template", "warp"]

# Shares of a crop's side, and with them how much of the head a crop shows: the eyes 0.28 apart and 0.42 from the top
# leave the chin near 0.92 and the hairline near 0.13. The proportions are those of the mean face of LFW.
TEMPLATE = ((0.695, 0.42), (0.585, 0.42), (0.305, 0.42), (0.415, 0.42), (0.5, 0.627))

# The mask: an ellipse a little squarer than Euclid's, from above the brows to the chin, in shares of the side.
_CENTRE, _HALF_WIDTH, _HALF_HEIGHT, _EXPONENT = 0.555, 0.30, 0.365, 2.3
# When the head turns, the face leans with the base of the nose: by this share of what that is off the line through the
# middle of the eyes, and by no more than the second figure, in shares of the side. It narrows down to the third figure.
_LEAN, _MOST, _NARROWEST = 0.4, 0.05, 0.7


@dataclass(frozen=True)
class Similarity:
    """p -> a p + b over the complex plane, p = x + iy: rotation by arg a, scale |a|, shift b; never a reflection."""

    a: complex
    b: complex

    @staticmethod
    def fit(source: Tensor, target: Tensor) -> Similarity:
        """The least-squares similarity that takes the points `source` (K, 2) to `target` (K, 2).

        With both centred, a = sum conj(p) q / sum |p|^2. Raises ValueError if all source points coincide.
        """
        p, q = _complex(source), _complex(target)
        centred = p - p.mean()
        power = centred.abs().square().sum().item()
        if not power > 0:
            raise ValueError("the points coincide: no similarity can be fitted to them")
        a = complex((centred.conj() * (q - q.mean())).sum().item()) / power
        return Similarity(a, complex(q.mean().item()) - a * complex(p.mean().item()))

    @staticmethod
    def from_matrix(matrix: Tensor) -> Similarity:
        """The similarity with this `matrix` (2, 3)."""
        (c, _, x), (s, _, y) = matrix.tolist()
        return Similarity(complex(c, s), complex(x, y))

    @staticmethod
    def about(source: complex, target: complex, scale: float, degrees: float) -> Similarity:
        """The similarity that takes the point `source` to `target`, scales and rotates clockwise (y points down)."""
        a = cmath.rect(scale, math.radians(degrees))
        return Similarity(a, target - a * source)

    @property
    def scale(self) -> float:
        return abs(self.a)

    @property
    def matrix(self) -> Tensor:
        """float64 (2, 3): p -> M [x, y, 1]."""
        a, b = self.a, self.b
        return torch.tensor([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]], dtype=torch.float64)

    def inverse(self) -> Similarity:
        return Similarity(1 / self.a, -self.b / self.a)

    def then(self, after: Similarity) -> Similarity:
        """The composition: this similarity first, `after` second."""
        return Similarity(after.a * self.a, after.a * self.b + after.b)

    def __call__(self, points: Tensor) -> Tensor:
        """The transformed points (..., 2), float64."""
        return torch.view_as_real(self.a * _complex(points) + self.b)


def template(size: int) -> Tensor:
    """The five landmarks of an aligned crop of `size` pixels a side: float64 (5, 2)."""
    return torch.tensor(TEMPLATE, dtype=torch.float64) * size - 0.5


def alignment(landmarks: Tensor, size: int) -> Similarity:
    """The transform from the photograph with these five landmarks (5, 2) to its crop of `size` pixels a side."""
    return Similarity.fit(landmarks, template(size))


def crop(image: Tensor, transform: Similarity, size: int) -> Tensor:
    """The aligned face, uint8 (3, size, size); beyond the picture's border its outermost pixels are repeated."""
    return warp(image, transform, (size, size)).round().clamp(0, 255).to(torch.uint8)


def warp(image: Tensor, transform: Similarity, size: tuple[int, int], border: str = "edge") -> Tensor:
    """The picture (C, H, W) under `transform`, float32 (C, h, w) of `size` = (h, w), bicubic and antialiased.

    A reduction is done first, by a filter of matching width, so that fine texture does not alias. border="edge" repeats
    the outermost pixels, "zero" puts 0 there. Values keep their scale; bicubic may overshoot.
    """
    height, width = size
    back = transform.inverse()
    part, left, top = _region(image, back, size)
    rows, columns = part.shape[1:]
    pixels = part.to(torch.float32)[None]
    scale = min(transform.scale, 1.0)
    reduced = max(round(rows * scale), 1), max(round(columns * scale), 1)
    if reduced != (rows, columns):
        pixels = F.interpolate(pixels, reduced, mode="bicubic", antialias=True)
    x = torch.arange(width, dtype=torch.float64)
    y = torch.arange(height, dtype=torch.float64)[:, None]
    at_x = back.a.real * x - back.a.imag * y + (back.b.real - left)
    at_y = back.a.imag * x + back.a.real * y + (back.b.imag - top)
    # grid_sample's -1 and 1 are the outer edges of the outermost pixels, whatever the reduction.
    grid = torch.stack([((2 * at_x + 1) / columns - 1).float(), ((2 * at_y + 1) / rows - 1).float()], -1)[None]
    padding = "border" if border == "edge" else "zeros"
    return F.grid_sample(pixels, grid, mode="bicubic", padding_mode=padding, align_corners=False)[0]


def mask(landmarks: Tensor, size: int, soft: float = 0.15) -> Tensor:
    """Where the face is in aligned crops: float32 (N, 1, size, size), 1 inside, falling to 0 over `soft`.

    An ellipse-like hull of the five landmarks: upright on the line of the eyes, as wide as the eyes are apart, leaning
    to where the nose points. The mask reaches 0 at the hull, and is exactly 0 outside.

    Args:
        landmarks: (N, 5, 2), in crop pixels.
        size: side of the crops in pixels.
        soft: a share of the half axes, in (0, 1]; softer masks leave more of the target's cheeks and chin.

    Raises:
        ValueError: another `soft`.
    """
    if not 0 < soft <= 1:
        raise ValueError(f"soft is a share of the half axes in (0, 1], not {soft}")
    points = landmarks.to(torch.float64) / size
    right, left, nose = points[:, 0:2].mean(1), points[:, 2:4].mean(1), points[:, 4]
    middle, across = (left + right) / 2, right - left
    apart = across.norm(dim=1, keepdim=True)
    across = across / apart.clamp_min(1e-9)
    down = torch.stack([-across[:, 1], across[:, 0]], 1)
    (eye, eye_line), nose_line = _template_eye(), TEMPLATE[4][1]
    lean = (((nose - middle) * across).sum(1) * _LEAN).clamp(-_MOST, _MOST) / (nose_line - eye_line)
    half_width = _HALF_WIDTH * (apart[:, 0] / (2 * eye - 1)).clamp(_NARROWEST, 1.1)
    offset = _pixels(size)[None] / size - middle[:, None, None]
    below = (offset * down[:, None, None]).sum(-1)
    beside = (offset * across[:, None, None]).sum(-1) - lean[:, None, None] * below
    u = beside / half_width[:, None, None]
    v = (below - (_CENTRE - eye_line)) / _HALF_HEIGHT
    radius = (u.abs() ** _EXPONENT + v.abs() ** _EXPONENT) ** (1 / _EXPONENT)
    x = ((1 - radius) / soft).clamp(0, 1)
    return (x * x * (3 - 2 * x)).to(torch.float32)[:, None]


def landmark_map(landmarks: Tensor, size: int, width: float = 1 / 32) -> Tensor:
    """Heat maps of the landmarks (N, K, 2) of aligned crops: float32 (N, K, size, size).

    Each is a Gaussian of height 1 and standard deviation `width` * size pixels.
    """
    distance = (_pixels(size)[None, None] - landmarks.to(torch.float64)[:, :, None, None]).square().sum(-1)
    return torch.exp(-distance / (2 * (width * size) ** 2)).to(torch.float32)


def _template_eye() -> tuple[float, float]:
    """The middle of the right eye, in shares of the side."""
    (outer, y), (inner, _) = TEMPLATE[:2]
    return (outer + inner) / 2, y


def _pixels(size: int) -> Tensor:
    """(size, size, 2): the (x, y) of each pixel."""
    along = torch.arange(size, dtype=torch.float64)
    y, x = torch.meshgrid(along, along, indexing="ij")
    return torch.stack([x, y], -1)


def _complex(points: Tensor) -> Tensor:
    return torch.view_as_complex(points.to(torch.float64).contiguous())


def _region(image: Tensor, back: Similarity, size: tuple[int, int]) -> tuple[Tensor, int, int]:
    """The part of the picture that an output of `size` reads under `back`, and its left and top."""
    rows, columns = image.shape[1:]
    height, width = size
    corners = back(torch.tensor([[0, 0], [width, 0], [0, height], [width, height]]) - 0.5)
    margin = math.ceil(3 * max(back.scale, 1.0)) + 1
    low = (corners.amin(0).floor() - margin).long().tolist()
    high = (corners.amax(0).ceil() + margin + 1).long().tolist()
    left, top = min(max(low[0], 0), columns - 1), min(max(low[1], 0), rows - 1)
    right, bottom = max(min(high[0], columns), left + 1), max(min(high[1], rows), top + 1)
    return image[:, top:bottom, left:right], left, top

"""The named landmarks of a rendered face, and points between them all over the head's front."""

import torch
from torch import Tensor

from ornstein.faces.world.geometry import Shape, half_width, on_skin

__all__ = ["LANDMARKS", "SURFACE", "brow_line", "landmark_points"]

LANDMARKS: tuple[str, ...] = (
    "right_eye_outer",  # left and right as seen in the image
    "right_eye_inner",
    "left_eye_outer",
    "left_eye_inner",
    "nose_base",
    "nose_tip",
    "nose_bridge",
    "right_nostril",
    "left_nostril",
    "right_pupil",
    "left_pupil",
    "right_brow_outer",
    "right_brow_middle",
    "right_brow_inner",
    "left_brow_outer",
    "left_brow_middle",
    "left_brow_inner",
    "mouth_right",
    "mouth_left",
    "lip_top",
    "lip_bottom",
    "mouth_top",
    "mouth_bottom",
    "chin",
    "right_cheek",
    "left_cheek",
)

_LEVELS = ("crown", "forehead", "temple", "orbit", "zygoma", "mandible", "jaw")  # from above
_ACROSS = {"inner": 0.5, "outer": 0.85}  # of the head's half width there
SURFACE: tuple[str, ...] = (
    *(f"{side}_{level}_{place}" for level in _LEVELS for side in ("right", "left") for place in _ACROSS),
    *(f"{level}_middle" for level in _LEVELS[:3]),
)
"""Points of the skin that are no features: they tell how the head is turned and how wide it is, also under hair."""


def brow_line(face: Shape, x: Tensor) -> Tensor:
    """y of the brow's middle at |x|."""
    eye_x, eye_y, half, _ = face.eye
    t = (x - eye_x) / half
    inner, outer, arch = face.brow
    return eye_y + 0.5 * (inner + outer) + 0.42 * (outer - inner) * t + arch * (0.6 - (t - 0.25).square())


def landmark_points(face: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """The landmarks in head coordinates, (B, 1, P) each, in the order of `LANDMARKS` and then of `SURFACE`."""
    eye_x, eye_y, half, tilt = face.eye
    mouth_y, mouth_half, rise = face.mouth
    gap, (upper, lower) = face.gap, face.lips
    gx = 0.30 * half * face.does["gaze_x"]
    zero = torch.zeros_like(eye_x)
    alae, tip = face.nose[3], face.nose[2]
    corner = rise + mouth_y
    at: dict[str, tuple[Tensor, Tensor]] = {
        "nose_base": (zero, face.nose_base),
        "nose_tip": (zero, tip.y),
        "nose_bridge": (zero, eye_y),
        "lip_top": (zero, mouth_y + 0.25 * gap + upper),
        "lip_bottom": (zero, mouth_y - 0.75 * gap - lower),
        "mouth_top": (zero, mouth_y + 0.25 * gap),
        "mouth_bottom": (zero, mouth_y - 0.75 * gap),
        "chin": (zero, -0.90 * face.down),
    }
    for side, sign in (("right", 1.0), ("left", -1.0)):
        at |= {
            f"{side}_eye_outer": (sign * (eye_x + half), eye_y + tilt * half),
            f"{side}_eye_inner": (sign * (eye_x - half), eye_y - tilt * half),
            f"{side}_pupil": (
                sign * eye_x + gx,
                eye_y + half * (0.10 + 0.18 * face.does["gaze_y"]) + sign * tilt * gx,
            ),
            f"{side}_nostril": (sign * 1.5 * torch.as_tensor(alae.x), face.nose_base + 0.04),
            f"mouth_{side}": (sign * mouth_half, corner),
            f"{side}_cheek": (sign * 0.42 + zero, face.nose_base + 0.04),
        }
        for name, t in (("inner", -1.05), ("middle", 0.1), ("outer", 1.2)):
            x = eye_x + t * half
            at[f"{side}_brow_{name}"] = (sign * x, brow_line(face, x))
    heights = *(share * face.height[0].rsqrt() for share in (0.8, 0.55, 0.3)), eye_y, face.nose_base, mouth_y
    for level, y in zip(_LEVELS, (*heights, -0.78 * face.down), strict=True):
        half = half_width(face, y)
        at[f"{level}_middle"] = (zero, y)
        for place, share in _ACROSS.items():
            at |= {f"right_{level}_{place}": (share * half, y), f"left_{level}_{place}": (-share * half, y)}
    x, y = (torch.cat([at[name][i] for name in (*LANDMARKS, *SURFACE)], -1) for i in (0, 1))
    return x, y, on_skin(face, x, y)

"""Identities and attributes of rendered faces: named numbers, random by address, and their motion in a clip."""

import math

import torch
from torch import Tensor

from ornstein.randomness import normal

__all__ = ["ATTRIBUTES", "IDENTITY", "attributes", "attributes_at", "columns", "identities", "identities_at", "motion"]

IDENTITY: tuple[str, ...] = (
    "skin_tone",  # light to dark
    "skin_warmth",
    "rosiness",
    "freckles",
    "age",
    "head_width",
    "face_length",
    "jaw_width",
    "chin_width",
    "chin_height",
    "cheekbones",
    "brow_ridge",
    "ear_size",
    "eye_size",
    "eye_spacing",
    "eye_height",
    "eye_tilt",
    "eye_openness",
    "eye_depth",
    "eye_colour",  # brown, hazel, green, grey, blue
    "make_up",
    "brow_thickness",
    "brow_height",
    "brow_arch",
    "brow_darkness",
    "nose_length",
    "nose_width",
    "nose_height",
    "nose_bridge",
    "nose_tip",
    "mouth_width",
    "mouth_height",
    "upper_lip",
    "lower_lip",
    "lip_colour",
    "hair_colour",  # black, brown, red, blond
    "hair_length",  # bald, cropped, short, to the shoulders
    "hair_volume",
    "hair_curl",
    "hair_part",  # 0.5 is in the middle
    "hairline",
    "fringe",
    "beard",
    "moustache",
    "glasses",
    "glasses_shape",
)
"""Each in [0, 1]; every point of the cube is a plausible face."""

_ATTRIBUTES: dict[str, tuple[float, float, float, float]] = {
    # name: (mean, standard deviation, lowest, highest) of a random draw; angles in radians
    "yaw": (0.0, 0.28, -0.65, 0.65),  # positive: the nose moves to the right of the image
    "pitch": (0.0, 0.13, -0.35, 0.35),  # positive: the nose moves up
    "roll": (0.0, 0.10, -0.35, 0.35),  # positive: counter-clockwise in the image
    "scale": (1.0, 0.04, 0.85, 1.15),
    "shift_x": (0.0, 0.03, -0.1, 0.1),  # of the image's width
    "shift_y": (0.0, 0.02, -0.1, 0.1),  # of its height, positive: down
    "mouth_open": (0.1, 0.3, 0.0, 1.0),
    "smile": (0.3, 0.35, -0.3, 1.0),
    "eyes_closed": (0.0, 0.25, 0.0, 1.0),
    "brows_raised": (0.0, 0.4, -1.0, 1.0),
    "gaze_x": (0.0, 0.3, -1.0, 1.0),
    "gaze_y": (0.0, 0.2, -1.0, 1.0),
    "light_x": (0.0, 0.6, -1.2, 1.2),  # where the light comes from: (light_x, light_y, 1) in camera axes, y up
    "light_y": (0.5, 0.35, -0.3, 1.2),
    "light_power": (1.0, 0.15, 0.6, 1.4),
    "light_warmth": (0.0, 0.4, -1.0, 1.0),
    "ambient": (0.32, 0.08, 0.15, 0.55),
    "back_red": (0.45, 0.25, 0.02, 0.95),
    "back_green": (0.47, 0.22, 0.02, 0.95),
    "back_blue": (0.50, 0.25, 0.02, 0.95),
    "back_x": (0.0, 0.2, -0.5, 0.5),  # brightness gradient over half the image
    "back_y": (0.1, 0.2, -0.5, 0.5),
    "back_pattern": (0.0, 0.08, 0.0, 0.25),  # strength of soft stripes and blots
    "cloth_red": (0.35, 0.25, 0.02, 0.95),
    "cloth_green": (0.35, 0.22, 0.02, 0.95),
    "cloth_blue": (0.40, 0.25, 0.02, 0.95),
}
ATTRIBUTES: tuple[str, ...] = tuple(_ATTRIBUTES)

# Streams of the addressed randomness: identities, attributes, motion.
_PEOPLE, _STATES, _MOTION = 11, 12, 13
# Of what moves in a clip: standard deviation, as a multiple of that of single pictures, and period in frames.
_MOVES = {
    "yaw": (1.0, 60.0),
    "pitch": (0.8, 45.0),
    "roll": (0.7, 70.0),
    "scale": (0.4, 90.0),
    "shift_x": (0.5, 60.0),
    "shift_y": (0.5, 50.0),
    "smile": (0.6, 50.0),
    "brows_raised": (0.7, 30.0),
    "gaze_x": (0.8, 25.0),
    "gaze_y": (0.6, 35.0),
}
_SYLLABLE = 9.0  # frames
_BLINK_EVERY, _BLINK = 50.0, 3.0  # frames


def columns(rows: Tensor, names: tuple[str, ...], what: str) -> dict[str, Tensor]:
    """The named columns of (B, len(names)) as (B, 1, 1). Raises ValueError on another shape or on NaN."""
    if rows.dim() != 2 or rows.shape[1] != len(names) or not len(rows):
        raise ValueError(f"{what} must be (B, {len(names)}) with B >= 1, not {tuple(rows.shape)}")
    if not torch.isfinite(rows).all():
        raise ValueError(f"{what} must be finite numbers")
    return dict(zip(names, rows.float()[:, :, None, None].unbind(1), strict=True))


def identities(n: int, seed: int, first: int = 0) -> Tensor:
    """`n` people, float32 (n, len(IDENTITY)), uniform in [0, 1]; person i depends on (seed, first + i) alone.

    Raises:
        ValueError: n < 1 or first < 0.
    """
    return identities_at(_rows(n, first), seed)


def attributes(n: int, seed: int, first: int = 0) -> Tensor:
    """`n` states of a face, float32 (n, len(ATTRIBUTES)), in the units of `ATTRIBUTES`.

    State i depends on (seed, first + i) alone, and not on the person.

    Raises:
        ValueError: n < 1 or first < 0.
    """
    return attributes_at(_rows(n, first), seed)


def identities_at(rows: Tensor, seed: int) -> Tensor:
    """The people of the given numbers, int64 (B,)."""
    return torch.special.ndtr(_draw(rows, len(IDENTITY), seed, _PEOPLE)).float()


def attributes_at(rows: Tensor, seed: int) -> Tensor:
    """The states of the given numbers, int64 (B,)."""
    return _state(_draw(rows, len(ATTRIBUTES), seed, _STATES))


def motion(n: int, frames: int, seed: int) -> Tensor:
    """Attributes of `n` clips, float32 (n, frames, len(ATTRIBUTES)): heads turn, talk and blink; light and place stay.

    Clip i depends on (seed, i) alone, and a longer clip begins with the frames of a shorter one.

    Raises:
        ValueError: n < 1 or frames < 1.
    """
    if frames < 1:
        raise ValueError(f"a clip has at least 1 frame, not {frames}")
    clips = _rows(n, 0)
    start = _draw(clips, len(ATTRIBUTES), seed, _MOTION)
    at = torch.arange(frames, dtype=torch.float64)
    u = torch.special.ndtr(_draw(clips, 4 * len(ATTRIBUTES), seed, _MOTION + 1)).view(n, 4, -1)
    z = start[:, None].repeat(1, frames, 1)
    for name, (amount, period) in _MOVES.items():
        k = ATTRIBUTES.index(name)
        slow, fast = (2 * math.pi * at / (period * (0.7 + 0.6 * u[:, i, k, None])) for i in (0, 1))
        phase = 2 * math.pi * u[:, 2:, k, None]
        z[..., k] = 0.5 * start[:, None, k] + amount * (
            (slow + phase[:, 0]).sin() + 0.4 * (2.3 * fast + phase[:, 1]).sin()
        )
    clip = _state(z)
    talk, closed = ATTRIBUTES.index("mouth_open"), ATTRIBUTES.index("eyes_closed")
    beat = 2 * math.pi * (at / (_SYLLABLE * (0.8 + 0.4 * u[:, 0, talk, None])) + u[:, 1, talk, None])
    breath = 2 * math.pi * (at / (5.3 * _SYLLABLE) + u[:, 2, talk, None])
    clip[..., talk] = (0.55 * beat.sin().clamp(min=0) * (0.5 + breath.sin()).clamp(0, 1)).float()
    every = _BLINK_EVERY * (0.7 + 0.6 * u[:, 0, closed, None])
    since = (at + every * u[:, 1, closed, None]) % every
    clip[..., closed] = (1 - (since / _BLINK - 1).abs()).clamp(min=0).float()
    return clip


def _state(z: Tensor) -> Tensor:
    """Attributes from N(0, 1) numbers: scaled and clamped to their range, so that eyes are often open."""
    mean, deviation, low, high = torch.tensor(list(_ATTRIBUTES.values()), dtype=z.dtype).unbind(1)
    return torch.minimum(torch.maximum(mean + deviation * z, low), high).float()


def _rows(n: int, first: int) -> Tensor:
    if n < 1 or first < 0:
        raise ValueError(f"at least 1 row from row 0 on, not {n} from row {first} on")
    return torch.arange(first, first + n)


def _draw(rows: Tensor, count: int, seed: int, stream: int) -> Tensor:
    return normal((len(rows), count), seed, rows, step=0, stream=stream, dtype=torch.float64)

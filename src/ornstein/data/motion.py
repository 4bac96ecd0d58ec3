"""Synthetic clips of known motion: nothing to download, and the exact motion is available."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.data import sets
from ornstein.data.pixels import to_uint8, to_unit
from ornstein.errors import UserError
from ornstein.randomness import normal

__all__ = ["BALLS", "BALL_RADIUS", "MOTIONS", "MotionClips", "ball_motion", "digit_motion", "texture_motion"]

BALLS = 3
BALL_RADIUS = 0.11  # of the frame's side
_SUBSTEPS = 8  # of a frame, in which collisions are looked for
_DIGIT = 7 / 16  # side of a digit, of the frame's
_MODES = 24  # plane waves in a texture
_WAVELENGTHS = (6.0, 20.0)  # pixels, in a frame of 32
_CONTRAST = 0.7


@dataclass(eq=False, repr=False)
class MotionClips:
    """Clips of a bundled source, generated when they are read: clip i is a function of (source, seed, i) alone.

    "moving-digits": one of scikit-learn's 1,797 scans, enlarged, moves straight at 1 to 2.5 pixels a frame and bounces
    off the borders, at sub-pixel positions; its class is the digit.
    "bouncing-balls": three balls of one mass at 1 to 2 pixels a frame, elastic collisions with walls and one another.
    "drifting-textures": 24 plane waves of wavelength 6 to 20 pixels under tanh, drifting at 0.3 to 1.5 pixels a frame
    in a direction that turns by at most 0.1 radians a frame; `flow` is exact.

    Lengths are for a frame of 32 pixels and scale with `size`. Pixels are rounded to 8 bits, as those of a file are.
    Raises UserError for an unknown source, fewer than 1 frame or clip, a size outside 16..256 or channels not 1 or 3.
    """

    source: str
    frames: int
    size: int = 32
    channels: int = 1
    seed: int = 0
    count: int = 10_000
    indices: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def __post_init__(self) -> None:
        if self.source not in MOTIONS:
            raise UserError(f"unknown source {self.source!r}: choose one of {', '.join(MOTIONS)}")
        if self.frames < 1 or self.count < 1:
            raise UserError(f"frames and count must be at least 1, not {self.frames} and {self.count}")
        if not 16 <= self.size <= 256:
            raise UserError(f"{self.source} is made at 16 to 256 pixels a side, not {self.size}")
        if self.channels not in (1, 3):
            raise UserError(f"channels must be 1 (grey) or 3 (RGB), not {self.channels}")
        if not len(self.indices):
            self.indices = torch.arange(self.count)

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        return f"MotionClips({self.source!r}: {len(self):,} clips, {'x'.join(map(str, self.shape))}, seed {self.seed})"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(C, F, H, W) of a clip."""
        return self.channels, self.frames, self.size, self.size

    @property
    def classes(self) -> list[str]:
        """The ten digits for moving-digits; the other sources have no classes."""
        return [str(digit) for digit in range(10)] if self.source == "moving-digits" else []

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Empty: there is no file that could be damaged."""
        return []

    @property
    def rate(self) -> float | None:
        """None: generated clips have no frame rate of their own."""
        return None

    @property
    def summary(self) -> str:
        """One line: how many clips of which source."""
        return f"{len(self):,} clips of {self.source}, generated"

    def batch(self, indices: Tensor | Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """The clips at `indices`, float32 (B, C, F, H, W) in [-1, 1], and their labels int64 (B,) or None."""
        numbers = self._numbers(indices)
        clips, labels = MOTIONS[self.source](numbers, self.frames, self.size, self.seed)
        clips = to_unit(to_uint8(clips))
        return clips[:, None].expand(-1, self.channels, -1, -1, -1).contiguous(), labels

    def flow(self, indices: Tensor | Sequence[int]) -> Tensor:
        """The exact optical flow of the clips at `indices`: (B, F - 1, 2, H, W) in pixels a frame, x then y, float32.

        x_{t+1}(p + flow_t(p)) = x_t(p) at every pixel p that stays in the frame and is not covered. Digits and balls
        move before a background that stands still: the flow of a ball is that of its disc, of a digit that of its
        square.
        """
        return FLOWS[self.source](self._numbers(indices), self.frames, self.size, self.seed).float()

    def split(self, fraction: float, seed: int, every_class: bool = False) -> tuple["MotionClips", "MotionClips"]:
        """(train, held-out): `fraction` of the clips are held out, drawn at random by `seed` alone.

        `every_class` changes nothing: there are clips of each class in any number. Raises ValueError unless
        0 < fraction < 1, UserError on fewer than 2 clips.
        """
        sets.check_fraction(fraction, len(self), self.source, "clip")
        chosen = [self.indices[rows] for rows in sets.split_rows(len(self), fraction, seed)]
        settings = (self.source, self.frames, self.size, self.channels, self.seed, self.count)
        return MotionClips(*settings, chosen[0]), MotionClips(*settings, chosen[1])

    @property
    def fingerprint(self) -> str:
        """16 hex digits that tell whether two runs read the same clips: SHA-256 of settings and clip numbers."""
        settings = f"{self.source} {self.frames} {self.size} {self.channels} {self.seed}\n"
        digest = hashlib.sha256(settings.encode())
        digest.update(self.indices.numpy().astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    @property
    def names_fingerprint(self) -> str:
        """The same: generated clips have no files."""
        return self.fingerprint

    def _numbers(self, indices: Tensor | Sequence[int]) -> Tensor:
        return self.indices[torch.as_tensor(indices, dtype=torch.int64, device="cpu")]


def digit_motion(numbers: Tensor, frames: int, size: int, seed: int) -> Tensor:
    """The position of the digit's upper left corner: (B, F, 2) in pixels, x then y, float64."""
    u = _uniform(numbers, 4, seed, stream=1)
    room = size * (1 - _DIGIT)
    speed, angle = size / 32 * (1 + 1.5 * u[:, 2]), 2 * math.pi * u[:, 3]
    velocity = speed[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    straight = room * u[:, None, :2] + velocity[:, None] * torch.arange(frames)[None, :, None]
    return room - ((straight % (2 * room)) - room).abs()  # reflected at both borders


def _digits(numbers: Tensor, frames: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    scans, targets = _scans()
    chosen = (_uniform(numbers, 1, seed, stream=0)[:, 0] * len(scans)).long()
    scan = scans[chosen]
    corner = digit_motion(numbers, frames, size, seed)
    # the pixel centres in the digit's own coordinates, its borders at -1 and 1
    at = (torch.arange(size) + 0.5 - corner[..., None]) * (2 / (size * _DIGIT)) - 1  # (B, F, 2, S)
    x, y = at[:, :, 0, None, :], at[:, :, 1, :, None]
    where = torch.stack(torch.broadcast_tensors(x, y), -1).flatten(1, 2)  # (B, F S, S, 2)
    drawn = F.grid_sample(scan, where, mode="bicubic", align_corners=False).view(-1, frames, size, size)
    return 2 * drawn.clamp(0, 1) - 1, targets[chosen]


@lru_cache(maxsize=1)
def _scans() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits (1797, 1, 8, 8) in [0, 1], float64, and their classes."""
    from sklearn.datasets import load_digits  # a second to import, and only the digits need it

    scans, targets = load_digits(return_X_y=True)
    return torch.from_numpy(scans).view(-1, 1, 8, 8) / 16, torch.from_numpy(targets).long()


def ball_motion(numbers: Tensor, frames: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Centres and velocities of the balls: (B, F, BALLS, 2) each, in pixels and pixels a frame, float64."""
    u = _uniform(numbers, 9 + 4 * BALLS, seed, stream=2)
    radius, cell = BALL_RADIUS * size, size / 3
    # They start in different cells of a 3 x 3 grid, so that no two overlap.
    start = u[:, :9].argsort(1)[:, :BALLS]
    rest = u[:, 9:].view(-1, BALLS, 4)
    corner = cell * torch.stack([start % 3, start // 3], -1)
    x = corner + radius + (cell - 2 * radius) * rest[..., :2]
    speed, angle = size / 32 * (1 + rest[..., 2]), 2 * math.pi * rest[..., 3]
    v = speed[..., None] * torch.stack([angle.cos(), angle.sin()], -1)
    centres, velocities = [], []
    for _ in range(frames):
        centres.append(x)
        velocities.append(v)
        for _ in range(_SUBSTEPS):
            x = x + v / _SUBSTEPS
            outside = ((x < radius) & (v < 0)) | ((x > size - radius) & (v > 0))
            v = torch.where(outside, -v, v)
            for i in range(BALLS):
                for j in range(i):
                    v = _collide(x, v, i, j, radius)
    return torch.stack(centres, 1), torch.stack(velocities, 1)


def _collide(x: Tensor, v: Tensor, i: int, j: int, radius: float) -> Tensor:
    """Velocities after an elastic collision of balls i and j, which have one mass, if they touch."""
    apart = x[:, i] - x[:, j]
    distance = apart.norm(dim=-1, keepdim=True)
    normal_ = apart / distance
    closing = ((v[:, i] - v[:, j]) * normal_).sum(-1, keepdim=True)
    change = torch.where((distance < 2 * radius) & (closing < 0), closing, 0.0) * normal_
    after = v.clone()
    after[:, i] -= change
    after[:, j] += change
    return after


def _balls(numbers: Tensor, frames: int, size: int, seed: int) -> tuple[Tensor, None]:
    centres, _ = ball_motion(numbers, frames, size, seed)
    pixel = torch.arange(size) + 0.5
    dx, dy = (pixel - centres[..., axis, None] for axis in (0, 1))  # (B, F, BALLS, S)
    distance = (dx[..., None, :] ** 2 + dy[..., :, None] ** 2).sqrt()
    covered = (BALL_RADIUS * size + 0.5 - distance).clamp(0, 1)  # the border is a pixel wide
    return 2 * covered.amax(2) - 1, None


def texture_motion(numbers: Tensor, frames: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Displacement (B, F, 2) of a texture since its first frame, and its steps (B, F - 1, 2): pixels, x, y, float64."""
    u = _uniform(numbers, 3, seed, stream=3)
    speed = size / 32 * (0.3 + 1.2 * u[:, 0, None])
    angle = 2 * math.pi * u[:, 1, None] + 0.2 * (u[:, 2, None] - 0.5) * torch.arange(frames - 1)
    steps = speed[..., None] * torch.stack([angle.cos(), angle.sin()], -1)
    return torch.cat([torch.zeros(len(numbers), 1, 2, dtype=torch.float64), steps.cumsum(1)], 1), steps


def _textures(numbers: Tensor, frames: int, size: int, seed: int) -> tuple[Tensor, None]:
    u = _uniform(numbers, 3 * _MODES, seed, stream=4).view(-1, 3, _MODES)
    low, high = (2 * math.pi * 32 / size / length for length in reversed(_WAVELENGTHS))
    wave, angle, phase = low + (high - low) * u[:, 0], 2 * math.pi * u[:, 1], 2 * math.pi * u[:, 2]
    k = wave[:, None] * torch.stack([angle.cos(), angle.sin()], 1)  # (B, 2, K), radians a pixel
    displacement, _ = texture_motion(numbers, frames, size, seed)
    pixel = torch.arange(size, dtype=torch.float64)
    across = k[:, 0, :, None] * pixel  # (B, K, W)
    # cos(a + b) as a product of matrices: rows are (frame, y), columns x
    down = k[:, None, 1, None] * pixel[:, None] + (phase[:, None] - displacement @ k)[:, :, None]  # (B, F, H, K)
    down = down.flatten(1, 2)
    field_ = down.cos() @ across.cos() - down.sin() @ across.sin()
    return torch.tanh(_CONTRAST * math.sqrt(2 / _MODES) * field_).view(-1, frames, size, size), None


def _uniform(numbers: Tensor, count: int, seed: int, stream: int) -> Tensor:
    """Uniform numbers in [0, 1), (B, count) float64, row b addressed by (seed, stream, numbers[b])."""
    z = normal((len(numbers), count), seed, numbers, step=0, stream=stream, dtype=torch.float64)
    return torch.special.ndtr(z).clamp(max=1 - 2**-53)


MOTIONS = {"moving-digits": _digits, "bouncing-balls": _balls, "drifting-textures": _textures}


def _texture_flow(numbers: Tensor, frames: int, size: int, seed: int) -> Tensor:
    _, velocity = texture_motion(numbers, frames, size, seed)
    return velocity[..., None, None].expand(-1, -1, -1, size, size)


def _digit_flow(numbers: Tensor, frames: int, size: int, seed: int) -> Tensor:
    corner = digit_motion(numbers, frames, size, seed)
    pixel = torch.arange(size) + 0.5 - corner[:, :-1, :, None]
    within = (pixel > 0) & (pixel < size * _DIGIT)  # (B, F - 1, 2, S)
    inside = within[:, :, 0, None, :] & within[:, :, 1, :, None]
    return torch.where(inside[:, :, None], corner.diff(dim=1)[..., None, None], 0.0)


def _ball_flow(numbers: Tensor, frames: int, size: int, seed: int) -> Tensor:
    centres, _ = ball_motion(numbers, frames, size, seed)
    pixel = torch.arange(size) + 0.5
    dx, dy = (pixel - centres[:, :-1, :, axis, None] for axis in (0, 1))  # (B, F - 1, BALLS, S)
    distance = (dx[..., None, :] ** 2 + dy[..., :, None] ** 2).sqrt()
    nearest, which = distance.min(2)  # (B, F - 1, S, S)
    steps = centres.diff(dim=1).movedim(3, 2)  # (B, F - 1, 2, BALLS)
    chosen = steps.gather(3, which.flatten(2)[:, :, None].expand(-1, -1, 2, -1)).unflatten(3, (size, size))
    return torch.where((nearest < BALL_RADIUS * size + 0.5)[:, :, None], chosen, 0.0)


FLOWS = {"moving-digits": _digit_flow, "bouncing-balls": _ball_flow, "drifting-textures": _texture_flow}

"""The noise that each frame's face is made of: independent, the same in all frames, or correlated between frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ornstein.faces.settings import parse_noise
from ornstein.noise import AR1
from ornstein.randomness import normal

__all__ = ["FaceNoise"]

_STREAM = 7  # of the addresses: apart from the solver's own draws


class FaceNoise:
    """White noise (3, S, S) for the successive frames of each track.

    e_k = rho e_{k-1} + sqrt(1 - rho^2) z_k (E5) with z addressed by (seed, track, frame); "shared" is one draw a track.

    Args:
        kind: "independent", "shared" or "ar1:RHO".
        seed: of the draws.

    Raises:
        UserError: another kind.
    """

    def __init__(self, kind: str, seed: int) -> None:
        self.name, self.rho = parse_noise(kind)
        self.seed = seed

    def __call__(self, track: int, frames: Sequence[int], size: int, before: Tensor | None) -> Tensor:
        """The noise (F, 3, S, S) of consecutive frames of a track.

        before: (3, S, S), the noise of the frame before the first one; None if the track begins here.
        """
        shape = (len(frames), 3, size, size)
        if self.name == "shared":
            return normal((1, *shape[1:]), self.seed, torch.tensor([0]), track, _STREAM).expand(shape)
        z = normal(shape, self.seed, torch.tensor(list(frames)), track, _STREAM)
        if self.name == "independent":
            return z
        steps = z if before is None else torch.cat([before[None], z])
        coloured = AR1(len(steps), self.rho).color(steps.transpose(0, 1)[None])[0].transpose(0, 1)
        return coloured[len(steps) - len(z) :]

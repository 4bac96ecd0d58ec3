"""The noise that each frame's face is made of: its own, the same in all frames, or correlated from one to the next."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ornstein.errors import UserError
from ornstein.noise import AR1
from ornstein.randomness import normal

INDEPENDENT, SHARED, CORRELATED = "independent", "shared", "ar1"
_STREAM = 7  # of the addresses: apart from the solver's own draws


class FaceNoise:
    """White noise (3, S, S) for face after face of each track, correlated over its frames as `kind` says.

    kind: "independent"; "shared", one draw a track; or "ar1:RHO", e_k = rho e_{k-1} + sqrt(1 - rho^2) z_k (E5). z is
    addressed by (seed, track, frame). Raises UserError on another kind.
    """

    def __init__(self, kind: str, seed: int) -> None:
        name, _, number = kind.partition(":")
        if name == CORRELATED:
            try:
                self.rho = float(number)
            except ValueError:
                self.rho = 2.0
            if not 0 <= self.rho < 1:
                raise UserError(f"noise {kind!r}: write ar1:RHO with 0 <= RHO < 1, for example ar1:0.9")
        elif kind not in (INDEPENDENT, SHARED):
            raise UserError(f"noise {kind!r} is none of {INDEPENDENT}, {SHARED}, ar1:RHO")
        self.name, self.seed = name, seed

    def __call__(self, track: int, frames: Sequence[int], size: int, before: Tensor | None) -> Tensor:
        """The noise (F, 3, S, S) of consecutive frames of a track; `before` (3, S, S) is the frame's before the first.

        `before` is None where the track begins.
        """
        shape = (len(frames), 3, size, size)
        if self.name == SHARED:
            return normal((1, *shape[1:]), self.seed, torch.tensor([0]), track, _STREAM).expand(shape)
        z = normal(shape, self.seed, torch.tensor(list(frames)), track, _STREAM)
        if self.name == INDEPENDENT:
            return z
        steps = z if before is None else torch.cat([before[None], z])
        coloured = AR1(len(steps), self.rho).color(steps.transpose(0, 1)[None])[0].transpose(0, 1)
        return coloured[len(steps) - len(z) :]

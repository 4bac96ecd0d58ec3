"""The coordinates in which the error of a denoiser is squared: pixels, R^-1, or the modes of C (E14)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ornstein.errors import UserError
from ornstein.noise import Carried, Covariance, FrameCovariance, Identity, SingularCovarianceError, Warped
from ornstein.noise.frames import frame_axis
from ornstein.training.config import LOSS_SPACES

__all__ = ["LossSpace", "check_inverse"]

_PIXEL, _WHITENED, _LEARNED = LOSS_SPACES
# The others are bounds, in the norm of C^-1 already, or have weights of their own.
_OBJECTIVES = (None, "simple")
_BINS = 8  # of the times
_DECAY = 0.99  # of the mean squares, a step
_MODE = "mode "  # figures of the mean squares


class LossSpace:
    """The mean square of an error e (B, *), by the text of --loss-space.

    "pixel": ||e||^2/N. "whitened": ||R^-1 e||^2/N, which for the error of eps is ||z - z_hat||^2/N (E14). A number b
    blends them, (1 - b) ||e||^2/N + b ||R^-1 e||^2/N. With C = V diag(l) V^T these weigh the square of mode k by 1,
    1/l_k and 1 - b + b/l_k. "learned" weighs it by 1/L_k(t), L_k the mean square of mode k so far at times about t:
    the loss sum_k (|e_k|^2 e^-u_k + u_k) of Karras et al. 2024 (arXiv:2312.02696, eq. 21) at its best u_k = log L_k,
    in closed form. Every mode at every noise level then has the same loss, 1.

    Args:
        text: of --loss-space.
        objective: name of the objective, or None.
        noise: C of the process.

    Raises:
        UserError: the text is none of these; it does not go with the objective or the noise.
    """

    def __init__(self, text: str, objective: str | None, noise: Covariance) -> None:
        self.noise = noise
        self.share = {_PIXEL: 0.0, _WHITENED: 1.0, _LEARNED: 0.0}.get(text, math.nan)
        if math.isnan(self.share):
            self.share = _number(text)
        self.square: Tensor | None = None
        self.count = torch.zeros(_BINS, dtype=torch.int64)
        if text == _PIXEL:
            return
        if objective not in _OBJECTIVES:
            raise UserError(f"--loss-space {text} is for the objective simple, or none given, not {objective}")
        if isinstance(noise, Identity):
            raise UserError(f"--loss-space {text} does nothing with white noise: give --noise too, or leave it out")
        if text == _LEARNED:
            if not isinstance(noise, FrameCovariance):
                raise UserError(f"--loss-space {text} takes the modes of a covariance over frames, not {noise}")
            self.square = torch.ones(_BINS, noise.length, dtype=torch.float64)
        elif self.share:
            check_inverse(noise, f"--loss-space {text}")

    @property
    def learns(self) -> bool:
        """Whether the weights are learned."""
        return self.square is not None

    def norm(self, error: Tensor, t: Tensor) -> Tensor:
        """The mean square of the error (B, *) at the times (B,), (B,)."""
        if self.square is not None:
            weight = 1 / self.square[_bins(t).cpu()].to(error)
            return (weight * self._modes(error)).mean(1)
        total = error.new_zeros(len(error))
        if self.share < 1:
            total = total + (1 - self.share) * error.flatten(1).square().mean(1)
        if self.share:
            total = total + self.share * self.noise.mahalanobis(error) / math.prod(error.shape[1:])
        return total

    def figures(self, error: Tensor, t: Tensor) -> dict[str, Tensor]:
        """What `learn` needs of the errors (B, *) at the times (B,): sums over parts of a batch are of the whole."""
        bins = _bins(t).to(error.device)
        modes = self._modes(error.detach().float())
        sums = modes.new_zeros(_BINS, modes.shape[1]).index_add_(0, bins, modes)
        counts = modes.new_zeros(_BINS).index_add_(0, bins, torch.ones_like(modes[:, 0]))
        of_modes = {f"{_MODE}{i} {k}": each for i, row in enumerate(sums.unbind()) for k, each in enumerate(row)}
        return of_modes | {f"{_MODE}{i} count": each for i, each in enumerate(counts)} | {"pixel": modes.mean()}

    def learn(self, figures: Mapping[str, float], pieces: int) -> dict[str, float]:
        """Learn from the figures of a step, means over so many pieces of the batch; returns the figures to log."""
        if self.square is not None:
            for i in range(_BINS):
                count = round(figures[f"{_MODE}{i} count"] * pieces)
                if count:
                    row = [figures[f"{_MODE}{i} {k}"] * pieces / count for k in range(self.square.shape[1])]
                    keep = min(_DECAY, 1 - 1 / (1 + float(self.count[i]))) if self.count[i] else 0.0
                    fresh = torch.tensor(row, dtype=torch.float64).clamp(min=1e-12)
                    self.square[i] = keep * self.square[i] + (1 - keep) * fresh
                    self.count[i] += 1
        return {name: value for name, value in figures.items() if not name.startswith(_MODE)}

    def to_state(self) -> dict[str, Any] | None:
        """What was learned, in JSON types; None if there is nothing to learn."""
        return None if self.square is None else {"square": self.square.tolist(), "count": self.count.tolist()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `to_state` gave."""
        self.square = torch.tensor(state["square"], dtype=torch.float64)
        self.count = torch.tensor(state["count"], dtype=torch.int64)

    def _modes(self, error: Tensor) -> Tensor:
        """The mean squares (B, L) of the error in the modes of C over frames."""
        assert isinstance(self.noise, FrameCovariance)
        axis = frame_axis(error.shape[1:]) + 1
        rows = error.movedim(axis, -1)
        modes = rows @ self.noise.eigenvectors.to(error)
        return modes.square().flatten(1, -2).mean(1) if modes.ndim > 2 else modes.square()


def check_inverse(noise: Covariance, what: str) -> None:
    """Raise UserError if the noise has no R^-1."""
    if isinstance(noise, Carried):
        raise UserError(f"{what} whitens by one R^-1, and noise that is carried by motion has one of each clip")
    if getattr(noise, "singular", False) or (isinstance(noise, Warped) and not noise.degrade):
        raise UserError(f"{what} needs R^-1: {SingularCovarianceError(noise)}")


def _number(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise UserError(f"--loss-space {text!r}: {', '.join(LOSS_SPACES)}, or a share of whitened between 0 and 1")
    return share


def _bins(t: Tensor) -> Tensor:
    return (t.double() * _BINS).long().clamp(max=_BINS - 1)

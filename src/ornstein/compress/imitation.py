"""Fine-tuning of a small model on the predictions of a large one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ornstein.denoiser import Denoiser

__all__ = ["Imitation"]


class Imitation:
    """The objective f(d, x0, t, z, **cond) -> (B,): the squared difference from the teacher's output at the same x_t.

    The target is not the noise of this sample but the teacher's estimate of its mean: the same minimum with a fraction
    of the variance. A learned variance is imitated too. Of a distilled model the times are those that it was trained
    for: each t becomes the nearest of them.

    Args:
        teacher: the large model. It is left as it is.
        precision: in which its network computes; None for its own.
    """

    def __init__(self, teacher: Denoiser, precision: torch.dtype | None = None) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.teacher.precision = precision
        own = teacher.distilled
        self.times = None if own is None else torch.tensor(own.times[:-1], dtype=torch.float32)

    def __call__(self, model: Denoiser, x0: Tensor, t: Tensor, z: Tensor, **cond: Any) -> Tensor:
        if self.times is not None:
            nearest = (self.times[:, None] - t.float().cpu()).abs().argmin(0)
            t = self.times[nearest].to(t.device)
        with torch.no_grad():
            truth = self.teacher(model.process.add_noise(x0, t, z), t, **cond)
        if truth.variance_mix is None:
            return model.error(truth, **cond)
        mix = model(truth.x_t, t, **cond).variance_mix
        assert mix is not None
        return model.error(truth, **cond) + (mix - truth.variance_mix).flatten(1).square().mean(1)

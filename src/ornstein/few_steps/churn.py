"""How much fresh noise a stochastic solver of few steps should add, for one model: its churn, tuned.

The SDE of every tau has the marginals of the process (`solvers.multistep`), so that with an exact denoiser and many
steps tau changes nothing. Of a network and in few steps it does: fresh noise contracts the errors made before it, and
every noisy step makes larger ones of its own. Which of the two is more is measured: by an unbiased distance of samples
from training images, between the same starts and the same noise, so that differences are far better known than levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ornstein.denoiser import Denoiser
from ornstein.few_steps.matching import KernelDistance
from ornstein.request import SampleRequest
from ornstein.sampling import draw

__all__ = ["SOLVER", "Churn", "difference", "nearest_churn", "tune_churn"]

SOLVER = "sa-3m"
"""The solver whose tau is tuned; with tau = 0 it is "unipc"."""

_TAUS = (0.0, 0.25, 0.5, 0.75, 1.0)
_HALVINGS = 1  # of the distance between neighbours, around the best so far
_ERRORS = 2.0  # standard errors that a gain on fresh noise must have
_FIRST = 1 << 25  # the number of the first sample: none that a user makes, or that `choice.choose` follows
_FAR = 1.5  # a tau serves numbers of steps up to so many times its own


@dataclass(frozen=True)
class Churn:
    """The tau of `sa-3m` for so many steps and a guidance scale; 0, the ODE, where no other was better.

    Attributes:
        steps, guidance: what it was tuned for.
        tau: the amount of fresh noise.
        gain, error: how much nearer its samples are to the images than those of tau = 0, on noise that the search has
            not seen, with the standard error over samples: a squared kernel distance. Of tau = 0: what the best other
            tau had.
    """

    steps: int
    guidance: float
    tau: float
    gain: float
    error: float

    @property
    def solver(self) -> str:
        """The solver, as `sample` takes it."""
        return f"{SOLVER}:{self.tau:g}"

    def to_config(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Churn:
        """What `to_config` described. Raises ValueError if the dict does not describe one."""
        try:
            steps, numbers = config["steps"], [float(config[k]) for k in ("guidance", "tau", "gain", "error")]
        except (KeyError, TypeError, ValueError) as e:
            raise ValueError(f"no churn: {e!r} is missing or wrong") from e
        if type(steps) is not int or steps < 1 or not all(map(math.isfinite, numbers)) or numbers[1] < 0:
            raise ValueError(f"no churn: {config}")
        return cls(steps, *numbers)


def nearest_churn(found: Sequence[Churn], steps: int, guidance: float) -> Churn | None:
    """What was tuned for this guidance and the nearest number of steps; None if that is more than 1.5 times off."""

    def far(churn: Churn) -> float:
        return max(churn.steps, steps) / min(churn.steps, steps)

    serving = [c for c in found if c.guidance == guidance and far(c) <= _FAR]
    return min(serving, key=far, default=None)


def tune_churn(
    model: Denoiser,
    distance: KernelDistance,
    steps: int,
    guidance: float = 1.0,
    count: int = 512,
    batch: int | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Churn:
    """The tau in [0, 1] whose samples are nearest to the images of `distance`, or 0 if it is not surely better.

    The best of five values, then of the two beside it at half their spacing, all on the same starts and noise. Of the
    best and of 0 other samples are made, from noise that the search has not seen; tau = 0 is kept unless the best gains
    more than two of the standard errors of their difference.

    Args:
        model: with a sample spec; in evaluation mode.
        distance: of samples from images, as the model makes them.
        steps: of the solver, on the default time schedule.
        guidance: scale of classifier-free guidance.
        count: samples of each set.
        batch: samples that go through the network at once.
        progress: called with the sets made and their number.

    Raises:
        ValueError: the model has no sample spec, fewer than three samples, or steps < 1.
    """
    if model.data is None:
        raise ValueError("the model has no sample spec (data), so the shape of its samples is unknown")
    if count < 3:
        raise ValueError(f"the standard error of a difference needs three samples or more, got {count}")
    shape, labels = (count, *model.data.shape), model.data.labels(count)
    sets, total = 0, len(_TAUS) + 2 * _HALVINGS + 2

    def shares(tau: float, first: int) -> Tensor:
        nonlocal sets
        solver = f"{SOLVER}:{tau:g}"
        request = SampleRequest(solver=solver, steps=steps, guidance=guidance, batch=batch, first=first)
        x = draw(model, shape, request, {} if labels is None else {"label": labels})
        with torch.no_grad():
            found = distance.shares(x)
        sets += 1
        progress(sets, total)
        return found

    means = {tau: float(shares(tau, _FIRST).mean()) for tau in _TAUS}
    spacing = _TAUS[1]
    for _ in range(_HALVINGS):
        spacing /= 2
        best = min(means, key=lambda tau: means[tau])
        for tau in (best - spacing, best + spacing):
            if 0 <= tau <= _TAUS[-1]:
                means[tau] = float(shares(tau, _FIRST).mean())
    best = min((tau for tau in means if tau), key=lambda tau: means[tau])
    gain, error = difference(shares(0.0, _FIRST + count), shares(best, _FIRST + count))
    progress(total, total)
    better = means[best] < means[0.0] and gain > _ERRORS * error
    return Churn(steps, guidance, best if better else 0.0, gain, error)


def difference(a: Tensor, b: Tensor) -> tuple[float, float]:
    """The distance of one set of samples less that of another, from their shares (B,), and its standard error.

    The error is the jackknife's, for samples that belong together one by one (the same start, the same noise). It is
    that over samples: the images are the same for both.
    """
    off, n = (a - b).double(), len(a)
    # without sample i the difference of the U-statistics is (n mean - 2 off_i)/(n - 2)
    spread = float((off - off.mean()).square().sum())
    return float(off.mean()), 2 / (n - 2) * math.sqrt((n - 1) / n * spread)
